"""What a protocol is worth: the same model under several, over repeats, beside ``clean``."""

import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from dcmpl.config import TARGETS
from dcmpl.data.leaks import find_leaks
from dcmpl.data.splits import PROTOCOLS
from dcmpl.data.table import listed
from dcmpl.errors import DataError
from dcmpl.evaluation.baselines import FLOORS
from dcmpl.evaluation.results import measured, write_results
from dcmpl.evaluation.trials import (
    RESULT,
    Trial,
    Workbench,
    flat_numbers,
    read_result,
    run_trial,
    spread,
)
from dcmpl.files import as_json, write_atomically
from dcmpl.model.dcmpl import DCMPL
from dcmpl.pages import figure_png, has_matplotlib, markdown_table
from dcmpl.runs import MODEL, load_learned, read_run
from dcmpl.training.features import predict_table

__all__ = [
    "cross_matrix",
    "protocol_summary",
    "run_cross",
    "write_cross",
    "write_protocol_report",
    "write_report",
]


SURE = 0.05
"""A difference is said to be one below this p-value."""


def write_report(frame: pd.DataFrame, out: Path, title: str) -> list[str]:
    """Write ``ablation.csv``, ``.md`` and, with matplotlib, ``.png``; returns their names."""
    write_atomically(out / "ablation.csv", frame.to_csv(index=False).encode())
    write_atomically(out / "ablation.md", _markdown(frame, title).encode())
    png = _plot(frame, title)
    if png:
        write_atomically(out / "ablation.png", png)
    return ["ablation.csv", "ablation.md", *(["ablation.png"] if png else [])]


def _number(value: object, signed: bool = False) -> str:
    if not isinstance(value, float) or math.isnan(value):
        return ""
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def verdict(row: Mapping[Hashable, object], task: str, tests: int) -> str:
    """What a row's difference to the base amounts to.

    ``tests`` is the number of differences looked at (Bonferroni's bound for all at once).
    """
    difference, p = row.get(f"{task} difference"), row.get(f"{task} p")
    if not isinstance(difference, float) or math.isnan(difference):
        return ""
    if not isinstance(p, float) or math.isnan(p) or p >= SURE:
        return "no difference shown"
    kind = "higher" if difference > 0 else "lower"
    return kind if p * tests < SURE else f"{kind}, if it were the only test"


