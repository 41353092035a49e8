"""Tables as files: CSV, TSV, JSON, JSON Lines, Parquet, XLSX and MATLAB arrays, every cell as text.

They come from strangers: sizes are checked before anything is unpacked, nothing in them is
executed, and what is wrong is one sentence.
"""

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dcmpl.data.lists import KINDS
from dcmpl.data.table import listed
from dcmpl.data.texts import encoding_of
from dcmpl.errors import DataError

__all__ = ["SHEETS", "check_cells", "first_file", "need", "read_mat", "read_numbers", "read_sheet"]

MAX_BYTES = 256 * 2**20
"""Of a file, and of what a compressed one unpacks to."""

MAX_JSON_BYTES = 32 * 2**20
"""JSON unpacks fiftyfold at worst; 2,400 images with four texts each take 4 MB."""

MAX_NUMBERS_BYTES = 2**20
MAX_CELLS = 20_000_000
MAX_COLUMNS = 4096
BATCH_ROWS = 256
"""Of Parquet, whose figures on its size may lie: a batch is read before it is measured."""

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
            f"the columns {', '.join(columns)} in {file}",
            listed(list(map(str, frame.columns)), 20),
            f"{missing[0]} is not there",
        )
    check_cells(frame, columns, file)
    return frame


def check_cells(frame: pd.DataFrame, columns: Iterable[str], file: Path) -> None:
    """Raise :class:`DataError` where a cell of ``columns`` was neither text nor number."""
    strange: Mapping[str, tuple[int, str]] = frame.attrs.get(STRANGE, {})
    for column in columns:
        if column in strange:
            row, kind = strange[column]
            raise DataError(f"text or numbers in {column} of {file}", f"a {kind} in row {row}")


def read_sheet(file: Path, header: bool = True, encoding: str = "utf-8-sig") -> pd.DataFrame:
    """Every cell as text, missing ones empty; types are given by name later.

    Without ``header`` the columns are called 0, 1, ... The file's ending names the kind
    (``SHEETS``). Raises :class:`DataError` where the file is no such table, or has no rows.
    """
    kind = file.suffix.lower()
    if kind not in SHEETS:
        raise DataError(f"a table that ends in {', '.join(SHEETS)}", file)
    try:
        _check_file(file, kind)
        frame = SHEETS[kind](file, header, encoding)
    except DataError:
        raise
    except _TwiceError as error:
        raise DataError(f"each column once in {file}", f"{str(error)!r} twice") from error
    except OSError as error:
        raise DataError(f"a table at {file}", reason=error.strerror or error) from error
    except Exception as error:  # parsers raise anything on damaged files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        wanted = f"a {encoding.removesuffix('-sig').upper()} " if kind in (".csv", ".tsv") else "a "
        raise DataError(f"{wanted}{KINDS[kind]} table at {file}", reason=reason) from error
    if frame.empty:
        raise DataError(f"at least one row in {file}", "none")
    frame.columns = [" ".join(str(column).split()) for column in frame.columns]
    if kind not in (".csv", ".tsv"):
        frame.attrs[STRANGE] = dict(_emptied(frame))
    doubled = frame.columns[frame.columns.duplicated()]
    if len(doubled):
        raise DataError(f"each column once in {file}", f"{doubled[0]!r} twice")
    return frame


def _check_file(file: Path, kind: str) -> None:
    if not file.is_file() and file.exists():  # a device has no end
        raise DataError(f"a table at {file}", "no file")
    size = file.stat().st_size
    most = MAX_JSON_BYTES if kind in (".json", ".jsonl") and size <= MAX_BYTES else MAX_BYTES
    if size > most:
        raise DataError(f"a table of at most {most} bytes", file)


