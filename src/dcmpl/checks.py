"""What can be told wrong of a command's words before torch is imported."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from jsonargparse import Namespace

from dcmpl.config import COLUMNS, PROTOCOLS, TARGETS, TrainConfig, recipe_for, target_of
from dcmpl.errors import UsageError, nearest
from dcmpl.presets import PRESETS, with_settings, with_targets
from dcmpl.runs import RECORD
from dcmpl.score_checks import (
    check_explain,
    check_export,
    check_merge,
    check_run,
    check_score,
    is_empty,
)
from dcmpl.usage import flag
from dcmpl.weights import check_backbone

__all__ = ["CHECKS"]


def _check_own_table(arguments: Namespace) -> None:
    if arguments.mos_scale and not arguments.mos_scale[0] < arguments.mos_scale[1]:
        low, high = arguments.mos_scale
        raise UsageError(f"expected --mos-scale LOW HIGH with LOW below HIGH, got {low:g} {high:g}")
    pairs = [column.split("=", 1) for column in arguments.columns]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise UsageError(f"expected --columns OURS=THEIRS ..., got {' '.join(arguments.columns)}")
    arguments.columns = dict(pairs)
    names = [ours for ours in arguments.columns if ours not in COLUMNS]
    if unknown := [ours for ours in names if target_of(ours) is None]:
        hint = nearest(unknown[0], COLUMNS, "map one of ours to one of theirs")
        raise UsageError(
            f"expected --columns to map {', '.join(COLUMNS)}, got {unknown[0]}: {hint}"
        )


def _check_own_scale(arguments: Namespace, paths: Sequence[str] | None = None) -> None:
    _check_own_table(arguments)
    for path in [arguments.data] if paths is None else paths:
        if not Path(path).exists():
            raise UsageError(f"expected a data set at {path}, found nothing there")
        if Path(path).is_file() and arguments.mos_scale is None:
            raise UsageError(
                f"expected the ends of the MOS scale of {path}, got none: "
                "add --mos-scale LOW HIGH, for example --mos-scale 1 5"
            )


def _check_folder(out: str) -> None:
    if Path(out).exists() and not Path(out).is_dir():
        raise UsageError(f"expected a folder at --out {out}, found a file")


def _check_model(arguments: Namespace) -> None:
    if arguments.preset not in PRESETS:
        hint = nearest(arguments.preset, PRESETS, "see dcmpl presets")
        raise UsageError(
            f"expected --preset of {', '.join(PRESETS)}, got {arguments.preset}: {hint}"
        )
    model = with_settings(PRESETS[arguments.preset].model, arguments.set)
    if arguments.targets is not None:
        known = [*TARGETS, *(arguments.tasks or {})]
        unknown = [target for target in arguments.targets if target not in known]
        if unknown or len(set(arguments.targets)) < len(arguments.targets):
            raise UsageError(
                f"expected --targets of {', '.join(known)}, each once, "
                f"got {' '.join(arguments.targets)}; --tasks names others"
            )
    judged = [*TARGETS, *(arguments.tasks or {})]
    with_targets(model, judged, arguments.targets, arguments.tasks)


def _check_protocols(names: Sequence[str]) -> None:
    for name in names:
        if name not in PROTOCOLS:
            hint = nearest(name, PROTOCOLS, "see dcmpl data split --help")
            raise UsageError(f"expected --protocol of {', '.join(PROTOCOLS)}, got {name}: {hint}")


def _check_repeats(arguments: Namespace) -> None:
    if arguments.repeats < 1:
        raise UsageError(f"expected --repeats of at least 1, got {arguments.repeats}")


def _fill_recipe(arguments: Namespace) -> None:
    """A flag that is not given keeps the recipe's value; its range is checked here, once."""
    recipe = recipe_for(check_backbone(arguments.backbone))
    chosen = {f.name: arguments[f.name] for f in fields(TrainConfig) if f.name in arguments}
    arguments.recipe = {
        name: getattr(recipe, name) if value is None else value for name, value in chosen.items()
    }
    TrainConfig(**arguments.recipe)


