"""What can be told wrong of a command's words before torch is imported."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from jsonargparse import Namespace

from dcmpl.config import COLUMNS, RECORD, TrainConfig, check_backbone, recipe_for
from dcmpl.errors import UsageError
from dcmpl.files import FORMATS, find_pictures
from dcmpl.presets import PRESETS, with_settings
from dcmpl.usage import nearest

__all__ = ["CHECKS"]


def _check_data(arguments: Namespace) -> None:
    if arguments.data is not None and not Path(arguments.data).exists():
        raise UsageError(f"expected a data set at --data {arguments.data}, found nothing there")
    if arguments.mos_scale and not arguments.mos_scale[0] < arguments.mos_scale[1]:
        low, high = arguments.mos_scale
        raise UsageError(f"expected --mos-scale LOW HIGH with LOW below HIGH, got {low:g} {high:g}")
    pairs = [column.split("=", 1) for column in arguments.columns]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise UsageError(f"expected --columns OURS=THEIRS ..., got {' '.join(arguments.columns)}")
    arguments.columns = dict(pairs)
    if unknown := [ours for ours in arguments.columns if ours not in COLUMNS]:
        hint = nearest(unknown[0], COLUMNS, "map one of ours to one of theirs")
        raise UsageError(
            f"expected --columns to map {', '.join(COLUMNS)}, got {unknown[0]}: {hint}"
        )


def _check_own_scale(arguments: Namespace) -> None:
    _check_data(arguments)
    if Path(arguments.data).is_file() and arguments.mos_scale is None:
        raise UsageError(
            f"expected the ends of the MOS scale of {arguments.data}, got none: "
            "add --mos-scale LOW HIGH, for example --mos-scale 1 5"
        )


def _check_train(arguments: Namespace) -> None:
    _check_own_scale(arguments)
    if arguments.preset not in PRESETS:
        hint = nearest(arguments.preset, PRESETS, "see dcmpl presets")
        raise UsageError(
            f"expected --preset of {', '.join(PRESETS)}, got {arguments.preset}: {hint}"
        )
    with_settings(PRESETS[arguments.preset].model, arguments.set)
    if Path(arguments.out).exists() and not Path(arguments.out).is_dir():
        raise UsageError(f"expected a folder at --out {arguments.out}, found a file")
    if (Path(arguments.out) / RECORD).exists() and not arguments.resume:
        raise UsageError(
            f"expected a new folder at --out {arguments.out}, found a run in it: "
            "add --resume to go on with it, or choose another"
        )
    recipe = recipe_for(check_backbone(arguments.backbone))
    chosen = {f.name: arguments[f.name] for f in fields(TrainConfig)}
    # A flag that is not given keeps the recipe's value; its range is checked here, once.
    arguments.recipe = {
        name: getattr(recipe, name) if value is None else value for name, value in chosen.items()
    }
    TrainConfig(**arguments.recipe)


def _check_evaluate(arguments: Namespace) -> None:
    _check_data(arguments)
    _check_run(arguments.run)


def _check_run(run: str) -> None:
    if not Path(run).is_dir():
        raise UsageError(f"expected a run folder made by dcmpl train, found none at {run}")


def _check_score(arguments: Namespace) -> None:
    _check_run(arguments.model)
    if Path(arguments.out).suffix.lower() not in FORMATS:
        raise UsageError(f"expected -o to end in {', '.join(FORMATS)}, got {arguments.out}")
    if Path(arguments.out).is_dir():
        raise UsageError(f"expected a file at -o {arguments.out}, found a folder")
    if arguments.prompts is not None and not Path(arguments.prompts).is_file():
        raise UsageError(f"expected a CSV at --prompts {arguments.prompts}, found no file")
    arguments.pictures = find_pictures(arguments.paths)


def _check_ablate(arguments: Namespace) -> None:
    _check_own_scale(arguments)
    check_backbone(arguments.backbone)
    if not Path(arguments.grid).is_file():
        raise UsageError(f"expected a YAML file at --grid {arguments.grid}, found none")
    if arguments.repeats < 1:
        raise UsageError(f"expected --repeats of at least 1, got {arguments.repeats}")
    given = {f.name: arguments[f.name] for f in fields(TrainConfig) if f.name in arguments}
    arguments.recipe = {name: value for name, value in given.items() if value is not None}
    TrainConfig(**arguments.recipe)


def _check_import(arguments: Namespace) -> None:
    check_backbone(arguments.backbone)
    for name in ("aux", "main"):
        file = arguments[name]
        if file is not None and not Path(file).is_file():
            raise UsageError(f"expected a checkpoint at --{name} {file}, found no file")
    if Path(arguments.out).exists() and not _is_empty(Path(arguments.out)):
        raise UsageError(f"expected a new folder at --out {arguments.out}, found something there")


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


CHECKS: dict[str, Callable[[Namespace], None]] = {
    "train": _check_train,
    "evaluate": _check_evaluate,
    "score": _check_score,
    "presets": lambda _: None,
    "ablate": _check_ablate,
    "import": _check_import,
}
"""By command: raises :class:`UsageError`, and fills in what the words imply."""
