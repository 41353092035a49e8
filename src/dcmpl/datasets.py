"""Data sets of AI-generated pictures with human scores: one reader each, one table out.

A reader takes a path and returns an :class:`ImageTable`. The MOS scale stands beside the
reader that knows it, and only :meth:`ImageTable.targets` turns opinions into [0, 1].
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from dcmpl.config import COLUMNS
from dcmpl.errors import DataError, UsageError
from dcmpl.images import decode, quiet_pillow
from dcmpl.progress import track

__all__ = ["TARGETS", "ImageTable", "MosScale", "check_pictures", "load_table"]

TARGETS = ("quality", "alignment")
MAX_TABLE_BYTES = 256 * 2**20


@dataclass(frozen=True)
class MosScale:
    """The ends of an opinion scale; ``low`` is worst."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise DataError(
                f"expected a MOS scale whose low end is below its high end, "
                f"got {self.low:g} {self.high:g}"
            )


@dataclass(frozen=True)
class ImageTable:
    """One row per picture.

    Columns of ``frame``: ``image`` (absolute path), ``name`` (as the table has it),
    ``prompt``, ``generator``, ``group`` (rows of one group never part), and
    ``mos_quality``, ``mos_alignment`` in units of ``scale``, NaN where nobody was asked.
    """

    name: str
    scale: MosScale
    frame: pd.DataFrame = field(repr=False)

    def __len__(self) -> int:
        return len(self.frame)

    def targets(self) -> np.ndarray:
        """(rows, 2) float32: quality and alignment in [0, 1], NaN where missing."""
        mos = self.frame[[f"mos_{t}" for t in TARGETS]].to_numpy(np.float32)
        scaled: np.ndarray = (mos - self.scale.low) / (self.scale.high - self.scale.low)
        return scaled

    @property
    def digest(self) -> str:
        """SHA-256 of scale and rows, wherever the pictures lie: equal digests, equal opinions."""
        rows = self.frame.drop(columns="image").to_csv(index=False)
        return hashlib.sha256(f"{self.scale}\n{rows}".encode()).hexdigest()

    def select(self, rows: "pd.Series[bool]") -> "ImageTable":
        """The rows for which ``rows`` is true, in their order."""
        return ImageTable(self.name, self.scale, self.frame[rows].reset_index(drop=True))

    def joined(self, other: "ImageTable") -> "ImageTable":
        """The rows of both."""
        frame = pd.concat([self.frame, other.frame], ignore_index=True)
        return ImageTable(self.name, self.scale, frame)


