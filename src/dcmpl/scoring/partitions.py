"""Partitions: the rows of a job that many machines score, in a folder or an object store.

Nothing is renamed and nothing appended, so an object store does as well as a disk. A partition
holds whole chunks, each a row group, and its footer says which; ``_job.json`` says what job they
are of, and ``_manifest.json`` is written last: what it names is the result, whatever else lies
there. Imports no torch.
"""

import io
import json
import re
import secrets
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import Any, NamedTuple

from dcmpl import __version__
from dcmpl.errors import RunError, UsageError
from dcmpl.files import added, digest_of_text, record_of, sealed
from dcmpl.scoring.files import COUNTS, Row, as_text, is_text
from dcmpl.scoring.journal import FILE
from dcmpl.storage import (
    about,
    base_of,
    is_url,
    join,
    list_files,
    open_file,
    reason_of,
    remove,
    remove_folder,
    write,
)

__all__ = [
    "JOB",
    "MANIFEST",
    "ChunkId",
    "Done",
    "OpenParts",
    "Part",
    "Scored",
    "begin",
    "check_new",
    "check_owner",
    "claim",
    "commit",
    "described",
    "discard",
    "fault_reasons",
    "finished",
    "list_of",
    "read_partitions",
    "rows_of",
    "write_part",
]

JOB, MANIFEST, OWNER = "_job.json", "_manifest.json", "_owner"
LIST, PART, ENDING = "_list-", "part-", ".parquet"
KEY = "key"
ABOUT, ODD = b"dcmpl", b"dcmpl no texts"
"""Entries of a footer: the part, and by key the cells that are no texts."""

MOST_RECORD, MOST_FOOTER = 2**30, 2**20
OPEN = 32
"""Partitions that are open at a time while rows are read in order."""


class ChunkId(NamedTuple):
    """Chunk of a shard by number; ``is_last`` where an archive ends with it."""

    shard: int
    number: int
    is_last: bool


class Scored(NamedTuple):
    """Rows of a chunk, each with ``key`` and ``file``, and what they add to the digests."""

    chunk: ChunkId
    rows: Sequence[Row]
    images: str
    """Digest of what each image is called, of its prompt and its fault."""


@dataclass(frozen=True)
class Part:
    """Partition: its name, its chunks in the order of its row groups, and its counts.

    ``images``, ``contents`` and ``files`` are added digests, as in the manifest.
    """

    name: str
    job: str
    chunks: tuple[ChunkId, ...]
    sizes: tuple[int, ...]
    ok: int
    error: int
    images: str
    contents: str
    files: str

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Part":
        """Part of a footer's record; raises ValueError and its like for others."""
        chunks = tuple(ChunkId(int(a), int(b), bool(c)) for a, b, c in record["chunks"])
        sizes = tuple(int(size) for size in record["sizes"])
        if len(sizes) != len(chunks):
            raise ValueError("chunks without their sizes")
        texts = (str(record[name]) for name in ("images", "contents", "files"))
        ok, error = int(record["ok"]), int(record["error"])
        return cls(str(record["name"]), str(record["job"]), chunks, sizes, ok, error, *texts)


def digest_of(content: bytes) -> str:
    """SHA-256 of some bytes."""
    return sha256(content).hexdigest()


