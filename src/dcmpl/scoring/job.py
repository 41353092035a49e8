"""Resumable scoring: an append-only journal of finished rows, and the job that fills it.

The rows of a job stand in ``OUT.part`` as JSON lines, behind one line that says what job they
are of. A job that was broken off goes on at the beginning of the last chunk that was not
complete, and ends with the same bytes. Imports no torch.
"""

import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from dcmpl.data.sources import Source, with_content
from dcmpl.errors import DcmplError, RunError
from dcmpl.progress import leave, say, track
from dcmpl.scoring.files import (
    COLUMNS,
    Row,
    added,
    best_first,
    columns_of,
    manifest_of,
    read_manifest,
    read_scores,
    row_of,
    write_scores,
)
from dcmpl.scoring.judge import CHUNK, Judge
from dcmpl.scoring.results import Score

__all__ = ["Job", "Journal", "journal_of", "made_with", "open_journal", "say_faults"]

TOLD_FAULTS = 10
RANKED = ("rank", "better_than_next", "call")

FILE = "file"
"""Entry of a journal's row that is in no file of scores: size, time and hash of the image."""


def journal_of(out: Path) -> Path:
    """Path of the journal of a job."""
    return out.with_name(out.name + ".part")


class Journal:
    """Append-only journal of the finished rows of a job, in JSON Lines."""

    def __init__(
        self, path: Path, file: BinaryIO, offsets: list[int], columns: Sequence[str]
    ) -> None:
        self.path, self._file = path, file
        self._offsets, self._columns = offsets, columns

    def __len__(self) -> int:
        return len(self._offsets)

    def write(self, row: Row) -> None:
        """Append a row to the file."""
        kept = {name: row[name] for name in (*self._columns, FILE)}
        line = json.dumps(kept).encode() + b"\n"
        self._offsets.append(self._file.tell())
        self._file.write(line)
        self._file.flush()

    def rows(self, order: Iterable[int] | None = None) -> Iterator[Row]:
        """Rows in the order of writing, or in ``order``; one is in memory at a time."""
        with self.path.open("rb") as file:
            for index in range(len(self)) if order is None else order:
                file.seek(self._offsets[index])
                row = _row_in(file.readline(), self._columns)
                if row is None:
                    raise RunError(f"whole rows in {self.path}", f"a changed row {index}")
                yield row


IsSame = Callable[[int, str], bool]
"""Whether a row, by its number, is still of the file that the journal names."""