def _check_train(arguments: Namespace) -> None:
    _check_own_scale(arguments)
    _check_model(arguments)
    if arguments.split is not None and arguments.protocol is not None:
        raise UsageError("expected --split or --protocol, got both: leave one out")
    if arguments.split is not None and not Path(arguments.split).is_file():
        raise UsageError(f"expected a split at --split {arguments.split}, found no file")
    arguments.protocol = arguments.protocol or "clean"
    _check_protocols([arguments.protocol])
    _check_folder(arguments.out)
    if (Path(arguments.out) / RECORD).exists() and not arguments.resume:
        raise UsageError(
            f"expected a new folder at --out {arguments.out}, found a run in it: "
            "add --resume to go on with it, or choose another"
        )
    _fill_recipe(arguments)


def _check_evaluate(arguments: Namespace) -> None:
    if (arguments.run is None) == (arguments.protocol is None):
        raise UsageError(
            "expected a RUN to measure or --protocol NAME ... to train and measure, got "
            f"{'neither' if arguments.run is None else 'both'}; see dcmpl evaluate --help"
        )
    if arguments.run is not None:
        given = [f.name for f in fields(TrainConfig) if arguments.get(f.name) is not None]
        if given:
            raise UsageError(
                f"expected {flag(given[0])} with --protocol only: a run has its recipe already"
            )
        _check_own_table(arguments)
        if arguments.data is not None and not Path(arguments.data).exists():
            raise UsageError(f"expected a data set at --data {arguments.data}, found nothing there")
        check_run(arguments.run)
        return
    _check_protocols(arguments.protocol)
    for name in ("data", "out"):
        if arguments[name] is None:
            raise UsageError(f"expected --{name} with --protocol, got none")
    if arguments.split is not None:
        raise UsageError("expected --split with a RUN only: protocols measure their test parts")
    _check_own_scale(arguments)
    _check_model(arguments)
    _check_folder(arguments.out)
    _check_repeats(arguments)
    _fill_recipe(arguments)


def _check_cross(arguments: Namespace) -> None:
    _check_own_scale(arguments, arguments.data)
    if len(arguments.data) < 2:
        raise UsageError(f"expected two data sets or more after --data, got {len(arguments.data)}")
    _check_model(arguments)
    _check_folder(arguments.out)
    _fill_recipe(arguments)


def _check_compare(arguments: Namespace) -> None:
    for run in arguments.runs:
        check_run(run)
    if arguments.out is not None:
        _check_folder(arguments.out)


def _check_of_data(arguments: Namespace) -> None:
    _check_own_scale(arguments, [arguments.path])


def _check_data_show(arguments: Namespace) -> None:
    _check_of_data(arguments)
    if Path(arguments.out).is_dir():
        raise UsageError(f"expected a file at -o {arguments.out}, found a folder")


def _check_data_split(arguments: Namespace) -> None:
    _check_of_data(arguments)
    _check_protocols([arguments.protocol])
    _check_repeats(arguments)
    _check_folder(arguments.out)


def _check_ablate(arguments: Namespace) -> None:
    _check_own_scale(arguments)
    check_backbone(arguments.backbone)
    if not Path(arguments.grid).is_file():
        raise UsageError(f"expected a YAML file at --grid {arguments.grid}, found none")
    _check_repeats(arguments)
    given = {f.name: arguments[f.name] for f in fields(TrainConfig) if f.name in arguments}
    arguments.recipe = {name: value for name, value in given.items() if value is not None}
    TrainConfig(**arguments.recipe)


def _check_import(arguments: Namespace) -> None:
    check_backbone(arguments.backbone)
    for name in ("aux", "main"):
        file = arguments[name]
        if file is not None and not Path(file).is_file():
            raise UsageError(f"expected a checkpoint at --{name} {file}, found no file")
    if Path(arguments.out).exists() and not is_empty(Path(arguments.out)):
        raise UsageError(f"expected a new folder at --out {arguments.out}, found something there")


CHECKS: dict[str, Callable[[Namespace], None]] = {
    "train": _check_train,
    "evaluate": _check_evaluate,
    "compare": _check_compare,
    "cross": _check_cross,
    "data check": _check_of_data,
    "data show": _check_data_show,
    "data split": _check_data_split,
    "info": lambda arguments: check_run(arguments.run),
    "explain": check_explain,
    "score": check_score,
    "merge": check_merge,
    "export": check_export,
    "presets": lambda _: None,
    "ablate": _check_ablate,
    "import": _check_import,
}
"""By command: raises :class:`UsageError`, and fills in what the words imply."""