def write_part(folder: str, job: str, columns: Sequence[str], scored: Sequence[Scored]) -> Part:
    """Write some chunks as one partition; raises :class:`OSError`.

    Its name follows from its job and its chunks, so that who writes them again replaces it,
    and no other job does.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    scored = sorted(scored)
    chunks = tuple(each.chunk for each in scored)
    name = f"{PART}{digest_of(repr((job, chunks)).encode())[:24]}{ENDING}"
    rows = [row for each in scored for row in each.rows]
    files = [(str(row[KEY]), str(row[FILE]).rpartition(" ")) for row in rows]
    ok = sum(row["status"] == "ok" for row in rows)
    part = Part(
        name,
        job,
        chunks,
        tuple(len(each.rows) for each in scored),
        ok,
        len(rows) - ok,
        added(each.images for each in scored),
        added(digest_of_text(key, found[2]) for key, found in files),
        added(digest_of_text(key, found[0]) for key, found in files),
    )
    numbers = {name: pa.int64() if name in COUNTS else pa.float64() for name in columns}
    fields = [(name, pa.string() if is_text(name) else kind) for name, kind in numbers.items()]
    schema = pa.schema([(KEY, pa.string()), *fields, (FILE, pa.string())])
    odd = {row[KEY]: names for row in rows if (names := _no_texts(row))}
    about = {ABOUT: json.dumps(vars(part)).encode(), ODD: json.dumps(odd).encode()}
    schema = schema.with_metadata(about)
    content = io.BytesIO()
    with pq.ParquetWriter(content, schema) as writer:
        for each in scored:
            table = [{n: as_text(row[n]) for n in schema.names} for row in each.rows]
            writer.write_table(pa.Table.from_pylist(table, schema))
    write(join(folder, name), content.getvalue())
    return part


def _no_texts(row: Row) -> dict[str, str]:
    """Cells whose bytes are no text, as names of files may be: Parquet cannot hold them."""
    return {name: cell for name, cell in row.items() if as_text(cell) != cell}


@dataclass(frozen=True)
class Done:
    """Partitions that stand already: no chunk is in two of them."""

    parts: tuple[Part, ...] = ()

    def chunks(self) -> dict[int, list[ChunkId]]:
        """Finished chunks by shard."""
        found: dict[int, list[ChunkId]] = {}
        for part in self.parts:
            for chunk in part.chunks:
                found.setdefault(chunk.shard, []).append(chunk)
        return found


def list_of(digest: str) -> str:
    """Name of the table of the images of a job, by the digest of them."""
    return f"{LIST}{digest[:24]}{ENDING}"


def _files_in(folder: str) -> tuple[dict[str, str], int]:
    """Paths of the files in a folder itself by name, and how many there are in all below it."""
    files = [file.path for file in list_files(folder)]
    own = {name: path for path in files if join(folder, name := base_of(path)) == path}
    return own, len(files)


def _is_ours(name: str) -> bool:
    """Whether a job writes files of such a name, or left one that it never finished."""
    unfinished = re.fullmatch(r"\.(.+)\.[0-9a-f]{8}\.tmp", name)
    name = unfinished[1] if unfinished else name
    return name in (JOB, MANIFEST, OWNER) or name.startswith((PART, LIST))


def check_new(folder: str, resume: bool) -> None:
    """Check that a folder is new, or holds a job to resume.

    Raises :class:`UsageError` where not, :class:`RunError` where it cannot be read.
    """
    try:
        there, count = _files_in(folder)
    except OSError as error:
        raise RunError(f"to write {folder}", reason=reason_of(error)) from error
    # What a job that was broken off before it began may have left.
    left = [n for n in there if n == OWNER or n.startswith(LIST) or (n[0] == "." and _is_ours(n))]
    if count > len(left) and JOB not in there:
        raise UsageError(
            f"a new folder at -o {folder}", "one with other files", "choose another -o"
        )
    if JOB in there and not resume:
        raise UsageError(
            f"a new folder at -o {folder}",
            "the partitions of a job",
            "add --resume to go on with it, or choose another -o",
        )


def claim(folder: str) -> str:
    """Take a folder over; returns the mark by which :func:`check_owner` knows its owner.

    Raises :class:`RunError` where it cannot be written.
    """
    mark = secrets.token_hex(16)
    try:
        write(join(folder, OWNER), mark.encode())
    except OSError as error:
        raise RunError(f"to write {folder}", reason=reason_of(error)) from error
    return mark


def check_owner(folder: str, mark: str) -> None:
    """Check that no other job took the folder over; raises :class:`RunError`."""
    try:
        found = _read(join(folder, OWNER)).decode("ascii", "replace")
    except OSError as error:
        raise RunError(f"to write {folder}", reason=reason_of(error)) from error
    if found != mark:
        raise RunError(
            f"to be the only one that writes {folder}",
            "another dcmpl that took it over",
            "wait for it, or choose another -o",
        )


def begin(folder: str, job: Mapping[str, Any], resume: bool) -> tuple[str, Done]:
    """Begin or ``resume`` the job of ``folder``: its digest, and the partitions that are there.

    Nothing is written where they are of another job: :class:`RunError` says what differs. So it
    does where another job began since one looked, or the folder cannot be written.
    """
    path = join(folder, JOB)
    try:
        there = about(path)
        record = {"job": job, "version": __version__}
        if there is None:
            write(path, sealed(record))
            return digest_of(sealed(record)), Done()
        if not resume:
            raise RunError(f"a new folder at {folder}", "a job that began since", "choose another")
        found = _record(path, "the record of a job")
        if found["job"] != json.loads(json.dumps(job)):
            names = [name for name in job if found["job"].get(name) != job[name]]
            raise RunError(
                f"the partitions of this job in {folder}",
                f"those of one that differs in {', '.join(names) or 'other fields'}",
                "score as it was started, or choose another -o",
            )
        digest = digest_of(_read(path))
        return digest, Done(tuple(_standing(folder, digest)))
    except OSError as error:
        raise RunError(f"to write {folder}", reason=reason_of(error)) from error


def _read(path: str, most: int = MOST_RECORD) -> bytes:
    with open_file(path) as file:
        return file.read(most)


def _record(path: str, what: str) -> dict[str, Any]:
    def build(record: dict[str, Any]) -> dict[str, Any]:
        return {**record, "job": dict(record["job"])}

    return record_of(_read(path), path, what, build)


def _standing(folder: str, job: str) -> Iterator[Part]:
    """Whole partitions of a job; one that holds a chunk of another is left out."""
    seen: set[tuple[int, int]] = set()
    for name, path in sorted(_files_in(folder)[0].items()):
        if not (name.startswith(PART) and name.endswith(ENDING)):
            continue
        part = _part_at(path)
        if part is None or part.job != job or part.name != name:
            continue  # torn, or another's: it is written anew
        own = {chunk[:2] for chunk in part.chunks}
        if not own & seen:
            seen |= own
            yield part


def _part_at(path: str) -> Part | None:
    """Part of a partition's footer; None where it has none."""
    import pyarrow.parquet as pq

    with suppress(Exception), open_file(path) as file, pq.ParquetFile(file) as parquet:
        part = Part.of(json.loads((parquet.schema_arrow.metadata or {})[ABOUT]))
        groups = parquet.metadata.num_row_groups
        sizes = tuple(parquet.metadata.row_group(i).num_rows for i in range(groups))
        return part if sizes == part.sizes else None
    return None


