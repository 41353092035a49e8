"""Audit of a data set against its published counts, and a page that shows its contents."""

import html
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from dcmpl.data.datasets import DATASETS
from dcmpl.data.leaks import ImageFacts
from dcmpl.data.table import ImageTable, listed
from dcmpl.errors import DataError
from dcmpl.images.decode import is_image, read_image
from dcmpl.pages import embedded, figure_png, has_matplotlib, html_page, html_table

__all__ = ["Findings", "check_table", "data_page"]

SAMPLES, THUMBNAIL = 24, 200


@dataclass(frozen=True)
class Findings:
    """Findings of an audit: ``faults`` of this copy, ``notes`` on the data set."""

    faults: list[str]
    notes: list[str]


def check_table(table: ImageTable, facts: Mapping[str, ImageFacts]) -> Findings:
    """Audit ``table`` by counts and decoded images; ``facts`` as from :func:`survey`."""
    found = Findings(list(_short_of_figures(table)), list(table.notes))
    unreadable = [str(f) for f in (facts[path].fault for path in table.frame["image"]) if f]
    found.faults.extend(unreadable)
    names = dict(zip(table.frame["image"], table.frame["name"], strict=True))
    by_file: dict[str, list[str]] = {}
    for path, name in names.items():
        if facts[path].sha256 and not facts[path].flat:
            by_file.setdefault(facts[path].sha256, []).append(name)
    official = table.name in DATASETS
    for same in by_file.values():
        if len(same) > 1:
            # The authors' own are theirs; in data of one's own they are a mistake.
            place = found.notes if official else found.faults
            place.append(f"doubled: {' and '.join(same)} are the same file")
    flat = [name for path, name in names.items() if facts[path].flat]
    if flat:
        found.notes.append(f"flat, nothing is to be seen in them: {listed(flat)}")
    if extra := _without_row(table):
        found.notes.append(f"{len(extra)} images have no row: {listed(extra)}")
    return found


def _short_of_figures(table: ImageTable) -> Iterator[str]:
    if table.name not in DATASETS:
        return
    figures = DATASETS[table.name].figures
    if len(table) + _left_out(table) != figures.images:
        yield f"{len(table):,} of {figures.images:,} images of the full set are there"
    prompts = table.frame["prompt"][table.frame["prompt"] != ""].nunique()
    if figures.prompts and prompts and prompts != figures.prompts:
        absent = figures.prompts - prompts
        if absent > 0:
            yield f"{absent} of {figures.prompts:,} prompts of the full set are absent"
        else:
            yield f"{prompts:,} prompts are there, of {figures.prompts:,} of the full set"
    counts = table.frame["generator"].value_counts()
    short = [
        f"{counts.get(name, 0)} of {wanted} of {name}"
        for name, wanted in figures.generators.items()
        if not 0 <= wanted - counts.get(name, 0) <= _left_out(table)
    ]
    if short:
        yield f"by generator, {listed(short, 3)} are there"
    if strange := sorted(set(counts.index) - set(figures.generators)):
        yield f"generators that the full set has not: {listed(strange)}"


def _left_out(table: ImageTable) -> int:
    """Number of rows that the reader left out: two for each name that AGIQA-1K doubles."""
    return 2 * sum("both rows are left out" in note for note in table.notes)


def _without_row(table: ImageTable) -> list[str]:
    known = set(table.frame["image"])
    folders = sorted({str(Path(path).parent) for path in known})
    found = []
    for folder in folders:
        if Path(folder).is_dir():
            inside = sorted(p.absolute() for p in Path(folder).iterdir() if is_image(p))
            found += [p.name for p in inside if str(p) not in known]
    return found


def data_page(table: ImageTable, facts: Mapping[str, ImageFacts]) -> bytes:
    """HTML page of a data set: counts, histograms, generators, images from worst to best."""
    frame, findings = table.frame, check_table(table, facts)
    sizes = sorted({(f.width, f.height) for f in facts.values() if not f.fault})
    facts_listed = [
        f"{len(table):,} images, {frame['group'].nunique():,} prompts, "
        f"{frame['generator'].nunique()} generators",
        f"MOS from {table.scale.low:g} (worst) to {table.scale.high:g}; judged for "
        + ", ".join(table.judged),
        f"sizes: {listed([f'{w} x {h}' for w, h in sizes])}",
    ]
    parts = [_list("What it holds", facts_listed)]
    parts += [_list("What is wrong with this copy", findings.faults)] if findings.faults else []
    parts += [_list("Worth knowing", findings.notes)] if findings.notes else []
    if has_matplotlib():
        parts += ["<h2>Opinions</h2>", embedded(_histograms(table), "png", "histograms of the MOS")]
    parts += ["<h2>Generators</h2>", html_table(_generators(table))]
    for target in table.judged:
        parts.append(f"<h2>From worst to best {target}</h2>")
        parts.append(_samples(table, facts, target))
    return html_page(table.name, parts)


def _list(title: str, items: list[str]) -> str:
    lines = "".join(f"<li>{html.escape(item)}</li>" for item in items[:200])
    more = f"<p>and {len(items) - 200} more</p>" if len(items) > 200 else ""
    return f"<h2>{html.escape(title)}</h2><ul>{lines}</ul>{more}"


def _histograms(table: ImageTable) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(table.judged), 3), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(table.judged), squeeze=False)[0]
    for axes, target in zip(panels, table.judged, strict=True):
        values = table.frame[f"mos_{target}"].dropna()
        axes.hist(values, bins=40, color="#6b8fb3")
        axes.axvline(values.mean(), color="#d98f00", label=f"mean {values.mean():.2f}")
        axes.set(xlabel=f"{target} MOS", ylabel="images")
        axes.legend()
    return figure_png(figure)


def _generators(table: ImageTable) -> pd.DataFrame:
    """Counts, means and deviations, the best quality first."""
    grouped = table.frame.groupby("generator", sort=False)
    found = pd.DataFrame({"images": grouped.size()})
    for target in table.judged:
        found[f"{target}, mean"] = grouped[f"mos_{target}"].mean()
        found[f"{target}, deviation"] = grouped[f"mos_{target}"].std()
    by = f"{table.judged[0]}, mean"
    return found.sort_values(by, ascending=False).rename_axis("generator").reset_index()


def _samples(table: ImageTable, facts: Mapping[str, ImageFacts], target: str) -> str:
    readable = table.frame["image"].map(lambda path: not facts[path].fault)
    rows = table.frame[readable & table.frame[f"mos_{target}"].notna()]
    rows = rows.sort_values(f"mos_{target}", kind="stable")
    places = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLES, len(rows))).round().astype(int))
    figures = []
    for _, row in rows.iloc[places].iterrows():
        try:
            image = Image.fromarray(read_image(row["image"]))
        except DataError:  # gone since it was surveyed
            continue
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=80)
        caption = f"{row[f'mos_{target}']:.2f} {row['generator']}: {row['prompt']}"
        shown = embedded(file.getvalue(), "jpeg", row["name"])
        figures.append(
            f"<figure>{shown}<figcaption>{html.escape(caption[:160])}</figcaption></figure>"
        )
    return f'<div class="images">{"".join(figures)}</div>'