def _read_text(file: Path, header: bool, encoding: str) -> pd.DataFrame:
    """CSV and TSV; what is missing at the end of a row is empty."""
    separator = "\t" if file.suffix.lower() == ".tsv" else ","
    rows: list[list[str]] = []
    cells = 0
    if encoding == "utf-8-sig":
        with file.open("rb") as binary:
            encoding = encoding_of(binary.read(4), encoding)
    with file.open(encoding=encoding, newline="") as lines:
        reader = csv.reader(lines, delimiter=separator, strict=True)
        for row in reader:
            cells += len(row)
            if cells > MAX_CELLS or len(row) > MAX_COLUMNS:
                raise DataError(
                    f"at most {MAX_CELLS} cells and {MAX_COLUMNS} columns in {file}", "more"
                )
            if rows and len(row) > len(rows[0]):
                raise DataError(
                    f"as many cells as columns in every row of {file}",
                    f"more in line {reader.line_num}",
                    "quote cells that hold commas",
                )
            if not rows and sum(map(len, row)) > MAX_HEADER_BYTES:
                raise DataError(f"a header of at most {MAX_HEADER_BYTES} bytes in {file}", "more")
            if row:
                rows.append(row + [""] * (len(rows[0]) - len(row)) if rows else row)
    if not rows:
        raise ValueError("an empty file")
    names = rows.pop(0) if header else [str(i) for i in range(len(rows[0]))]
    return pd.DataFrame(rows, columns=names, dtype=str)


NO_TEXT, STRANGE = "\0no text: ", "cells that are neither text nor number"
"""Beginning of a cell that is neither, and the name under which a table's are kept: columns that
nobody asks for may hold anything."""


def _as_text(cell: Any) -> str:
    if cell is None or (isinstance(cell, float) and np.isnan(cell)):
        return ""
    if isinstance(cell, (str, int, float)):
        return str(cell)
    return NO_TEXT + type(cell).__name__


def _emptied(frame: pd.DataFrame) -> Iterator[tuple[str, tuple[int, str]]]:
    """Empty the cells that are neither text nor number; the first of each column, by name."""
    for place, column in enumerate(frame.columns):
        odd = frame.iloc[:, place].str.startswith(NO_TEXT).to_numpy(dtype=bool)
        if odd.any():
            row = int(odd.argmax())
            yield column, (row + 1, str(frame.iat[row, place]).removeprefix(NO_TEXT))
            frame.isetitem(place, frame.iloc[:, place].mask(odd, "").to_list())


class _TwiceError(ValueError):
    """Error for a column name that occurs twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object of JSON; equal keys, of which the last would win unseen, are an error."""
    _check_once([name for name, _ in pairs])
    return dict(pairs)


def _check_once(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise _TwiceError(next(name for name in names if names.count(name) > 1))


def _of_records(records: list[Any], file: Path) -> pd.DataFrame:
    if not all(isinstance(record, dict) for record in records):
        raise DataError(f"an object per row in {file}", "something else")
    names = list(dict.fromkeys(name for record in records for name in record))
    if len(names) * len(records) > MAX_CELLS:
        raise DataError(f"at most {MAX_CELLS} cells in {file}", "more")
    cells = [[_as_text(record.get(name)) for name in names] for record in records]
    return pd.DataFrame(cells, columns=names, dtype=str)


def _read_jsonl(file: Path, header: bool, encoding: str) -> pd.DataFrame:
    with file.open(encoding=encoding) as lines:
        return _of_records(
            [json.loads(line, object_pairs_hook=_once) for line in lines if line.strip()], file
        )


def _read_json(file: Path, header: bool, encoding: str) -> pd.DataFrame:
    records = json.loads(file.read_text(encoding=encoding), object_pairs_hook=_once)
    if not isinstance(records, list):
        raise DataError(f"a list of objects in {file}", type(records).__name__)
    return _of_records(records, file)


def _read_parquet(file: Path, header: bool, encoding: str) -> pd.DataFrame:
    import pyarrow.parquet as pq

    texts = [field.name for field in pq.read_schema(file) if str(field.type).endswith("string")]
    with pq.ParquetFile(file, read_dictionary=texts) as parquet:
        about = parquet.metadata
        groups = [about.row_group(i) for i in range(about.num_row_groups)]
        unpacked = sum(group.total_byte_size for group in groups)
        if unpacked > MAX_BYTES or about.num_rows * about.num_columns > MAX_CELLS:
            raise DataError(
                f"a table that unpacks to at most {MAX_BYTES} bytes and {MAX_CELLS} cells",
                f"more in {file}",
            )
        names = parquet.schema_arrow.names
        _check_once(names)
        columns: list[list[str]] = [[] for _ in names]
        taken = 0
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS):
            taken += batch.nbytes + sum(map(_shared_bytes, batch.columns))
            if taken > MAX_BYTES:
                raise DataError(
                    f"a table that unpacks to at most {MAX_BYTES} bytes and {MAX_CELLS} cells",
                    f"more in {file}",
                )
            for column, values in zip(columns, batch.columns, strict=True):
                column.extend(_as_text(cell) for cell in values.to_pylist())
    frame = pd.DataFrame(dict(enumerate(columns)), dtype=str)
    frame.columns = names
    return frame


