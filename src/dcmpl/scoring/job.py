"""The job of scoring images to one file: what decides its rows, and how they come there.

Imports no torch.
"""

import json
import platform
import sys
import time
from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from dcmpl.data.sources import Source, key_of, keyed, with_content
from dcmpl.errors import DcmplError, RunError
from dcmpl.files import added, digest_of_text
from dcmpl.progress import leave, say, track
from dcmpl.scoring.files import (
    HASH,
    KnownRows,
    Row,
    best_first,
    columns_of,
    manifest_of,
    read_manifest,
    read_scores,
    row_of,
    write_scores,
)
from dcmpl.scoring.journal import FILE, Journal, journal_of, open_journal
from dcmpl.scoring.judge import CHUNK, Judge
from dcmpl.scoring.partitions import (
    KEY,
    ChunkId,
    Done,
    Part,
    Scored,
    begin,
    check_chunks,
    check_new,
    check_owner,
    claim,
    discard,
    rows_of,
    write_part,
)
from dcmpl.scoring.results import Score
from dcmpl.storage import about, is_url, reason_of

__all__ = ["Job", "Plan", "made_with", "plan_of", "say_faults"]

TOLD_FAULTS = 10
RANKED = ("rank", "better_than_next", "call")
KEPT = "the chunks scored so far are kept beside it, --resume goes on with them"


class Plan(NamedTuple):
    """What one look at all sources of a job shows.

    ``starts``: the number of the first image of every chunk, and how many there are; no chunk
    has images of two archives. ``shards``: the number of the first image of every shard.
    ``digest``: of what every image is, in whatever order.
    """

    starts: "array[int]"
    shards: "array[int]"
    digest: str

    @property
    def images(self) -> int:
        """Number of images."""
        return self.starts[-1]

    def keys(self, first: int, end: int) -> Iterator[str]:
        """Keys of the images from ``first`` to before ``end``."""
        shard = bisect_right(self.shards, first) - 1
        for index in range(first, end):
            while shard + 1 < len(self.shards) and self.shards[shard + 1] <= index:
                shard += 1
            yield key_of(shard, index - self.shards[shard])

    def chunk(self, first: int) -> tuple[int, int]:
        """Shard and number of the chunk that begins with image ``first``."""
        shard = bisect_right(self.shards, first) - 1
        return shard, (first - self.shards[shard]) // CHUNK


def plan_of(sources: Iterable[Source]) -> Plan:
    """Plan of a job; raises :class:`DataError` for a list that cannot be read to its end."""
    starts, shards, count, total = array("q"), array("q"), 0, 0
    for key, source in keyed(sources):
        if int(key.rpartition("-")[2]) == 0:
            shards.append(count)
        if (count - shards[-1]) % CHUNK == 0:
            starts.append(count)
        total += int(source.digest(key), 16)
        count += 1
    starts.append(count)
    return Plan(starts, shards, f"{total % 2**256:064x}")