def finished(folder: str) -> dict[str, Any] | None:
    """Manifest of a finished job, None where there is none; raises :class:`RunError`."""
    path = join(folder, MANIFEST)
    try:
        if about(path) is None:
            return None
        return _record(path, f"the manifest of the scores {folder}")
    except OSError as error:
        raise RunError(f"scores at {folder}", reason=reason_of(error)) from error


def commit(
    folder: str,
    job: Mapping[str, Any],
    parts: Sequence[Part],
    made_with: Mapping[str, str],
) -> dict[str, int]:
    """Write the manifest that makes ``parts`` the result; returns how many rows are ok and not.

    ``parts`` are of one job. Everything else that was written for it is removed. Raises
    :class:`RunError` where a chunk is missing or there twice, or the manifest cannot be written.
    """
    check_chunks(parts)
    counts = {"ok": sum(part.ok for part in parts), "error": sum(part.error for part in parts)}
    count = sum(counts.values())
    whole = {
        **job,
        "rank": None,
        "shard": None,
        "images": count,
        "list_sha256": added(part.images for part in parts),
        "count": count,
        "images_sha256": added(part.contents for part in parts),
    }
    files = added(part.files for part in parts)
    record = {
        "job": whole,
        "made_with": {**made_with, "files_sha256": files},
        "rows": counts,
        "mark": next((part.job for part in parts), ""),
        "parts": [part.name for part in sorted(parts, key=lambda part: part.chunks)],
        "version": __version__,
    }
    try:
        write(join(folder, MANIFEST), sealed(record))
    except OSError as error:
        raise RunError(
            f"to write {folder}",
            hint="the finished partitions are kept, --resume goes on with them",
            reason=reason_of(error),
        ) from error
    discard(folder, {MANIFEST, JOB, *(part.name for part in parts)})
    return counts


