"""What the scorer reads and writes as files: lists of pictures, prompts, tables of scores."""

import csv
import errno
import glob
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dcmpl.config import TARGETS
from dcmpl.errors import DataError, RunError, UsageError

__all__ = ["FORMATS", "Row", "find_pictures", "is_picture", "read_prompts", "score_file"]

PICTURES = frozenset(
    [
        ".png",
        ".jpg",
        ".jpeg",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".avif",
        ".ppm",
    ]
)
MAX_PROMPTS_BYTES = 256 * 2**20
FORMATS = (".csv", ".jsonl", ".parquet")
Row = Mapping[str, Any]


def find_pictures(paths: Sequence[str]) -> list[str]:
    """Files as they are named, folders with all pictures below them, globs; each once.

    A file that is not there stays in the list, to get its row. Raises :class:`UsageError`
    where a folder or a glob holds no picture.
    """
    found: list[str] = []
    for path in paths:
        if Path(path).is_dir():
            inside = [str(p) for p in sorted(Path(path).rglob("*")) if is_picture(p)]
        elif not Path(path).exists() and glob.has_magic(path):
            inside = sorted(p for p in glob.glob(path, recursive=True) if is_picture(Path(p)))
        else:
            inside = [path]
        if not inside:
            raise UsageError(f"expected pictures in {path}, found none: name a folder with some")
        found += inside
    each: dict[str, str] = {}
    for path in found:
        each.setdefault(os.path.abspath(path), path)
    return list(each.values())


def is_picture(path: Path) -> bool:
    """Whether a file is called like a picture."""
    return path.suffix.lower() in PICTURES and path.is_file() and not path.name.startswith("._")


def read_prompts(file: Path, pictures: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Picture -> prompt from a CSV with the columns image and prompt.

    A row means the picture of that path (as it is, or beside the CSV) or else of that file
    name. Returns the prompts and the rows' images that are none of ``pictures``. Raises
    :class:`DataError` where the file is no such CSV, or a row fits several pictures.
    """
    try:
        if file.stat().st_size > MAX_PROMPTS_BYTES:
            raise DataError(f"expected prompts of at most {MAX_PROMPTS_BYTES} bytes, got {file}")
        with file.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            if not {"image", "prompt"} <= set(reader.fieldnames or ()):
                raise DataError(
                    f"expected the columns image and prompt in {file}, "
                    f"got {', '.join(reader.fieldnames or ['nothing'])}"
                )
            rows = [(row["image"] or "", row["prompt"] or "") for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"expected a UTF-8 CSV with prompts at {file}, got: {error}") from error
    by_path = {os.path.abspath(picture): picture for picture in pictures}
    by_name: dict[str, list[str]] = {}
    for picture in pictures:
        by_name.setdefault(os.path.basename(picture), []).append(picture)
    prompts: dict[str, str] = {}
    strange = []
    for image, prompt in rows:
        beside = by_path.get(os.path.abspath(file.parent / image))
        exact = by_path.get(os.path.abspath(image)) or beside
        named = [exact] if exact else by_name.get(os.path.basename(image), [])
        if len(named) > 1:
            raise DataError(
                f"expected {image} in {file} to name one picture, it fits {named[0]} and "
                f"{named[1]}: write its path"
            )
        if not named:
            strange.append(image)
        elif prompts.setdefault(named[0], prompt) != prompt:
            raise DataError(f"expected one prompt for {image} in {file}, got two different ones")
    return prompts, strange


@contextmanager
def score_file(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Row], None]]:
    """A function that appends rows; the file appears at ``path`` when all are written.

    Until then rows are in ``path`` + ``.part``, each there as soon as it is known. Raises
    :class:`RunError` where the disk does not take them, or rows of an earlier scoring that
    was broken off stand there.
    """
    part = path.with_name(path.name + ".part")
    if part.exists():
        raise RunError(
            f"expected no {part}, found the rows of a scoring that was broken off: "
            "move or delete it first"
        )
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        with WRITERS[path.suffix.lower()](part, columns) as write:
            yield write
        os.replace(part, path)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the rows scored so far are in {part}") from None
    except OSError as error:
        kept = f"; the rows scored so far are in {part}" if part.is_file() else ""
        raise RunError(f"expected to write {path}, got: {error.strerror or error}{kept}") from error


@contextmanager
def _csv_writer(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Row], None]]:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()

        def write(row: Row) -> None:
            writer.writerow(row)
            file.flush()

        yield write


@contextmanager
def _jsonl_writer(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Row], None]]:
    with path.open("w", encoding="utf-8", errors="surrogateescape") as file:

        def write(row: Row) -> None:
            file.write(json.dumps({name: row[name] for name in columns}) + "\n")
            file.flush()

        yield write


@contextmanager
def _parquet_writer(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Row], None]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = [(name, pa.float64() if name in TARGETS else pa.string()) for name in columns]
    schema = pa.schema(kinds)
    waiting: list[dict[str, Any]] = []

    def flush() -> None:
        if waiting:
            file.write_table(pa.Table.from_pylist(waiting, schema))
            waiting.clear()

    def write(row: Row) -> None:
        # A file name may hold bytes that are no text; Parquet's strings may not.
        waiting.append(
            {
                name: cell.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
                if isinstance(cell, str)
                else cell
                for name, cell in row.items()
            }
        )
        if len(waiting) == 1000:
            flush()

    with pq.ParquetWriter(path, schema) as file:
        try:
            yield write
        finally:  # an interrupted file is whole as far as it goes
            flush()


WRITERS: dict[str, Callable[..., Any]] = {
    ".csv": _csv_writer,
    ".jsonl": _jsonl_writer,
    ".parquet": _parquet_writer,
}
