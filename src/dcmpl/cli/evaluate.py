"""``dcmpl evaluate``: hold the predictions of a run against human scores."""

from pathlib import Path
from typing import TYPE_CHECKING

from dcmpl.cli.options import (
    DEVICE,
    RUN,
    TABLE_FLAGS,
    Arguments,
    Command,
    Flag,
    check_device,
    check_folder,
    check_own_table,
    check_results_replace,
    check_run,
    columns_of,
    mos_scale,
    say_leaks,
)
from dcmpl.errors import DataError, DcmplError, RunError, UsageError
from dcmpl.progress import Console, say
from dcmpl.weights import DEFAULT, warn_of_model

if TYPE_CHECKING:
    from dcmpl.data.splits import Split
    from dcmpl.data.table import ImageTable
    from dcmpl.runs import DataSource, Run

__all__ = ["EVALUATE"]

FLAGS = (
    RUN,
    Flag(
        "--data",
        "another data set than the run's own, or its new place",
        metavar="PATH",
        at_url="table",
    ),
    *TABLE_FLAGS,
    Flag(
        "--split",
        "part of the data (default: test of the run's own data, all of another)",
        choices=("test", "val", "train", "all"),
        metavar="{test,val,train,all}",
    ),
    Flag(
        "--robust",
        "measure also how far scores move when files are cropped, resized and encoded anew",
        bool,
        False,
    ),
    Flag("--out", "where the results go (default: RUN for its test part)", metavar="DIR"),
    DEVICE,
)


def evaluate(arguments: Arguments) -> int:
    """Measure the predictions of a run, and its calibration."""
    folder = check_run(arguments.RUN)
    if folder == DEFAULT and arguments.out is None:
        raise UsageError("--out DIR for the model of the package", "none")
    check_own_table(arguments)
    check_device(arguments.device)
    if arguments.out is not None:
        check_folder(arguments.out)
    if arguments.data is not None and not Path(arguments.data).exists():
        raise UsageError(f"a data set at --data {arguments.data}", "nothing there")
    from dcmpl.evaluation.results import evaluate_run, metrics_table
    from dcmpl.evaluation.robust import robust_table
    from dcmpl.evaluation.trials import RESULT
    from dcmpl.runs import read_run, read_split, uncalibrated
    from dcmpl.scoring.calibration import read_calibration
    from dcmpl.scoring.torch_engine import load_model

    run = read_run(folder)
    split = read_split(folder, run)
    whole, own = _table_to_measure(arguments, run.source)
    part = arguments.split or ("test" if own else "all")
    table = _part(whole, part, own, split)
    _, model = load_model(folder, device=arguments.device)
    warn_of_model(folder, run.backbone)
    training = _training(run, split, whole, table, own)
    at_home = folder if part == "test" else folder / part
    default = at_home if own else folder / f"{table.name}-{table.digest[:6]}-{part}"
    out = Path(arguments.out) if arguments.out else default
    plots = [f"{target}.png" for target in table.asked]
    check_results_replace(out, ["metrics.json", RESULT], ["predictions.csv", *plots])
    protocol = split.protocol if own and split is not None else "other data"
    calibration = read_calibration(folder, run.weights_sha256)
    if calibration is None:
        say(f"note: no calibration of {folder} can be measured: {uncalibrated(run)}")
    notes = {
        "protocol": protocol,
        "part": part,
        "selects_on_test": bool(split and split.selects_on_test),
    }
    metrics, plotted = evaluate_run(
        run, calibration, model, table, training, out, notes, arguments.robust
    )
    title = f"{table.name}, {part} part, {len(table)} images; protocol: {protocol}"
    Console().print(metrics_table(metrics, title))
    if arguments.robust:
        Console().print(robust_table(metrics["robust"], "The same files in other coats"))
    if not plotted:
        say("no plots: pip install matplotlib brings them")
    print(f"results: {out}/metrics.json, predictions.csv")
    return 0


def _part(table: "ImageTable", part: str, own: bool, split: "Split | None") -> "ImageTable":
    if part == "all":
        return table
    if split is None:
        raise UsageError("--split all for an imported run", part)
    if not own:
        raise UsageError("--split all for another data set than the run's own", part)
    return split.rows(table, part)


def _training(
    run: "Run", split: "Split | None", whole: "ImageTable", table: "ImageTable", own: bool
) -> "ImageTable | None":
    """The training part, for baselines; its leaks into ``table`` are reported or refused."""
    from dcmpl.data.leaks import check_images, find_leaks
    from dcmpl.data.table import listed

    if own and split is not None:
        say_leaks(split, whole, check_images(whole))
        return split.train_part(whole).table
    training, facts = _training_of(run, split), check_images(table)
    if training is None:
        return None
    if leaks := find_leaks(training, table, {**check_images(training), **facts}):
        pairs = [f"{leak.tested} and {leak.known} ({leak.kind})" for leak in leaks]
        raise DataError(
            f"nothing in {table.name} that the run was trained on",
            listed(pairs, 5),
            "take these rows out, or measure the run's own data with --split",
        )
    return training


def _table_to_measure(
    arguments: Arguments, source: "DataSource | None"
) -> "tuple[ImageTable, bool]":
    """The table to measure on, and whether it is the run's own data set."""
    from dcmpl.data.datasets import load_table

    scale, columns = mos_scale(arguments), columns_of(arguments)
    if source is None:
        if arguments.data is None:
            raise UsageError("--data PATH", "an imported run, which has no data of its own")
        return load_table(arguments.data, scale, columns), False
    path = arguments.data or source.path
    if not Path(path).exists():
        raise DataError(
            f"the run's data set at {path}", "nothing there", "give its new place with --data"
        )
    try:
        # The run's own data in a new place has the run's own scale and columns.
        table = load_table(path, scale or source.scale, columns or source.columns)
    except DcmplError:
        if arguments.data is None:
            raise
    else:
        if table.digest == source.sha256:
            return table, True
        if arguments.data is None:
            raise RunError(
                f"the table the run was trained with at {path}",
                "another scale or other rows",
                f"add --data {path} to measure on it as on another data set",
            )
    return load_table(path, scale, columns), False


def _training_of(run: "Run", split: "Split | None") -> "ImageTable | None":
    """The training part of a run, where its data set can still be read."""
    from dcmpl.runs import table_of_run

    if run.source is None or split is None:
        say("note: it is not known what this run was trained on, so no leak can be looked for")
        return None
    try:
        table = table_of_run(run)
    except DcmplError:
        say(
            f"note: the training data is not at {run.source.path} any more, so no leak can be "
            "looked for"
        )
        return None
    return table.select(table.frame["name"].isin({*split.train, *split.val}))


EVALUATE = Command("Measure a run against human scores.", FLAGS, evaluate)