def discard(folder: str, kept: Collection[str] = ()) -> None:
    """Remove what a job wrote into its folder, but what is ``kept``."""
    for name, path in _files_in(folder)[0].items():
        if _is_ours(name) and name not in kept:
            with suppress(OSError):  # it is no part of the result
                remove(path)
    if not kept and is_url(folder):
        with suppress(OSError):  # what stands for the folder itself
            remove_folder(folder)


def check_chunks(parts: Iterable[Part], whole: bool = True) -> None:
    """Check that no chunk is there twice, and of a ``whole`` job none is missing.

    Raises :class:`RunError`.
    """
    found = sorted(chunk[:2] for part in parts for chunk in part.chunks)
    for before, chunk in pairwise([None, *found]):
        shard, number = chunk or (0, 0)
        is_next = before is not None and before == (shard, number - 1)
        if before == chunk or (whole and number and not is_next):
            raise RunError(
                "every chunk of the job once",
                f"chunk {number} of shard {shard} behind {before}",
                "this is a fault of dcmpl, the partitions are kept",
            )


def described(folder: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Job of a folder's partitions, and its makers; raises :class:`RunError` for others."""
    record = finished(folder)
    if record is None:
        raise RunError(
            f"finished partitions in {folder}", "no manifest", "score it with --resume first"
        )
    return record["job"], dict(record["made_with"])


def fault_reasons(folder: str) -> Iterator[str]:
    """Reasons of the rows without a score, of some partition first."""
    for name in (finished(folder) or {"parts": ()})["parts"]:
        part = _part_at(join(folder, str(name)))
        if part is not None and part.error:
            with OpenParts(folder) as files:
                table = files[part.name].read(columns=["reason"])
            yield from filter(None, table["reason"].to_pylist())


def read_partitions(folder: str) -> Iterator[Row]:
    """Rows of a finished job in the order of its images, some partitions open at a time.

    Raises :class:`RunError` where the folder holds no finished job, or a partition is gone.
    """
    job, _ = described(folder)
    parts = _parts_of(folder, finished(folder) or {})
    sums = added(p.images for p in parts), added(p.contents for p in parts)
    if sums != (job["list_sha256"], job["images_sha256"]):
        raise RunError(f"the partitions that the manifest of {folder} names", "others")
    return rows_of(folder, parts)


def _parts_of(folder: str, manifest: Mapping[str, Any]) -> list[Part]:
    """Partitions that a manifest names; raises :class:`RunError` where one is gone or torn."""
    parts = list[Part]()
    for name in manifest["parts"]:
        part = _part_at(path := join(folder, str(name)))
        if part is None or (part.name, part.job) != (name, manifest["mark"]):
            raise RunError(f"a whole partition of its job at {path}", "another file, or none")
        parts.append(part)
    return parts


def rows_of(folder: str, parts: Iterable[Part]) -> Iterator[Row]:
    """Rows of some partitions in the order of the images, as the files of scores have them."""
    groups = [(c, part.name, place) for part in parts for place, c in enumerate(part.chunks)]
    with OpenParts(folder) as files:
        for _, name, group in sorted(groups):
            odd = json.loads((files[name].schema_arrow.metadata or {}).get(ODD, b"{}"))
            for row in files[name].read_row_group(group).to_pylist():
                whole = {**row, **odd.get(row[KEY], {})}
                yield {name: whole[name] for name in row if name not in (KEY, FILE)}


class OpenParts:
    """Partitions that are open for reading, the last ones used."""

    def __init__(self, folder: str) -> None:
        self._folder, self._open = folder, OrderedDict[str, tuple[Any, Any]]()

    def __enter__(self) -> "OpenParts":
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._close()

    def _close(self) -> None:
        _, (parquet, file) = self._open.popitem(last=False)
        parquet.close()
        file.close()

    def __getitem__(self, name: str) -> Any:
        import pyarrow.parquet as pq

        if name not in self._open:
            if len(self._open) == OPEN:
                self._close()
            file = open_file(join(self._folder, name))
            self._open[name] = pq.ParquetFile(file), file
        self._open.move_to_end(name)
        return self._open[name][0]
