"""Files of scores: never lost, never half there, each with a manifest.

While a job runs its rows stand in ``OUT.part`` as JSON lines, behind one line that says what job
they are of; each is there as soon as it is known. A job that was broken off, or killed, goes on
from there, at the beginning of the last chunk that was not complete, and ends with the same
bytes. Then the rows become ``OUT`` and ``OUT.manifest.json``.
"""

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from dcmpl import __version__
from dcmpl.config import TARGETS
from dcmpl.disk import check_sealed, sealed, sha256_of, write_atomically
from dcmpl.errors import RunError

__all__ = [
    "COLUMNS",
    "Part",
    "Row",
    "best_first",
    "open_part",
    "read_manifest",
    "read_scores",
    "write_scores",
]

COLUMNS = ("image", "prompt", *TARGETS, "status", "reason", "note")

Row = Mapping[str, Any]


class Part:
    """The rows of a job that is under way."""

    def __init__(self, path: Path, file: BinaryIO, offsets: list[int]) -> None:
        self.path, self._file = path, file
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def write(self, row: Row) -> None:
        """Append a row; it is in the file when this returns."""
        line = json.dumps({name: row[name] for name in COLUMNS}).encode() + b"\n"
        self._offsets.append(self._file.tell())
        self._file.write(line)
        self._file.flush()

    def rows(self, order: Iterable[int] | None = None) -> Iterator[Row]:
        """The rows in the order they came, or those of ``order``; one is held at a time."""
        with self.path.open("rb") as file:
            for index in range(len(self)) if order is None else order:
                file.seek(self._offsets[index])
                row: Row = json.loads(file.readline())
                yield row


@contextmanager
def open_part(out: Path, job: Mapping[str, Any], resume: bool, chunk: int) -> Iterator[Part]:
    """The part file of ``out``, for this process alone.

    With ``resume`` the rows that are there count, up to the last multiple of ``chunk`` (or
    to the job's ``count``). The file is removed when the block ends without an error. Raises
    :class:`RunError` where another process writes it, rows of another job or, without
    ``resume``, any rows stand there, or the disk does not take them.
    """
    path = out.with_name(out.name + ".part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out.with_name(out.name + ".lock"), timeout=0)
        lock.acquire()
    except Timeout:
        raise RunError(
            f"expected to be the only one that writes {out}, another dcmpl does: "
            "wait for it, or choose another -o"
        ) from None
    except OSError as error:
        raise RunError(f"expected to write {out}, got: {error.strerror or error}") from error
    try:
        if path.exists() and not resume:
            raise RunError(
                f"expected no {path}, found the rows of a scoring that was broken off: "
                "add --resume to go on with it, or delete it"
            )
        with _opened(path, job, chunk) as part:
            yield part
        path.unlink()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_kept(path)) from None
    except OSError as error:
        told = error.strerror or error
        raise RunError(f"expected to write {out}, got: {told}; {_kept(path)}") from error
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def _kept(path: Path) -> str:
    if not path.is_file():
        return "nothing was scored yet"
    return f"the rows scored so far are in {path}, --resume goes on with them"


