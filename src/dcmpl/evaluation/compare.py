"""Our runs beside what others published, like beside like.

``results/published.csv`` holds the published numbers with the protocol each was made under;
a number is only ever set beside numbers of its own protocol.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dcmpl.config import TARGETS
from dcmpl.data.sheets import read_sheet
from dcmpl.errors import RunError
from dcmpl.evaluation.baselines import FLOORS
from dcmpl.evaluation.results import measured
from dcmpl.evaluation.trials import RESULT
from dcmpl.files import write_atomically
from dcmpl.metrics import compare_paired, srcc
from dcmpl.pages import (
    embedded,
    figure_png,
    has_matplotlib,
    html_page,
    html_table,
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
    """The same columns for one folder: a measured run, or the repeats of protocols.

    Raises :class:`RunError` where it holds neither.
    """
    try:
        if (folder / "protocols.json").is_file():
            rows = _of_protocols(_read(folder / "protocols.json"), folder)
        elif file := next((folder / n for n in MEASURED if (folder / n).is_file()), None):
            rows = _of_run(_read(file), folder)
        else:
            raise RunError(
                f"expected results in {folder}, found neither metrics.json (dcmpl evaluate RUN) "
                "nor protocols.json (dcmpl evaluate --protocol ...)"
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"expected results in {folder}, got others: {error!r}") from error
    return pd.DataFrame(rows, columns=COLUMNS).assign(ours=True)


def _read(file: Path) -> Any:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"expected results at {file}, got: {error}") from error


def _of_run(metrics: dict[str, Any], folder: Path) -> list[list[Any]]:
    name = f"{metrics['preset']} on {metrics['backbone']}"
    rows = []
    for target in measured(metrics):
        entry = metrics[target]
        count, kind = f"{entry['n']} pictures", _kind(metrics)
        values = [_number(entry[m]["value"]) for m in ("srcc", "plcc")]
        rows.append([name, metrics["data"], target, *values, kind, f"{folder}, {count}"])
        for floor, of_target in metrics.get("floors", {}).items():
            if target in of_target:
                values = [_number(of_target[target][m]) for m in ("srcc", "plcc")]
                told = f"floor: {FLOORS[floor]}"
                rows.append([told, metrics["data"], target, *values, kind, str(folder)])
    return rows


def _kind(metrics: dict[str, Any]) -> str:
    """The published table's word for how a run was measured, or one that no published row has.

    A part that is no test part, or a split of one's own, stands beside nothing published.
    """
    part, protocol = str(metrics.get("part", "test")), str(metrics["protocol"])
    if part != "test" and protocol != "other data":
        return f"{part} part of its own data, {protocol}"
    return KINDS.get(protocol, f"a split of its own, {protocol}")


def _of_protocols(found: dict[str, Any], folder: Path) -> list[list[Any]]:
    rows = []
    for row in found["rows"]:
        is_model = row["predictor"] == found["model"]
        method = row["predictor"] if is_model else f"floor: {row['predictor']}"
        told = f"{folder}, mean of {int(row['repeats'])} repeats, {found['pictures']} pictures"
        values = _number(row["mean"]), _number(row["plcc"])
        kind = KINDS[row["protocol"]]
        rows.append([method, found["data"], row["target"], *values, kind, told])
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
    """Every two measured runs that predict the same test pictures, compared on them."""
    known = {}
    for folder in folders:
        if (folder / "predictions.csv").is_file():
            known[folder] = read_sheet(folder / "predictions.csv").set_index("image")
    rows = []
    for index, ours in enumerate(known):
        for theirs in list(known)[index + 1 :]:
            rows += _paired(known[ours], known[theirs], ours, theirs)
    return pd.DataFrame(rows)


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
    """Write ``comparison.md``, ``.csv`` and ``.html``; returns their names."""
    title = "Ours beside what others published"
    told = (
        "Only numbers of one protocol can be compared. Published rows are as printed; most were "
        "measured on the whole data set, which a row of ours need not be: its source says on how "
        "many pictures."
    )
    markdown, parts = [f"# {title}", "", told], [f"<p>{told}</p>"]
    for (dataset, task, protocol), rows in frame.groupby(
        ["dataset", "task", "protocol"], sort=False
    ):
        if not rows["ours"].any() and protocol != "not known":
            note = "none of ours was made under it"
        else:
            note = ""
        heading = f"{dataset}, {task}: {protocol}" + (f" ({note})" if note else "")
        # Four digits, as they are printed.
        digits = {m: rows[m].map(lambda v: "" if np.isnan(v) else f"{v:.4f}") for m in METRICS}
        shown = rows[list(SHOWN)].assign(**digits).rename(columns=SHOWN)
        bold = shown.assign(
            method=[
                f"**{m}**" if o else m for m, o in zip(rows["method"], rows["ours"], strict=True)
            ]
        )
        markdown += ["", f"## {heading}", "", markdown_table(bold)]
        parts += [f"<h2>{heading}</h2>", html_table(shown, marked=rows["ours"].tolist())]
        if has_matplotlib() and rows["ours"].any():
            parts.append(embedded(_plot(rows, heading), "png", heading))
    if len(paired):
        told = (
            "SRCC of the one less that of the other on the same pictures: 95 % interval and p by a "
            "bootstrap over prompts; Wilcoxon's signed-rank test on each prompt's mean error."
        )
        markdown += ["", "## Run against run", "", told, "", markdown_table(paired, ["difference"])]
        parts += ["<h2>Run against run</h2>", f"<p>{told}</p>", html_table(paired, ["difference"])]
    write_atomically(out / "comparison.md", ("\n".join(markdown) + "\n").encode())
    write_atomically(out / "comparison.csv", frame.to_csv(index=False).encode())
    write_atomically(out / "comparison.html", html_page(title, parts))
    return ["comparison.md", "comparison.csv", "comparison.html"]


def _plot(rows: pd.DataFrame, title: str) -> bytes:
    from matplotlib.figure import Figure

    rows = rows[rows["srcc"].notna()].iloc[::-1]
    figure = Figure(figsize=(8, 1.2 + 0.24 * len(rows)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    colours = ["#d98f00" if ours else "#9db4c8" for ours in rows["ours"]]
    axes.barh(range(len(rows)), rows["srcc"], color=colours)
    axes.set_yticks(range(len(rows)), [str(m)[:60] for m in rows["method"]], fontsize=8)
    axes.set(xlabel="SRCC", title=title, xlim=(0, 1))
    axes.margins(y=0.01)
    return figure_png(figure)