@dataclass(frozen=True)
class Job:
    """The scoring of some images to one file.

    ``sources`` can be looked at more than once; ``plan`` is :func:`plan_of` them.
    ``shard``: the number of the part of the job that is done here, from 1, and how many there
    are. ``prompt_from``: metadata where prompts are those that generators wrote into the files.
    ``rank_by``: the target by which rows are ranked, best first; None leaves them as they came.
    ``hashes``: rows have the SHA-256 of their files. ``new``: rows that the file has already,
    of the same image, prompt and content by the same model, are kept.
    """

    judge: Judge
    sources: Iterable[Source]
    plan: Plan
    shard: tuple[int, int] | None = None
    prompt_from: str | None = None
    rank_by: str | None = None
    hashes: bool = False
    new: bool = False

    @cached_property
    def bounds(self) -> tuple[int, int]:
        """Numbers of this shard's chunks: the first, and the first that is not."""
        number, total = self.shard or (1, 1)
        chunks = len(self.plan.starts) - 1
        return (number - 1) * chunks // total, number * chunks // total

    @property
    def start(self) -> int:
        """Index of the shard's first image in the job."""
        return self.plan.starts[self.bounds[0]]

    @property
    def count(self) -> int:
        """Number of the shard's images."""
        return self.plan.starts[self.bounds[1]] - self.start

    def own(self, done: int = 0) -> Iterator[Source]:
        """Images of this shard, whole chunks of the job, but the first ``done``."""
        return islice(self.sources, self.start + done, self.start + self.count)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that determines the rows; resuming and merging require equality."""
        own = [HASH] if self.hashes or self.new else []
        more = [*self.judge.columns, *own, *(RANKED if self.rank_by else ())]
        return {
            **self.judge.identity(),
            "chunk": CHUNK,
            "prompt_from": self.prompt_from,
            "columns": list(columns_of(more)),
            "rank": self.rank_by,
            "shard": "/".join(map(str, self.shard)) if self.shard else None,
            "images": self.plan.images,
            "list_sha256": self.plan.digest,
            "count": self.count,
        }

    def is_finished(self, out: Path | str) -> bool:
        """Whether ``out`` already holds the rows of this job, of the images as they are now."""
        if any(about(str(path)) is None for path in (out, manifest_of(out))):
            return False
        if isinstance(out, Path) and journal_of(out).exists():
            return False
        job, made = read_manifest(out), read_manifest(out, "made_with")
        images = job.pop("images_sha256", None)
        if job != self.fingerprint():
            return False
        if self._added(source.stat() for source in self.own()) == made.get("files_sha256"):
            return True
        found = (source.file() for source in with_content(self.own()))
        if self._added(file.rpartition(" ")[2] for file in found) == images:
            return True
        say(f"images were changed since {out} was written: scoring anew")
        return False

    def _added(self, texts: Iterable[str]) -> str:
        """Digest of a text for every image of the shard, in their order."""
        keys = self.plan.keys(self.start, self.start + self.count)
        return added(digest_of_text(key, text) for key, text in zip(keys, texts, strict=True))

    def write(self, out: Path | str, resume: bool) -> dict[str, int]:
        """Score everything to ``out``; returns how many images are ok and how many are not.

        With ``resume`` finished rows are kept; so is a finished file. Raises :class:`RunError`
        where the file cannot be written.
        """
        out = str(out) if is_url(out) else Path(out)
        if resume and not self.new and self.is_finished(out):
            say(f"{out} is finished")
            counts = {"ok": 0, "error": 0}
            for row in read_scores(out):
                counts[row["status"]] += 1
            return counts
        if isinstance(out, str):
            return self._write_to_store(out, resume)
        job, starts = self.fingerprint(), array("q", (s - self.start for s in self._starts))
        with open_journal(out, job, resume, starts, _Same(self.own())) as journal:
            self._fill(journal, out)
            rows = self._ranked(journal) if self.rank_by else journal.rows()
            images = self._added(row[FILE].rpartition(" ")[2] for row in journal.rows())
            files = self._added(row[FILE].rpartition(" ")[0] for row in journal.rows())
            made = {**made_with(self.judge), "files_sha256": files}
            kept = ({name: row[name] for name in row if name != FILE} for row in rows)
            return write_scores(out, kept, {**job, "images_sha256": images}, made)

    @property
    def _starts(self) -> "array[int]":
        """Numbers of the first image of each of this shard's chunks, and the end of the last."""
        first, end = self.bounds
        return self.plan.starts[first : end + 1]

    def _write_to_store(self, out: str, resume: bool) -> dict[str, int]:
        """Score to a URL: an object for every chunk, the scores, their manifest last."""
        folder, job = f"{out}.part", self.fingerprint()
        check_new(folder, resume)
        mark, done = begin(folder, job, resume)
        owner = claim(folder)
        parts, columns = list(self._unchanged(done)), job["columns"]
        known = {chunk[:2] for part in parts for chunk in part.chunks}
        if parts:
            say(f"{sum(p.ok + p.error for p in parts)} of {self.count} images were scored before")
        try:
            for scored in self._scored(known):
                parts.append(write_part(folder, mark, columns, [scored]))
            check_owner(folder, owner)
            check_chunks(parts, self.shard is None)
            made = {**made_with(self.judge), "files_sha256": added(p.files for p in parts)}
            job |= {"images_sha256": added(part.contents for part in parts)}
            counts = write_scores(out, rows_of(folder, parts), job, made)
            discard(folder)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(KEPT) from None
        except OSError as error:
            raise RunError(f"to write {out}", hint=KEPT, reason=reason_of(error)) from error
        except DcmplError:
            raise
        except Exception as error:  # engines raise anything
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise RunError("to score all images", reason, KEPT) from error
        return counts

    def _unchanged(self, done: Done) -> Iterator[Part]:
        """Partitions whose images are still the files that they were scored as."""
        parts = {chunk[:2]: part for part in done.parts for chunk in part.chunks}
        own = self.own() if parts else iter(())
        for first, end in pairwise(self._starts):
            sources, keys = [*islice(own, end - first)], [*self.plan.keys(first, end)]
            if (part := parts.get(self.plan.chunk(first))) is None:
                continue
            files = [source.stat() for source in sources]
            if added(map(digest_of_text, keys, files)) != part.files:
                found = (source.file().rpartition(" ")[2] for source in with_content(sources))
                if added(map(digest_of_text, keys, found)) != part.contents:
                    say(f"images behind {sources[0].name} were changed: scoring them anew")
                    continue
            yield part

    def _scored(self, known: Collection[tuple[int, int]]) -> Iterator[Scored]:
        """Chunks of this shard that are not ``known``, scored as they come."""
        chunks = [
            (ChunkId(*self.plan.chunk(first), is_last=False), first, end)
            for first, end in pairwise(self._starts)
            if self.plan.chunk(first) not in known
        ]
        wanted = iter(chunks)
        names = list[str]()

        def sources() -> Iterator[Source]:
            _, first, end = next(wanted, (None, -1, -1))
            for index, source in enumerate(self.own(), self.start):
                if index >= end:
                    _, first, end = next(wanted, (None, -1, -1))
                if first <= index < end:
                    names.append(source.digest(next(self.plan.keys(index, index + 1))))
                    yield source

        given = with_content(sources(), self.prompt_from == "metadata", is_job=True)
        left = sum(end - first for _, first, end in chunks)
        scores = iter(track(self.judge.rows(given), "scoring", left))
        for chunk, first, end in chunks:
            pairs = zip(self.plan.keys(first, end), scores, strict=False)
            rows = [{KEY: key, **self._row(score)} for key, score in pairs]
            yield Scored(chunk, rows, added(names[: end - first]))
            del names[: end - first]

    def _fill(self, journal: Journal, out: Path) -> None:
        done, began = len(journal), time.monotonic()
        if done:
            say(f"{done} of {self.count} images were scored before")
        left = self.count - done
        rows: Iterator[Row] = map(self._row, self._scores(done))
        if self.new and manifest_of(out).is_file():
            rows = self._new_rows(out, done)
        for row in track(rows, "scoring", left):
            journal.write(row)
        if left:
            seconds = time.monotonic() - began
            say(f"{seconds:.1f} s, {left / seconds:.1f} images/s")

    def _scores(self, done: int = 0) -> Iterator[Score]:
        sources = with_content(self.own(done), self.prompt_from == "metadata", is_job=True)
        return self.judge.rows(sources, self.start + done)

    def _new_rows(self, out: Path, done: int) -> Iterator[Row]:
        """Rows of a chunk after the other: those that ``out`` has, and scores of other images."""
        kept, own = 0, self.own(done)
        with KnownRows(out, self.fingerprint()) as known:
            if known.differs:
                say(f"{out} was made with another {known.differs[0]}: scoring all anew")
            while chunk := list(islice(own, CHUNK)):
                fetched = (source.fetched() for source in with_content(chunk))
                sources = [replace(source, known=source.file()) for source in fetched]
                rows = [self._known(known, source) for source in sources]
                kept += sum(row is not None for row in rows)
                left = [s for s, row in zip(sources, rows, strict=True) if row is None]
                from_metadata = self.prompt_from == "metadata"
                scores = self.judge.rows(with_content(left, from_metadata, is_job=True))
                for row in rows:
                    yield self._row(next(iter(scores))) if row is None else row
        say(f"{kept} of {self.count - done} images are as they were: their rows are kept")

    def _known(self, known: KnownRows, source: Source) -> Row | None:
        """Row that the file of scores has of an image, as it is now."""
        file = source.known or ""
        row = known.row_of(source.name, source.prompt, file.rpartition(" ")[2])
        more = dict.fromkeys(RANKED) if self.rank_by else {}
        return None if row is None else {**row, **more, FILE: file}

    def _row(self, score: Score) -> Row:
        """Row of all columns; those of a rank are filled in at the end."""
        more = dict.fromkeys(RANKED) if self.rank_by else {}
        if self.hashes or self.new:
            more[HASH] = score.file.rpartition(" ")[2] or None
        return {**row_of(score), **more, FILE: score.file}

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


class _Same:
    """Whether images are still the files that a journal's rows, one after the other, name."""

    def __init__(self, own: Iterator[Source]) -> None:
        self._own = own

    def __call__(self, file: str) -> bool:
        source = next(self._own)
        return source.stat() == file.rpartition(" ")[0] or (
            bool(file) and source.file().rpartition(" ")[2] == file.rpartition(" ")[2]
        )


def made_with(judge: Judge) -> dict[str, str]:
    """Record of the makers of rows, which resume and merge do not compare."""
    return {"model": str(judge.about.get("model", "")), "python": platform.python_version()}


def say_faults(reasons: Iterable[str], count: int) -> None:
    """Print the first ten of the reasons why ``count`` images have no score."""
    for reason in islice(reasons, min(count, TOLD_FAULTS)):
        say(f"not scored: {reason}")
    if count > TOLD_FAULTS:
        say(f"and {count - TOLD_FAULTS} more, each with its reason in the file")