@contextmanager
def _opened(path: Path, job: Mapping[str, Any], chunk: int) -> Iterator[Part]:
    head = json.dumps({"job": job}).encode() + b"\n"
    with path.open("r+b" if path.exists() else "w+b") as file:
        ends = _complete_rows(file, head, path)  # of the head and of every row
        rows = len(ends) - 1
        if rows < int(job["count"]):
            del ends[rows // chunk * chunk + 1 :]
        file.seek(0)
        file.write(head)
        file.truncate(ends[-1])
        file.seek(ends.pop())
        file.flush()
        yield Part(path, file, ends)


def _complete_rows(file: BinaryIO, head: bytes, path: Path) -> list[int]:
    """Where the head ends, and every whole row behind it."""
    found, ends = file.readline(), [len(head)]
    if not found.endswith(b"\n"):  # killed before anything was scored
        return ends
    if found != head:
        raise RunError(
            f"expected the rows of this job in {path}, got those of one that differs in "
            f"{_difference(found, head)}: score as it was started, or delete it"
        )
    for line in file:
        if not line.endswith(b"\n"):
            break
        ends.append(ends[-1] + len(line))
    return ends


def _difference(found: bytes, wanted: bytes) -> str:
    """What two jobs differ in."""
    try:
        there, here = (json.loads(line)["job"] for line in (found, wanted))
        names = [name for name in here if there.get(name) != here[name]]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return "a damaged first line"
    return ", ".join(names) or "other fields"


def best_first(rows: Iterable[Row], by: str) -> list[int]:
    """Places of the rows, the best first, equal ones as they came, those without a score last."""
    values = [row[by] for row in rows]
    return sorted(range(len(values)), key=lambda i: (values[i] is None, -(values[i] or 0.0), i))


def write_scores(out: Path, rows: Iterable[Row], job: Mapping[str, Any]) -> dict[str, int]:
    """Write ``out`` and its manifest, whole; returns how many rows are ok and how many not."""
    temporary = out.with_name(f".{out.name}.tmp")
    counts = {"ok": 0, "error": 0}

    def counted() -> Iterator[Row]:
        for row in rows:
            counts[row["status"]] += 1
            yield row

    try:
        if out.is_dir():
            raise IsADirectoryError(21, os.strerror(21))
        WRITERS[out.suffix.lower()](temporary, counted())
        digest = sha256_of(temporary)
        os.replace(temporary, out)
    finally:
        with suppress(OSError):
            temporary.unlink()
    record = {"job": job, "rows": counts, "sha256": digest, "version": __version__}
    write_atomically(manifest_of(out), sealed(record))
    return counts


def manifest_of(out: Path) -> Path:
    """Where the manifest of a file of scores lies."""
    return out.with_name(out.name + ".manifest.json")


def read_manifest(out: Path) -> dict[str, Any]:
    """The job of a file of scores; raises :class:`RunError` where the file is not as written."""
    path = manifest_of(out)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        check_sealed(record, path)
        job, digest = dict(record["job"]), record["sha256"]
        same = digest == sha256_of(out)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        told = getattr(error, "strerror", None) or repr(error)
        raise RunError(
            f"expected the scores and the manifest that dcmpl score wrote at {out}, got: {told}"
        ) from error
    if not same:
        raise RunError(f"expected {out} as dcmpl score wrote it, it was changed since")
    return job


def _write_csv(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(dict(row) for row in rows)


def _write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def _write_parquet(path: Path, rows: Iterable[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(c, pa.float64() if c in TARGETS else pa.string()) for c in COLUMNS])
    with pq.ParquetWriter(path, schema) as file:
        for batch in _in_batches(rows, 1000):
            table = [{name: _as_text(cell) for name, cell in row.items()} for row in batch]
            file.write_table(pa.Table.from_pylist(table, schema))


def _as_text(cell: Any) -> Any:
    """A file name may hold bytes that are no text; Parquet's strings may not."""
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


def read_scores(path: Path) -> Iterator[Row]:
    """The rows of a file that :func:`write_scores` wrote; raises :class:`RunError` for others."""
    try:
        for row in READERS[path.suffix.lower()](path):
            yield {name: row[name] for name in COLUMNS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"expected scores that dcmpl wrote at {path}, got: {error!r}") from error


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        for row in csv.DictReader(file):
            numbers = {name: float(row[name]) if row[name] else None for name in TARGETS}
            yield {**row, **numbers}


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(1000):
            yield from batch.to_pylist()


WRITERS: dict[str, Callable[[Path, Iterable[Row]], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
}
READERS: dict[str, Callable[[Path], Iterable[Row]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def merged(paths: Sequence[Path]) -> tuple[dict[str, Any], list[Path]]:
    """The whole job of which ``paths`` are all shards, and the paths in order.

    Raises :class:`RunError` where one is missing, twice there, or of another job.
    """
    jobs = [read_manifest(path) for path in paths]
    shards = [str(job.pop("shard", None)) for job in jobs]
    counts = [job.pop("count") for job in jobs]
    for path, job in zip(paths, jobs, strict=True):
        if job != jobs[0]:
            names = ", ".join(name for name in jobs[0] if job.get(name) != jobs[0][name])
            raise RunError(f"expected shards of one job, {path} and {paths[0]} differ in {names}")
    total = shards[0].partition("/")[2]
    wanted = [f"{i}/{total}" for i in range(1, int(total) + 1)] if total.isdigit() else []
    if sorted(shards) != sorted(wanted):
        raise RunError(
            f"expected all shards of a job, each once ({', '.join(wanted) or '1/n to n/n'}), "
            f"got {', '.join(shards)}"
        )
    order = [shards.index(shard) for shard in wanted]
    return {**jobs[0], "shard": None, "count": sum(counts)}, [paths[i] for i in order]
