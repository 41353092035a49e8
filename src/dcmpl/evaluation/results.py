"""Predictions against opinions: a table of rows, a table of numbers, and plots."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table
from scipy.stats import norm

from dcmpl import __version__
from dcmpl.data.table import ImageTable, MosScale
from dcmpl.evaluation.baselines import BASELINES, predict_baselines, statistics_of
from dcmpl.evaluation.robust import robustness
from dcmpl.files import MADE_BY, as_json, write_atomically
from dcmpl.metrics import (
    bootstrap,
    calibration_error,
    krcc,
    pairwise_accuracy,
    plcc,
    plcc_mapped,
    plcc_mapped5,
    rmse,
    srcc,
    within,
)
from dcmpl.model.dcmpl import DCMPL
from dcmpl.pages import figure_png, has_matplotlib
from dcmpl.runs import Run
from dcmpl.scoring.calibration import CLOSE, Calibration, Meaning
from dcmpl.scoring.torch_engine import TableEngine, TorchEngine, by_target, predict_table
from dcmpl.training.calibrate import COVERAGES, Judged, judged, pairs_of
from dcmpl.training.features import shuffled_prompts

__all__ = [
    "METRICS",
    "calibrations",
    "evaluate_run",
    "measure",
    "measure_baselines",
    "measure_calibration",
    "measured",
    "metrics_table",
    "plain_numbers",
    "predictions_frame",
    "prompts_matter",
    "scatter_plots",
    "write_plots",
    "write_results",
]

METRICS = {
    "srcc": srcc,
    "plcc": plcc,
    "plcc_mapped": plcc_mapped,
    "plcc_mapped5": plcc_mapped5,
    "krcc": krcc,
    "rmse": rmse,
}
DRAWS, FITTED_DRAWS = 1000, 100
"""Bootstrap draws; fewer for the metrics that fit a curve each time."""


def predictions_frame(table: ImageTable, predicted: np.ndarray) -> pd.DataFrame:
    """One row per image: opinion and prediction of each target, both in [0, 1]."""
    frame = table.frame[["name", "prompt", "generator", "group"]].rename(columns={"name": "image"})
    targets = table.targets()
    for column, target in enumerate(table.asked):
        frame[f"mos_{target}"] = table.frame[f"mos_{target}"]
        frame[f"opinion_{target}"] = targets[:, column]
        frame[target] = predicted[:, column]
    return frame


def measured(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """Targets that metrics have an entry for."""
    return tuple(n for n, entry in metrics.items() if isinstance(entry, dict) and "srcc" in entry)


def _asked(frame: pd.DataFrame) -> tuple[str, ...]:
    """The targets that a frame of predictions has columns for."""
    columns = (str(name) for name in frame)
    return tuple(c.removeprefix("opinion_") for c in columns if c.startswith("opinion_"))


def _judged(frame: pd.DataFrame, target: str) -> pd.DataFrame:
    """The rows with both an opinion and a prediction."""
    return frame[frame[f"opinion_{target}"].notna() & frame[target].notna()]


def measure(frame: pd.DataFrame, scale: MosScale, draws: int = DRAWS) -> dict[str, Any]:
    """Metrics of every target that has opinions, with 95 % intervals over prompts.

    RMSE is in MOS units of ``scale``; all else has none. ``draws`` of 0 leave out the intervals.
    """
    found: dict[str, Any] = {}
    for target in _asked(frame):
        rows = _judged(frame, target)
        if rows.empty:
            continue
        units = scale.low + rows[target].to_numpy() * (scale.high - scale.low)
        opinion, groups = rows[f"mos_{target}"].to_numpy(float), rows["group"].to_numpy(str)
        found[target] = {
            name: asdict(
                bootstrap(
                    metric,
                    units,
                    opinion,
                    groups,
                    min(draws, FITTED_DRAWS) if "mapped" in name else draws,
                )
            )
            for name, metric in METRICS.items()
        }
        found[target]["n"] = len(rows)
        generators = rows["generator"].to_numpy(str)
        found[target]["within_generator_srcc"] = within(units, opinion, generators)
        found[target]["pairwise_accuracy"] = pairwise_accuracy(units, opinion, groups)
    return found


def measure_baselines(
    table: ImageTable, baselines: Mapping[str, np.ndarray]
) -> dict[str, dict[str, dict[str, float]]]:
    """By baseline and target, the numbers of predictions that a model must beat."""
    found = {}
    for baseline, predicted in baselines.items():
        measured = measure(predictions_frame(table, predicted), table.scale, draws=0)
        found[baseline] = {target: plain_numbers(entry) for target, entry in measured.items()}
    return found


def plain_numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """One target's entry of the metrics without its intervals; null is nan."""
    values = {n: v["value"] if isinstance(v, dict) else v for n, v in entry.items() if n != "n"}
    return {name: float("nan") if value is None else value for name, value in values.items()}


