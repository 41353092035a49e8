"""What a protocol is worth: the same model under several, over repeats, beside ``clean``."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from dcmpl.config import TARGETS
from dcmpl.data.splits import PROTOCOLS
from dcmpl.evaluate import measured
from dcmpl.files import as_json, write_atomically
from dcmpl.floors import FLOORS
from dcmpl.pages import figure_png, has_matplotlib, markdown_table
from dcmpl.repeats import flat_numbers, spread

__all__ = ["protocol_summary", "write_protocol_report"]


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
