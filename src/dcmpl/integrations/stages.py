"""Stages of a job on an engine of data: tasks to chunks, chunks to rows, rows to partitions.

They hand one another bytes, one column of them, and errors as values: an exception would be
tried again, and come back in the engine's words.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from dcmpl.data.shards import Chunk, Prompts, Task, decoded, packed, unpacked
from dcmpl.data.sources import with_content
from dcmpl.errors import DcmplError, RunError
from dcmpl.images.decode import quiet_pillow
from dcmpl.integrations.batch import BatchScorer
from dcmpl.scoring.files import row_of
from dcmpl.scoring.journal import FILE
from dcmpl.scoring.judge import CHUNK
from dcmpl.scoring.partitions import KEY, ChunkId, Part, Scored, write_part
from dcmpl.storage import reason_of

__all__ = ["KEPT", "Decode", "Score", "Write", "identity_of"]

END = packed(None)

KEPT = "the finished partitions are kept, --resume goes on with them"


def _attempt(work: Callable[[], object]) -> bytes:
    """What ``work`` gives, or the error that it ends with, which the stages behind pass on.

    An exception would be tried again, and come back as the words of Ray for it.
    """
    try:
        return packed(work())
    except DcmplError as error:
        return packed(error)
    except Exception as error:  # decoders and engines raise anything
        reason = f"{type(error).__name__}: {reason_of(error)}"
        return packed(RunError("to score all images", reason, KEPT))


def _go_to(place: str) -> None:
    """Take paths as the driver does; raises :class:`RunError` where its folder is not there."""
    try:
        os.chdir(place)
    except OSError as error:
        hint = "name images by URLs, or by paths that all machines have"
        raise RunError(f"the folder {place} on every machine", "", hint, reason_of(error)) from None


class Decode:
    """Stage that reads and decodes: a task in, its chunks out.

    ``place``: the folder that paths are relative to, empty where none is.
    """

    def __init__(self, prompts: Prompts, place: str) -> None:
        self.prompts, self.place = prompts, place

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[dict[str, list[bytes]]]:
        for content in batch["task"]:
            chunks = self._chunks(unpacked(content))
            while (found := _attempt(partial(next, chunks, None))) != END:
                yield {"chunk": [found]}

    def _chunks(self, task: Task) -> Iterator[Chunk]:
        if self.place:
            _go_to(self.place)
        yield from decoded(task, CHUNK, self.prompts)


class Score:
    """Stage that scores: chunks in, their rows out. An actor opens the model once."""

    def __init__(
        self, scorer: BatchScorer, identity: Mapping[str, Any], metadata: bool, place: str
    ) -> None:
        self.metadata, self.place = metadata, place
        self.opened = unpacked(_attempt(lambda: self._open(scorer, identity)))

    def _open(self, scorer: BatchScorer, identity: Mapping[str, Any]) -> None:
        if self.place:
            _go_to(self.place)
        self.scorer = scorer.scorer
        found = self.scorer.identity()
        if odd := [name for name in identity if found.get(name) != identity[name]]:
            raise RunError(
                f"the same {odd[0]} on every machine ({identity[odd[0]]})",
                found.get(odd[0]),
                "install the same packages and the same model everywhere",
            )

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        chunks = [self.opened or unpacked(content) for content in batch["chunk"]]
        return {
            "scored": [
                packed(c) if isinstance(c, DcmplError) else _attempt(partial(self._scored, c))
                for c in chunks
            ]
        }

    def _scored(self, chunk: Chunk) -> Scored:
        with quiet_pillow():
            sources = with_content(chunk.sources, self.metadata, is_job=True)
            scores = list(self.scorer.rows(sources))
        pairs = zip(chunk.keys, scores, strict=True)
        rows = [{KEY: key, **row_of(score), FILE: score.file} for key, score in pairs]
        return Scored(ChunkId(chunk.shard, chunk.number, chunk.is_last), rows, chunk.digest)


class Write:
    """Stage that writes: rows of some chunks in, the part that they became out."""

    def __init__(self, folder: str, job: str, columns: Iterable[str]) -> None:
        self.folder, self.job, self.columns = folder, job, tuple(columns)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        scored = [unpacked(content) for content in batch["scored"]]
        faults = [packed(found) for found in scored if isinstance(found, DcmplError)]
        good = [found for found in scored if isinstance(found, Scored)]
        return {"part": [*([_attempt(lambda: self._written(good))] if good else []), *faults]}

    def _written(self, scored: list[Scored]) -> Part:
        try:
            return write_part(self.folder, self.job, self.columns, scored)
        except OSError as error:
            raise RunError(f"to write {self.folder}", "", KEPT, reason_of(error)) from error


def identity_of(scorer: BatchScorer) -> dict[str, Any] | DcmplError:
    """Identity of a scorer where it is opened, or the error that this ends with."""
    try:
        return scorer.scorer.identity()
    except DcmplError as error:
        return error
