"""Summary of a benchmark: rows per trial and per variant, paired differences with verdicts.

trials.csv      a row for every trial, target and predictor
summary.csv     a row for every data set, target, protocol and variant
summary.md      the same as tables, and what it says in sentences
summary.json    the same, for dcmpl compare
summary.png     means and intervals
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from dcmpl.config import TARGETS
from dcmpl.data.splits import PROTOCOLS
from dcmpl.errors import DataError
from dcmpl.evaluation.baselines import BASELINES
from dcmpl.evaluation.results import METRICS, measured, plain_numbers
from dcmpl.files import MADE_BY, as_json, write_atomically
from dcmpl.pages import figure_png, has_matplotlib, markdown_table

__all__ = ["SUMMARY", "summarise", "trial_rows", "write_summary"]

SUMMARY, PLOT = "summary.json", "summary.png"
SURE = 0.05
"""A difference is called one below this p-value."""

KEYS = ["trained_on", "tested_on", "target", "protocol", "variant"]
READING = ["own_higher", "srcc_drop"]
MEANS = ["plcc", "krcc", "within_generator_srcc", "pairwise_accuracy", *READING, "selection"]
BASELINE = "baseline: "


def trial_rows(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of one trial's metrics: the model's and each baseline's, for every target.

    ``selection`` is the SRCC of the chosen epoch minus that of the last, as the choosing part
    saw it: what choosing on the test part is worth. ``own_higher`` and ``srcc_drop`` say what
    the prompt is worth to alignment, where it was measured.
    """
    trained_on = result.get("trained_on", result["data"])
    about = {
        "trained_on": trained_on,
        "tested_on": result["data"],
        "protocol": result["protocol"],
        "repeat": result["repeat"],
    }
    cost = {name: result.get(name) for name in ("parameters", "seconds_per_step", "best_epoch")}
    names = [*METRICS, "within_generator_srcc", "pairwise_accuracy"]
    for target in measured(result):
        for variant, entry in [
            (result["name"], result[target]),
            *((BASELINE + BASELINES[b], e.get(target)) for b, e in result["baselines"].items()),
        ]:
            if entry is None:
                continue
            numbers = plain_numbers(entry)
            own = variant == result["name"]
            reading = result.get("prompts", {}).get(target, {}) if own else {}
            yield {
                **{**about, "target": target, "variant": variant, "images": result[target]["n"]},
                **{name: numbers.get(name) for name in names},
                **{name: reading.get(name, math.nan) for name in READING},
                "selection": _selection(result, target) if own else math.nan,
                **(cost if own else dict.fromkeys(cost)),
            }


def _selection(result: Mapping[str, Any], target: str) -> float:
    history = [entry.get(f"{target}_srcc") for entry in result.get("history", [])]
    if len(history) < 2 or any(value is None for value in history):
        return math.nan
    return float(history[result["best_epoch"] - 1]) - float(history[-1])


def summarise(trials: pd.DataFrame) -> pd.DataFrame:
    """One row per data set, target, protocol and variant of ``trials``, as of trials.csv.

    ``mean``, ``median``, ``deviation`` of the SRCC over the repeats, ``low`` and ``high`` the
    95 % interval of the mean by Student's t. ``difference``: the mean difference to the first
    variant, paired by repeat, with its interval and the p of a paired t-test. ``optimism``: the
    mean minus that of the same variant under ``clean``, with an interval by Welch's t, because
    the repeats of two protocols are different splits. Raises :class:`DataError` for no rows.
    """
    if trials.empty:
        raise DataError("results to sum up", "none")
    trials = trials.drop_duplicates([*KEYS, "repeat"])  # baselines stand beside every variant
    first = next(v for v in trials["variant"] if not v.startswith(BASELINE))
    groups = {key: part.set_index("repeat") for key, part in trials.groupby(KEYS, sort=False)}
    rows = []
    for key, part in groups.items():
        row = dict(zip(KEYS, key, strict=True))
        values = part["srcc"].astype(float).dropna()
        row |= {"repeats": len(part), "images": int(part["images"].iloc[0]), **spread(values)}
        row |= {name: part[name].astype(float).mean() for name in MEANS}
        base = groups.get((*key[:4], first))
        if base is not None and row["variant"] != first:
            row |= _paired(values - base["srcc"].astype(float))
        clean = groups.get((*key[:3], "clean", key[4]))
        if clean is not None and row["protocol"] != "clean":
            row |= _optimism(values.to_numpy(), clean["srcc"].astype(float).dropna().to_numpy())
        row["parameters"] = part["parameters"].iloc[0]
        row["seconds_per_step"] = part["seconds_per_step"].astype(float).median()
        rows.append(row)
    columns = [*KEYS, "repeats", "images", "mean", "median", "deviation", "low", "high", *MEANS]
    columns += ["difference", "difference low", "difference high", "p"]
    columns += ["optimism", "optimism low", "optimism high", "optimism p"]
    columns += ["parameters", "seconds_per_step"]
    frame = pd.DataFrame(rows).reindex(columns=columns)
    order = {name: i for i, name in enumerate([*TARGETS, *PROTOCOLS])}
    return frame.sort_values(
        ["trained_on", "tested_on", "target", "protocol"],
        key=lambda c: c.map(lambda v: (order.get(v, len(order)), str(v))),
        kind="stable",
        ignore_index=True,
    )


