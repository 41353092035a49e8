"""Images whose bytes stand in a column of a Parquet file, as data sets on the hub have them."""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import accumulate
from typing import Any

from dcmpl.errors import DataError
from dcmpl.storage import open_file

__all__ = ["IMAGE_COLUMNS", "ParquetImages", "plain_name"]

BATCH = 8
"""Rows that are in memory at a time."""

IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_name", "filename", "file", "path", "name")
"""Names in use of the column with the images of a table, the first that is there counts."""


def plain_name(name: str) -> str:
    """Name of a column without blanks around it, or more than one within."""
    return " ".join(name.split())


class ParquetImages(ExitStack):
    """Images of a Parquet file by the number of their row; read in order, each is read once.

    Raises :class:`DataError` for a file without such a column.
    """

    def __init__(self, path: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        super().__init__()
        with ExitStack() as opened:
            self._file = opened.enter_context(pq.ParquetFile(opened.enter_context(open_file(path))))
            schema = self._file.schema_arrow
            fields = {plain_name(field.name): field for field in schema}
            known = (fields[name] for name in IMAGE_COLUMNS if name in fields)
            found = [field for field in known if not pa.types.is_string(field.type)]
            if not found:
                raise DataError(f"a column with the bytes of images in {path}", "none")
            self._path = path
            is_struct = pa.types.is_struct(found[0].type)
            self._column = f"{found[0].name}.bytes" if is_struct else found[0].name
            about = self._file.metadata
            sizes = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
            self._starts = [0, *accumulate(sizes)]
            self._rows: Iterator[Any] = iter(())
            self._next = -1
            self.push(opened.pop_all())

    def read(self, row: int, limit: int) -> bytes:
        """Bytes of the image in a row; raises :class:`DataError` where there are none."""
        if not 0 <= row < self._starts[-1]:
            raise DataError(f"row {row + 1} in {self._path}", f"{self._starts[-1]} rows")
        if row != self._next:
            self._seek(row)
        content = next(self._rows).as_py()
        self._next = row + 1
        if isinstance(content, dict):
            content = content.get("bytes")
        if not isinstance(content, bytes):
            raise DataError(f"an image in row {row + 1} of {self._path}", "none")
        if len(content) > limit:
            raise DataError(f"at most {limit} bytes in row {row + 1} of {self._path}", "more")
        return content

    def _seek(self, row: int) -> None:
        group = bisect_right(self._starts, row) - 1
        self._rows = self._from(group)
        for _ in range(row - self._starts[group]):
            next(self._rows)

    def _from(self, group: int) -> Iterator[Any]:
        groups = list(range(group, len(self._starts) - 1))
        for batch in self._file.iter_batches(BATCH, row_groups=groups, columns=[self._column]):
            yield from batch.column(0)
