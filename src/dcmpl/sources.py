"""Where pictures come from: files, folders, globs, archives and lists with prompts.

Nothing is unpacked to disk. What cannot be read stays in the list, to get its row.
"""

import glob
import json
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from dcmpl.errors import DataError, UsageError
from dcmpl.generators import prompt_in
from dcmpl.images import Picture, decode, read_picture
from dcmpl.lists import LISTS, PROMPT_COLUMNS, read_list

__all__ = [
    "PROMPTS_FROM",
    "Entry",
    "Request",
    "find_entries",
    "is_picture",
    "requests",
    "with_prompts",
]

PICTURES = frozenset(
    (
        *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"),
        *(".avif", ".heic", ".heif"),
    )
)
ZIPS = (".zip",)
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
PROMPTS_FROM = ("sidecar", "metadata")

MAX_MEMBER_BYTES = 512 * 2**20
MAX_SIDECAR_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture by the name its row has. ``member``: its name within the archive ``path``.

    ``fault`` says why there is nothing to read, as for a damaged archive.
    """

    name: str
    path: str
    member: str | None = None
    prompt: str = ""
    fault: str = ""

    def content(self) -> bytes:
        """The file's bytes; raises :class:`DataError`."""
        with _Archives() as archives:
            return archives.read(self)


@dataclass(frozen=True)
class Request:
    """A picture that is still to be read. ``prompt_of`` finds the prompt in what was read."""

    name: str
    prompt: str
    read: Callable[[], Picture]
    prompt_of: Callable[[Picture], str] | None = None


def find_entries(paths: Sequence[str], sidecar: bool = False) -> list[Entry]:
    """Pictures of files, folders (all below), globs, zip and tar archives, and lists.

    A file that is named is taken as it is; found twice, it is listed once. The rows of a list
    (CSV, TSV, JSON Lines, Parquet, XLSX) are taken as they are, relative to the list, with
    their prompts. ``sidecar``: prompts come from ``NAME.txt`` beside a picture, in an archive
    also from "prompt" or "caption" in ``NAME.json``. Raises :class:`UsageError` where a
    folder or a glob holds no picture, :class:`DataError` for a list that is none.
    """
    found: list[Entry] = []
    seen: set[str] = set()
    for path in paths:
        for entry in _entries_of(path, sidecar):
            place = os.path.abspath(entry.path) if entry.member is None else entry.name
            if _kind(path) != "list":
                if place in seen:
                    continue
                seen.add(place)
            found.append(entry)
    return found


def _kind(path: str) -> str:
    name = path.lower()
    if Path(path).is_file():
        for kind, suffixes in (("zip", ZIPS), ("tar", TARS), ("list", LISTS)):
            if name.endswith(suffixes):
                return kind
    return "folder" if Path(path).is_dir() else "file"


def _entries_of(path: str, sidecar: bool) -> Iterator[Entry]:
    kind = _kind(path)
    if kind == "list":
        for place, prompt in read_list(Path(path)):
            fault = "" if place else f"expected a picture in every row of {path}, got an empty cell"
            yield Entry(place or path, place or path, prompt=prompt, fault=fault)
    elif kind in ("zip", "tar"):
        yield from _of_archive(path, kind, sidecar)
    elif kind == "folder":
        inside = (str(p) for p in sorted(Path(path).rglob("*")) if is_picture(p))
        yield from _some((_of_file(p, sidecar) for p in inside), path)
    elif not Path(path).exists() and glob.has_magic(path):
        matches = sorted(glob.glob(path, recursive=True))
        kinds = [(p, _kind(p)) for p in matches]
        inside = (p for p, k in kinds if k in ("zip", "tar") or is_picture(Path(p)))
        yield from _some((e for p in inside for e in _entries_of(p, sidecar)), path)
    else:
        yield _of_file(path, sidecar)


def _some(entries: Iterator[Entry], path: str) -> Iterator[Entry]:
    first = next(entries, None)
    if first is None:
        raise UsageError(f"expected pictures in {path}, found none: name a folder with some")
    yield first
    yield from entries


def is_picture(path: Path) -> bool:
    """Whether a file is called like a picture."""
    return _is_called_picture(path.name) and path.is_file()


def _is_called_picture(name: str) -> bool:
    base = PurePosixPath(name).name
    return PurePosixPath(base).suffix.lower() in PICTURES and not base.startswith("._")