def _markdown(frame: pd.DataFrame, title: str) -> str:
    base, tests = frame["variant"].iloc[0], len(frame) - 1
    lines = [
        f"# {title}",
        "",
        f"SRCC on the test part: mean, deviation and 95 % interval of the mean over "
        f"{int(frame['repeats'].max())} prompt-grouped splits. Differences are paired by split "
        f"with `{base}`; p is that of a paired t-test. With {tests} tests, "
        f"{tests * SURE:.1f} are expected below {SURE} by chance.",
    ]
    for task in _tasks(frame):
        lines += [
            "",
            f"## {task}",
            "",
            "| variant | SRCC | interval | PLCC | within a generator | difference | p | "
            "verdict | parameters | s per step |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for _, row in frame[frame[f"{task} mean"].notna()].iterrows():
            low, high = (_number(row[f"{task} {end}"]) for end in ("low", "high"))
            mean, deviation = _number(row[f"{task} mean"]), _number(row[f"{task} deviation"])
            cells = [
                str(row["variant"]),
                f"{mean} ± {deviation}" if deviation else mean,
                f"[{low}, {high}]" if low else "",
                _number(row[f"{task} plcc"]),
                _number(row[f"{task} within"]),
                _number(row.get(f"{task} difference"), signed=True),
                _number(row.get(f"{task} p")),
                verdict(row.to_dict(), task, tests),
                f"{row['parameters']:,}",
                _number(row["seconds per step"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _plot(frame: pd.DataFrame, title: str) -> bytes:
    """Means and intervals, one row per variant and one panel per task; empty without matplotlib."""
    if not has_matplotlib():
        return b""
    from matplotlib.figure import Figure

    tasks = _tasks(frame)
    figure = Figure(figsize=(5 + 3 * len(tasks), 1.5 + 0.22 * len(frame)), dpi=110)
    figure.set_layout_engine("constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        rows = frame[frame[f"{task} mean"].notna()]
        places = [len(frame) - 1 - index for index in rows.index]
        half = (rows[f"{task} high"] - rows[f"{task} mean"]).fillna(0.0)
        axes.errorbar(rows[f"{task} mean"], places, xerr=half, fmt="o", ms=4, lw=1, capsize=2)
        axes.axvline(frame[f"{task} mean"].iloc[0], color="0.6", lw=1, zorder=0)
        axes.set_xlabel(f"{task} SRCC, mean and 95 % interval")
        axes.grid(axis="y", color="0.92")
    panels[0].set_yticks(range(len(frame)), list(frame["variant"])[::-1], fontsize=8)
    return figure_png(figure)


def _tasks(frame: pd.DataFrame) -> list[str]:
    return [str(name).removesuffix(" mean") for name in frame if str(name).endswith(" mean")]


def protocol_summary(results: Sequence[Mapping[str, Any]], model: str) -> pd.DataFrame:
    """One row per protocol, predictor and target; ``results`` are metrics of trials.

    ``optimism`` is the mean SRCC less that of the same predictor under ``clean``, with a 95 %
    interval by Welch's t, because the repeats of two protocols are different splits.
    ``selection`` is the SRCC of the chosen epoch less that of the last, as the choosing
    part saw it: what choosing on the test part is worth.
    """
    rows = []
    for result in results:
        own = {"protocol": result["protocol"], "repeat": result["repeat"]}
        for target in measured(result):
            chosen = _selection(result, target)
            numbers = _of_target(flat_numbers(result), target)
            rows.append({**own, "predictor": model, "target": target, **numbers, **chosen})
            for floor, of_target in result["floors"].items():
                numbers = _of_target(flat_numbers({target: of_target.get(target, {})}), target)
                rows.append({**own, "predictor": FLOORS[floor], "target": target, **numbers})
    frame = pd.DataFrame(rows)
    found = []
    keys = ["target", "protocol", "predictor"]
    for names, part in frame.groupby(keys, sort=False):
        row: dict[str, Any] = dict(zip(keys, names, strict=True))
        clean = frame[
            (frame["target"] == row["target"])
            & (frame["protocol"] == "clean")
            & (frame["predictor"] == row["predictor"])
        ]
        values, others = (p["srcc"].astype(float).dropna() for p in (part, clean))
        row |= {"repeats": len(part), **spread(values)}
        for name in ("plcc", "krcc", "within_generator_srcc", "pairwise_accuracy"):
            row[name] = part[name].astype(float).mean()
        row["selection"] = part["selection"].astype(float).mean()
        row |= dict.fromkeys(("optimism", "optimism low", "optimism high", "p"), np.nan)
        if row["protocol"] != "clean" and len(values) and len(others):
            row |= _optimism(values.to_numpy(), others.to_numpy())
        found.append(row)
    known = [*PROTOCOLS, model, *FLOORS.values(), *TARGETS, *frame["target"]]
    order = {name: i for i, name in enumerate(dict.fromkeys(known))}
    summed = pd.DataFrame(found)
    return summed.sort_values(keys, key=lambda column: column.map(order), ignore_index=True)


def _of_target(numbers: Mapping[str, float], target: str) -> dict[str, float]:
    return {
        name.removeprefix(f"{target}_"): value
        for name, value in numbers.items()
        if name.startswith(f"{target}_")
    }


def _selection(result: Mapping[str, Any], target: str) -> dict[str, float]:
    history = [entry.get(f"{target}_srcc") for entry in result["history"]]
    if len(history) < 2 or any(value is None for value in history):
        return {"selection": np.nan}
    return {"selection": history[result["best_epoch"] - 1] - history[-1]}


def _optimism(values: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    found = {"optimism": float(values.mean() - clean.mean())}
    if len(values) > 1 and len(clean) > 1 and max(np.ptp(values), np.ptp(clean)) > 1e-12:
        with warnings.catch_warnings():  # one of the two may hardly vary
            warnings.simplefilter("ignore", RuntimeWarning)
            test = stats.ttest_ind(values, clean, equal_var=False)
        interval = test.confidence_interval(0.95)
        found |= {"optimism low": interval.low, "optimism high": interval.high, "p": test.pvalue}
    return found


def write_protocol_report(
    frame: pd.DataFrame, out: Path, title: str, about: Mapping[str, Any]
) -> list[str]:
    """Write ``protocols.csv``, ``.md``, ``.json`` and, with matplotlib, ``.png``; their names."""
    write_atomically(out / "protocols.csv", frame.to_csv(index=False).encode())
    write_atomically(out / "protocols.md", _markdown(frame, title).encode())
    rows = frame.to_dict(orient="records")
    write_atomically(out / "protocols.json", as_json({**about, "rows": rows}))
    names = ["protocols.csv", "protocols.md", "protocols.json"]
    if has_matplotlib():
        write_atomically(out / "protocols.png", _plot(frame, title))
        names.append("protocols.png")
    return names


SHOWN = {
    "protocol": "protocol",
    "predictor": "predictor",
    "repeats": "repeats",
    "mean": "SRCC",
    "median": "median",
    "deviation": "deviation",
    "interval": "interval of the mean",
    "plcc": "PLCC",
    "within_generator_srcc": "within a generator",
    "pairwise_accuracy": "better of two picked",
    "optimism": "optimism",
    "optimism interval": "its interval",
    "selection": "chosen epoch - last",
}


def _markdown(frame: pd.DataFrame, title: str) -> str:
    lines = [f"# {title}", ""]
    lines += [f"- `{name}`: {PROTOCOLS[name].about}." for name in frame["protocol"].unique()]
    lines += [
        "",
        "SRCC on the test part, over the repeats; optimism is the mean SRCC less that of the same "
        "predictor under `clean`; intervals are 95 %.",
    ]
    shown = frame.assign(
        protocol="`" + frame["protocol"] + "`",
        interval=_intervals(frame, "low", "high"),
        **{"optimism interval": _intervals(frame, "optimism low", "optimism high")},
    )
    for target in frame["target"].unique():
        rows = shown[shown["target"] == target].reindex(columns=list(SHOWN)).rename(columns=SHOWN)
        lines += ["", f"## {target}", "", markdown_table(rows, signed=("optimism",))]
    return "\n".join(lines) + "\n"


def _intervals(frame: pd.DataFrame, low: str, high: str) -> list[str]:
    """``[low, high]`` of every row, empty where there is none."""
    ends = frame.reindex(columns=[low, high]).astype(float).to_numpy()
    return ["" if np.isnan(pair).any() else f"[{pair[0]:.3f}, {pair[1]:.3f}]" for pair in ends]


def _plot(frame: pd.DataFrame, title: str) -> bytes:
    from matplotlib.figure import Figure

    targets = list(frame["target"].unique())
    protocols = list(frame["protocol"].unique())
    predictors = list(frame["predictor"].unique())
    figure = Figure(figsize=(2.2 + 4.2 * len(targets), 1.8 + 0.75 * len(protocols)), dpi=120)
    figure.set_layout_engine("constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, len(targets), sharey=True, squeeze=False)[0]
    for axes, target in zip(panels, targets, strict=True):
        for index, predictor in enumerate(predictors):
            rows = frame[(frame["target"] == target) & (frame["predictor"] == predictor)]
            places = [protocols.index(p) + 0.18 * index for p in rows["protocol"]]
            ends = rows["mean"] - rows["low"], rows["high"] - rows["mean"]
            half = [end.fillna(0.0) for end in ends]
            axes.errorbar(
                rows["mean"],
                places,
                xerr=half,
                fmt="osD"[index % 3],
                ms=5,
                capsize=2,
                label=predictor,
            )
        low, high = axes.get_xlim()  # two repeats have intervals beyond what SRCC can be
        axes.set_xlim(max(-1.0, low), min(1.0, high))
        axes.set(xlabel=f"{target} SRCC, mean and 95 % interval")
        axes.grid(axis="x", color="0.92")
    panels[0].set_yticks(range(len(protocols)), protocols)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8)
    return figure_png(figure)


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