def spread(values: "pd.Series[float]") -> dict[str, float]:
    """Mean, median, standard deviation and the mean's 95 % interval by Student's t.

    The last three are nan for a single value.
    """
    n, mean, median = len(values), float(values.mean()), float(values.median())
    found = {"mean": mean, "median": median, "deviation": np.nan, "low": np.nan, "high": np.nan}
    if n > 1:
        deviation = float(values.std(ddof=1))
        half = float(stats.t.ppf(0.975, n - 1)) * deviation / n**0.5
        found |= {"deviation": deviation, "low": mean - half, "high": mean + half}
    return found


ROUNDING = 1e-12
"""Values of SRCC that differ by no more are equal, and no test can tell their spread."""


def _paired(difference: "pd.Series[float]") -> dict[str, float]:
    difference = difference.dropna()
    about = spread(difference)
    found = {"difference": about["mean"], "p": math.nan}
    found |= {"difference low": about["low"], "difference high": about["high"]}
    if len(difference) > 1 and np.ptp(difference.to_numpy()) > ROUNDING:
        found["p"] = float(stats.ttest_1samp(difference, 0.0).pvalue)
    return found


def _optimism(values: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    if not len(values) or not len(clean):
        return {}
    found = {"optimism": float(values.mean() - clean.mean())}
    if len(values) > 1 and len(clean) > 1 and max(np.ptp(values), np.ptp(clean)) > ROUNDING:
        with warnings.catch_warnings():  # one of the two may hardly vary
            warnings.simplefilter("ignore", RuntimeWarning)
            test = stats.ttest_ind(values, clean, equal_var=False)
        low, high = test.confidence_interval(0.95)
        found |= {"optimism low": low, "optimism high": high, "optimism p": test.pvalue}
    return found


def verdict(difference: float, p: float, tests: int) -> str:
    """Verdict on a paired difference among ``tests`` comparisons.

    After Bonferroni's bound for all of them at once.
    """
    if math.isnan(difference):
        return ""
    if math.isnan(p) or p >= SURE:
        return "no difference shown"
    kind = "higher" if difference > 0 else "lower"
    return kind if p * tests < SURE else f"{kind}, if it were the only test"


def write_summary(trials: pd.DataFrame, out: Path, title: str, backbone: str) -> list[str]:
    """Write the files that the module's docstring lists; returns their names."""
    frame = summarise(trials)
    write_atomically(out / "trials.csv", trials.to_csv(index=False).encode())
    write_atomically(out / "summary.csv", frame.to_csv(index=False).encode())
    write_atomically(out / "summary.md", _markdown(frame, title).encode())
    rows = frame.to_dict(orient="records")
    record = {"made_by": MADE_BY, "title": title, "backbone": backbone, "rows": rows}
    write_atomically(out / SUMMARY, as_json(record))
    names = ["trials.csv", "summary.csv", "summary.md", SUMMARY]
    if has_matplotlib():
        write_atomically(out / PLOT, _plot(frame, title))
        names.append(PLOT)
    return names


SHOWN = {
    "protocol": "protocol",
    "variant": "variant",
    "repeats": "repeats",
    "mean": "SRCC",
    "median": "median",
    "deviation": "deviation",
    "interval": "95 % interval",
    "plcc": "PLCC",
    "krcc": "KRCC",
    "within_generator_srcc": "within a generator",
    "pairwise_accuracy": "pairwise accuracy",
    "own_higher": "own prompt higher",
    "srcc_drop": "SRCC lost with other prompts",
    "difference": "difference",
    "difference interval": "its interval",
    "p": "p",
    "verdict": "verdict",
    "optimism": "optimism",
    "optimism interval": "optimism's interval",
    "selection": "chosen epoch - last",
    "parameters": "parameters",
    "seconds_per_step": "seconds per step",
}


def _markdown(frame: pd.DataFrame, title: str) -> str:
    first = next(v for v in frame["variant"] if not v.startswith(BASELINE))
    protocols = frame["protocol"].unique()
    lines = [f"# {title}", "", *(f"- `{name}`: {PROTOCOLS[name].about}." for name in protocols)]
    lines += [
        "",
        f"SRCC on the test part over the repeats. `difference` is to `{first}` on the same splits, "
        "p that of a paired t-test, and the verdict is after Bonferroni's bound for all variants "
        "of a table; `optimism` is what a protocol adds to the SRCC of the same variant under "
        "`clean`; intervals are 95 %.",
    ]
    groups = list(frame.groupby(["trained_on", "tested_on", "target"], sort=False))
    for (trained, tested, target), rows in groups:
        place = trained if trained == tested else f"trained on {trained}, tested on all of {tested}"
        tests = max(1, int(rows["difference"].notna().sum()))
        pairs = zip(rows["difference"].astype(float), rows["p"].astype(float), strict=True)
        shown = rows.assign(
            protocol="`" + rows["protocol"] + "`",
            interval=_intervals(rows, "low", "high"),
            verdict=[verdict(difference, p, tests) for difference, p in pairs],
            parameters=["" if pd.isna(n) else f"{n:,.0f}" for n in rows["parameters"]],
        )
        for name in ("difference", "optimism"):
            shown[f"{name} interval"] = _intervals(rows, f"{name} low", f"{name} high")
        table = shown.reindex(columns=list(SHOWN)).rename(columns=SHOWN)
        lines += ["", f"## {target}: {place}", ""]
        lines += [markdown_table(table, signed=("difference", "optimism"))]
        lines += ["", *_sentences(rows, tests)]
    return "\n".join([*lines, *_matrices(frame)]) + "\n"


def _sentences(rows: pd.DataFrame, tests: int) -> Iterator[str]:
    """Sentences on a summary: protocols, variants, baselines."""
    for _, row in rows[rows["optimism"].notna()].iterrows():
        low, high = row["optimism low"], row["optimism high"]
        sure = "over too few repeats to say more"
        if not math.isnan(low):
            sure = "shown" if low > 0 or high < 0 else "not shown by these repeats"
        yield f"- `{row['protocol']}`, {row['variant']}: {row['optimism']:+.3f}, {sure}."
    for protocol, part in rows.groupby("protocol", sort=False):
        kinds: dict[str, list[str]] = {}
        for _, row in part.iterrows():
            if not row["variant"].startswith(BASELINE):
                text = verdict(float(row["difference"]), float(row["p"]), tests)
                kinds.setdefault(text, []).append(f"`{row['variant']}`")
        for text in filter(None, kinds):
            yield f"- `{protocol}`, {text}: {', '.join(kinds[text])}."
        models = part[~part["variant"].str.startswith(BASELINE)]
        for _, row in part[part["variant"].str.startswith(BASELINE)].iterrows():
            below = models[models["mean"] < row["mean"]]["variant"]
            if len(below):
                yield f"- `{protocol}`, below the {row['variant']}: {', '.join(below)}."


def _matrices(frame: pd.DataFrame) -> Iterator[str]:
    """Trained on, tested on: a matrix for each target and variant, where there are data sets."""
    if frame["tested_on"].nunique() < 2:
        return
    clean = frame[(frame["protocol"] == "clean") & ~frame["variant"].str.startswith(BASELINE)]
    for (target, variant), rows in clean.groupby(["target", "variant"], sort=False):
        cells = rows.assign(cell=_both(rows))
        matrix = cells.pivot(index="trained_on", columns="tested_on", values="cell").fillna("")
        yield f"\n## {target}, {variant}: rows are trained on, columns tested on, SRCC / PLCC\n"
        yield markdown_table(matrix.rename_axis("trained on").reset_index())


def _both(rows: pd.DataFrame) -> list[str]:
    pairs = zip(rows["mean"].astype(float), rows["plcc"].astype(float), strict=True)
    return ["" if math.isnan(s) else f"{s:.3f} / {p:.3f}" for s, p in pairs]


def _intervals(frame: pd.DataFrame, low: str, high: str) -> list[str]:
    """``[low, high]`` of every row, empty where there is none."""
    ends = frame.reindex(columns=[low, high]).astype(float).to_numpy()
    return ["" if np.isnan(pair).any() else f"[{pair[0]:.3f}, {pair[1]:.3f}]" for pair in ends]


def _plot(frame: pd.DataFrame, title: str) -> bytes:
    """Means and intervals: a panel for each target, a row for each protocol and variant."""
    from matplotlib.figure import Figure

    groups = list(frame.groupby(["trained_on", "tested_on", "target"], sort=False))
    most = max(len(rows) for _, rows in groups)
    figure = Figure(figsize=(2.6 + 4.2 * len(groups), 1.8 + 0.26 * most), dpi=120)
    figure.set_layout_engine("constrained")
    figure.suptitle(f"{title}; mean and 95 % interval")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, ((trained, tested, target), rows) in zip(panels, groups, strict=True):
        places = np.arange(len(rows))
        ends = rows["mean"] - rows["low"], rows["high"] - rows["mean"]
        half = np.stack([end.astype(float).fillna(0.0).to_numpy() for end in ends])
        axes.errorbar(rows["mean"], places, xerr=half, fmt="o", ms=4, lw=1, capsize=2)
        axes.axvline(rows["mean"].iloc[0], color="0.6", lw=1, zorder=0)
        low, high = axes.get_xlim()  # two repeats have intervals beyond what SRCC can be
        axes.set_xlim(max(-1.0, low), min(1.0, high))
        place = trained if trained == tested else f"{trained} to {tested}"
        axes.set(xlabel=f"{target} SRCC", title=place)
        names = [f"{v}  ({p})" for v, p in zip(rows["variant"], rows["protocol"], strict=True)]
        axes.set_yticks(places, names, fontsize=8)
        axes.invert_yaxis()
        axes.grid(axis="y", color="0.92")
    return figure_png(figure)
