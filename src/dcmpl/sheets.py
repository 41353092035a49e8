"""Tables as files: CSV, TSV, JSON, JSON Lines, Parquet, XLSX and MATLAB arrays, every cell as text.

They come from strangers: sizes are checked before anything is unpacked, nothing in them is
executed, and what is wrong is one sentence.
"""

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dcmpl.errors import DataError

__all__ = ["SHEETS", "first_file", "need", "read_mat", "read_numbers", "read_sheet"]

MAX_BYTES = 256 * 2**20
"""Of a file, and of what a compressed one unpacks to."""

MAX_CELLS = 20_000_000
MAX_HEADER_BYTES = 2**20
MAX_MAT_BYTES = 2**18
"""MATLAB's compression can multiply a file by a thousand; 2,400 numbers take 19 KB."""


def first_file(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of ``names`` that is a file in ``folder``."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def need(frame: pd.DataFrame, columns: Sequence[str], file: Path) -> pd.DataFrame:
    """``frame`` where it has ``columns``; raises :class:`DataError` with the layout where not."""
    missing = [column for column in columns if column not in frame]
    if missing:
        raise DataError(
            f"expected the columns {', '.join(columns)} in {file}, got "
            f"{', '.join(map(str, frame.columns))}: {missing[0]} is not there"
        )
    return frame


def read_sheet(file: Path, header: bool = True, encoding: str = "utf-8-sig") -> pd.DataFrame:
    """Every cell as text, missing ones empty; types are given by name later.

    Without ``header`` the columns are called 0, 1, ... The kind is told by the file's ending
    (``SHEETS``). Raises :class:`DataError` where the file is no such table, or has no rows.
    """
    kind = file.suffix.lower()
    if kind not in SHEETS:
        raise DataError(f"expected a table that ends in {', '.join(SHEETS)}, got {file}")
    try:
        if file.stat().st_size > MAX_BYTES:
            raise DataError(f"expected a table of at most {MAX_BYTES} bytes, got {file}")
        frame = SHEETS[kind](file, header, encoding)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"expected a table at {file}, got: {error.strerror or error}") from error
    except Exception as error:  # parsers raise anything on damaged files
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        wanted = f"a {encoding.removesuffix('-sig').upper()} " if kind in (".csv", ".tsv") else "a "
        raise DataError(f"expected {wanted}{KINDS[kind]} table at {file}, got: {told}") from error
    if frame.empty:
        raise DataError(f"expected at least one row in {file}, got none")
    frame.columns = [str(column).strip() for column in frame.columns]
    doubled = frame.columns[frame.columns.duplicated()]
    if len(doubled):
        raise DataError(f"expected each column once in {file}, got {doubled[0]!r} twice")
    return frame


def _read_text(file: Path, header: bool, encoding: str) -> pd.DataFrame:
    with file.open("rb") as binary:
        if len(binary.readline(MAX_HEADER_BYTES + 1)) > MAX_HEADER_BYTES:
            raise DataError(
                f"expected lines in {file}, the first has over {MAX_HEADER_BYTES} bytes"
            )
    frame = pd.read_csv(
        file,
        sep="\t" if file.suffix.lower() == ".tsv" else ",",
        dtype=str,
        header=0 if header else None,
        keep_default_na=False,
        encoding=encoding,
    )
    if not isinstance(frame.index, pd.RangeIndex):
        raise DataError(
            f"expected as many cells as columns in every row of {file}, got more: "
            "quote cells that hold commas"
        )
    if frame.isna().any(axis=None):
        line = int(frame.isna().any(axis=1).to_numpy().argmax()) + 1 + header
        raise DataError(f"expected as many cells as columns in {file}, got fewer in line {line}")
    return frame


def _as_text(cell: Any) -> str:
    if cell is None or (isinstance(cell, float) and np.isnan(cell)):
        return ""
    if isinstance(cell, (str, int, float)):
        return str(cell)
    raise DataError(f"expected texts and numbers in cells, got {type(cell).__name__}")


def _of_records(records: list[Any], file: Path) -> pd.DataFrame:
    if not all(isinstance(record, dict) for record in records):
        raise DataError(f"expected an object per row in {file}, got something else")
    names = list(dict.fromkeys(name for record in records for name in record))
    if len(names) * len(records) > MAX_CELLS:
        raise DataError(f"expected at most {MAX_CELLS} cells in {file}, got more")
    cells = [[_as_text(record.get(name)) for name in names] for record in records]
    return pd.DataFrame(cells, columns=names, dtype=str)


def _read_jsonl(file: Path, header: bool, encoding: str) -> pd.DataFrame:
    with file.open(encoding=encoding) as lines:
        return _of_records([json.loads(line) for line in lines if line.strip()], file)


