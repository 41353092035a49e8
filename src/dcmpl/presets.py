"""The published variants, each one configuration of the same model."""

from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from dcmpl.config import (
    CLIP_AGIQA_WORDS,
    WORDS,
    AdapterConfig,
    AuxConfig,
    FusionConfig,
    ModelConfig,
    MpaConfig,
    WordPairs,
    target_of,
)
from dcmpl.errors import UsageError, nearest

__all__ = ["PRESETS", "Preset", "differences", "model_fields", "with_settings", "with_targets"]


@dataclass(frozen=True)
class Preset:
    """A configuration, where it comes from, and what it is in a few words."""

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
        replace(DCMPL, aux=AuxConfig(reads_prompt=True)),
        "this package",
        "the whole method, and alignment reads the picture's own prompt",
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


def with_settings(model: ModelConfig, settings: Sequence[str]) -> ModelConfig:
    """``model`` with fields changed by ``model.mpa.form=joint`` and the like.

    Raises :class:`UsageError` for unknown fields, values and fields that nothing reads.
    """
    parser = _parser(model)
    flags = (name for name in parser._option_string_actions if name.startswith("--model"))
    known = [name.removeprefix("--") for name in flags if name != "--model.help"]
    words = []
    for setting in settings:
        name, given, value = setting.partition("=")
        if not given or name not in known:
            raise UsageError(
                f"expected --set model.FIELD=VALUE, as in model.mpa.form=joint, got {setting}: "
                f"{nearest(name, known, 'dcmpl presets lists the fields')}"
            )
        # The depths' help says none, and so do they.
        words.append(f"--{name}={'null' if name.endswith('depth') and value == 'none' else value}")
    try:
        changed: ModelConfig = parser.instantiate(parser.parse_args(words)).model
    except (ArgumentError, TypeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise UsageError(f"expected values that fit after --set, got: {told}") from error
    return changed


def with_targets(
    model: ModelConfig,
    judged: Sequence[str],
    chosen: Sequence[str] | None,
    tasks: Mapping[str, Any] | None = None,
) -> ModelConfig:
    """``model`` with the tasks that were ``chosen``, the main one first.

    ``tasks`` are further ones, each with its positive and its negative word. Where none were
    chosen, a model of several tasks takes on authenticity where a data set has been ``judged``
    for it, and those of ``tasks``; otherwise it keeps its own. Raises :class:`UsageError` for a
    target that nobody judged or that has no words, and where the model has use for more or
    fewer tasks.
    """
    pairs: dict[str, WordPairs] = {}
    for name, words in (tasks or {}).items():
        given = words if isinstance(words, list) else []
        texts = [word for word in given if isinstance(word, str) and word.strip()]
        if not len(given) == len({*texts}) == 2:
            raise UsageError(
                f"expected a positive and a negative word for the task {name}, as in "
                f'--tasks \'{{"{name}": ["good photo", "bad photo"]}}\', got {words}'
            )
        if target_of(f"mos_{name}") is None:
            raise UsageError(
                f"expected a task of small letters, digits and _ that names nothing else in "
                f"tables of scores, got {name}: rename it and its column"
            )
        if name not in judged:
            raise UsageError(
                f"expected a task that the data has opinions on ({', '.join(judged)}), got {name}: "
                f"its column is mos_{name}"
            )
        pairs[name] = ((words[0], words[1]),)
    known = {**WORDS, **model.words, **pairs}
    if chosen:
        if nameless := [target for target in chosen if target not in known]:
            raise UsageError(
                f"expected words for the target {nameless[0]}: add --tasks "
                f'\'{{"{nameless[0]}": ["good photo", "bad photo"]}}\' with its own'
            )
        if unjudged := [target for target in chosen if target not in judged]:
            raise UsageError(
                f"expected --targets of {', '.join(judged)}, which the data has opinions on, "
                f"got {unjudged[0]}"
            )
        if len(chosen) == 1 and len(model.words) > 1 and model.readout == "words":
            raise UsageError(
                f"expected two --targets or more for a preset with an auxiliary task, got "
                f"{chosen[0]} alone: take dcmpl-no-aux or another preset of one task"
            )
        return replace(model, words={target: known[target] for target in chosen})
    if len(model.words) > 1 and "authenticity" in judged:
        model = replace(model, words={**model.words, "authenticity": known["authenticity"]})
    return replace(model, words={**model.words, **pairs}) if pairs else model


def _parser(model: ModelConfig) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=ModelConfig, default=model)
    return parser


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
    yield from _fields_of(DCMPL, "")


def _fields_of(config: Any, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    kinds = get_type_hints(type(config))
    for field in fields(config):
        value, kind = getattr(config, field.name), kinds[field.name]
        if is_dataclass(value):
            yield from _fields_of(value, f"{prefix}{field.name}.")
            continue
        named = {bool: "true, false", int: "a whole number", float: "a number"}.get(kind)
        if get_origin(kind) is Literal:
            named = ", ".join(get_args(kind))
        told = "none" if value is None else str(value).lower() if kind is bool else str(value)
        named = named or ("a whole number or none" if value is None else "")
        yield f"{prefix}{field.name}", named, told, field.metadata["help"]