def load_table(
    path: str | Path,
    mos_scale: MosScale | None = None,
    columns: Mapping[str, str] | None = None,
) -> ImageTable:
    """Read a data set, recognised by what lies at ``path``.

    ``path`` is the folder of AGIQA-3K, or a CSV of one's own, for which ``mos_scale`` is
    needed; ``columns`` maps our names (:data:`COLUMNS`) to those of the file.
    Raises :class:`DataError` when it is neither.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"expected a data set at {path}, found nothing there")
    if path.is_file():
        return _read_own(path.stem, path, mos_scale, columns or {})
    if (path / "data.csv").is_file():
        header = _read_csv(path / "data.csv").columns
        if set(AGIQA_3K) <= set(header) and not columns:
            if mos_scale not in (None, AGIQA_3K_SCALE):
                raise UsageError(
                    f"expected no MOS scale for AGIQA-3K at {path}, whose own is 0 to 5, "
                    f"got {mos_scale.low:g} to {mos_scale.high:g}: leave --mos-scale out"
                )
            return _read_agiqa_3k(path)
        return _read_own(path.absolute().name, path / "data.csv", mos_scale, columns or {})
    raise DataError(
        f"expected {path} to be a CSV file or a folder with data.csv and pictures, "
        f"found {len(list(path.iterdir()))} entries and no data.csv"
    )


AGIQA_3K = {
    "name": "image",
    "prompt": "prompt",
    "mos_quality": "mos_quality",
    "mos_align": "mos_alignment",
}
AGIQA_3K_SCALE = MosScale(0, 5)


def _read_agiqa_3k(folder: Path) -> ImageTable:
    """AGIQA-3K, Li et al., arXiv:2306.04717: 2,982 pictures, MOS of both kinds in 0..5.

    Names are GENERATOR_SETTING_NUMBER.jpg; the setting belongs to the generator.
    """
    frame = _read_csv(folder / "data.csv").rename(columns=AGIQA_3K)
    frame["generator"] = frame["image"].str.rsplit("_", n=1).str[0]
    pictures = next(
        (
            place
            for name in ("img", "image", "images", "file", "all")
            if (place := folder / name).is_dir()
        ),
        folder,
    )
    return _table("AGIQA-3K", AGIQA_3K_SCALE, frame, pictures, folder / "data.csv")


def _read_own(
    name: str, file: Path, mos_scale: MosScale | None, columns: Mapping[str, str]
) -> ImageTable:
    frame = _read_csv(file)
    unknown = [ours for ours in columns if ours not in COLUMNS]
    absent = [theirs for theirs in columns.values() if theirs not in frame]
    if unknown or absent:
        raise DataError(
            f"expected --columns to map {', '.join(COLUMNS)} to columns of {file} "
            f"({', '.join(frame.columns)}), got {', '.join(unknown or absent)}"
        )
    frame = frame.drop(columns=set(columns) - set(columns.values()), errors="ignore")
    frame = frame.rename(columns={theirs: ours for ours, theirs in columns.items()})
    missing = [column for column in ("image", "prompt") if column not in frame]
    if not {"mos_quality", "mos_alignment"} & set(frame):
        missing.append("mos_quality")
    if missing:
        raise DataError(
            f"expected the columns image, prompt and mos_quality in {file}, got "
            f"{', '.join(frame.columns)}: rename them or map them, "
            f"as in --columns {missing[0]}=THEIR_NAME"
        )
    if mos_scale is None:
        raise UsageError(
            f"expected the ends of the MOS scale of {file}, got none: "
            "add --mos-scale LOW HIGH, for example --mos-scale 1 5"
        )
    return _table(name, mos_scale, frame, file.parent, file)


def _read_csv(file: Path) -> pd.DataFrame:
    """Every cell as text; types are given by name later."""
    if file.stat().st_size > MAX_TABLE_BYTES:
        raise DataError(f"expected a table of at most {MAX_TABLE_BYTES} bytes, got {file}")
    try:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, OSError) as error:  # pandas' parser and decoder errors are ValueErrors
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"expected a UTF-8 CSV table at {file}, got: {reason}") from error
    if not isinstance(frame.index, pd.RangeIndex):
        raise DataError(
            f"expected as many cells as columns in every row of {file}, got more: "
            "quote cells that hold commas"
        )
    if frame.isna().any(axis=None):
        line = int(frame.isna().any(axis=1).to_numpy().argmax()) + 2
        raise DataError(f"expected as many cells as columns in {file}, got fewer in line {line}")
    if frame.empty:
        raise DataError(f"expected at least one row in {file}, got none")
    return frame


def _table(
    name: str, scale: MosScale, frame: pd.DataFrame, pictures: Path, source: Path
) -> ImageTable:
    """The checks and columns that all readers share."""
    doubled = frame["image"][frame["image"].duplicated()].unique()
    if len(doubled):
        raise DataError(
            f"expected each picture once in {source}, got {_listed(list(doubled))} more than once"
        )
    out = pd.DataFrame({"image": [str((pictures / image).absolute()) for image in frame["image"]]})
    out["name"] = frame["image"]
    out["prompt"] = frame["prompt"]
    out["generator"] = frame.get("generator", "")
    out["group"] = frame["prompt"].str.split().str.join(" ").str.lower()
    for target in TARGETS:
        column = f"mos_{target}"
        out[column] = _mos(frame[column], scale, source) if column in frame else np.nan
    if out[[f"mos_{target}" for target in TARGETS]].isna().all(axis=None):
        raise DataError(f"expected opinions in {source}, got none: every MOS cell is empty")
    return ImageTable(name, scale, out)


def _mos(cells: "pd.Series[str]", scale: MosScale, source: Path) -> "pd.Series[float]":
    """Opinions as numbers; an empty cell is a missing one."""
    values = pd.to_numeric(cells.where(cells.str.strip() != ""), errors="coerce")
    bad = (values.isna() & (cells.str.strip() != "")) | (values < scale.low) | (values > scale.high)
    if bad.any():
        row = int(bad.to_numpy().argmax())
        raise DataError(
            f"expected {cells.name} between {scale.low:g} and {scale.high:g} in {source}, "
            f"got {cells.iloc[row]!r} in line {row + 2} ({int(bad.sum())} such): "
            "mend the cell or declare the scale with --mos-scale LOW HIGH"
        )
    return values


def check_pictures(table: ImageTable) -> None:
    """Decode every picture once; raises :class:`DataError` naming all that cannot be read."""

    def fault(path: str) -> str | None:
        try:
            decode(path)
        except DataError as error:
            return str(error)
        return None

    with quiet_pillow(), ThreadPoolExecutor(max_workers=2) as pool:
        found = pool.map(fault, table.frame["image"])
        faults = [f for f in track(found, "checking pictures", len(table)) if f]
    if faults:
        raise DataError(
            f"expected {len(table)} readable pictures, {len(faults)} are not, "
            "mend them or take their rows out:\n" + "\n".join(f"  {f}" for f in faults)
        )


def _listed(names: list[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
