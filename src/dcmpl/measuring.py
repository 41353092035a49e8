"""Commands that measure: a run, protocols over repeats, across data sets, beside others."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from dcmpl.commands import (
    model_of,
    mos_scale,
    read_data,
    say_leaks,
    source_of,
)
from dcmpl.config import TrainConfig
from dcmpl.data.datasets import load_table
from dcmpl.data.leaks import check_pictures, find_leaks
from dcmpl.data.splits import PROTOCOLS, Split
from dcmpl.data.table import ImageTable, listed
from dcmpl.errors import DataError, DcmplError, RunError, UsageError
from dcmpl.evaluation.baselines import predict_floors, statistics_of
from dcmpl.evaluation.compare import compare as compare_runs
from dcmpl.evaluation.compare import paired_rows, write_comparison
from dcmpl.evaluation.results import measure_calibration, metrics_table, write_plots, write_results
from dcmpl.evaluation.summary import protocol_summary, run_cross, write_cross, write_protocol_report
from dcmpl.evaluation.trials import Trial, Workbench, run_trials
from dcmpl.metrics import srcc
from dcmpl.model.dcmpl import DCMPL
from dcmpl.pages import has_matplotlib
from dcmpl.progress import say
from dcmpl.runs import Run, Source, read_run, read_split, table_of_run, uncalibrated
from dcmpl.scoring.calibration import read_calibration
from dcmpl.scoring.torch_engine import TorchEngine, answers_of, choose_device, load_model
from dcmpl.training.calibrate import judged
from dcmpl.training.features import by_target, shuffled_prompts
from dcmpl.weights import warn_of_floor
from dcmpl.weights.backbones import load_backbone

__all__ = ["COMMANDS"]


def evaluate(arguments: Any) -> int:
    """``dcmpl evaluate``: of a run, or with ``--protocol`` of repeats that it trains."""
    return _evaluate_run(arguments) if arguments.run else _evaluate_protocols(arguments)


def _evaluate_run(arguments: Any) -> int:
    folder = Path(arguments.run)
    run = read_run(folder)
    split = read_split(folder, run)
    table, own = _table_to_measure(arguments, run.source)
    whole, training = table, None
    name = arguments.split or ("test" if own else "all")
    if name != "all":
        if split is None:
            raise UsageError(f"expected --split all for an imported run, got {name}")
        if not own:
            raise UsageError(
                f"expected --split all for another data set than the run's own, got {name}"
            )
        table = split.rows(table, name)
    _, model = load_model(folder, device=arguments.device)
    warn_of_floor(run.backbone)
    if own and split is not None:
        say_leaks(split, whole, check_pictures(whole))
        training = split.train_part(whole).table
        kind = split.protocol
    else:
        training = _training_of(run, split)
        _refuse_leaks(training, table)
        kind = "other data"
    engine, views = TorchEngine(model, run.learned), run.train.views
    scores, spread = answers_of(engine, table, views, "scoring")
    predicted = by_target(scores, engine.tasks, table)
    own_place = folder if name == "test" else folder / name
    default = own_place if own else folder / f"{table.name}-{table.digest[:6]}-{name}"
    out = Path(arguments.out) if arguments.out else default
    notes = {
        "protocol": kind,
        "part": name,
        "selects_on_test": bool(split and split.selects_on_test),
        "split_sha256": run.split_sha256,
        "backbone": run.backbone,
        "preset": run.preset,
        "best_epoch": run.best_epoch,
        "calibration": _calibration(folder, run, table, scores, spread),
        "prompts": _prompts_matter(engine, model, table, views, scores),
    }
    # Held against the same pictures: those that the run has a prediction for.
    floors = {
        name: np.where(np.isfinite(predicted), values, np.nan)
        for name, values in _floors(training, table).items()
    }
    metrics = write_results(out, table, predicted, notes, floors)
    title = f"{table.name}, {name} part, {len(table)} pictures; protocol: {kind}"
    Console().print(metrics_table(metrics, title))
    if not write_plots(out, table, predicted):
        say("no plots: pip install matplotlib brings them")
    print(f"results: {out}/metrics.json, predictions.csv")
    return 0


def _calibration(
    folder: Path, run: Run, table: ImageTable, scores: np.ndarray, spread: np.ndarray
) -> dict[str, dict[str, float]]:
    """By target, how true what the run says of its scores is of ``table``; empty if it cannot."""
    known = read_calibration(folder, run.weights_sha256)
    if known is None:
        say(f"note: no calibration of {folder} can be measured: {uncalibrated(run)}")
        return {}
    found = {}
    for i, task in enumerate(run.learned):
        if task not in known.targets:
            continue
        meaning, tested = known.targets[task], judged(table, task, scores[:, i], spread[:, i])
        if len(tested) and (meaning.low, meaning.high) == (table.scale.low, table.scale.high):
            found[task] = measure_calibration(meaning, tested)
    return found


def _prompts_matter(
    engine: TorchEngine, model: DCMPL, table: ImageTable, views: str, scores: np.ndarray
) -> dict[str, dict[str, float]]:
    """What becomes of alignment when each picture is given another's prompt.

    ``own_higher``: how often its own gives the higher score, chance 0.5.
    """
    if "alignment" not in engine.tasks or "alignment" not in table.judged:
        return {}
    opinion = table.targets(["alignment"])[:, 0]
    own = scores[:, engine.tasks.index("alignment")]
    if engine.reads is None:  # the picture alone decides
        return {"alignment": {"srcc_drop": 0.0, "mean_drop": 0.0, "own_higher": 0.5}}
    reading = TorchEngine(model, ["alignment"])
    others, _ = answers_of(reading, table, views, "with other prompts", shuffled_prompts(table))
    both = np.isfinite(own) & np.isfinite(others[:, 0])  # pictures that have a prompt
    if not both.any():
        return {}
    own, others, opinion = own[both], others[both, 0], opinion[both]
    known = np.isfinite(opinion)
    drop = srcc(own[known], opinion[known]) - srcc(others[known], opinion[known])
    higher = (own > others).mean() + 0.5 * (own == others).mean()
    found = {"srcc_drop": drop, "mean_drop": float((own - others).mean())}
    return {"alignment": {**found, "own_higher": float(higher)}}


def _table_to_measure(arguments: Any, source: Source | None) -> tuple[ImageTable, bool]:
    """The table to measure on, and whether it is the run's own data, moved or not."""
    if source is None:
        if arguments.data is None:
            raise UsageError("expected --data PATH: an imported run has no data of its own")
        return load_table(arguments.data, mos_scale(arguments), arguments.columns), False
    path, scale, columns = arguments.data or source.path, mos_scale(arguments), arguments.columns
    if not Path(path).exists():
        raise DataError(
            f"expected the run's data set at {path}, found nothing there: "
            "give its new place with --data"
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
                f"expected the table the run was trained with at {path}, its scale or rows have "
                f"changed: add --data {path} to measure on it as on another data set"
            )
    return load_table(path, scale, columns), False