NAMES = {
    "srcc": "SRCC",
    "plcc": "PLCC",
    "plcc_mapped": "PLCC, logistic 4",
    "plcc_mapped5": "PLCC, logistic 5",
    "krcc": "KRCC",
    "rmse": "RMSE, MOS units",
}
WITHOUT_INTERVAL = {
    "within_generator_srcc": "SRCC within a generator",
    "pairwise_accuracy": "pairwise accuracy",
}
MEANING = {
    "prompts": {
        "srcc_drop": "SRCC lost with other prompts",
        "own_higher": "own prompt scores higher",
    },
    "calibration": {
        "calibration_error": "calibration error, MOS units",
        "coverage_0.9": "MOS inside the 90 % interval",
        "width_0.9": "its width, MOS units",
        "called": "decided pairs",
        "called_right": "decided pairs, right",
        "close_right": "near-ties, right",
        "pair_error": "error of their probabilities",
    },
}


def metrics_table(metrics: dict[str, Any], title: str) -> Table:
    """Table to print: one column per target, values with 95 % intervals."""
    table = Table("", title=title)
    targets = measured(metrics)
    for target in targets:
        table.add_column(target, justify="right")
    for name, shown in NAMES.items():
        values = [metrics[target][name] for target in targets]
        table.add_row(
            shown, *(f"{v['value']:.3f}  [{v['low']:.3f}, {v['high']:.3f}]" for v in values)
        )
    for name, shown in WITHOUT_INTERVAL.items():
        table.add_row(shown, *(_shown(metrics[target][name]) for target in targets))
    for kind, names in MEANING.items():
        known = metrics.get(kind, {})
        for name, shown in names.items() if known else ():
            table.add_row(shown, *(_shown(known.get(t, {}).get(name)) for t in targets))
    for baseline, of_target in metrics.get("baselines", {}).items():
        cells = [
            f"{_shown(of_target[t]['srcc'])} / {_shown(of_target[t]['plcc'])}"
            if t in of_target
            else ""
            for t in targets
        ]
        table.add_row(f"baseline: {BASELINES[baseline]}", *cells)
    table.add_row("images", *(str(metrics[target]["n"]) for target in targets))
    return table


def _shown(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.3f}"


