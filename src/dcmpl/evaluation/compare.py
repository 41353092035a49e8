"""Runs beside published results of the same data set and protocol.

``results/published.csv`` holds the published numbers with the protocol each was made under;
a number is only ever set beside numbers of its own protocol.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dcmpl import __version__
from dcmpl.config import TARGETS
from dcmpl.data.sheets import need, read_sheet
from dcmpl.errors import DataError, RunError
from dcmpl.evaluation.baselines import BASELINES
from dcmpl.evaluation.results import measured
from dcmpl.evaluation.summary import SUMMARY
from dcmpl.evaluation.trials import RESULT
from dcmpl.files import MADE_BY, read_plain, write_atomically
from dcmpl.metrics import compare_paired, srcc
from dcmpl.pages import (
    figure_png,
    has_matplotlib,
    markdown_table,
    number_cell,
)

__all__ = ["compare", "our_rows", "paired_rows", "published_rows", "write_comparison"]

PUBLISHED = Path(__file__).parent / "published.csv"
MEASURED = ("metrics.json", RESULT)
MAX_BYTES = 64 * 2**20

GROUPED = "prompt-grouped"
KINDS = {
    "clean": GROUPED,
    "clean-folds": GROUPED,
    "official-disjoint": GROUPED,
    "clip-agiqa": "prompt-grouped, best epoch on test",
    "image-level": "image-level",
    "official": "official split",
    "other data": "not trained on it",
}
"""Our protocols in the words of the published table."""

COLUMNS = ["method", "dataset", "task", "srcc", "plcc", "protocol", "source"]


def published_rows() -> pd.DataFrame:
    """The published table: ``COLUMNS``, SRCC and PLCC as numbers, NaN where none was given."""
    frame = read_sheet(PUBLISHED)
    for name in ("srcc", "plcc"):
        frame[name] = pd.to_numeric(frame[name])
    return frame.assign(ours=False)[[*COLUMNS, "ours"]]


def our_rows(folder: Path) -> pd.DataFrame:
    """Rows of one folder, a measured run or a benchmark, in the columns of the published table.

    Raises :class:`RunError` where it holds neither.
    """
    if (folder / SUMMARY).is_file():
        read: Callable[[dict[str, Any], Path], list[list[Any]]] = _of_benchmark
        file = folder / SUMMARY
    elif found := next((folder / n for n in MEASURED if (folder / n).is_file()), None):
        read, file = _of_run, found
    else:
        raise RunError(
            f"results in {folder}",
            f"neither metrics.json (dcmpl evaluate RUN) nor {SUMMARY} (dcmpl benchmark --out ...)",
        )
    rows = read_plain(file, "results", lambda record: read(record, folder), MAX_BYTES)
    return pd.DataFrame(rows, columns=COLUMNS).assign(ours=True)


def _of_run(metrics: dict[str, Any], folder: Path) -> list[list[Any]]:
    name = f"{metrics['preset']} on {metrics['backbone']}"
    rows = []
    for target in measured(metrics):
        entry = metrics[target]
        count, kind = f"{entry['n']} images", _kind(metrics)
        values = [_number(entry[m]["value"]) for m in ("srcc", "plcc")]
        rows.append([name, metrics["data"], target, *values, kind, f"{folder}, {count}"])
        for baseline, of_target in metrics.get("baselines", {}).items():
            if target in of_target:
                values = [_number(of_target[target][m]) for m in ("srcc", "plcc")]
                text = f"baseline: {BASELINES[baseline]}"
                rows.append([text, metrics["data"], target, *values, kind, str(folder)])
    return rows


def _kind(metrics: dict[str, Any]) -> str:
    """Protocol of a run in the published table's words, or a word that no published row has.

    A part that is no test part, or a split of one's own, stands beside nothing published.
    """
    part, protocol = str(metrics.get("part", "test")), str(metrics["protocol"])
    if part != "test" and protocol != "other data":
        return f"{part} part of its own data, {protocol}"
    return KINDS.get(protocol, f"a split of its own, {protocol}")


def _of_benchmark(found: dict[str, Any], folder: Path) -> list[list[Any]]:
    rows = []
    for row in found["rows"]:
        own = row["trained_on"] == row["tested_on"]
        method = str(row["variant"])
        if not method.startswith("baseline: "):
            method = f"{method} on {found['backbone']}"
        text = f"{folder}, mean of {int(row['repeats'])} repeats, {int(row['images'])} images each"
        values = _number(row["mean"]), _number(row["plcc"])
        kind = KINDS[row["protocol"]] if own else KINDS["other data"]
        rows.append([method, row["tested_on"], row["target"], *values, kind, text])
    return rows


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def compare(folders: Sequence[Path]) -> pd.DataFrame:
    """Our rows of all ``folders`` and the published ones of the same data sets and tasks."""
    ours = pd.concat([our_rows(folder) for folder in folders], ignore_index=True)
    wanted = set(zip(ours["dataset"], ours["task"], strict=True))
    theirs = published_rows()
    same = [pair in wanted for pair in zip(theirs["dataset"], theirs["task"], strict=True)]
    frame = pd.concat([ours, theirs[same]], ignore_index=True)
    return frame.sort_values(
        ["dataset", "task", "protocol", "srcc"],
        ascending=[True, True, True, False],
        key=lambda c: c.map({t: i for i, t in enumerate(TARGETS)}) if c.name == "task" else c,
        ignore_index=True,
    )


def paired_rows(folders: Sequence[Path]) -> pd.DataFrame:
    """Every two measured runs that predict the same test images, compared on them."""
    known = {}
    for folder in folders:
        if (folder / "predictions.csv").is_file():
            known[folder] = _predictions(folder / "predictions.csv")
    rows = []
    for index, ours in enumerate(known):
        for theirs in list(known)[index + 1 :]:
            rows += _paired(known[ours], known[theirs], ours, theirs)
    return pd.DataFrame(rows)


def _predictions(file: Path) -> pd.DataFrame:
    """Predictions by image; raises :class:`DataError` where somebody changed their layout."""
    frame = read_sheet(file)
    targets = (str(n).removeprefix("opinion_") for n in frame if str(n).startswith("opinion_"))
    need(frame, ["image", "group", *targets], file)
    doubled = frame["image"][frame["image"].duplicated()]
    if len(doubled):
        raise DataError(f"each image once in {file}", f"{doubled.iloc[0]} twice")
    return frame.set_index("image")


def _paired(
    ours: pd.DataFrame, theirs: pd.DataFrame, first: Path, second: Path
) -> list[dict[str, Any]]:
    rows = []
    opinions = [name for name in ours if str(name).startswith("opinion_")]
    for target in (str(name).removeprefix("opinion_") for name in opinions):
        opinion = f"opinion_{target}"
        if opinion not in theirs or set(ours.index) != set(theirs.index):
            continue
        other = theirs.loc[ours.index]
        columns = [ours[target], other[target], ours[opinion], other[opinion]]
        x, y, z, same = (pd.to_numeric(c, errors="coerce").to_numpy(float) for c in columns)
        judged = np.isfinite(x) & np.isfinite(y) & np.isfinite(z)
        if not judged.any() or not np.array_equal(z, same, equal_nan=True):
            continue
        groups = ours["group"].to_numpy(str)[judged]
        found = compare_paired(srcc, x[judged], y[judged], z[judged], groups)
        low, high = number_cell(found.low), number_cell(found.high)
        rows.append(
            {
                "run": str(first),
                "less": str(second),
                "task": target,
                **{k: v for k, v in asdict(found).items() if k not in ("low", "high")},
                "interval": f"[{low}, {high}]" if low else "",
            }
        )
    return rows


METRICS = ("srcc", "plcc")
SHOWN = {"method": "method", "srcc": "SRCC", "plcc": "PLCC", "source": "source"}


def write_comparison(frame: pd.DataFrame, paired: pd.DataFrame, out: Path) -> list[str]:
    """Write ``comparison.md``, ``.csv`` and, with matplotlib, ``.png``; returns their names."""
    markdown = [
        "# Ours beside what others published",
        "",
        f"*{MADE_BY} {__version__}*",
        "",
        "Only numbers of one protocol can be compared. Published rows are as printed; most were "
        "measured on the whole data set, which a row of ours need not be: its source says on how "
        "many images.",
    ]
    panels = {}
    for (dataset, task, protocol), rows in frame.groupby(
        ["dataset", "task", "protocol"], sort=False
    ):
        alone = not rows["ours"].any() and protocol != "not known"
        heading = f"{dataset}, {task}: {protocol}"
        markdown += ["", f"## {heading}{' (none of ours was made under it)' if alone else ''}", ""]
        # Four digits, as they are printed.
        digits = {m: rows[m].map(lambda v: "" if np.isnan(v) else f"{v:.4f}") for m in METRICS}
        shown = rows[list(SHOWN)].assign(**digits).rename(columns=SHOWN)
        ours = zip(rows["method"], rows["ours"], strict=True)
        bold = shown.assign(method=[f"**{m}**" if own else m for m, own in ours])
        markdown.append(markdown_table(bold))
        if rows["ours"].any():
            panels[heading] = rows[rows["srcc"].notna()].iloc[::-1]
    if len(paired):
        text = (
            "SRCC of the one minus that of the other on the same images: 95 % interval and p by a "
            "bootstrap over prompts; Wilcoxon's signed-rank test on each prompt's mean error."
        )
        markdown += ["", "## Run against run", "", text, "", markdown_table(paired, ["difference"])]
    names = ["comparison.md", "comparison.csv"]
    write_atomically(out / "comparison.md", ("\n".join(markdown) + "\n").encode())
    write_atomically(out / "comparison.csv", frame.to_csv(index=False).encode())
    if has_matplotlib() and panels:
        write_atomically(out / "comparison.png", _plot(panels))
        names.append("comparison.png")
    return names


def _plot(panels: Mapping[str, pd.DataFrame]) -> bytes:
    """A bar for every method, ours in another colour; a panel for each set of like numbers."""
    from matplotlib.figure import Figure

    heights = [1.2 + 0.24 * len(rows) for rows in panels.values()]
    figure = Figure(figsize=(8, sum(heights)), dpi=100, layout="constrained")
    drawn = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, rows) in zip(drawn, panels.items(), strict=True):
        colours = ["#d98f00" if ours else "#9db4c8" for ours in rows["ours"]]
        axes.barh(range(len(rows)), rows["srcc"], color=colours)
        axes.set_yticks(range(len(rows)), [str(m)[:60] for m in rows["method"]], fontsize=8)
        axes.set(xlabel="SRCC", title=title, xlim=(0, 1))
        axes.margins(y=0.01)
    return figure_png(figure)
