"""Lists of images as tables, read row by row: as many rows as there are take no more memory.

CSV, TSV, JSON Lines and Parquet are streamed, the last by batches of records. They come from
strangers: what one row, or one batch, may hold is bounded, whatever the file says of itself.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

from dcmpl.data.texts import encoding_of, of_cell
from dcmpl.errors import DataError
from dcmpl.images.columns import IMAGE_COLUMNS, plain_name
from dcmpl.storage import about, open_file, reason_of

__all__ = ["KINDS", "LISTS", "PROMPT_COLUMNS", "ListRow", "read_rows"]

LISTS = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".xlsx")

KINDS = {
    ".csv": "CSV",
    ".tsv": "TSV",
    ".json": "JSON",
    ".jsonl": "JSON Lines",
    ".parquet": "Parquet",
    ".xlsx": "XLSX",
}
"""What tables are called in sentences, by the ending of a file's name."""

PROMPT_COLUMNS = ("prompt", "text", "caption", "title")
"""The names in use, the first that is there counts, as with ``IMAGE_COLUMNS``."""

MOST_ROW = 2**22
"""Letters of a row."""

MOST_COLUMNS = 4096
MOST_GROUP = 256 * 2**20
"""Bytes that the columns of a Parquet file's row group may unpack to, and those of a batch."""

BATCH = 256
"""Rows of a batch, whose size is known only when it was read."""


class ListRow(NamedTuple):
    """Row of a list: the image as it is written there, its prompt, and the row's number from 0.

    ``inside``: the image's bytes stand in the row itself.
    """

    image: str
    prompt: str
    number: int
    inside: bool = False


def read_rows(path: str) -> Iterator[ListRow]:
    """Rows of a list, a file or a URL; prompts may be empty, and so may images.

    Raises :class:`DataError` where it is no table or has no column of images, as soon as that
    is seen.
    """
    kind = Path(path).suffix.lower()
    try:
        is_ours = about(f"{path}.manifest.json") is not None  # formulas are marked as texts
        rows = _of_sheet(path) if kind in (".json", ".xlsx") else STREAMS[kind](path)
        any_row = False
        for row in rows:
            any_row = True
            if is_ours:
                row = row._replace(image=of_cell(row.image), prompt=of_cell(row.prompt))
            yield row
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"a table at {path}", reason=reason_of(error)) from error
    except Exception as error:  # parsers raise anything on damaged files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        words = f"a UTF-8 {KINDS[kind]}" if kind in (".csv", ".tsv") else f"a {KINDS[kind]}"
        raise DataError(f"{words} table at {path}", reason=reason) from error
    if not any_row:
        raise DataError(f"at least one row in {path}", "none")


def _columns(names: Sequence[str], path: str) -> tuple[str, str | None]:
    """Columns of images and of prompts; raises :class:`DataError` without the first."""
    if len(names) > MOST_COLUMNS:
        raise DataError(f"at most {MOST_COLUMNS} columns in {path}", len(names))
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"each column once in {path}", f"{twice[0]!r} twice")
    image, prompt = (
        next((name for name in known if name in names), None)
        for known in (IMAGE_COLUMNS, PROMPT_COLUMNS)
    )
    if image is None:
        shown = ", ".join(map(str, names[:20])) + (", ..." if len(names) > 20 else "")
        raise DataError(f"a column of images in {path} ({', '.join(IMAGE_COLUMNS)})", shown)
    return image, prompt


def _of_sheet(path: str) -> Iterator[ListRow]:
    """Rows of a table that is read whole."""
    from dcmpl.data.sheets import check_cells, read_sheet  # imports pandas
    from dcmpl.storage import local_copy

    with local_copy(path) as file:
        frame = read_sheet(file)
        image, prompt = _columns([*frame.columns], path)
        check_cells(frame, [image, *([prompt] if prompt else [])], file)
    prompts = frame[prompt] if prompt else [""] * len(frame)
    for number, (name, text) in enumerate(zip(frame[image], prompts, strict=True)):
        yield ListRow(name, text, number)


def _of_text(path: str) -> Iterator[ListRow]:
    """Rows of CSV or TSV; what is missing at the end of a row is empty."""
    with open_file(path) as binary:
        encoding = encoding_of(binary.read(4), "utf-8-sig")
        binary.seek(0)
        lines = _Lines(io.TextIOWrapper(binary, encoding, newline=""), path)
        most = csv.field_size_limit(MOST_ROW)
        try:
            yield from _of_cells(lines, path)
        finally:
            csv.field_size_limit(most)


def _of_cells(lines: "_Lines", path: str) -> Iterator[ListRow]:
    separator = "\t" if path.lower().endswith(".tsv") else ","
    reader = csv.reader(lines, delimiter=separator, strict=True)
    names = next(filter(None, reader), None)
    if names is None:
        raise ValueError("an empty file")
    lines.row_ended()
    names = [*map(plain_name, names)]
    image, prompt = _columns(names, path)
    at, by = names.index(image), names.index(prompt) if prompt else len(names)
    for number, row in enumerate(filter(None, reader)):
        lines.row_ended()
        if len(row) > len(names):
            raise DataError(
                f"as many cells as columns in every row of {path}",
                f"more in line {reader.line_num}",
                "quote cells that hold commas",
            )
        short = len(row)
        yield ListRow(row[at] if at < short else "", row[by] if by < short else "", number)


