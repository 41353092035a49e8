"""An ablation as people read it: Markdown, CSV and a plot."""

import math
from collections.abc import Hashable, Mapping
from pathlib import Path

import pandas as pd

from dcmpl.files import write_atomically
from dcmpl.pages import figure_png, has_matplotlib

__all__ = ["write_report"]

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
