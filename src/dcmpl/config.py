"""Configuration of models and training, as frozen dataclasses that the command line reads.

``help`` in a field's metadata is the one place where the field is explained.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from dcmpl.errors import UsageError
from dcmpl.files import as_json

__all__ = [
    "COLUMNS",
    "PROTOCOLS",
    "RECIPES",
    "TARGETS",
    "AdapterConfig",
    "FusionConfig",
    "ModelConfig",
    "MpaConfig",
    "TrainConfig",
    "WatchConfig",
    "WordPairs",
    "check_views",
    "recipe_for",
    "set_fields",
    "target_of",
]


TARGETS = ("quality", "alignment", "authenticity")
"""What people are mostly asked of an image; scores and opinions have these names everywhere.

A table of one's own may have others: a column ``mos_NAME`` makes NAME a target.
"""

_OF_TARGET = re.compile(r"(mos|std)_([a-z][a-z0-9_]{0,31})")
_TAKEN = re.compile(
    r"image|name|prompt|generator|group|part|status|reason|note|index|more|rank|call"
    r"|better_than_next|tokens_dropped|to_dataframe|.*_(mos|low|high|label|spread|percentile"
    r"|percentile_against|weight)|(mos|std|opinion)_.*"
)
"""What rows and tables use for something else."""


def target_of(column: str, kinds: tuple[str, ...] = ("mos", "std")) -> str | None:
    """Target of an opinion column (``mos_NAME`` or ``std_NAME``); None for other columns.

    >>> target_of("mos_realism"), target_of("mos_prompt"), target_of("rating")
    ('realism', None, None)
    """
    found = _OF_TARGET.fullmatch(column)
    if found is None or found[1] not in kinds or _TAKEN.fullmatch(found[2]):
        return None
    return found[2]


COLUMNS = (
    *("image", "prompt", "generator", "group", "part"),
    *(f"{kind}_{target}" for kind in ("mos", "std") for target in TARGETS),
)
"""Columns of a table of one's own; ``image``, ``prompt`` and one MOS are needed."""

PROTOCOLS = (
    "clean",
    "clean-folds",
    "clip-agiqa",
    "image-level",
    "official",
    "official-disjoint",
)
"""Ways to deal images out; ``dcmpl.data.splits`` says what they do."""


def option(default: Any, text: str) -> Any:
    """A dataclass field with its explanation."""
    return field(default=default, metadata={"help": text})


WordPairs = tuple[tuple[str, str], ...]
"""The two ends of a score, positive first; the score is the mean over several pairs."""

WORDS: dict[str, WordPairs] = {
    "quality": (("good photo", "bad photo"),),
    "alignment": (("aligned photo", "misaligned photo"),),
    "authenticity": (("authentic photo", "unnatural photo"),),
}
"""The pairs of every task; those of quality and alignment are CLIP-AGIQA's."""

CLIP_AGIQA_WORDS = {task: WORDS[task] for task in ("quality", "alignment")}


@dataclass(frozen=True)
class MpaConfig:
    """Multimodal prompt attention: the auxiliary prompts of a layer make those of the next."""

    form: Literal["cmpa", "cmpa_no_mlp", "swapped_query", "joint", "none"] = option(
        "cmpa",
        "the block: CMPA's, without its MLPs, with query and keys swapped, one "
        "self-attention over both, or none (free prompts in every layer)",
    )
    share: Literal["shared", "per_layer"] = option("shared", "one block for all layers, or each")
    deep: Literal["generated", "generated_plus_free", "independent"] = option(
        "generated",
        "prompts behind layer 1: made from the last, with free ones added, or made "
        "from free ones of their own",
    )
    depth: int | None = option(None, "layers with prompts; none: all")
    identity_start: bool = option(False, "begin as the identity: output projections at zero")
    directions: Literal["both", "text_to_vision", "vision_to_text"] = option(
        "both", "which prompts it changes"
    )


@dataclass(frozen=True)
class FusionConfig:
    """Layers F: the main visual prompts, guided by the auxiliary ones."""

    on: bool = option(True, "whether there are fusion layers")
    depth: int | None = option(None, "layers with fusion; none: all")
    aux_tap: Literal["same_layer", "first_layer"] = option(
        "same_layer", "which auxiliary prompt layer l is given"
    )
    clone_start: bool = option(True, "all fusion layers start equal")
    detach_aux: bool = option(False, "keep the main loss away from the auxiliary prompts")


