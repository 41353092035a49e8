"""Table of images: one row per image, opinions in their own units.

Only :meth:`ImageTable.targets` turns opinions into [0, 1].
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from dcmpl.config import TARGETS, target_of
from dcmpl.errors import DataError

__all__ = ["ImageTable", "MosScale", "as_group", "image_table", "listed", "opinions"]


@dataclass(frozen=True)
class MosScale:
    """The ends of an opinion scale; ``low`` is worst."""

    low: float
    high: float

    def __post_init__(self) -> None:
        for end in ("low", "high"):  # equal scales are written alike, and so have equal digests
            object.__setattr__(self, end, float(getattr(self, end)))
        if not self.low < self.high:
            raise DataError(
                "a MOS scale whose low end is below its high end", f"{self.low:g} {self.high:g}"
            )


@dataclass(frozen=True)
class ImageTable:
    """Images with prompts, generators and opinions, one row per image.

    Columns of ``frame``: ``image`` (absolute path), ``name`` (as the table has it),
    ``prompt``, ``generator``, ``group`` (rows of one group never part), ``part`` (of the data
    set's own split, or empty), ``mos_T`` and ``std_T`` for T of quality, alignment,
    authenticity and a table's own targets, in units of ``scale``, NaN where nobody was asked.
    ``notes`` say what is irregular in the data set and what was done about it.
    """

    name: str
    scale: MosScale
    frame: pd.DataFrame = field(repr=False)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.frame)

    def targets(self, names: Sequence[str] | None = None) -> np.ndarray:
        """(rows, targets) float32: opinions in [0, 1], NaN where missing.

        Of the targets of those ``names``, of all of them unless given.
        """
        columns = [f"mos_{name}" for name in (self.asked if names is None else names)]
        mos = self.frame.reindex(columns=columns).to_numpy(np.float32)
        scaled: np.ndarray = (mos - self.scale.low) / (self.scale.high - self.scale.low)
        return scaled

    @property
    def asked(self) -> tuple[str, ...]:
        """Targets with a column: ``TARGETS``, then a table's own."""
        found = (target_of(str(column), ("mos",)) for column in self.frame)
        return tuple(target for target in found if target is not None)

    @property
    def judged(self) -> tuple[str, ...]:
        """Targets with opinions."""
        return tuple(t for t in self.asked if self.frame[f"mos_{t}"].notna().any())

    @property
    def digest(self) -> str:
        """SHA-256 of scale and rows, wherever the images lie: equal digests, equal opinions."""
        rows = self.frame.drop(columns="image").to_csv(index=False)
        return hashlib.sha256(f"{self.scale}\n{rows}".encode()).hexdigest()

    def select(self, rows: "pd.Series[bool]") -> "ImageTable":
        """The rows for which ``rows`` is true, in their order."""
        return ImageTable(self.name, self.scale, self.frame[rows].reset_index(drop=True))

    def spread_images(self, most: int) -> list[str]:
        """Paths of at most ``most`` images, evenly spread over the rows."""
        paths = [str(path) for path in self.frame["image"]]
        return paths[:: -(-len(paths) // most) or 1]

    def joined(self, other: "ImageTable") -> "ImageTable":
        """Table of the rows of both."""
        frame = pd.concat([self.frame, other.frame], ignore_index=True)
        return ImageTable(self.name, self.scale, frame)


def as_group(prompts: "pd.Series[str]") -> "pd.Series[str]":
    """Prompt group of each prompt: equal but for case and blanks.

    >>> as_group(pd.Series(["A  red fox ", "a red fox"])).tolist()
    ['a red fox', 'a red fox']
    """
    return prompts.str.split().str.join(" ").str.lower()


def image_table(
    name: str,
    scale: MosScale,
    frame: pd.DataFrame,
    folders: Sequence[Path],
    source: Path,
    notes: Iterable[str] = (),
    declared: bool = False,
) -> ImageTable:
    """Build the table of a data set, with the checks and columns that all readers share.

    ``frame`` holds text: ``image``, ``prompt``, one ``mos_...`` at least, and what else is
    known of the columns of :class:`ImageTable`. An image lies in the first of ``folders``
    that has it. Raises :class:`DataError`, naming ``source``, for doubled images and for
    opinions that are no numbers of ``scale``.
    """
    empty = (frame["image"].str.strip() == "").to_numpy()
    same = frame["image"].map(os.path.normpath).duplicated()
    doubled = [repr(name)[1:-1] for name in frame["image"][same & ~empty].unique()]
    if len(doubled):
        raise DataError(f"each image once in {source}", f"{listed(list(doubled))} more than once")
    if empty.any():
        raise DataError(
            f"the name of an image in every row of {source}",
            f"none in row {int(empty.argmax()) + 1}",
        )
    out = pd.DataFrame({"image": [_place(folders, image) for image in frame["image"]]})
    out["name"] = frame["image"].to_numpy()
    out["prompt"] = frame["prompt"].to_numpy()
    for column in ("generator", "part"):
        out[column] = frame[column].to_numpy() if column in frame else ""
    own = frame["group"] if "group" in frame else pd.Series("", frame.index, dtype=str)
    out["group"] = own.where(own != "", as_group(frame["prompt"])).to_numpy()
    others = [found for column in frame if (found := target_of(str(column), ("mos",)))]
    targets = list(dict.fromkeys([*TARGETS, *others]))
    for target in targets:
        mos, std = f"mos_{target}", f"std_{target}"
        out[mos] = opinions(frame[mos], scale, source, declared) if mos in frame else np.nan
        spread = MosScale(0, scale.high - scale.low)
        out[std] = opinions(frame[std], spread, source, declared) if std in frame else np.nan
    if out[[f"mos_{target}" for target in targets]].isna().all(axis=None):
        raise DataError(f"opinions in {source}", "none", "every MOS cell is empty")
    left_out = [
        f"no target is read from the column {column}: expected mos_ and small letters, digits or "
        "_ that name nothing else in tables of scores"
        for column in map(str, frame)
        if column.startswith("mos_") and target_of(column) is None
    ]
    return ImageTable(name, scale, out, (*notes, *left_out))


def _place(folders: Sequence[Path], image: str) -> str:
    """Path of an image in the first of ``folders`` that has it, else in the last."""
    for folder in folders[:-1]:
        if (folder / image).is_file():
            return str((folder / image).absolute())
    return str((folders[-1] / image).absolute())


def opinions(
    cells: "pd.Series[str]", scale: MosScale, source: Path, declared: bool = False
) -> np.ndarray:
    """Opinions of a column within ``scale``; an empty cell is a missing opinion."""
    values = pd.to_numeric(cells.where(cells.str.strip() != ""), errors="coerce")
    bad = (values.isna() & (cells.str.strip() != "")) | (values < scale.low) | (values > scale.high)
    if bad.any():
        row = int(bad.to_numpy().argmax())
        raise DataError(
            f"{cells.name} between {scale.low:g} and {scale.high:g} in {source}",
            f"{cells.iloc[row][:200]!r} in line {row + 2} ({int(bad.sum())} such)",
            "mend the cell"
            + (" or declare the scale with --mos-scale LOW HIGH" if declared else ""),
        )
    return values.to_numpy(float)


def listed(names: Sequence[str], most: int = 10) -> str:
    """The first of ``names`` and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
