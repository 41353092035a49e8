"""Presets: published variants, each a configuration of the same model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import yaml

from dcmpl.config import (
    CLIP_AGIQA_WORDS,
    RECIPES,
    WORDS,
    AdapterConfig,
    FusionConfig,
    ModelConfig,
    MpaConfig,
    TrainConfig,
    WatchConfig,
    WordPairs,
    fields_of,
    target_of,
    with_fields,
)
from dcmpl.errors import UsageError, nearest

__all__ = [
    "PRESETS",
    "Preset",
    "differences",
    "model_fields",
    "train_fields",
    "with_settings",
    "with_targets",
]

Config = TypeVar("Config", ModelConfig, TrainConfig, WatchConfig)


@dataclass(frozen=True)
class Preset:
    """A configuration with its source and a short description."""

    model: ModelConfig
    paper: str
    about: str


DCMPL = ModelConfig()
NO_MPA, NO_FUSION, NO_ADAPTER = (
    MpaConfig(form="none"),
    FusionConfig(on=False),
    AdapterConfig(where="none"),
)
QUALITY = {"quality": CLIP_AGIQA_WORDS["quality"]}

IVLP = ModelConfig(words=QUALITY, mpa=NO_MPA, fusion=NO_FUSION, adapter=NO_ADAPTER)
"""Independent prompts in both towers, one task: what the single-task rivals start from."""

ZERO_SHOT = replace(IVLP, text_depth=0, vision_depth=0)
"""No prompts at all."""

ANTONYMS: WordPairs = (
    ("good photo", "bad photo"),
    ("sharp photo", "blurry photo"),
    ("clean photo", "noisy photo"),
    ("bright photo", "dark photo"),
)

DISPLAYS = "Lu et al., Displays 91, 103208 (2025)"
CLIP_AGIQA = "Fu et al., arXiv:2406.16641"
MAPLE = "Khattak et al., arXiv:2210.03117"
COOP = "Zhou et al., arXiv:2109.01134"
VPT = "Jia et al., arXiv:2203.12119"

PRESETS: dict[str, Preset] = {
    "dcmpl": Preset(DCMPL, DISPLAYS, "the whole method"),
    "dcmpl-prompted": Preset(
        replace(DCMPL, reads_prompt=True),
        "this package",
        "the whole method, and alignment reads the image's own prompt",
    ),
    "dcmpl-no-mpa": Preset(
        replace(DCMPL, mpa=NO_MPA), DISPLAYS, "auxiliary prompts free in every layer"
    ),
    "dcmpl-no-adapter": Preset(replace(DCMPL, adapter=NO_ADAPTER), DISPLAYS, "no image adapter"),
    "dcmpl-no-aux": Preset(
        replace(IVLP, adapter=AdapterConfig(where="main")), DISPLAYS, "quality alone"
    ),
    "dcmpl-no-fusion": Preset(
        replace(DCMPL, fusion=NO_FUSION), DISPLAYS, "two tasks that share nothing"
    ),
    "clip-agiqa": Preset(
        replace(DCMPL, mpa=NO_MPA, adapter=NO_ADAPTER),
        CLIP_AGIQA,
        "two tasks, free prompts in every layer, fused",
    ),
    "maple": Preset(
        replace(IVLP, vision_source="text"), MAPLE, "text prompts make the visual ones, linearly"
    ),
    "ivlp": Preset(IVLP, MAPLE, "independent prompts in every layer of both towers"),
    "coop": Preset(
        replace(IVLP, text_depth=1, vision_depth=0), COOP, "text prompts in layer 1 only"
    ),
    "coop-deep": Preset(replace(IVLP, vision_depth=0), COOP, "text prompts in every layer"),
    "vpt-shallow": Preset(
        replace(IVLP, text_depth=0, vision_depth=1), VPT, "visual prompts in layer 1 only"
    ),
    "vpt-deep": Preset(replace(IVLP, text_depth=0), VPT, "visual prompts in every layer"),
    "clip-adapter": Preset(
        replace(ZERO_SHOT, adapter=AdapterConfig(where="main")),
        "Gao et al., arXiv:2110.04544",
        "the image adapter alone",
    ),
    "clip-iqa": Preset(
        replace(ZERO_SHOT, words={"quality": ANTONYMS}),
        "Wang et al., arXiv:2207.12396",
        "nothing is learned: pairs of antonyms, averaged",
    ),
    "linear-probe": Preset(
        replace(ZERO_SHOT, words=dict(CLIP_AGIQA_WORDS), readout="linear"),
        "Radford et al., arXiv:2103.00020",
        "ridge regression on the frozen image embedding: the baseline to beat",
    ),
}


MOST_LETTERS = 1000
"""Of a setting: longer numbers are none that Python reads."""


def with_settings(config: Config, settings: Sequence[str], section: str = "model") -> Config:
    """Change fields of ``config`` by settings such as ``model.mpa.form=joint``.

    ``section`` is what stands before the first dot: model, or train for a recipe. Raises
    :class:`UsageError` for unknown fields, values, and fields that nothing reads.
    """
    known = {f"{section}.{name}": field for name, field in fields_of(config)}
    changes: dict[str, Any] = {}
    for setting in settings:
        name, given, text = setting.partition("=")
        if not given or name not in known:
            raise UsageError(
                f"--set {section}.FIELD=VALUE, as in model.mpa.form=joint",
                setting or "nothing",
                nearest(name, known, "dcmpl presets lists the fields"),
            )
        if len(text) > MOST_LETTERS:
            raise UsageError(f"at most {MOST_LETTERS} letters for {name}", len(text))
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        changes[name.removeprefix(f"{section}.")] = known[name].read(name, value)
    return with_fields(config, changes)


def with_targets(
    model: ModelConfig, judged: Sequence[str], chosen: Sequence[str] | None
) -> ModelConfig:
    """Change the targets of ``model`` to the ``chosen`` ones, the main target first.

    A target is written as its name, or with a positive and a negative class prompt of its own
    as ``realism=realistic photo/fake photo``. Where none were chosen, a model of several tasks
    takes on authenticity where a data set has MOS for it (``judged``). Raises
    :class:`UsageError` for a target without MOS or without class prompts, and where the model
    has use for more or fewer tasks.
    """
    if not chosen:
        if len(model.words) > 1 and "authenticity" in judged:
            added = model.words.get("authenticity", WORDS["authenticity"])
            return replace(model, words={**model.words, "authenticity": added})
        return model
    known = {**WORDS, **model.words}
    words = dict(_target(text, known) for text in chosen)
    if len(words) < len(chosen):
        raise UsageError("each of --targets once", " ".join(chosen))
    if absent := [target for target in words if target not in judged]:
        raise UsageError(
            f"--targets of {', '.join(judged)}, which the data has opinions on",
            absent[0],
            f"its column is mos_{absent[0]}",
        )
    if len(words) == 1 and len(model.words) > 1 and model.readout == "words":
        raise UsageError(
            "two --targets or more for a preset with an auxiliary task",
            f"{next(iter(words))} alone",
            "take dcmpl-no-aux or another preset of one task",
        )
    return replace(model, words=words)


def _target(text: str, known: Mapping[str, WordPairs]) -> tuple[str, WordPairs]:
    """The name and the class prompts of ``NAME`` or ``NAME=GOOD/BAD``."""
    name, given, both = text.partition("=")
    if target_of(f"mos_{name}") is None:
        raise UsageError(
            "a target of small letters, digits and _ that names nothing else in tables of scores",
            name,
            "rename it and its column",
        )
    if not given:
        if name not in known:
            raise UsageError(
                f"--targets of {', '.join(known)}, or {name} with its two ends, as in "
                f"'{name}=good photo/bad photo'",
                name,
                nearest(name, known, "name its ends"),
            )
        return name, known[name]
    ends = [word.strip() for word in both.split("/")]
    if len(ends) != 2 or not all(ends) or ends[0] == ends[1]:
        raise UsageError(
            f"a positive and a negative end for the target {name}, as in '{name}=good "
            "photo/bad photo'",
            f"{both!r}",
        )
    return name, ((ends[0], ends[1]),)


def differences(model: ModelConfig, base: ModelConfig = DCMPL) -> dict[str, Any]:
    """Fields in which ``model`` differs from ``base``, by their dotted names."""
    found: dict[str, Any] = {}
    for field in fields(base):
        ours, theirs = getattr(model, field.name), getattr(base, field.name)
        if is_dataclass(ours):
            below = ((f.name, getattr(ours, f.name), getattr(theirs, f.name)) for f in fields(ours))
            found |= {f"{field.name}.{n}": mine for n, mine, other in below if mine != other}
        elif ours != theirs or (isinstance(ours, dict) and list(ours) != list(theirs)):
            found[field.name] = ours  # the first task is the main one: their order counts
    return found


def model_fields() -> Iterator[tuple[str, str, str, str]]:
    """Name, values, default and explanation of every field of :class:`ModelConfig`."""
    yield from _listed(DCMPL, "model")


def train_fields() -> Iterator[tuple[str, str, str, str]]:
    """Name, values, default and explanation of every field that begins with ``train.``."""
    yield from _listed(RECIPES["paper"], "train")
    yield from _listed(WatchConfig(), "train")


def _listed(config: Any, section: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in fields_of(config):
        value = field.default
        default = (
            "none" if value is None else str(value).lower() if field.kind is bool else str(value)
        )
        yield f"{section}.{name}", field.values, default, field.about