@contextmanager
def open_journal(
    out: Path, job: Mapping[str, Any], resume: bool, chunk: int, is_same: IsSame
) -> Iterator[Journal]:
    """Open the journal of ``out``, locked for this process.

    With ``resume`` the rows that are there count, up to the last multiple of ``chunk`` (or to the
    job's ``count``) before the first image that was changed since. The file is removed when the
    block ends without an error. Raises :class:`RunError` where another process writes it, rows
    of another job or, without ``resume``, any rows stand there, or the disk does not take them.
    """
    path = journal_of(out)
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
        if path.exists() and not resume:
            raise RunError(
                f"no {path}",
                "the rows of a scoring that was broken off",
                "add --resume to go on with it, or delete it",
            )
        with _opened(path, job, chunk, is_same) as journal, _kept_or_gone(journal):
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
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


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
def _opened(path: Path, job: Mapping[str, Any], chunk: int, is_same: IsSame) -> Iterator[Journal]:
    head = json.dumps({"job": job}).encode() + b"\n"
    columns = tuple(job.get("columns", COLUMNS))
    with path.open("r+b" if path.exists() else "w+b") as file:
        ends = _complete_rows(file, head, path, columns, is_same)  # of the head and every row
        rows = len(ends) - 1
        if rows < int(job["count"]):
            del ends[rows // chunk * chunk + 1 :]
        file.seek(0)
        file.write(head)
        file.truncate(ends[-1])
        file.seek(ends.pop())
        file.flush()
        yield Journal(path, file, ends, columns)


def _complete_rows(
    file: BinaryIO, head: bytes, path: Path, columns: Sequence[str], is_same: IsSame
) -> list[int]:
    """End of the journal's header, and of the complete rows after it whose images are the same."""
    found, ends = file.readline(), [len(head)]
    if head.startswith(found) and found != head:  # killed before anything was scored
        return ends
    if found != head:
        raise RunError(
            f"the rows of this job in {path}",
            f"those of one that differs in {_difference(found, head)}",
            "score as it was started, or delete it",
        )
    for index, line in enumerate(file):
        row = _row_in(line, columns) if line.endswith(b"\n") else None
        if row is None:  # torn by a kill or a power cut
            break
        if not is_same(index, row[FILE]):
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


@dataclass(frozen=True)
class Job:
    """The scoring of some images to one file.

    ``shard``: the number of the part of the job that is done here, from 1, and how many there
    are. ``prompt_from``: metadata where prompts are those that generators wrote into the files.
    ``rank_by``: the target by which rows are ranked, best first; None leaves them as they came.
    """

    judge: Judge
    sources: Sequence[Source]
    shard: tuple[int, int] | None = None
    prompt_from: str | None = None
    rank_by: str | None = None

    @property
    def start(self) -> int:
        """Index of the shard's first image in the job."""
        return self._bounds[0]

    @property
    def own(self) -> Sequence[Source]:
        """Images of this shard: whole chunks of the job."""
        first, end = self._bounds
        return self.sources[first:end]

    @property
    def _bounds(self) -> tuple[int, int]:
        number, total = self.shard or (1, 1)
        chunks = -(-len(self.sources) // CHUNK)
        first, end = ((i * chunks // total) * CHUNK for i in (number - 1, number))
        return first, end

    def fingerprint(self) -> dict[str, Any]:
        """Everything that determines the rows; resuming and merging require equality."""
        digest = hashlib.sha256()
        for source in self.sources:
            digest.update(
                json.dumps((source.name, source.prompt, str(source.fault or ""))).encode()
            )
        more = [*self.judge.columns, *(RANKED if self.rank_by else ())]
        return {
            **self.judge.identity(),
            "chunk": CHUNK,
            "prompt_from": self.prompt_from,
            "columns": list(columns_of(more)),
            "rank": self.rank_by,
            "shard": "/".join(map(str, self.shard)) if self.shard else None,
            "images": len(self.sources),
            "list_sha256": digest.hexdigest(),
            "count": len(self.own),
        }

    def is_finished(self, out: Path) -> bool:
        """Whether ``out`` already holds the rows of this job, of the images as they are now."""
        if not (out.is_file() and manifest_of(out).is_file()) or journal_of(out).exists():
            return False
        job, made = read_manifest(out), read_manifest(out, "made_with")
        images = job.pop("images_sha256", None)
        if job != self.fingerprint():
            return False
        files = (source.stat() for source in self.own)
        if self._added(files) == made.get("files_sha256"):
            return True
        found = (source.file() for source in with_content(self.own))
        if self._added(file.rpartition(" ")[2] for file in found) == images:
            return True
        say(f"images were changed since {out} was written: scoring anew")
        return False

    def is_same(self, index: int, file: str) -> bool:
        """Whether the shard's image of that number is the file that ``file`` says."""
        source = self.own[index]
        return source.stat() == file.rpartition(" ")[0] or (
            bool(file) and source.file().rpartition(" ")[2] == file.rpartition(" ")[2]
        )

    def _added(self, texts: Iterable[str]) -> str:
        """Digest of a text for every image of the shard, in their order."""
        numbered = (f"{index} {text}" for index, text in enumerate(texts, self.start))
        return added(hashlib.sha256(text.encode()).hexdigest() for text in numbered)

    def write(self, out: Path, resume: bool) -> dict[str, int]:
        """Score everything to ``out``; returns how many images are ok and how many are not.

        With ``resume`` finished rows are kept; so is a finished file. Raises :class:`RunError`
        where the file cannot be written.
        """
        if resume and self.is_finished(out):
            say(f"{out} is finished")
            statuses = [row["status"] for row in read_scores(out)]
            return {status: statuses.count(status) for status in ("ok", "error")}
        job = self.fingerprint()
        with open_journal(out, job, resume, CHUNK, self.is_same) as journal:
            self._fill(journal)
            rows = self._ranked(journal) if self.rank_by else journal.rows()
            known = [row[FILE].rpartition(" ") for row in journal.rows()]
            images = self._added(digest for *_, digest in known)
            files = self._added(about for about, *_ in known)
            made = {**made_with(self.judge), "files_sha256": files}
            kept = ({name: row[name] for name in row if name != FILE} for row in rows)
            return write_scores(out, kept, {**job, "images_sha256": images}, made)

    def _fill(self, journal: Journal) -> None:
        done, began, own = len(journal), time.monotonic(), self.own
        if done:
            say(f"{done} of {len(own)} images were scored before")
        left = len(own) - done
        for score in track(self._scores(done), "scoring", left):
            journal.write(self._row(score))
        if left:
            seconds = time.monotonic() - began
            say(f"{seconds:.1f} s, {left / seconds:.1f} images/s")

    def _scores(self, done: int = 0) -> Iterator[Score]:
        sources = with_content(self.own[done:], self.prompt_from == "metadata", is_job=True)
        return self.judge.rows(sources, self.start + done)

    def _row(self, score: Score) -> Row:
        """Row of all columns; those of a rank are filled in at the end."""
        ranks = dict.fromkeys(RANKED) if self.rank_by else {}
        return {**row_of(score), **ranks, FILE: score.file}

    def _ranked(self, journal: Journal) -> Iterator[Row]:
        """Rows best first within each prompt, with their ranks; prints the call on the first.

        People compare images of one prompt, and so do the chances that a calibration knows.
        """
        by = str(self.rank_by)
        target = self.judge.target_of(by)
        values, pairs = list[float | None](), list[tuple[float | None, float | None]]()
        of_prompt: dict[str, list[int]] = {}
        for index, row in enumerate(journal.rows()):
            values.append(row[by])
            pairs.append((row[target], row.get(f"{target}_spread")))
            of_prompt.setdefault(row["prompt"] or "", []).append(index)
        if len(of_prompt) > 1:
            say(f"{len(of_prompt)} prompts: images are ranked within each")
        for indices in of_prompt.values():
            order = [indices[i] for i in best_first([values[index] for index in indices])]
            scores, spreads = ([pairs[index][i] for index in order] for i in (0, 1))
            places = list(self.judge.places(scores, spreads, target))
            if len(of_prompt) == 1 and (chance := places[0]["better_than_next"]) is not None:
                (first,) = journal.rows(order[:1])
                say(
                    f"{first['image']} is ranked first; the chance that people prefer it to the "
                    f"next is {chance:.0%}: {places[0]['call']}"
                )
            for place, row in zip(places, journal.rows(order), strict=True):
                yield {**row, **place}

    def print(self) -> int:
        """Print rows as JSON lines as they come; returns the number of failed images.

        The manifest is the last line on standard error.
        """
        faults, images = 0, list[str]()
        try:
            for found in self._scores():
                faults += found.status == "error"
                row = dict(self._row(found))
                images.append(row.pop(FILE).rpartition(" ")[2])
                print(json.dumps(row), flush=True)
        except BrokenPipeError:  # whoever reads has enough
            leave(sys.stdout)
            return 0
        job = {**self.fingerprint(), "images_sha256": self._added(images)}
        say(json.dumps({"manifest": job, "made_with": made_with(self.judge)}))
        return faults


def made_with(judge: Judge) -> dict[str, str]:
    """Record of the makers of rows, which resume and merge do not compare."""
    return {"model": str(judge.about.get("model", "")), "python": platform.python_version()}


def say_faults(rows: Iterable[Row]) -> None:
    """Print the reasons of the first ten images without a score."""
    faults = [row["reason"] for row in rows if row["status"] == "error"]
    for reason in faults[:TOLD_FAULTS]:
        say(f"not scored: {reason}")
    if len(faults) > TOLD_FAULTS:
        say(f"and {len(faults) - TOLD_FAULTS} more, each with its reason in the file")
