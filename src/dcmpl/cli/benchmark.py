"""``dcmpl benchmark``: train and test presets, grids and protocols over repeats and data sets."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcmpl.cli.options import (
    BACKBONE,
    DATA_ABOUT,
    DEVICE,
    RECIPE_FLAGS,
    SETTINGS,
    TABLE_FLAGS,
    TARGET_FLAG,
    Arguments,
    Command,
    Flag,
    check_device,
    check_folder,
    check_model,
    check_protocols,
    check_repeats,
    check_results_replace,
    check_table,
    columns_of,
    model_of,
    mos_scale,
    recipe_of,
    source_of,
)
from dcmpl.config import PROTOCOLS
from dcmpl.errors import UsageError
from dcmpl.presets import PRESETS
from dcmpl.progress import say
from dcmpl.weights import check_backbone, warn_of_embedded

if TYPE_CHECKING:
    from dcmpl.data.table import ImageTable
    from dcmpl.evaluation.trials import Trial, TrialContext, Variant

__all__ = ["BENCHMARK"]

FLAGS = (
    Flag(
        "--data",
        f"one or several: {DATA_ABOUT}",
        count="+",
        required=True,
        metavar="PATH",
        at_url="table",
    ),
    *TABLE_FLAGS,
    Flag(
        "--presets",
        f"of {', '.join(PRESETS)}; the first is what others are compared with (default: dcmpl)",
        count="+",
        metavar="NAME",
    ),
    Flag("--grid", "YAML file of variants, in place of --presets", metavar="FILE"),
    Flag(
        "--protocols",
        f"of {', '.join(PROTOCOLS)}; clean is always run too",
        default=("clean",),
        count="+",
        metavar="NAME",
    ),
    Flag("--repeats", "splits of each protocol, of seeds 0, 1, ...", int, default=5, metavar="K"),
    Flag("--out", "results; what is finished there is kept", required=True, metavar="DIR"),
    BACKBONE,
    SETTINGS,
    TARGET_FLAG,
    *RECIPE_FLAGS,
    DEVICE,
)


def benchmark(arguments: Arguments) -> int:
    """Run every trial that is not finished, and sum them all up.

    Each variant is trained and tested on every data set under every protocol; with several data
    sets what was trained under clean is also tested on all of the others.
    """
    _check(arguments)
    import pandas as pd

    from dcmpl.evaluation.summary import trial_rows, write_summary
    from dcmpl.evaluation.trials import run_transfer, run_trial

    out, contexts = Path(arguments.out), _contexts(arguments)
    warn_of_embedded(arguments.backbone)
    rows: list[dict[str, Any]] = []
    for path, context in contexts.items():
        for trial in _trials(arguments, path, context):
            result = run_trial(trial, context)
            rows += trial_rows(result)
            _say_result(trial, result)
            if trial.split.protocol == "clean":
                for other in (c for c in contexts.values() if c is not context):
                    rows += trial_rows(run_transfer(trial, context, other))
    names = " and ".join(f"{c.table.name}, {len(c.table)} images" for c in contexts.values())
    title = f"{names}, on {arguments.backbone}"
    files = write_summary(pd.DataFrame(rows), out, title, arguments.backbone)
    print((out / "summary.md").read_text(encoding="utf-8"))
    print(f"results: {out}/{', '.join(files)}")
    if "summary.png" not in files:
        say("no plot: pip install matplotlib brings it")
    return 0


def _check(arguments: Arguments) -> None:
    check_table(arguments, arguments.data)
    check_device(arguments.device)
    check_backbone(arguments.backbone)
    if arguments.grid is not None:
        if arguments.presets is not None or arguments.targets is not None:
            raise UsageError("--grid alone", "--presets or --targets with it")
        if not Path(arguments.grid).is_file():
            raise UsageError(f"a YAML file at --grid {arguments.grid}", "none")
        others = [setting for setting in arguments.set if not setting.startswith("train.")]
        if others:
            wanted = "train.FIELD=VALUE after --set with --grid, which has models"
            raise UsageError(wanted, others[0])
    for preset in arguments.presets or ("dcmpl",):
        check_model(preset, arguments.set, None if arguments.grid else arguments.targets)
    check_protocols(arguments.protocols)
    check_repeats(arguments.repeats)
    check_folder(arguments.out)
    check_results_replace(
        Path(arguments.out),
        ["summary.json"],
        ["trials.csv", "summary.csv", "summary.md", "summary.png"],
    )
    recipe_of(arguments)


def _contexts(arguments: Arguments) -> "dict[str, TrialContext]":
    """Data sets by path, each with what its trials share."""
    from dcmpl.data.datasets import load_table
    from dcmpl.data.leaks import check_images
    from dcmpl.evaluation.trials import TrialContext
    from dcmpl.scoring.torch_engine import choose_device
    from dcmpl.weights.backbones import load_backbone

    device, backbone = choose_device(arguments.device), load_backbone(arguments.backbone)
    found: dict[str, TrialContext] = {}
    for path in arguments.data:
        own = Path(path).is_file()  # published ones have scales and columns of their own
        scale, columns = (mos_scale(arguments), columns_of(arguments)) if own else (None, {})
        table = load_table(path, scale, columns)
        for note in table.notes:
            say(f"note: {table.name}: {note}")
        if any(table.name == context.table.name for context in found.values()):
            raise UsageError("data sets of different names", f"{table.name} twice")
        found[path] = TrialContext(table, backbone, check_images(table), device)
    return found


def _trials(arguments: Arguments, path: str, context: "TrialContext") -> "Iterator[Trial]":
    from dcmpl.data.splits import PROTOCOLS as KNOWN
    from dcmpl.evaluation.trials import trials_of
    from dcmpl.training.features import warn_of_precision

    table = context.table
    variants = _variants(arguments, table)
    for precision in dict.fromkeys(variant.train.precision for variant in variants):
        warn_of_precision(context.device, precision)
    protocols = list(dict.fromkeys(["clean", *arguments.protocols]))
    for name in protocols:
        say(f"{name}: {KNOWN[name].about}")
    say(f"{len(variants)} variants on {arguments.repeats} splits of {table.name}")
    source, out = source_of(arguments, table, path), Path(arguments.out)
    return trials_of(context, source, variants, protocols, arguments.repeats, out)


def _variants(arguments: Arguments, table: "ImageTable") -> "list[Variant]":
    from dcmpl.evaluation.trials import Variant, read_grid

    recipe = recipe_of(arguments)
    if arguments.grid is not None:
        return read_grid(Path(arguments.grid), recipe, _recipe_settings(arguments))
    return [
        Variant(
            preset,
            preset,
            model_of(preset, arguments.set, arguments.targets, table.judged),
            recipe,
        )
        for preset in arguments.presets or ("dcmpl",)
    ]


def _recipe_settings(arguments: Arguments) -> list[str]:
    """Flags of the recipe as settings; they override a grid's."""
    given = {name: getattr(arguments, name) for name in ("epochs", "batch_size", "lr")}
    flags = [f"train.{name}={value}" for name, value in given.items() if value is not None]
    return [*flags, *arguments.set]


def _say_result(trial: "Trial", result: dict[str, Any]) -> None:
    from dcmpl.evaluation.results import measured

    text = "  ".join(
        f"{target} SRCC {result[target]['srcc']['value'] or 0:.3f}" for target in measured(result)
    )
    say(f"repeat {trial.split.repeat}  {trial.split.protocol}  {trial.name:24} {text}")


BENCHMARK = Command(
    "Train and test presets, grids and protocols over repeated splits of one or several data "
    "sets. What is finished is kept.",
    FLAGS,
    benchmark,
)