def _read_json(file: Path, header: bool, encoding: str) -> pd.DataFrame:
    records = json.loads(file.read_text(encoding=encoding))
    if not isinstance(records, list):
        raise DataError(f"expected a list of objects in {file}, got {type(records).__name__}")
    return _of_records(records, file)


def _read_parquet(file: Path, header: bool, encoding: str) -> pd.DataFrame:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as parquet:
        about = parquet.metadata
        groups = [about.row_group(i) for i in range(about.num_row_groups)]
        unpacked = sum(group.total_byte_size for group in groups)
        if unpacked > MAX_BYTES or about.num_rows * about.num_columns > MAX_CELLS:
            raise DataError(
                f"expected a table that unpacks to at most {MAX_BYTES} bytes and {MAX_CELLS} "
                f"cells, got more in {file}"
            )
        names = parquet.schema_arrow.names
        columns = [parquet.read([name]).column(0).to_pylist() for name in names]
    cells = [[_as_text(cell) for cell in column] for column in columns]
    return pd.DataFrame(dict(zip(names, cells, strict=True)), dtype=str)


def _read_xlsx(file: Path, header: bool, encoding: str) -> pd.DataFrame:
    """The first sheet; formulas are not evaluated, what they last gave is read."""
    import openpyxl

    with zipfile.ZipFile(file) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
            raise DataError(f"expected a sheet that unpacks to at most {MAX_BYTES} bytes: {file}")
    book = openpyxl.load_workbook(io.BytesIO(file.read_bytes()), read_only=True, data_only=True)
    sheet = book.worksheets[0]
    sheet.reset_dimensions()  # what a file says of its size need not be true
    rows, cells = [], 0
    for number, row in enumerate(sheet.iter_rows(values_only=True)):
        cells += len(row) + 1
        if cells > MAX_CELLS or number > 1_048_576:
            raise DataError(f"expected at most {MAX_CELLS} cells in {file}, got more")
        if any(cell is not None for cell in row):
            rows.append([_as_text(cell) for cell in row])
    width = max(map(len, rows), default=0)
    rows = [row + [""] * (width - len(row)) for row in rows]
    names = rows.pop(0) if header and rows else [str(i) for i in range(width)]
    frame = pd.DataFrame(rows, columns=names, dtype=str)
    return frame.loc[:, [bool(str(name).strip()) for name in names]]


SHEETS: dict[str, Callable[[Path, bool, str], pd.DataFrame]] = {
    ".csv": _read_text,
    ".tsv": _read_text,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".xlsx": _read_xlsx,
}
"""By the ending of a file's name."""

KINDS = {
    ".csv": "CSV",
    ".tsv": "TSV",
    ".json": "JSON",
    ".jsonl": "JSON Lines",
    ".parquet": "Parquet",
    ".xlsx": "XLSX",
}


def read_mat(file: Path, variable: str, count: int) -> np.ndarray:
    """The ``count`` numbers of one variable of a MATLAB file, float64.

    Raises :class:`DataError` where the file holds anything else under that name.
    """
    from scipy import io as matlab

    wanted = f"a MATLAB file with the variable {variable}, {count} x 1 numbers, at {file}"
    try:
        if file.stat().st_size > MAX_MAT_BYTES:
            raise DataError(f"expected {wanted}, got more than {MAX_MAT_BYTES} bytes")
        found = {name: (shape, kind) for name, shape, kind in matlab.whosmat(str(file))}
        if variable not in found:
            raise DataError(f"expected {wanted}, got {', '.join(found) or 'nothing'}")
        shape, kind = found[variable]
        if kind not in ("double", "single") or sorted(shape) != sorted((count, 1)):
            told = " x ".join(map(str, shape))
            raise DataError(f"expected {wanted}, got {kind} of {told}")
        values = matlab.loadmat(str(file), variable_names=[variable])[variable]
    except DataError:
        raise
    except Exception as error:  # the parser raises anything on damaged files
        told = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"expected {wanted}, got: {told}") from error
    numbers: np.ndarray = np.asarray(values, dtype=np.float64).ravel()
    return numbers


def read_numbers(file: Path, count: int) -> np.ndarray:
    """A number per line, the last word of it; raises :class:`DataError` for anything else."""
    wanted = f"{count} lines that end in a number at {file}"
    try:
        if file.stat().st_size > MAX_BYTES:
            raise DataError(f"expected {wanted}, got more than {MAX_BYTES} bytes")
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        values = [float(line.replace(",", " ").split()[-1]) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"expected {wanted}, got: {error}") from error
    if len(values) != count:
        raise DataError(f"expected {wanted}, got {len(values)}")
    return np.array(values)
