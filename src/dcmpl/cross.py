"""Trained on one data set, tested on another: a matrix, with every MOS scale mapped to [0, 1]."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dcmpl.config import MODEL
from dcmpl.data.leaks import find_leaks
from dcmpl.data.table import listed
from dcmpl.errors import DataError
from dcmpl.evaluate import measured, write_results
from dcmpl.files import write_atomically
from dcmpl.model.dcmpl import DCMPL
from dcmpl.pages import figure_png, has_matplotlib, markdown_table
from dcmpl.repeats import RESULT, Trial, Workbench, read_result, run_trial
from dcmpl.runs import load_learned, read_run
from dcmpl.training.features import predict_table

__all__ = ["cross_matrix", "run_cross", "write_cross"]


def run_cross(trials: Sequence[tuple[Trial, Workbench]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Train every trial and test it on the data of all: metrics by (trained on, tested on).

    On its own data a trial is tested on its test part, on the others on all rows. Raises
    :class:`DataError` where two data sets share prompts or pictures.
    """
    found = {}
    for trial, bench in trials:
        found[bench.table.name, bench.table.name] = run_trial(trial, bench)
        for _, other in trials:
            if other is not bench:
                found[bench.table.name, other.table.name] = _transferred(trial, bench, other)
    return found


def _transferred(trial: Trial, bench: Workbench, other: Workbench) -> dict[str, Any]:
    folder = trial.folder / f"on-{other.table.name}"
    if not (folder / RESULT).exists():
        known = bench.table.select(
            ~bench.table.frame["name"].isin({*trial.split.test, *trial.split.left_out})
        )
        if leaks := find_leaks(known, other.table, {**bench.facts, **other.facts}):
            pairs = [f"{leak.tested} and {leak.known} ({leak.kind})" for leak in leaks]
            raise DataError(
                f"expected nothing of {other.table.name} in the training of "
                f"{bench.table.name}, got {listed(pairs, 5)}: take the rows out of one"
            )
        backbone, run = bench.backbone, read_run(trial.folder)
        model = DCMPL(backbone.clip, backbone.tokenizer, run.model, run.train.seed)
        load_learned(trial.folder / MODEL, model.to(bench.device), run)
        predicted = predict_table(model, other.table, run.train.views, "fp32", "testing")
        notes = {
            "run": trial.run.identity,
            "name": trial.name,
            "protocol": "other data",
            "trained_on": bench.table.name,
            "preset": run.preset,
            "backbone": run.backbone,
        }
        predicted = run.only_learned(predicted, other.table)
        write_results(folder, other.table, predicted, notes, draws=0, name=RESULT)
    return read_result(folder, trial.run)


def cross_matrix(
    found: Mapping[tuple[str, str], Mapping[str, Any]], target: str, metric: str
) -> pd.DataFrame:
    """Rows: trained on; columns: tested on; NaN where a data set was not judged for ``target``."""
    names = list(dict.fromkeys(trained for trained, _ in found))
    values = [
        [_value(found[trained, tested].get(target), metric) for tested in names]
        for trained in names
    ]
    return pd.DataFrame(values, index=names, columns=names, dtype=float)


def _value(entry: Mapping[str, Any] | None, metric: str) -> float:
    value = entry[metric]["value"] if entry else None
    return float("nan") if value is None else float(value)


def write_cross(
    found: Mapping[tuple[str, str], Mapping[str, Any]], out: Path, title: str
) -> list[str]:
    """Write ``cross.md``, ``cross.csv`` and, with matplotlib, ``cross.png``; their names."""
    lines = [
        f"# {title}",
        "",
        "Rows are what a model was trained on, columns what it was tested on: on its own data the "
        "test part of the clean split, on the others every picture. SRCC / PLCC.",
    ]
    matrices, flat = {}, []
    for target in dict.fromkeys(name for metrics in found.values() for name in measured(metrics)):
        pair = [cross_matrix(found, target, metric) for metric in ("srcc", "plcc")]
        if pair[0].isna().all(axis=None):
            continue
        matrices[target] = pair[0]
        shown = pair[0].map("{:.3f}".format) + " / " + pair[1].map("{:.3f}".format)
        shown = shown.where(pair[0].notna(), "").rename_axis("trained on").reset_index()
        lines += ["", f"## {target}", "", markdown_table(shown)]
        for trained, tested in found:
            values = (m.loc[trained, tested] for m in pair)
            flat.append([target, trained, tested, *values])
    columns = ["target", "trained_on", "tested_on", "srcc", "plcc"]
    table = pd.DataFrame(flat, columns=columns)
    write_atomically(out / "cross.md", ("\n".join(lines) + "\n").encode())
    write_atomically(out / "cross.csv", table.to_csv(index=False).encode())
    if not has_matplotlib():
        return ["cross.md", "cross.csv"]
    write_atomically(out / "cross.png", _heat_map(matrices, title))
    return ["cross.md", "cross.csv", "cross.png"]


def _heat_map(matrices: Mapping[str, pd.DataFrame], title: str) -> bytes:
    from matplotlib.figure import Figure

    size = max(len(m) for m in matrices.values())
    width = 1.6 + 1.3 * size
    figure = Figure(figsize=(width * len(matrices) + 1, 1.2 * size + 2), dpi=120)
    figure.set_layout_engine("constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for axes, (target, matrix) in zip(panels, matrices.items(), strict=True):
        image = axes.imshow(matrix.to_numpy(float), vmin=0, vmax=1, cmap="viridis")
        axes.set(title=f"{target}, SRCC", xlabel="tested on", ylabel="trained on")
        axes.set_xticks(range(len(matrix)), list(matrix.columns), rotation=30, ha="right")
        axes.set_yticks(range(len(matrix)), list(matrix.index))
        for (row, column), value in np.ndenumerate(matrix.to_numpy(float)):
            if not np.isnan(value):
                ink = "white" if value < 0.6 else "black"
                axes.text(column, row, f"{value:.3f}", ha="center", va="center", color=ink)
        figure.colorbar(image, ax=axes, shrink=0.8)
    return figure_png(figure)