def _of_file(path: str, sidecar: bool) -> Entry:
    prompt = ""
    if sidecar:
        beside = Path(path).with_suffix(".txt")
        try:
            with beside.open("rb") as file:
                prompt = _as_prompt(beside.name, file.read(MAX_SIDECAR_BYTES))
        except OSError:
            prompt = ""
    return Entry(path, path, prompt=prompt)


def _as_prompt(name: str, content: bytes) -> str:
    """The text of a sidecar; of JSON its "prompt" or "caption"."""
    text = content.decode("utf-8-sig", "replace").strip()
    if not name.endswith(".json"):
        return text
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    found = [record.get(name) for name in PROMPT_COLUMNS] if isinstance(record, dict) else []
    return next((value.strip() for value in found if isinstance(value, str)), "")


def _of_archive(path: str, kind: str, sidecar: bool) -> Iterator[Entry]:
    """Its pictures, in the archive's order; one entry with a fault where it is damaged."""
    prompts: dict[str, str] = {}
    entries: list[Entry] = []
    fault = ""
    try:
        with _Archives() as archives:
            for name in archives.members(path, kind):
                stem, suffix = os.path.splitext(name)
                if _is_called_picture(name):
                    entries.append(Entry(f"{path}/{name}", path, name))
                elif sidecar and suffix in (".txt", ".json"):
                    content = archives.read(Entry(name, path, name), MAX_SIDECAR_BYTES)
                    if prompt := _as_prompt(name, content):
                        prompts.setdefault(stem, prompt)
    except DataError as error:
        fault = str(error)
    for entry in entries:
        yield replace(entry, prompt=prompts.get(os.path.splitext(entry.member or "")[0], ""))
    if fault or not entries:
        told = fault or f"expected pictures in {path}, found none"
        yield Entry(path, path, fault=told)


class _Archives(ExitStack):
    """The archive that was read last stays open: pictures come in its order."""

    def __init__(self) -> None:
        super().__init__()
        self._path = ""
        self._open: Any = None

    def _opened(self, path: str) -> Any:
        if path != self._path:
            self.close()
            kind = _kind(path)
            self._open = self.enter_context(
                zipfile.ZipFile(path) if kind == "zip" else tarfile.open(path)  # noqa: SIM115
            )
            self._path = path
        return self._open

    def members(self, path: str, kind: str) -> Iterator[str]:
        """The names of its files; raises :class:`DataError`."""
        with _damage_is_an_error(path):
            archive = self._opened(path)
            if kind == "zip":
                yield from (info.filename for info in archive.infolist() if not info.is_dir())
            else:
                yield from (info.name for info in archive if info.isfile())

    def read(self, entry: Entry, limit: int = MAX_MEMBER_BYTES) -> bytes:
        """The bytes of an entry; raises :class:`DataError`, also where they are too many."""
        with _damage_is_an_error(entry.name):
            if entry.fault:
                raise DataError(entry.fault)
            if entry.member is None:
                return Path(entry.path).read_bytes()
            archive = self._opened(entry.path)
            if isinstance(archive, zipfile.ZipFile):
                file = archive.open(entry.member)
            else:
                file = archive.extractfile(entry.member)
            with file:
                content: bytes = file.read(limit + 1)
        if len(content) > limit:
            raise DataError(f"expected at most {limit} bytes at {entry.name}, got more")
        return content


@contextmanager
def _damage_is_an_error(what: str) -> Iterator[None]:
    """Whatever reading an archive raises becomes a :class:`DataError` that names ``what``."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"expected a whole file at {what}, got: {told}") from error


def requests(entries: Sequence[Entry], metadata: bool = False) -> Iterator[Request]:
    """The entries as the scorer takes them; archives are read in order, as it gets to them.

    ``metadata``: prompts are those that image generators wrote into the pictures.
    """
    prompt_of = _prompt_of if metadata else None
    with _Archives() as archives:
        for entry in entries:
            read: Callable[[], Picture]
            if entry.member is None and not entry.fault:
                read = partial(decode, entry.path)
            else:
                try:
                    read = partial(read_picture, archives.read(entry), entry.name)
                except DataError as error:
                    read = partial(_fail, str(error))
            yield Request(entry.name, entry.prompt, read, prompt_of)


def _prompt_of(picture: Picture) -> str:
    return prompt_in(picture.texts)


def _fail(reason: str) -> Picture:
    raise DataError(reason)


def with_prompts(entries: Sequence[Entry], prompts: dict[str, str]) -> list[Entry]:
    """The entries with the prompts of a table, by name."""
    return [replace(entry, prompt=prompts.get(entry.name, entry.prompt)) for entry in entries]
