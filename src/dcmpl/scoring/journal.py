"""Append-only journal of the finished rows of a job.

The rows stand in ``OUT.part`` as JSON lines, behind one line that says what job they are of. A
job that was broken off goes on at the beginning of the last chunk that was not complete, and
ends with the same bytes. Imports no torch.
"""

import json
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from dcmpl.errors import DcmplError, RunError
from dcmpl.progress import say
from dcmpl.scoring.files import COLUMNS, Row

__all__ = ["FILE", "Journal", "journal_of", "open_journal"]

FILE = "file"
"""Entry of a journal's row that is in no file of scores: size, time and hash of the image."""

MARK = 64
"""Rows whose place in the file is remembered as one."""


def journal_of(out: Path) -> Path:
    """Path of the journal of a job."""
    return out.with_name(out.name + ".part")


class Journal:
    """Append-only journal of the finished rows of a job, in JSON Lines."""

    def __init__(self, path: Path, file: BinaryIO, columns: Sequence[str]) -> None:
        self.path, self._file, self._columns = path, file, columns
        self._marks, self._count = array("q"), 0

    def __len__(self) -> int:
        return self._count

    def add(self, offset: int) -> None:
        """Count the row that stands at ``offset`` of the file."""
        if self._count % MARK == 0:
            self._marks.append(offset)
        self._count += 1

    def write(self, row: Row) -> None:
        """Append a row to the file."""
        kept = {name: row[name] for name in (*self._columns, FILE)}
        line = json.dumps(kept).encode() + b"\n"
        self.add(self._file.tell())
        self._file.write(line)
        self._file.flush()

    def rows(self, order: Iterable[int] | None = None) -> Iterator[Row]:
        """Rows in the order of writing, or in ``order``; one is in memory at a time."""
        with self.path.open("rb") as file:
            at = -1  # the row that the file stands at
            for index in range(len(self)) if order is None else order:
                if index != at:
                    file.seek(self._marks[index // MARK])
                    for _ in range(index % MARK):
                        file.readline()
                at = index + 1
                row = _row_in(file.readline(), self._columns)
                if row is None:
                    raise RunError(f"whole rows in {self.path}", f"a changed row {index}")
                yield row


IsSame = Callable[[str], bool]
"""Whether the next row of a journal is still of the file that its entry names."""


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Keep all other processes from writing ``out``; raises :class:`RunError` where one does."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out.with_name(out.name + ".lock"), timeout=0)
        lock.acquire()
    except Timeout:
        raise RunError(
            f"to be the only one that writes {out}",
            "another dcmpl that does",
            "wait for it, or choose another -o",
        ) from None
    except OSError as error:
        raise RunError(f"to write {out}", reason=error.strerror or error) from error
    try:
        yield
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


@contextmanager
def open_journal(
    out: Path, job: Mapping[str, Any], resume: bool, starts: Sequence[int], is_same: IsSame
) -> Iterator[Journal]:
    """Open the journal of ``out``, locked for this process.

    ``starts``: the numbers of the first rows of each chunk. With ``resume`` the rows that are
    there count, up to the last start (or to the job's ``count``) before the first image that
    was changed since. The file is removed when the block ends without an error. Raises
    :class:`RunError` where another process writes it, rows of another job or, without
    ``resume``, any rows stand there, or the disk does not take them.
    """
    path = journal_of(out)
    with only_writer(out):
        try:
            if path.exists() and not resume:
                raise RunError(
                    f"no {path}",
                    "the rows of a scoring that was broken off",
                    "add --resume to go on with it, or delete it",
                )
            with _opened(path, job, starts, is_same) as journal, _kept_or_gone(journal):
                yield journal
            path.unlink()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_kept(path)) from None
        except OSError as error:
            reason = error.strerror or error
            raise RunError(f"to write {out}", hint=_kept(path), reason=reason) from error
        except DcmplError:
            raise
        except Exception as error:  # engines raise anything
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise RunError("to score all images", reason, _kept(path)) from error


@contextmanager
def _kept_or_gone(journal: Journal) -> Iterator[None]:
    """Say where rows are where an error ends the block; a journal without any is removed."""
    try:
        yield
    except DcmplError:  # as of a service that is gone
        if len(journal):
            say(_kept(journal.path))
        else:
            with suppress(OSError):
                journal.path.unlink()
        raise


def _kept(path: Path) -> str:
    if not path.is_file():
        return "nothing was scored yet"
    return f"the rows scored so far are in {path}, --resume goes on with them"


@contextmanager
def _opened(
    path: Path, job: Mapping[str, Any], starts: Sequence[int], is_same: IsSame
) -> Iterator[Journal]:
    head = json.dumps({"job": job}).encode() + b"\n"
    columns = tuple(job.get("columns", COLUMNS))
    with path.open("r+b" if path.exists() else "w+b") as file:
        ends = _complete_rows(file, head, path, columns, is_same)  # of the head and every row
        rows = len(ends) - 1
        if rows < int(job["count"]):
            del ends[starts[bisect_right(starts, rows) - 1] + 1 :]
        file.seek(0)
        file.write(head)
        file.truncate(ends[-1])
        file.seek(ends[-1])
        file.flush()
        journal = Journal(path, file, columns)
        for offset in ends[:-1]:
            journal.add(offset)
        yield journal


def _complete_rows(
    file: BinaryIO, head: bytes, path: Path, columns: Sequence[str], is_same: IsSame
) -> "array[int]":
    """End of the journal's header, and of the complete rows after it whose images are the same."""
    found, ends = file.readline(), array("q", [len(head)])
    if head.startswith(found) and found != head:  # killed before anything was scored
        return ends
    if found != head:
        raise RunError(
            f"the rows of this job in {path}",
            f"those of one that differs in {_difference(found, head)}",
            "score as it was started, or delete it",
        )
    for line in file:
        row = _row_in(line, columns) if line.endswith(b"\n") else None
        if row is None:  # torn by a kill or a power cut
            break
        if not is_same(row[FILE]):
            say(f"{row['image']} was changed since it was scored: scoring anew from there")
            break
        ends.append(ends[-1] + len(line))
    return ends


def _row_in(line: bytes, columns: Sequence[str]) -> Row | None:
    """Row of a line of the journal, None for an invalid line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and set(row) == {*columns, FILE} else None


def _difference(found: bytes, wanted: bytes) -> str:
    """Sentence on the differences of two jobs."""
    try:
        there, here = (json.loads(line)["job"] for line in (found, wanted))
        names = [name for name in here if there.get(name) != here[name]]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return "a damaged first line"
    return ", ".join(names) or "other fields"
