"""The rows of a job that is under way: on disk as they come, and gone on with after a kill.

They stand in ``OUT.part`` as JSON lines, behind one line that says what job they are of. A job
that was broken off goes on at the beginning of the last chunk that was not complete, and ends
with the same bytes.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from dcmpl.errors import DcmplError, RunError
from dcmpl.outputs import COLUMNS, Row

__all__ = ["Part", "open_part", "part_of"]


def part_of(out: Path) -> Path:
    """Where the rows of a job stand that is under way."""
    return out.with_name(out.name + ".part")


class Part:
    """The rows of a job that is under way."""

    def __init__(
        self, path: Path, file: BinaryIO, offsets: list[int], columns: Sequence[str]
    ) -> None:
        self.path, self._file = path, file
        self._offsets, self._columns = offsets, columns

    def __len__(self) -> int:
        return len(self._offsets)

    def write(self, row: Row) -> None:
        """Append a row; it is in the file when this returns."""
        line = json.dumps({name: row[name] for name in self._columns}).encode() + b"\n"
        self._offsets.append(self._file.tell())
        self._file.write(line)
        self._file.flush()

    def rows(self, order: Iterable[int] | None = None) -> Iterator[Row]:
        """The rows in the order they came, or those of ``order``; one is held at a time."""
        with self.path.open("rb") as file:
            for index in range(len(self)) if order is None else order:
                file.seek(self._offsets[index])
                row = _row_in(file.readline(), self._columns)
                if row is None:
                    raise RunError(f"expected whole rows in {self.path}, row {index} was changed")
                yield row


@contextmanager
def open_part(out: Path, job: Mapping[str, Any], resume: bool, chunk: int) -> Iterator[Part]:
    """The part file of ``out``, for this process alone.

    With ``resume`` the rows that are there count, up to the last multiple of ``chunk`` (or
    to the job's ``count``). The file is removed when the block ends without an error. Raises
    :class:`RunError` where another process writes it, rows of another job or, without
    ``resume``, any rows stand there, or the disk does not take them.
    """
    path = part_of(out)
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
    except DcmplError:
        raise
    except Exception as error:  # engines raise anything
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise RunError(f"expected to score all pictures, got {told}; {_kept(path)}") from error
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
    columns = tuple(job.get("columns", COLUMNS))
    with path.open("r+b" if path.exists() else "w+b") as file:
        ends = _complete_rows(file, head, path, columns)  # of the head and of every row
        rows = len(ends) - 1
        if rows < int(job["count"]):
            del ends[rows // chunk * chunk + 1 :]
        file.seek(0)
        file.write(head)
        file.truncate(ends[-1])
        file.seek(ends.pop())
        file.flush()
        yield Part(path, file, ends, columns)


def _complete_rows(file: BinaryIO, head: bytes, path: Path, columns: Sequence[str]) -> list[int]:
    """Where the head ends, and every whole row behind it."""
    found, ends = file.readline(), [len(head)]
    if head.startswith(found) and found != head:  # killed before anything was scored
        return ends
    if found != head:
        raise RunError(
            f"expected the rows of this job in {path}, got those of one that differs in "
            f"{_difference(found, head)}: score as it was started, or delete it"
        )
    for line in file:
        if (
            not line.endswith(b"\n") or _row_in(line, columns) is None
        ):  # torn by a kill or a power cut
            break
        ends.append(ends[-1] + len(line))
    return ends


def _row_in(line: bytes, columns: Sequence[str]) -> Row | None:
    """The row that a line of a part file holds, None where it holds none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and set(row) == set(columns) else None


def _difference(found: bytes, wanted: bytes) -> str:
    """What two jobs differ in."""
    try:
        there, here = (json.loads(line)["job"] for line in (found, wanted))
        names = [name for name in here if there.get(name) != here[name]]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return "a damaged first line"
    return ", ".join(names) or "other fields"