@dataclass(frozen=True)
class AdapterConfig:
    """The image adapter."""

    where: Literal["both", "main", "aux", "none"] = option("both", "tasks that have one")
    shared: bool = option(False, "one adapter for both tasks")
    ratio: float = option(0.2, "share of the adapter in the image embedding, 0 to 1")
    learnable_ratio: bool = option(False, "learn the ratio, one number per adapter")
    reduction: int = option(4, "its bottleneck is 1/this of the joint width")
    final_relu: bool = option(True, "ReLU behind its second layer")
    reads_summary: bool = option(
        True,
        "it reads what the stem summarises the image by beside the image embedding, where a "
        "stem has such a summary; CLIP's has none",
    )


@dataclass(frozen=True)
class ModelConfig:
    """DCMPL's own sizes and forms; the sizes of the towers are read from the backbone.

    The first task is the main one; the others share the auxiliary prompts. A field that
    nothing reads must keep its default.
    """

    words: dict[str, WordPairs] = field(
        default_factory=lambda: dict(CLIP_AGIQA_WORDS),
        metadata={"help": "tasks, the main one first, each with its pairs of words"},
    )
    readout: Literal["words", "linear"] = option("words", "word pairs, or a linear map")
    n_context: int = option(8, "prompt tokens in every block of both towers")
    text_depth: int | None = option(None, "layers with free text prompts; none: all")
    vision_depth: int | None = option(None, "layers with free visual prompts; none: all")
    vision_source: Literal["free", "text"] = option(
        "free", "visual prompts are free, or a linear map of the text prompts (MaPLe)"
    )
    normalization: Literal["imagenet", "clip"] = option(
        "imagenet", "mean and deviation that images are normalised with"
    )
    round_prompts: bool = option(False, "round prompts through float16, as CLIP-AGIQA does")
    reads_prompt: bool = option(
        False,
        "alignment reads the image's own prompt; otherwise, as in the paper, it is judged from "
        "the image alone",
    )
    mpa: MpaConfig = field(default_factory=MpaConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the scored tasks, the main task first."""
        return tuple(self.words)

    @property
    def has_visual_prompts(self) -> bool:
        """Whether learned prompts enter the image tower."""
        coupled = len(self.words) > 1 and self.mpa.form != "none"
        return self.vision_depth != 0 or coupled

    @property
    def frozen_part(self) -> Literal["tokens", "embedding"]:
        """Fixed part of the image tower: up to the first block, or all."""
        return "tokens" if self.has_visual_prompts else "embedding"

    def __post_init__(self) -> None:
        check_choices(self)
        wrong = [task for task in self.words if target_of(f"mos_{task}") is None]
        if not self.words or wrong:
            raise UsageError(
                f"tasks in words, {', '.join(WORDS)} or others of small letters, digits and _ "
                "that name nothing else in tables of scores",
                ", ".join(wrong) or "none",
            )
        if not all(
            pairs and all(len(pair) == 2 for pair in pairs) for pairs in self.words.values()
        ):
            raise UsageError("pairs of a positive and a negative word for every task", self.words)
        _check_count("n_context", self.n_context, 1, 4096)
        _check_count("adapter.reduction", self.adapter.reduction, 1, 4096)
        _check_count("text_depth", self.text_depth, 0)
        _check_count("vision_depth", self.vision_depth, 0)
        _check_count("mpa.depth", self.mpa.depth, 1)
        _check_count("fusion.depth", self.fusion.depth, 1)
        if type(self.adapter.ratio) is bool or not 0 <= self.adapter.ratio <= 1:
            raise UsageError("adapter.ratio from 0 to 1", self.adapter.ratio)
        self._check_used()

    def _check_used(self) -> None:
        """Refuse a field that is set but never read; raises :class:`UsageError`."""
        alone, no_mpa = len(self.words) == 1, self.mpa.form == "none"
        no_prompts = no_mpa and self.text_depth == 0 and self.vision_depth == 0
        only_first_text = no_mpa and self.vision_depth == 0 and self.text_depth in (0, 1)
        no_text_or_visual = self.text_depth == 0 or self.vision_depth == 0
        linear, where = self.readout == "linear", self.adapter.where
        mpa, fusion, adapter = self.mpa, self.fusion, self.adapter
        unread = {
            "words": linear and any(WORDS.get(t, w) != w for t, w in self.words.items()),
            "mpa.directions": mpa.form == "joint" and mpa.directions != "both",
            "adapter.shared": adapter.shared and (alone or where != "both"),
            "adapter.where": (where == "aux" and alone) or (where != "none" and linear),
            "n_context": self.n_context != 8 and no_prompts,
            "vision_source": self.vision_source == "text" and no_text_or_visual,
            "text_depth": linear and not no_prompts,
            "round_prompts": self.round_prompts and only_first_text,
            "reads_prompt": self.reads_prompt and (linear or "alignment" not in self.words),
        }
        sections = (
            ("mpa", alone or no_mpa, mpa, MpaConfig(form="none")),
            ("mpa", mpa.depth == 1, mpa, MpaConfig(depth=1)),
            (
                "fusion",
                alone or not fusion.on or self.vision_depth == 0,
                fusion,
                FusionConfig(on=False),
            ),
            (
                "fusion",
                fusion.depth == 1,
                fusion,
                FusionConfig(depth=1, detach_aux=fusion.detach_aux),
            ),
            ("adapter", where == "none", adapter, AdapterConfig(where="none")),
            (
                "adapter",
                adapter.ratio == 0 and not adapter.learnable_ratio,
                adapter,
                AdapterConfig(where=where, ratio=0.0),
            ),
        )
        unused = [name for name, unread_here in unread.items() if unread_here]
        for section, off, config, plain in sections:
            unused += _changed(section, config, plain) if off else []
        unused = list(dict.fromkeys(unused))
        if unused:
            wanted, hint = "only fields that this model reads", "leave them at their defaults"
            raise UsageError(wanted, ", ".join(unused), hint)


def check_choices(config: Any, prefix: str = "") -> None:
    """Types and literals of all fields, also of those below; records of runs are untrusted."""
    for name, kind in get_type_hints(type(config)).items():
        value, where = getattr(config, name), f"{prefix}{name}"
        if is_dataclass(value):
            check_choices(value, f"{where}.")
        elif get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise UsageError(f"{where} of {', '.join(get_args(kind))}", f"{value!r}")
        elif kind is bool and not isinstance(value, bool):
            raise UsageError(f"{where} to be true or false", f"{value!r}")


def _check_count(name: str, value: int | None, low: int, high: int = 1000) -> None:
    if value is not None and (type(value) is not int or not low <= value <= high):
        raise UsageError(f"{name} from {low} to {high}", f"{value!r}")


def _changed(section: str, config: Any, plain: Any) -> list[str]:
    """Fields of ``config`` that differ from ``plain``."""
    names = (f.name for f in fields(config))
    return [f"{section}.{n}" for n in names if getattr(config, n) != getattr(plain, n)]


def check_views(views: str) -> str:
    """``views`` itself where it is valid; raises :class:`UsageError` where not."""
    named = ("windows", "paper-windows", "center", "tiles", "resize")
    if views not in named and not re.fullmatch(r"grid-[1-9]\d?", views):
        raise UsageError(
            "views to be windows, paper-windows, center, tiles, resize or grid-N (N x N windows)",
            f"{views!r}",
        )
    return views


def check_recorded_views(views: str, version: str) -> None:
    """Check that the views of a record are those of today; raises :class:`UsageError`.

    ``windows`` of versions before 0.2 ended before the edges, as ``paper-windows`` do now.
    """
    if views == "windows" and re.match(r"0\.[01](\.|$)", version):
        raise UsageError(
            "windows that reach the edges",
            f"those of dcmpl {version}, which end before them",
            "train the model anew",
        )


@dataclass(frozen=True)
class TrainConfig:
    """Training recipe; the defaults are the paper's, but that ``views`` reach the edges."""

    epochs: int = option(50, "passes over the training images, at most")
    batch_size: int = option(64, "windows per step")
    lr: float = option(1e-4, "learning rate of Adam")
    schedule: Literal["constant", "cosine"] = option("constant", "learning rate over time")
    windows: Literal["auto", "random", "drawn", "views"] = option(
        "auto",
        "windows to train on: random, anew in every epoch; drawn once, or those of the views, "
        "whose frozen part is computed once; auto: the views where nothing visual is learned, "
        "random else",
    )
    draws: int = option(8, "windows of each image that are drawn once")
    coats: bool = option(
        False, "cut random and drawn windows from the image in another size and file format"
    )
    crops: int = option(1, "windows of each image per epoch")
    alignment_weight: float = option(0.1, "weight of the alignment loss beside quality's 1")
    mismatch_weight: float = option(
        0.005,
        "weight of telling an image's own prompt from all others of a batch, where alignment "
        "reads it",
    )
    adapter_dropout: float = option(
        0.0, "share of the image adapters' bottleneck that a training step leaves out"
    )
    missing_alignment: Literal["none", "quality", "clip_similarity"] = option(
        "none",
        "what stands in for alignment that nobody judged: nothing, the opinion on quality, "
        "or the frozen CLIP's similarity of image and prompt",
    )
    patience: int | None = option(15, "stop after this many epochs without a better validation")
    views: str = option(
        "windows",
        "views whose scores are averaged: windows, paper-windows, center, tiles, resize, grid-N",
    )
    precision: Literal["fp32", "bf16"] = option(
        "fp32", "number format of the towers; bf16 is fp32 where the device has no units for it"
    )
    seed: int = option(0, "seed of split, initial prompts, crops and order")

    def __post_init__(self) -> None:
        check_views(self.views)
        check_choices(self)
        for name, low in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UsageError(f"{name} of at least {low}", value)
            if value is not None and value > MOST.get(name, MOST_COUNT):
                raise UsageError(f"{name} of at most {MOST.get(name, MOST_COUNT)}", f"{value:.3g}")
        if not 0 <= self.adapter_dropout < 1:
            raise UsageError("an adapter_dropout from 0 to below 1", self.adapter_dropout)
        weights = self.alignment_weight, self.mismatch_weight
        if not 0 < self.lr <= MOST_RATE or not all(0 <= w <= MOST_RATE for w in weights):
            raise UsageError(
                f"a positive lr, an alignment_weight and a mismatch_weight of at least 0, none "
                f"above {MOST_RATE:g}",
                f"{self.lr}, {weights[0]} and {weights[1]}",
            )


@dataclass(frozen=True)
class WatchConfig:
    """How a training is watched: set like its recipe, but no part of what a run is."""

    tracker: Literal["none", "tensorboard", "wandb", "mlflow"] = option(
        "none", "what dcmpl train logs to, beside the record of the run"
    )

    def __post_init__(self) -> None:
        check_choices(self)


LEAST = {"epochs": 1, "batch_size": 1, "crops": 1, "draws": 1, "patience": 1, "seed": 0}
MOST, MOST_COUNT, MOST_RATE = {"seed": 2**32 - 1}, 10**6, 1000.0
"""Ends of the numbers of a recipe: what lies beyond is a slip of the hand."""

MOST_WORKERS = 1024
"""Threads that decode and compute; each has a core of its own to gain from."""

RECIPES: dict[str, TrainConfig] = {
    "paper": TrainConfig(),
    "small": TrainConfig(
        epochs=8,
        lr=2e-3,
        schedule="cosine",
        windows="drawn",
        draws=4,
        coats=True,
        alignment_weight=0.5,
        adapter_dropout=0.5,
        patience=None,
        views="tiles",
        precision="bf16",
    ),
}
"""By name of the backbone; ``paper`` for all that have none of their own."""


def recipe_for(backbone: str) -> TrainConfig:
    """Default recipe of a backbone."""
    return RECIPES.get(backbone, RECIPES["paper"])


Config = TypeVar("Config")


@dataclass(frozen=True)
class Field:
    """One field of a configuration: its type, default and explanation."""

    kind: Any
    default: Any
    about: str

    @property
    def values(self) -> str:
        """Allowed values of the field, in a few words."""
        kind = self.kind
        if get_origin(kind) is Literal:
            return ", ".join(get_args(kind))
        named = {bool: "true, false", int: "a whole number", float: "a number", str: "a name"}
        return named.get(kind, "a whole number or none" if kind == int | None else "a mapping")

    def read(self, name: str, value: Any) -> Any:
        """Convert ``value``, from YAML or the command line, to the field's type.

        Raises :class:`UsageError` where it does not fit.
        """
        if self.kind == int | None and value == "none":
            return None
        try:
            if self.kind is bool and str(value).lower() not in ("true", "false"):
                raise ValueError("neither true nor false")
            return msgspec.convert(value, self.kind, strict=False)
        except (msgspec.ValidationError, ValueError) as error:
            raise UsageError(f"{self.values} for {name}", f"{value!r}") from error


def fields_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Field]]:
    """Every field of a configuration and of its sections, by dotted name."""
    kinds = get_type_hints(type(config))
    for entry in fields(config):
        value, name = getattr(config, entry.name), f"{prefix}{entry.name}"
        if is_dataclass(value):
            yield from fields_of(value, f"{name}.")
        else:
            yield name, Field(kinds[entry.name], value, entry.metadata["help"])


def set_fields(config: Any) -> dict[str, Any]:
    """Fields of a configuration that differ from their defaults, by dotted name.

    These stay what they are when later versions add fields.
    """
    usual = dict(fields_of(type(config)()))
    # As JSON: the first task is the main one, so the order of words counts.
    return {
        name: ours.default
        for name, ours in fields_of(config)
        if as_json(ours.default) != as_json(usual[name].default)
    }


def with_fields(config: Config, changes: Mapping[str, Any]) -> Config:
    """``config`` with the fields of these dotted names changed, all checked together."""
    own: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        section, _, rest = name.partition(".")
        if rest:
            sections.setdefault(section, {})[rest] = value
        else:
            own[name] = value
    own |= {name: with_fields(getattr(config, name), below) for name, below in sections.items()}
    return replace(config, **own)  # type: ignore[type-var]  # a dataclass, whichever it is
