"""Shards: what is named for scoring, cut into tasks that any machine can work on by itself.

A task is an archive, or some rows of a table of sources that stands with the results. Its
images come in chunks, the ones that the scorer of one machine would make.
"""

import json
import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from dcmpl.data.sources import Source, as_fault, in_shard, key_of, with_content
from dcmpl.errors import DataError
from dcmpl.files import added
from dcmpl.images.decode import DecodedImage, quiet_pillow
from dcmpl.storage import about, open_file

__all__ = [
    "Chunk",
    "Prompts",
    "Task",
    "chunks_of",
    "decoded",
    "packed",
    "stamp",
    "tasks_of",
    "unpacked",
    "write_sources",
]

GROUP = 4096
"""Rows that a table of sources keeps together, whole chunks of them."""

MOST_DECODED = 128 * 2**20
"""Bytes of pixels that a chunk is sent with; images beyond are decoded where they are scored."""


@dataclass(frozen=True)
class Prompts:
    """Where the prompts of images in archives come from: ``one`` for all, or ``of``.

    ``of`` is sidecar or metadata, as in ``PROMPTS_FROM``.
    """

    one: str | None = None
    of: str | None = None


@dataclass(frozen=True)
class Task:
    """Task: the images of one archive, or rows of a table of sources.

    ``path``: the archive, or the table. ``shard``: its number among the shards. ``first``: the
    place in the shard of the first row. ``group`` and ``rows`` say which of the table's row
    groups and which rows of it. ``done``: numbers of chunks of the shard not to be made again.
    """

    path: str
    shard: int
    first: int = 0
    group: int = -1
    rows: tuple[int, int] = (0, 0)
    done: tuple[int, ...] = ()

    @property
    def is_archive(self) -> bool:
        """Whether the task is an archive."""
        return self.group < 0


@dataclass(frozen=True)
class Chunk:
    """Chunk: images of one shard whose windows may share batches.

    ``number`` counts those of the shard. ``is_last``: whether the shard, an archive whose
    images nobody has counted before, ends with it. ``digest``: of the sources, before any was
    decoded.
    """

    shard: int
    number: int
    first: int
    is_last: bool
    sources: Sequence[Source]
    digest: str = ""

    @property
    def keys(self) -> list[str]:
        """Keys of the images."""
        return [key_of(self.shard, self.first + i) for i in range(len(self.sources))]