def _shared_bytes(column: Any) -> int:
    """Bytes that shared strings take once every row has its own copy."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(column.type):
        return 0
    lengths = pc.binary_length(column.dictionary).take(column.indices)
    return int(pc.sum(lengths).as_py() or 0)


def _refuse_entities(archive: zipfile.ZipFile, name: str, file: Path) -> None:
    """Refuse document types, whose entities may expand a hundredfold; sheets have none."""
    with archive.open(name) as part:
        before = b""
        while chunk := part.read(2**20):
            # UTF-16 would hide it; no program writes sheets in that.
            if b"<!DOCTYPE" in before + chunk or (not before and b"\0" in chunk[:64]):
                raise DataError(f"no document type in {name} of {file}", "one")
            before = chunk[-16:]


def _read_xlsx(file: Path, header: bool, encoding: str) -> pd.DataFrame:
    """Rows of the first sheet; formulas are read as their last values."""
    import openpyxl

    with zipfile.ZipFile(file) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
            raise DataError(f"a sheet that unpacks to at most {MAX_BYTES} bytes", f"more in {file}")
        for entry in archive.infolist():
            if entry.filename.endswith((".xml", ".rels")):
                _refuse_entities(archive, entry.filename, file)
    book = openpyxl.load_workbook(io.BytesIO(file.read_bytes()), read_only=True, data_only=True)
    sheet = book.worksheets[0]
    sheet.reset_dimensions()  # what a file says of its size need not be true
    rows: list[list[str]] = []
    cells = size = widest = 0
    for number, row in enumerate(sheet.iter_rows(values_only=True)):
        cells += len(row) + 1
        if cells > MAX_CELLS or number > 1_048_576:
            raise DataError(f"at most {MAX_CELLS} cells in {file}", "more")
        if any(cell is not None for cell in row):
            rows.append([_as_text(cell) for cell in row])
            size += sum(map(len, rows[-1]))
            widest = max(widest, len(row))
        if len(rows) * widest > MAX_CELLS:
            raise DataError(f"at most {MAX_CELLS} cells in {file}", "more")
        if size > MAX_BYTES:
            raise DataError(f"a sheet that unpacks to at most {MAX_BYTES} bytes", f"more in {file}")
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


def read_mat(file: Path, variable: str, count: int) -> np.ndarray:
    """The ``count`` numbers of one variable of a MATLAB file, float64.

    Raises :class:`DataError` where the file holds anything else under that name.
    """
    from scipy import io as matlab

    wanted = f"a MATLAB file with the variable {variable}, {count} x 1 numbers, at {file}"
    try:
        if file.stat().st_size > MAX_MAT_BYTES:
            raise DataError(wanted, f"more than {MAX_MAT_BYTES} bytes")
        found = {name: (shape, kind) for name, shape, kind in matlab.whosmat(str(file))}
        if variable not in found:
            raise DataError(wanted, ", ".join(found) or "nothing")
        shape, kind = found[variable]
        if kind not in ("double", "single") or sorted(shape) != sorted((count, 1)):
            sizes = " x ".join(map(str, shape))
            raise DataError(wanted, f"{kind} of {sizes}")
        values = matlab.loadmat(str(file), variable_names=[variable])[variable]
        if np.iscomplexobj(values):
            raise DataError(wanted, "complex ones")
    except DataError:
        raise
    except Exception as error:  # the parser raises anything on damaged files
        sizes = " ".join(str(error).split()) or type(error).__name__
        raise DataError(wanted, reason=sizes) from error
    numbers: np.ndarray = np.asarray(values, dtype=np.float64).ravel()
    return numbers


def read_numbers(file: Path, count: int) -> np.ndarray:
    """Numbers of a text file, the last word of each line; raises :class:`DataError` otherwise."""
    wanted = f"{count} lines that end in a number at {file}"
    try:
        if file.stat().st_size > MAX_NUMBERS_BYTES:
            raise DataError(wanted, f"more than {MAX_NUMBERS_BYTES} bytes")
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        values = [float(line.replace(",", " ").split()[-1]) for line in lines if line.strip()]
    except (OSError, ValueError, IndexError) as error:
        raise DataError(wanted, reason=f"{str(error)[:200]}") from error
    if len(values) != count:
        raise DataError(wanted, len(values))
    return np.array(values)
