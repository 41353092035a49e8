"""Files of scores and their manifests: written whole, read back, shards joined."""

import csv
import errno
import json
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

from dcmpl import __version__
from dcmpl.config import TARGETS
from dcmpl.data.texts import as_cell, of_cell
from dcmpl.errors import RunError
from dcmpl.files import added, put_in_place, record_of, sealed, sha256_of
from dcmpl.scoring.results import Score
from dcmpl.storage import (
    base_of,
    is_url,
    local_copy,
    open_file,
    reason_of,
    sha256_at,
    upload,
    write,
)

__all__ = [
    "COLUMNS",
    "COUNTS",
    "FORMATS",
    "HASH",
    "KnownRows",
    "Row",
    "best_first",
    "columns_of",
    "manifest_of",
    "merged",
    "read_manifest",
    "read_scores",
    "row_of",
    "write_scores",
]

FORMATS = (".csv", ".jsonl", ".parquet")
"""Of files of scores."""


COLUMNS = ("image", "prompt", *TARGETS, "status", "reason", "note")
"""What every file of scores has; a job may have more, which its ``columns`` name."""

Row = Mapping[str, Any]
Place = TypeVar("Place", bound=Path | str)
"""A path, or a URL."""

COUNTS = ("tokens_dropped",)
"""Columns of whole numbers, as text shows them; Parquet has all numbers as float64."""

HASH = "sha256"
"""Column of the SHA-256 of each image's file, on request."""

TEXTS = ("image", "prompt", "status", "reason", "note", "call", HASH)


def columns_of(more: Sequence[str]) -> tuple[str, ...]:
    """Columns of a job; ``more`` stand behind the targets."""
    return (*COLUMNS[:-3], *more, *COLUMNS[-3:])


def row_of(score: Score) -> Row:
    """Row of a score, its columns in the order of :func:`columns_of`."""
    values = {**{column: getattr(score, column) for column in COLUMNS}, **score.more}
    return {column: values[column] for column in columns_of(tuple(score.more))}


def is_text(column: str) -> bool:
    """Whether a column holds text; all others hold numbers."""
    return column in TEXTS or column.endswith("_label")  # no target is called so


MAX_CELL = 2**30
PER_SHARD = ("shard", "count", "images_sha256")


def best_first(values: Sequence[float | None]) -> list[int]:
    """Order of scores: best first, ties stable, missing ones last.

    >>> best_first([0.2, None, 0.7])
    [2, 0, 1]
    """
    return sorted(range(len(values)), key=lambda i: (values[i] is None, -(values[i] or 0.0)))


def write_scores(
    out: Path | str, rows: Iterable[Row], job: Mapping[str, Any], made_with: Mapping[str, str]
) -> dict[str, int]:
    """Write ``out`` and its manifest, whole; returns how many rows are ok and how many not.

    ``job`` is all that decides the rows; ``made_with`` is worth knowing and decides nothing.
    What a URL names is written here first.

    Raises :class:`OSError` where that is not possible.
    """
    if is_url(out):
        with tempfile.TemporaryDirectory(prefix="dcmpl-") as folder:
            temporary = Path(folder, base_of(str(out)))
            counts, digest = _written(temporary, rows, job)
            upload(temporary, str(out))
    else:
        out = Path(out)
        temporary = out.with_name(f".{out.name}.tmp")
        try:
            for path in (out, manifest_of(out)):
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, f"{path} is a folder")
            out.parent.mkdir(parents=True, exist_ok=True)
            counts, digest = _written(temporary, rows, job)
            put_in_place(temporary, out)
        finally:
            with suppress(OSError):
                temporary.unlink()
    record: dict[str, Any] = {"job": job, "made_with": made_with, "rows": counts}
    record |= {"sha256": digest, "version": __version__}
    write(str(manifest_of(out)), sealed(record))
    return counts