class _Lines:
    """Lines of a text, of which a row may have several, none of them too long."""

    def __init__(self, text: io.TextIOWrapper, path: str) -> None:
        self._text, self._path, self._taken = text, path, 0

    def row_ended(self) -> None:
        """Begin to count the letters of another row."""
        self._taken = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._text.readline(MOST_ROW + 1)
        self._taken += len(line)
        if self._taken > MOST_ROW:
            raise DataError(f"at most {MOST_ROW} letters in a row of {self._path}", "more")
        if not line:
            raise StopIteration
        return line


def _of_jsonl(path: str) -> Iterator[ListRow]:
    with open_file(path) as binary:
        lines = _Lines(io.TextIOWrapper(binary, "utf-8-sig"), path)
        image, prompt, number = "", None, 0
        for line in lines:
            lines.row_ended()
            if not line.strip():
                continue
            record = json.loads(line, object_pairs_hook=_once)
            if not isinstance(record, dict):
                raise DataError(f"an object per row in {path}", "something else")
            record = {plain_name(name): cell for name, cell in record.items()}
            if not number:
                image, prompt = _columns([*record], path)
            prompt = prompt or next((name for name in PROMPT_COLUMNS if name in record), None)
            text = _text(record.get(prompt), prompt, number, path) if prompt else ""
            yield ListRow(_text(record.get(image), image, number, path), text, number)
            number += 1


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object of JSON; equal keys, of which the last would win unseen, are an error."""
    found = dict(pairs)
    if len(found) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{name!r} twice")
    return found


def _text(cell: Any, column: str | None, number: int, path: str) -> str:
    """Cell as a text; raises :class:`DataError` for what is neither text nor number."""
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, (str, int, float)):
        return str(cell)
    kind = type(cell).__name__
    raise DataError(f"text or numbers in {column} of {path}", f"a {kind} in row {number + 1}")


def _of_parquet(path: str) -> Iterator[ListRow]:
    """Rows of Parquet, of which only the columns that count are read.

    An image may be its path, or the file itself: bytes, or as the hub lays them out.
    """
    import pyarrow.parquet as pq

    with open_file(path) as file:
        schema = pq.read_schema(file)
        plain = {plain_name(name): name for name in schema.names}
        image, prompt = _columns([*map(plain_name, schema.names)], path)
        inside = _layout(schema.field(plain[image]).type)
        names = {"struct": [f"{plain[image]}.path"], "bytes": [], "": [plain[image]]}[inside]
        names += [plain[prompt]] if prompt else []
        for column in (plain[image], plain[prompt] if prompt else None):
            if column is not None and not (inside and column == plain[image]):
                _check_kind(schema.field(column).type, column, path)
        file.seek(0)
        with pq.ParquetFile(file, read_dictionary=names) as parquet:
            number = 0
            for group in range(parquet.num_row_groups):
                about = parquet.metadata.row_group(group)
                _check_group(about, names, path)
                batches = parquet.iter_batches(BATCH, row_groups=[group], columns=names)
                for batch in batches if names else repeat(None, about.num_rows):
                    rows = 1 if batch is None else len(batch)
                    cells = _cells(batch, path, number)
                    empty = [""] * rows
                    images = cells.get(plain[image], empty)
                    prompts = cells.get(plain[prompt], empty) if prompt else empty
                    for name, text in zip(images, prompts, strict=True):
                        yield ListRow(name, text, number, bool(inside))
                        number += 1


def _cells(batch: Any, path: str, number: int) -> dict[str, list[str]]:
    """Texts of a batch by column; ``number`` is that of its first row."""
    if batch is None:
        return {}
    _check_batch(batch, path)
    found = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        cells = column.to_pylist()
        if cells and any(isinstance(cell, dict) for cell in cells):
            cells = [(cell or {}).get("path") for cell in cells]
        found[name] = [_text(cell, name, number + i, path) for i, cell in enumerate(cells)]
    return found


def _layout(kind: Any) -> str:
    """How a column has images: as ``struct`` or ``bytes``, or empty for their paths."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        kinds = {field.name: field.type for field in kind}
        if {"bytes", "path"} <= {*kinds} and not pa.types.is_nested(kinds["path"]):
            return "struct"
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return "bytes" if is_bytes else ""


def _check_kind(kind: Any, column: str, path: str) -> None:
    """Check that a column has texts or numbers: only then is its size known before its cells."""
    import pyarrow as pa

    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_kind = (
        *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        *(pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null),
    )
    if not any(is_such(plain) for is_such in is_kind):
        kinds = " ".join(str(kind).split())[:100]
        raise DataError(f"text or numbers in {column} of {path}", kinds)


def _check_group(group: Any, names: Sequence[str], path: str) -> None:
    size = sum(
        column.total_uncompressed_size
        for column in map(group.column, range(group.num_columns))
        if any(
            column.path_in_schema == n or column.path_in_schema.startswith(f"{n}.") for n in names
        )
    )
    if size > MOST_GROUP:
        raise DataError(
            f"row groups whose names and prompts unpack to at most {MOST_GROUP} bytes in {path}",
            size,
            "write it with smaller row groups",
        )


def _check_batch(batch: Any, path: str) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    size = batch.nbytes
    for column in batch.columns:
        if pa.types.is_struct(column.type):
            column = column.field(0)  # the path, which is all that is read of an image
        if pa.types.is_dictionary(column.type):  # a long text may be shared by all rows
            lengths = pc.binary_length(column.dictionary).take(column.indices)
            size += int(pc.sum(lengths).as_py() or 0)
    if size > MOST_GROUP:
        raise DataError(f"at most {MOST_GROUP} bytes in {BATCH} rows of {path}", size)


STREAMS = {".csv": _of_text, ".tsv": _of_text, ".jsonl": _of_jsonl, ".parquet": _of_parquet}