def scatter_plots(frame: pd.DataFrame, scale: MosScale) -> dict[str, bytes]:
    """A PNG per target: prediction against opinion, one colour per generator.

    Empty where matplotlib (the extra ``plots``) is not installed.
    """
    if not has_matplotlib():
        return {}
    from matplotlib.figure import Figure

    plots = {}
    for target in _asked(frame):
        rows = _judged(frame, target)
        if rows.empty:
            continue
        figure = Figure(figsize=(6.4, 5.6), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        for generator, part in rows.groupby("generator"):
            units = scale.low + part[target] * (scale.high - scale.low)
            axes.scatter(units, part[f"mos_{target}"], s=12, alpha=0.6, label=generator or None)
        axes.axline((scale.low, scale.low), slope=1, color="0.6", linewidth=1, zorder=0)
        value = srcc(rows[target].to_numpy(), rows[f"mos_{target}"].to_numpy(float))
        axes.set(
            xlabel=f"predicted {target}, MOS units",
            ylabel=f"{target} MOS",
            title=f"{target}: SRCC {value:.3f} over {len(rows)} images",
        )
        if rows["generator"].ne("").any():
            axes.legend(fontsize=7, markerscale=1.5, loc="upper left")
        plots[f"{target}.png"] = figure_png(figure)
    return plots


def write_results(
    folder: Path,
    table: ImageTable,
    predicted: np.ndarray,
    notes: Mapping[str, Any],
    baselines: Mapping[str, np.ndarray] | None = None,
    draws: int = DRAWS,
    name: str = "metrics.json",
) -> dict[str, Any]:
    """Write ``predictions.csv`` and the metrics as ``name``; returns them.

    ``notes`` are further entries of the metrics: the protocol, the backbone, ...
    """
    frame = predictions_frame(table, predicted)
    write_atomically(folder / "predictions.csv", frame.to_csv(index=False).encode())
    metrics = {"made_by": MADE_BY, **measure(frame, table.scale, draws)}
    metrics["baselines"] = measure_baselines(table, baselines or {})
    metrics |= {"data": table.name, "data_sha256": table.digest, "version": __version__, **notes}
    write_atomically(folder / name, as_json(metrics))
    return metrics


def write_plots(folder: Path, table: ImageTable, predicted: np.ndarray) -> bool:
    """Write a plot for each target; False where matplotlib is missing."""
    plots = scatter_plots(predictions_frame(table, predicted), table.scale)
    for name in (f"{target}.png" for target in table.asked):
        if name in plots:
            write_atomically(folder / name, plots[name])
        else:  # one of earlier results would pass for one of these
            (folder / name).unlink(missing_ok=True)
    return bool(plots)


def measure_calibration(meaning: Meaning, tested: Judged) -> dict[str, float]:
    """Metrics of the calibration on unseen images: errors of MOS, coverage of intervals, pairs.

    Errors in MOS units. ``called``: the share of pairs of one prompt that are not too close to
    call; ``called_right`` how many of those are right, ``close_right`` of the others;
    ``pair_error`` how far probabilities are from what came true.
    """
    mos = meaning.mos(tested.scores)
    scaled = meaning.low + tested.scores * (meaning.high - meaning.low)
    found = {
        "calibration_error": calibration_error(mos, tested.mos),
        "calibration_error_before": calibration_error(scaled, tested.mos),
        "mean_error": float(np.abs(mos - tested.mos).mean()),
    }
    for coverage in COVERAGES:
        low, high = meaning.interval(tested.scores, tested.spread, coverage)
        inside = (tested.mos >= low) & (tested.mos <= high)
        found[f"coverage_{coverage:g}"] = float(inside.mean())
        found[f"width_{coverage:g}"] = float((high - low).mean())
    a, b = pairs_of(tested)
    if not len(a):
        return found
    deviation = meaning.deviation(tested.scores, tested.spread)
    z = (mos[a] - mos[b]) / (meaning.pairs * np.hypot(deviation[a], deviation[b]))
    probability = norm.cdf(np.abs(z))
    agreed = np.sign(mos[a] - mos[b]) * np.sign(tested.mos[a] - tested.mos[b])
    won = 0.5 + 0.5 * agreed  # of equal scores either may be the better
    called = probability >= CLOSE
    found["called"] = float(called.mean())
    found["called_right"] = float(won[called].mean()) if called.any() else float("nan")
    found["close_right"] = float(won[~called].mean()) if (~called).any() else float("nan")
    found["pair_error"] = calibration_error(probability, won)
    return found


def evaluate_run(
    run: Run,
    calibration: Calibration | None,
    model: DCMPL,
    table: ImageTable,
    training: ImageTable | None,
    out: Path,
    notes: Mapping[str, Any],
    robust: bool = False,
) -> tuple[dict[str, Any], bool]:
    """Predict ``table``, measure, and write the results to ``out``; returns the metrics.

    Beside the metrics of scores: those of the ``calibration``, of alignment under shuffled
    prompts, of the baselines fitted on ``training``, and with ``robust`` of images in other
    coats. The second value: whether plots were drawn.
    """
    engine, views = TorchEngine(model, run.learned), run.train.views
    scores, spread = predict_table(engine, table, views, "scoring")
    predicted = by_target(scores, engine.tasks, table)
    known = {} if calibration is None else calibration.targets
    found = {
        "calibration": calibrations(known, engine.tasks, table, scores, spread),
        "prompts": prompts_matter(engine, table, views, scores),
        "split_sha256": run.split_sha256,
        "backbone": run.backbone,
        "preset": run.preset,
        "best_epoch": run.best_epoch,
        **notes,
    }
    if robust:
        found["robust"] = robustness(engine, table, views, scores)
    baselines: dict[str, np.ndarray] = {}
    if training is not None:
        paths = [*training.frame["image"], *table.frame["image"]]
        made = predict_baselines(training, table, statistics_of(paths))
        # Held against the same images: those that the run has a prediction for.
        mask = np.isfinite(predicted)
        baselines = {name: np.where(mask, values, np.nan) for name, values in made.items()}
    metrics = write_results(out, table, predicted, found, baselines)
    return metrics, write_plots(out, table, predicted)


def calibrations(
    known: Mapping[str, Meaning],
    tasks: Sequence[str],
    table: ImageTable,
    scores: np.ndarray,
    spread: np.ndarray,
) -> dict[str, dict[str, float]]:
    """Metrics of the run's calibration on ``table``, by target."""
    found = {}
    for i, task in enumerate(tasks):
        if task not in known:
            continue
        meaning, tested = known[task], judged(table, task, scores[:, i], spread[:, i])
        if len(tested) and (meaning.low, meaning.high) == (table.scale.low, table.scale.high):
            found[task] = measure_calibration(meaning, tested)
    return found


def prompts_matter(
    engine: TableEngine, table: ImageTable, views: str, scores: np.ndarray
) -> dict[str, dict[str, float]]:
    """SRCC and PLCC of alignment with every image under another image's prompt.

    ``own_higher``: how often its own gives the higher score, chance 0.5. ``scores`` are those
    with the own prompts.
    """
    if "alignment" not in engine.tasks or "alignment" not in table.judged:
        return {}
    opinion = table.targets(["alignment"])[:, 0]
    column = engine.tasks.index("alignment")
    own = scores[:, column]
    if engine.reads is None:  # the image alone decides
        return {"alignment": {"srcc_drop": 0.0, "mean_drop": 0.0, "own_higher": 0.5}}
    shuffled = shuffled_prompts(table)
    found, _ = predict_table(engine, table, views, "with other prompts", shuffled)
    others = found[:, column]
    both = np.isfinite(own) & np.isfinite(others)  # images that have a prompt
    if not both.any():
        return {}
    own, others, opinion = own[both], others[both], opinion[both]
    known = np.isfinite(opinion)
    drop = srcc(own[known], opinion[known]) - srcc(others[known], opinion[known])
    higher = (own > others).mean() + 0.5 * (own == others).mean()
    entry = {"srcc_drop": drop, "mean_drop": float((own - others).mean())}
    return {"alignment": {**entry, "own_higher": float(higher)}}