def _written(path: Path, rows: Iterable[Row], job: Mapping[str, Any]) -> tuple[dict[str, int], str]:
    """Write rows to a local file; returns their counts and the file's digest."""
    counts = {"ok": 0, "error": 0}

    def counted() -> Iterator[Row]:
        for row in rows:
            counts[row["status"]] += 1
            yield row

    WRITERS[path.suffixes[-2 if path.suffix == ".tmp" else -1].lower()](
        path, counted(), tuple(job.get("columns", COLUMNS))
    )
    return counts, sha256_of(path)


def manifest_of(out: Place) -> Place:
    """Path of the manifest of a file of scores."""
    return type(out)(f"{out}.manifest.json")


def read_manifest(out: Path | str, part: str = "job") -> dict[str, Any]:
    """Job of a file of scores, or what it was ``made_with``; of a changed one :class:`RunError`."""
    return dict(_read_manifest(out)[part])


def _read_manifest(out: Path | str) -> dict[str, Any]:
    def build(record: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        whole = {**record, "job": dict(record["job"]), "made_with": dict(record["made_with"])}
        return whole, record["sha256"] == sha256_at(str(out))

    path, what = manifest_of(str(out)), f"the manifest of the scores {out}"
    try:
        with open_file(path) as file:
            content = file.read(MOST_MANIFEST)
    except OSError as error:
        raise RunError(f"{what} at {path}", reason=reason_of(error)) from error
    record, same = record_of(content, path, what, build)
    if not same:
        raise RunError(f"{out} as dcmpl score wrote it", "one that was changed since")
    return record


MOST_MANIFEST = 2**24


def _write_csv(path: Path, rows: Iterable[Row], columns: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({name: as_cell(row[name]) for name in columns} for row in rows)


def _write_jsonl(path: Path, rows: Iterable[Row], columns: Sequence[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({name: row[name] for name in columns}) + "\n")


def _write_parquet(path: Path, rows: Iterable[Row], columns: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(c, pa.string() if is_text(c) else pa.float64()) for c in columns])
    with pq.ParquetWriter(path, schema) as file:
        for batch in _in_batches(rows, 1000):
            table = [{name: as_text(cell) for name, cell in row.items()} for row in batch]
            file.write_table(pa.Table.from_pylist(table, schema))


def as_text(cell: Any) -> Any:
    """Convert file names with invalid bytes to text, as Parquet's strings must be."""
    if isinstance(cell, str):
        return cell.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return cell


def _in_batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def read_scores(path: Path | str) -> Iterator[Row]:
    """Read the rows of a file by :func:`write_scores`; raises :class:`RunError` for others."""
    try:
        with local_copy(str(path)) as file:
            for number, row in enumerate(READERS[file.suffix.lower()](file), 1):
                _check_row(row, number)
                yield row
    except (OSError, ValueError, TypeError, RecursionError, csv.Error) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise RunError(
            f"scores that dcmpl wrote at {path}", reason=reason or type(error).__name__
        ) from error


def _check_row(row: Any, number: int) -> None:
    """Check that a row has all columns, texts and numbers each in theirs; raises ValueError."""
    if not isinstance(row, dict) or None in row:
        raise ValueError(f"row {number} with more cells than there are columns, or with none")
    _check_columns(row)
    for name, value in row.items():
        is_of_kind = isinstance(value, str if is_text(name) else (int, float))
        if value is None and name not in ("image", "status"):
            continue
        if not is_of_kind or isinstance(value, bool):
            raise ValueError(f"{str(value)[:50]!r} in the column {name} of row {number}")
    if row["status"] not in ("ok", "error"):
        raise ValueError(f"the status {row['status'][:50]!r} in row {number}")


def _check_columns(columns: Iterable[str]) -> None:
    if lack := set(COLUMNS) - {*columns}:
        raise ValueError(f"no column {min(lack, key=COLUMNS.index)}")


def _read_csv(path: Path) -> Iterator[Row]:
    most = csv.field_size_limit(MAX_CELL)  # of the csv module as a whole
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            _check_columns(reader.fieldnames or ())
            for row in reader:
                yield {name: _cell(name, text) for name, text in row.items()}
    finally:
        csv.field_size_limit(most)


def _cell(column: str | None, text: Any) -> Any:
    """A cell of CSV as its column's kind; whatever is neither stays as it is, to be refused."""
    if column is None or text is None:
        return text
    if is_text(column):
        text = of_cell(text)
        return text if text or column in COLUMNS else None
    with suppress(ValueError):
        return (int(text) if text.isdecimal() else float(text)) if text else None
    return text


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(1000):
            yield from batch.to_pylist()


WRITERS: dict[str, Callable[[Path, Iterable[Row], Sequence[str]], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
READERS: dict[str, Callable[[Path], Iterable[Row]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


class KnownRows(ExitStack):
    """Rows of a file of scores by image, prompt and content, on disk while they are needed.

    ``job`` is what decides new rows: where it is not what decided those of ``out``, none is
    known. Raises :class:`RunError` for a file of rows without their content's hash.
    """

    def __init__(self, out: Path | str, job: Mapping[str, Any]) -> None:
        super().__init__()
        there = read_manifest(out)
        known = [name for name in job if name not in OF_THE_IMAGES]
        self.differs = [name for name in known if there.get(name) != job[name]]
        if HASH not in there.get("columns", ()):
            raise RunError(
                f"rows with the hash of each image's file in {out}",
                "rows without",
                "score it once more with --sha256",
            )
        folder = self.enter_context(tempfile.TemporaryDirectory(prefix="dcmpl-"))
        self._rows = sqlite3.connect(f"{folder}/rows")
        self.callback(self._rows.close)
        self._rows.execute("create table rows (key text primary key, row text) without rowid")
        self._reads_files = job["prompt_from"] == "metadata"
        if not self.differs:
            pairs = (
                (self._key(row["image"], row["prompt"], row[HASH]), json.dumps(row))
                for row in read_scores(out)
            )
            self._rows.executemany("insert or ignore into rows values (?, ?)", pairs)

    def _key(self, image: str, prompt: str, content: str | None) -> str:
        """Key of a row; a prompt out of the file itself is the same where its content is."""
        return json.dumps([image, "" if self._reads_files else prompt, content])

    def row_of(self, image: str, prompt: str, content: str) -> Row | None:
        """Row of an image with that content, None where there is none."""
        key = (self._key(image, prompt, content),)
        found = self._rows.execute("select row from rows where key = ?", key).fetchone()
        row: Row | None = json.loads(found[0]) if found and content else None
        return row


OF_THE_IMAGES = ("images", "list_sha256", "count", "shard", "images_sha256", "rank")
"""What a job's record says of its images, not of what scores them."""


def merged(
    paths: Sequence[Path | str],
) -> tuple[dict[str, Any], dict[str, str], list[Path | str]]:
    """Merge shards: the whole job, its makers, and the paths in order.

    Raises :class:`RunError` where one is missing, twice there, or of another job.
    """
    records = [_read_manifest(path) for path in paths]
    jobs = [dict(record["job"]) for record in records]
    shards = [str(job.get("shard")) for job in jobs]
    for path, job in zip(paths, jobs, strict=True):
        if names := [n for n in jobs[0] if n not in PER_SHARD and job.get(n) != jobs[0][n]]:
            raise RunError(
                "shards of one job", f"{path} and {paths[0]}, which differ in {', '.join(names)}"
            )
    total = shards[0].partition("/")[2]
    wanted = [f"{i}/{total}" for i in range(1, int(total) + 1)] if total.isdigit() else []
    if sorted(shards) != sorted(wanted):
        raise RunError(
            f"all shards of a job, each once ({', '.join(wanted) or '1/n to n/n'})",
            ", ".join("one that is no shard" if shard == "None" else shard for shard in shards),
        )
    order = [shards.index(shard) for shard in wanted]
    whole = {**jobs[0], "shard": None, "count": sum(int(job["count"]) for job in jobs)}
    whole["images_sha256"] = added(str(job["images_sha256"]) for job in jobs)
    made_with = dict(records[0]["made_with"])
    made_with["files_sha256"] = added(str(r["made_with"]["files_sha256"]) for r in records)
    return whole, made_with, [paths[i] for i in order]