def write_sources(file: Any, sources: Iterable[Source]) -> Iterator[tuple[str, int]]:
    """Write sources to a table, archives left out; yields the shards as they begin and end.

    Each pair is the archive, or an empty text for rows of the table, and how many there are.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.binary()) for name in COLUMNS])
    with pq.ParquetWriter(file, schema) as writer:
        batch, count = list[dict[str, bytes | None]](), 0
        for source in sources:
            if source.shard:
                if count:
                    yield from _flushed(writer, batch, schema, count)
                    count = 0
                yield source.shard, 1
                continue
            batch.append(_row_of(source))
            count += 1
            if len(batch) == GROUP:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch.clear()
        if count:
            yield from _flushed(writer, batch, schema, count)


def _flushed(
    writer: Any, batch: list[dict[str, bytes | None]], schema: Any, count: int
) -> Iterator[tuple[str, int]]:
    import pyarrow as pa

    if batch:
        writer.write_table(pa.Table.from_pylist(batch, schema))
        batch.clear()
    yield "", count


COLUMNS = ("name", "path", "member", "prompt", "note", "fault")


def _row_of(source: Source) -> dict[str, bytes | None]:
    fault = None if source.fault is None else json.dumps(source.fault.args)
    texts = (source.name, source.path, source.member, source.prompt, source.note, fault)
    # Names of files may have bytes that are no text.
    cells = (None if text is None else text.encode("utf-8", "surrogateescape") for text in texts)
    return dict(zip(COLUMNS, cells, strict=True))


def _source_of(row: dict[str, bytes | None]) -> Source:
    texts = {
        name: None if cell is None else cell.decode("utf-8", "surrogateescape")
        for name, cell in row.items()
    }
    fault = texts["fault"] and _fault_of(json.loads(str(texts["fault"])))
    return Source(
        str(texts["name"]),
        str(texts["path"]),
        texts["member"],
        str(texts["prompt"]),
        fault or None,
        str(texts["note"]),
    )


def _fault_of(words: Sequence[str]) -> DataError:
    wanted, got, hint, reason = words
    return DataError(wanted, got, hint, reason)


def tasks_of(
    table: str, shards: Iterable[tuple[str, int]], chunk: int, share: int
) -> Iterator[Task]:
    """Tasks of the shards that :func:`write_sources` found, in their order.

    ``share``: how many images of the table a task has at most, whole chunks of ``chunk``.
    """
    share = min(GROUP, max(chunk, share // chunk * chunk))
    group = 0
    for number, (archive, count) in enumerate(shards):
        if archive:
            yield Task(archive, number)
            continue
        for first in range(0, count, GROUP):
            own = min(GROUP, count - first)
            for start in range(0, own, share):
                yield Task(table, number, first + start, group, (start, min(own, start + share)))
            group += 1


def chunks_of(task: Task, size: int, prompts: Prompts) -> Iterator[Chunk]:
    """Chunks of a task, at most ``size`` images each, that are not done."""
    if not task.is_archive:
        rows = _rows_of(task.path, task.group)[slice(*task.rows)]
        for start in range(0, len(rows), size):
            first = task.first + start
            if first // size not in task.done:
                own = [_source_of(row) for row in rows[start : start + size]]
                yield Chunk(task.shard, first // size, first, False, own)
        return
    batch, number = list[Source](), 0
    for source in in_shard(task.path, prompts.of == "sidecar"):
        if len(batch) == size:
            yield Chunk(task.shard, number, number * size, False, batch)
            batch, number = [], number + 1
        batch.append(source if prompts.one is None else replace(source, prompt=prompts.one))
    yield Chunk(task.shard, number, number * size, True, batch)


@lru_cache(maxsize=2)
def _rows_of(table: str, group: int) -> list[dict[str, bytes | None]]:
    import pyarrow.parquet as pq

    with open_file(table) as file, pq.ParquetFile(file) as parquet:
        rows: list[dict[str, bytes | None]] = parquet.read_row_group(group).to_pylist()
        return rows


def decoded(task: Task, size: int, prompts: Prompts) -> Iterator[Chunk]:
    """Chunks of a task with their images decoded, as far as ``MOST_DECODED`` goes.

    Archives are read once, in order. What cannot be read keeps its place, with its fault.
    """
    from_metadata = prompts.of == "metadata"
    with quiet_pillow():
        for chunk in chunks_of(task, size, prompts):
            if chunk.number in task.done:
                continue
            named = zip(chunk.keys, chunk.sources, strict=True)
            digest = added(source.digest(key) for key, source in named)
            room, sources = MOST_DECODED, list[Source]()
            for source in with_content(chunk.sources, from_metadata, is_job=True):
                source = _decoded(source, room)
                if isinstance(source.given, DecodedImage):
                    room -= source.given.pixels.nbytes
                elif source.content is not None:
                    room -= len(source.content)
                sources.append(source)
            yield replace(chunk, sources=sources, digest=digest)


def _decoded(source: Source, room: int) -> Source:
    """A source with its pixels, or as it was where they need more than ``room`` bytes."""
    source = source.fetched()
    source = replace(source, known=source.file())
    if room <= 0 or source.fault:
        # Where it is scored it is read again: bytes of an archive would fill the memory here.
        return source if source.fault else replace(source, content=None)
    try:
        image = source.read()
    except DataError as error:
        return replace(source, content=None, fault=as_fault(error))
    if image.pixels.nbytes > room:
        return replace(source, content=None)
    texts = image.texts if source.in_metadata else {}
    return replace(source, content=None, given=replace(image, texts=texts))


def packed(value: object) -> bytes:
    """A task, a chunk or its rows as bytes, for a way that this program's processes alone use."""
    return pickle.dumps(value, protocol=5)


def unpacked(content: bytes) -> Any:
    """Value of :func:`packed`."""
    return pickle.loads(content)  # noqa: S301  what a process of ours packed


def stamp(archive: str) -> str:
    """Size and time of an archive, by which a changed one is known; raises :class:`OSError`."""
    found = about(archive)
    return f"{found.size} {found.changed}" if found else ""
