"""Predictions against opinions: a table of rows, a table of numbers, and plots."""

import importlib.util
import io
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from dcmpl import __version__
from dcmpl.checkpoint import as_json, write_atomically
from dcmpl.datasets import TARGETS, ImageTable, MosScale
from dcmpl.metrics import bootstrap, krcc, plcc, plcc_mapped, rmse, srcc, within

__all__ = ["measure", "metrics_table", "predictions_frame", "scatter_plots", "write_results"]

METRICS = {
    "srcc": srcc,
    "plcc": plcc,
    "plcc_mapped": plcc_mapped,
    "krcc": krcc,
    "rmse": rmse,
}
FITTED_DRAWS = 200
"""Draws for the one metric that fits a curve each time; the others get 1000."""


def predictions_frame(table: ImageTable, predicted: np.ndarray) -> pd.DataFrame:
    """One row per picture: opinion and prediction of each target, both in [0, 1]."""
    frame = table.frame[["name", "prompt", "generator", "group"]].rename(columns={"name": "image"})
    targets = table.targets()
    for column, target in enumerate(TARGETS):
        frame[f"mos_{target}"] = table.frame[f"mos_{target}"]
        frame[f"opinion_{target}"] = targets[:, column]
        frame[target] = predicted[:, column]
    return frame


def _judged(frame: pd.DataFrame, target: str) -> pd.DataFrame:
    """The rows with both an opinion and a prediction."""
    return frame[frame[f"opinion_{target}"].notna() & frame[target].notna()]


def measure(frame: pd.DataFrame, scale: MosScale) -> dict[str, Any]:
    """Metrics of every target that has opinions, with 95 % intervals over prompts.

    RMSE is in MOS units of ``scale``; all else has none.
    """
    found: dict[str, Any] = {}
    for target in TARGETS:
        rows = _judged(frame, target)
        if rows.empty:
            continue
        units = scale.low + rows[target].to_numpy() * (scale.high - scale.low)
        opinion, groups = rows[f"mos_{target}"].to_numpy(float), rows["group"].to_numpy(str)
        found[target] = {
            name: asdict(
                bootstrap(
                    metric, units, opinion, groups, FITTED_DRAWS if metric is plcc_mapped else 1000
                )
            )
            for name, metric in METRICS.items()
        }
        found[target]["n"] = len(rows)
        found[target]["within_generator_srcc"] = within(
            units, opinion, rows["generator"].to_numpy(str)
        )
    return found


NAMES = {"srcc": "SRCC", "plcc": "PLCC", "plcc_mapped": "PLCC, logistic", "krcc": "KRCC"}
NAMES |= {"rmse": "RMSE, MOS units"}


def metrics_table(metrics: dict[str, Any], title: str) -> Table:
    """What is printed: one column per target, values with their 95 % intervals."""
    table = Table("", title=title)
    targets = [target for target in TARGETS if target in metrics]
    for target in targets:
        table.add_column(target, justify="right")
    for name, shown in NAMES.items():
        values = [metrics[target][name] for target in targets]
        table.add_row(
            shown, *(f"{v['value']:.3f}  [{v['low']:.3f}, {v['high']:.3f}]" for v in values)
        )
    within_generator = [metrics[target]["within_generator_srcc"] for target in targets]
    table.add_row("SRCC within a generator", *(f"{value:.3f}" for value in within_generator))
    table.add_row("pictures", *(str(metrics[target]["n"]) for target in targets))
    return table


def scatter_plots(frame: pd.DataFrame, scale: MosScale) -> dict[str, bytes]:
    """A PNG per target: prediction against opinion, one colour per generator.

    Empty where matplotlib (the extra ``plots``) is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return {}
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plots = {}
    for target in TARGETS:
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
            title=f"{target}: SRCC {value:.3f} over {len(rows)} pictures",
        )
        if rows["generator"].ne("").any():
            axes.legend(fontsize=7, markerscale=1.5, loc="upper left")
        file = io.BytesIO()
        FigureCanvasAgg(figure).print_png(file)
        plots[f"{target}.png"] = file.getvalue()
    return plots


def write_results(
    folder: Path,
    table: ImageTable,
    predicted: np.ndarray,
    split: str,
    notes: Mapping[str, Any],
) -> dict[str, Any]:
    """Write ``predictions.csv``, ``metrics.json`` and the plots; returns the metrics.

    ``notes`` are further entries of ``metrics.json``: the protocol, the backbone, ...
    """
    frame = predictions_frame(table, predicted)
    write_atomically(folder / "predictions.csv", frame.to_csv(index=False).encode())
    metrics = measure(frame, table.scale)
    metrics |= {"split": split, "data": table.name, "version": __version__, **notes}
    write_atomically(folder / "metrics.json", as_json(metrics))
    plots = scatter_plots(frame, table.scale)
    for name in (f"{target}.png" for target in TARGETS):
        if name in plots:
            write_atomically(folder / name, plots[name])
        else:  # one of earlier results would pass for one of these
            (folder / name).unlink(missing_ok=True)
    return metrics