def _training_of(run: Run, split: Split | None) -> ImageTable | None:
    """What the run has seen, where that can still be read."""
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


def _refuse_leaks(training: ImageTable | None, table: ImageTable) -> None:
    facts = check_pictures(table)
    if training is None:
        return
    leaks = find_leaks(training, table, {**check_pictures(training), **facts})
    if leaks:
        pairs = [f"{leak.tested} and {leak.known} ({leak.kind})" for leak in leaks]
        raise DataError(
            f"expected nothing in {table.name} that the run was trained on, got "
            f"{listed(pairs, 5)}: take these rows out, or measure the run's own data with --split"
        )


def _floors(training: ImageTable | None, table: ImageTable) -> dict[str, np.ndarray]:
    if training is None:
        return {}
    statistics = statistics_of([*training.frame["image"], *table.frame["image"]])
    return predict_floors(training, table, statistics)


def _evaluate_protocols(arguments: Any) -> int:
    """Every protocol beside ``clean``, on the same data, with the same recipe."""
    table = read_data(arguments)
    bench = Workbench(
        table,
        load_backbone(arguments.backbone),
        check_pictures(table),
        choose_device(arguments.device),
    )
    warn_of_floor(arguments.backbone)
    out, names = Path(arguments.out), list(dict.fromkeys(["clean", *arguments.protocol]))
    model = model_of(arguments, table)
    source = source_of(arguments, table)

    def trials() -> Iterator[Trial]:
        for repeat in range(arguments.repeats):
            for name in names:
                split = bench.split(name, repeat)
                train = TrainConfig(**{**arguments.recipe, "seed": repeat})
                run = Run.begin(
                    arguments.preset, bench.backbone, source, model, train, split, table
                )
                yield Trial(name, run, split, out / name / f"repeat{repeat}")

    for name in names:
        say(f"{name}: {PROTOCOLS[name].about}")
    results = run_trials(trials(), bench, say)
    label = f"{arguments.preset} on {bench.backbone.name}"
    about = {"model": label, "data": table.name, "pictures": len(table)}
    summed = protocol_summary(results, label)
    title = f"{table.name}, {len(table)} pictures, {label}"
    files = write_protocol_report(summed, out, title, about)
    print((out / "protocols.md").read_text(encoding="utf-8"))
    print(f"results: {out}/{', '.join(files)}")
    if not has_matplotlib():
        say("no plots: pip install matplotlib brings them")
    return 0


def cross(arguments: Any) -> int:
    """``dcmpl cross``."""
    backbone = load_backbone(arguments.backbone)
    trials: list[tuple[Trial, Workbench]] = []
    warn_of_floor(arguments.backbone)
    for path in arguments.data:
        own = Path(path).is_file()  # published ones have scales and columns of their own
        table = load_table(
            path, mos_scale(arguments) if own else None, arguments.columns if own else {}
        )
        if any(table.name == other.table.name for _, other in trials):
            raise UsageError(f"expected data sets of different names, got {table.name} twice")
        bench = Workbench(table, backbone, check_pictures(table), choose_device(arguments.device))
        train = TrainConfig(**arguments.recipe)
        split = bench.split("clean", train.seed)
        source, model = source_of(arguments, table, path), model_of(arguments, table)
        run = Run.begin(arguments.preset, backbone, source, model, train, split, table)
        folder = Path(arguments.out) / table.name
        trials.append((Trial(table.name, run, split, folder), bench))
    say(" and ".join(f"{b.table.name} ({len(b.table)} pictures)" for _, b in trials))
    files = write_cross(
        run_cross(trials), Path(arguments.out), f"{arguments.preset} on {backbone.name}"
    )
    print((Path(arguments.out) / "cross.md").read_text(encoding="utf-8"))
    print(f"results: {arguments.out}/{', '.join(files)}")
    return 0


def compare(arguments: Any) -> int:
    """``dcmpl compare``."""
    folders = [Path(run) for run in arguments.runs]
    frame, paired = compare_runs(folders), paired_rows(folders)
    out = Path(arguments.out) if arguments.out else folders[0]
    names = write_comparison(frame, paired, out)
    print((out / "comparison.md").read_text(encoding="utf-8"))
    print(f"results: {out}/{', '.join(names)}")
    return 0


COMMANDS: dict[str, Callable[[Any], int]] = {
    "evaluate": evaluate,
    "cross": cross,
    "compare": compare,
}
