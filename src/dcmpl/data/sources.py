"""Where images come from: files, folders, globs, archives and lists with prompts.

Nothing is unpacked to disk. What cannot be read stays in the list, to get its row.
"""

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from dcmpl.data.lists import LISTS, read_rows
from dcmpl.data.sidecars import MAX_SIDECAR_BYTES, SIDECARS, prompt_of_sidecar
from dcmpl.errors import DataError, DcmplError, UsageError
from dcmpl.files import digest_of_text, sha256_of
from dcmpl.images.archives import Archives, TooLargeError, in_archive, kind_of, read_file
from dcmpl.images.decode import (
    DecodedImage,
    decode,
    decode_bytes,
    is_called_image,
    is_image,
    read_input,
)
from dcmpl.images.metadata import find_prompt, plain_prompt
from dcmpl.progress import say
from dcmpl.storage import about, is_folder, is_url, list_files, open_file, reason_of

__all__ = [
    "LISTS",
    "PROMPTS_FROM",
    "Found",
    "Source",
    "find_sources",
    "in_shard",
    "iterate_sources",
    "key_of",
    "keyed",
    "read_list",
    "with_content",
    "with_prompts",
]

PROMPTS_FROM = ("sidecar", "metadata")
"""Where prompts stand that are not given as words or as a table."""


class Nothing(Enum):
    """No image was given; None may be one that somebody tries to score."""

    NOTHING = "nothing"


NOTHING = Nothing.NOTHING


@dataclass(frozen=True, slots=True)
class Source:
    """Location of one image, the name of its row, and its prompt where known.

    ``member``: its name within the archive ``path``. ``content``: its bytes where they are in
    memory already. ``given``: the image itself, in a form a program has it. ``fault`` says why
    there is nothing to read, as for a damaged archive; ``note`` what the row should say, as of
    a sidecar that was too long to be a prompt. ``in_metadata``: the prompt is the one that an
    image generator wrote into the file. ``is_job``: its row will say which file it is of.
    ``shard``: the archive among whose images it was found, if any. ``known``: what
    :meth:`file` said where the image was decoded.
    """

    name: str
    path: str = ""
    member: str | None = None
    prompt: str = ""
    fault: DataError | None = None
    note: str = ""
    content: bytes | None = field(default=None, repr=False)
    given: Any = field(default=NOTHING, repr=False)
    in_metadata: bool = False
    is_job: bool = False
    shard: str = field(default="", compare=False)
    known: str | None = field(default=None, compare=False)

    def read(self) -> DecodedImage:
        """Decode the image; raises :class:`DataError` with the reason where that fails."""
        if self.fault:
            raise copy(self.fault)
        if self.content is not None:
            return decode_bytes(self.content, self.name)
        if self.given is not NOTHING:
            return read_input(self.given)
        return decode(self.path)

    def prompt_of(self, image: DecodedImage) -> tuple[str, str, str]:
        """Prompt of ``image`` as it was written, its words for a model, and a note.

        It is the source's own, or from the metadata of the decoded image.
        """
        if not self.in_metadata:
            return self.prompt, self.prompt, ""
        prompt, reason = find_prompt(image.texts)
        words = plain_prompt(prompt)
        note = "prompt read without its weights" if words != prompt else ""
        return prompt, words, note if prompt else f"no prompt read from metadata: {reason}"

    def stat(self) -> str:
        """Size and time of the file, or of the archive; empty where there is none."""
        try:
            found = about(self.path)
        except (OSError, ValueError, UsageError):
            return ""
        return f"{found.size} {found.changed}" if found else ""

    def file(self) -> str:
        """Size and time of the file, and the SHA-256 of its content; empty where there is none."""
        if self.known is not None:
            return self.known
        if not (size_and_time := self.stat()):
            return ""
        try:
            if self.member is None and self.content is None and not is_url(self.path):
                return f"{size_and_time} {sha256_of(Path(self.path))}"
            content = self.file_content() if self.content is None else self.content
        except (OSError, DataError):
            return ""
        return f"{size_and_time} {hashlib.sha256(content).hexdigest()}"

    def fetched(self) -> "Source":
        """The source with the bytes that its URL names, or with the fault that there are none."""
        is_here = self.content is not None or self.given is not NOTHING or self.fault is not None
        if is_here or self.member is not None:
            return self
        try:
            return replace(self, content=read_file(self.path)) if is_url(self.path) else self
        except (DataError, UsageError) as error:
            return replace(self, fault=as_fault(error))

    @property
    def place(self) -> tuple[str, str | None]:
        """Path and member by which the same image is known under another name."""
        where = self.path if is_url(self.path) else os.path.abspath(self.path)
        return where, self.member and os.path.normpath(self.member)

    def digest(self, key: str) -> str:
        """Digest of the image's name, its prompt and its fault, at the place that ``key`` says."""
        about = json.dumps((self.name, self.prompt, str(self.fault or "")))
        return digest_of_text(key, about)

    def file_content(self) -> bytes:
        """The bytes of the file; raises :class:`DataError`."""
        if self.fault:
            raise copy(self.fault)
        if self.member is None:
            return read_file(self.path)
        with Archives() as archives:
            return archives.read(self.path, self.member)


def find_sources(paths: Sequence[str], sidecar: bool = False) -> list[Source]:
    """:func:`iterate_sources` as a list."""
    return list(iterate_sources(paths, sidecar))


def as_fault(error: DcmplError) -> DataError:
    """Error as the fault of a source, without the frames that it came from."""
    return DataError(error.expected, error.got, error.hint, error.reason)


def read_list(file: Path | str) -> Iterator[tuple[str, str]]:
    """(path, prompt) of every row of a table; paths are relative to it, prompts may be empty.

    Raises :class:`DataError` where it is no table or has no column of images.
    """
    for row in read_rows(str(file)):
        yield _place(str(file), row.image) if row.image else "", row.prompt


def _of_list(path: str) -> Iterator[Source]:
    """Images of a list's rows, in any form it may name or hold them."""
    for row in read_rows(path):
        if row.inside:
            name = f"{path}/{row.image or row.number}"
            yield Source(name, path, str(row.number), prompt=row.prompt)
            continue
        try:
            place = _place(path, row.image) if row.image else ""
        except UsageError as error:  # which does not show what may have a key in it
            yield Source(f"{path}/{row.number}", path, prompt=row.prompt, fault=as_fault(error))
            continue
        fault = None if place else DataError(f"an image in every row of {path}", "an empty cell")
        archive = None if not place or os.path.lexists(place) else in_archive(place)
        file, member = archive or (place or path, None)
        yield Source(place or path, file, member, prompt=row.prompt, fault=fault)


def _place(file: str, name: str) -> str:
    """Path of a list's row: beside the list, or as it is where only that is there.

    The second is what ``score`` writes, whose paths are as they were given to it. What an
    object store has is not looked at: a name without a store of its own is beside the list.
    """
    if is_url(name):
        return name
    folder = file.rpartition("/")[0] if is_url(file) else os.path.dirname(file)
    if is_url(file):
        return f"{folder}/{name}"
    beside = os.path.join(folder, name) if folder else name
    return name if not _is_there(beside) and _is_there(name) else beside


def _is_there(path: str) -> bool:
    return os.path.lexists(path) or in_archive(path) is not None


class Found:
    """Images of what is named, as often as one looks: lists are read anew, and never held.

    Arguments are those of :func:`iterate_sources`; ``prompt`` is that of all the images.
    """

    def __init__(self, paths: Sequence[str], sidecar: bool = False, prompt: str | None = None):
        self._prompt = prompt
        self._pieces: list[str | list[Source]] = []
        named = list[str]()
        for path in paths:
            if path and _kind(path) == "list":
                self._add(named, sidecar)
                self._pieces.append(path)
            else:
                named.append(path)
        self._add(named, sidecar)

    def _add(self, named: list[str], sidecar: bool) -> None:
        if not named:
            return
        before = {s.place for piece in self._pieces if isinstance(piece, list) for s in piece}
        found = iterate_sources(named, sidecar)
        self._pieces.append([source for source in found if source.place not in before])
        named.clear()

    def __iter__(self) -> Iterator[Source]:
        for piece in self._pieces:
            for source in _of_list(piece) if isinstance(piece, str) else piece:
                yield source if self._prompt is None else replace(source, prompt=self._prompt)


def iterate_sources(
    paths: Sequence[str], sidecar: bool = False, closed: bool = False
) -> Iterator[Source]:
    """Find the images of files, folders (recursively), globs, zip and tar archives, and lists.

    A file that is named is taken as it is; found twice, it is listed once. The rows of a list
    (CSV, TSV, JSON Lines, Parquet, XLSX) are taken as they are, relative to the list, with
    their prompts. ``sidecar``: prompts come from the files beside an image, in folders and
    archives (``SIDECARS``). ``closed``: an archive is one source, whose images
    :func:`in_shard` finds. Raises :class:`UsageError` where a
    folder or a glob holds no image, :class:`DataError` for a list that is none.
    """
    seen: set[tuple[str, str | None]] = set()
    for path in paths:
        if not path:
            raise UsageError("the path of images", "an empty one")
        kind = _kind(path)
        for entry in _entries_of(path, kind, sidecar, closed):
            if kind != "list":
                if entry.place in seen:
                    continue
                seen.add(entry.place)
            yield entry


def in_shard(path: str, sidecar: bool = False) -> Iterator[Source]:
    """Images of one archive, each once, as :func:`iterate_sources` finds them."""
    seen: set[str] = set()
    for entry in _of_archive(path, sidecar):
        place = os.path.normpath(entry.member or "")
        if place not in seen:
            seen.add(place)
            yield entry


def _kind(path: str) -> str:
    if is_url(path):
        if path.lower().endswith(LISTS):
            return "list"
        return "archive" if kind_of(path) else "folder" if _is_store_folder(path) else "file"
    # os.path answers no where pathlib raises, as for a name that is too long.
    if os.path.isdir(path):
        return "folder"
    if not os.path.isfile(path):
        return "glob" if glob.has_magic(path) and not os.path.lexists(path) else "file"
    if path.lower().endswith(LISTS):
        return "list"
    return "archive" if kind_of(path) else "file"


def _entries_of(path: str, kind: str, sidecar: bool, closed: bool) -> Iterator[Source]:
    if kind == "list":
        yield from _of_list(path)
    elif kind == "archive" and closed:
        yield Source(path, path, shard=path)
    elif kind == "archive":
        yield from _of_archive(path, sidecar)
    elif kind == "folder":
        yield from _some(_of_folder(path, sidecar), path)
    elif kind == "glob":
        matches = sorted(glob.glob(path, recursive=True))
        kinds = ((p, _kind(p)) for p in matches)
        inside = ((p, k) for p, k in kinds if k == "archive" or is_image(Path(p)))
        yield from _some((e for p, k in inside for e in _entries_of(p, k, sidecar, closed)), path)
    else:
        yield _of_file(path, sidecar)


def _some(entries: Iterator[Source], path: str) -> Iterator[Source]:
    first = next(entries, None)
    if first is None:
        raise UsageError(f"images in {path}", "none", "name a folder with some")
    yield first
    yield from entries


def _of_folder(path: str, sidecar: bool) -> Iterator[Source]:
    """Images below a folder, by name; an unreadable folder is one entry with a fault."""
    if is_url(path):
        yield from _of_store(path, sidecar)
        return
    closed: list[OSError] = []
    found, others = list[str](), list[str]()
    for folder, names in _walk(path, closed):
        for name in names:
            if is_image(Path(folder, name)):
                found.append(os.path.join(folder, name))
            elif not name.startswith(".") and not name.lower().endswith((*SIDECARS, *LISTS)):
                others.append(os.path.join(folder, name))
    if others:
        named = ", ".join(sorted(others)[:3]) + (", ..." if len(others) > 3 else "")
        say(f"note: {len(others)} files in {path} are left out, no images by their names: {named}")
    yield from (_of_file(name, sidecar) for name in sorted(found, key=Path))
    for error in closed:
        fault = DataError(
            f"a folder that can be read at {error.filename}", reason=error.strerror or error
        )
        yield Source(str(error.filename), str(error.filename), fault=fault)


def _of_store(path: str, sidecar: bool) -> Iterator[Source]:
    """Images below a folder of an object store, by name."""
    try:
        names = [file.path for file in list_files(path)]
    except OSError as error:
        raise DataError(f"a folder that can be read at {path}", reason=reason_of(error)) from error
    known = frozenset(names) if sidecar else frozenset()
    yield from (_of_file(name, sidecar, known) for name in names if is_called_image(name))


def _is_store_folder(path: str) -> bool:
    """Whether a URL names a folder; raises :class:`DataError` where the store does not say."""
    try:
        return path.endswith("/") or is_folder(path)
    except OSError as error:
        raise DataError(f"images at {path}", reason=reason_of(error)) from error


def _walk(path: str, closed: list[OSError]) -> Iterator[tuple[str, list[str]]]:
    """Folders below ``path`` with the names in them; each once, links to folders last."""
    seen: set[tuple[int, int]] = set()
    links = [path]
    while links:
        top = links.pop(0)
        for folder, folders, names in os.walk(top, onerror=closed.append):
            try:
                about = os.stat(folder)
            except OSError:  # gone since
                folders.clear()
                continue
            if (about.st_dev, about.st_ino) in seen:
                folders.clear()
                continue
            seen.add((about.st_dev, about.st_ino))
            linked = sorted(n for n in folders if os.path.islink(os.path.join(folder, n)))
            links += [os.path.join(folder, name) for name in linked]
            yield folder, names


def _of_file(path: str, sidecar: bool, known: frozenset[str] | None = None) -> Source:
    """An image file; ``known`` are the files of its store, where that was listed."""
    prompt, notes = "", list[str]()
    stem = os.path.splitext(path)[0]
    names = [stem + ending for ending in SIDECARS] if sidecar else []
    beside = [n for n in names if (_is_file(n) if known is None else n in known)]
    for file in beside:
        try:
            with open_file(file) as opened:
                found, note = prompt_of_sidecar(file, opened.read(MAX_SIDECAR_BYTES + 1))
        except OSError as error:
            found, note = "", f"no prompt read: {file}: {reason_of(error)}"
        if note:
            notes.append(note)
        if found and prompt and found != prompt:
            notes.append(f"the prompt in {file} is another")
        prompt = prompt or found
    return Source(path, path, prompt=prompt, note="; ".join(notes))


def _is_file(path: str) -> bool:
    """Whether a file is there, as far as the system or a store says."""
    with suppress(OSError):
        return about(path) is not None
    return False


def _of_archive(path: str, sidecar: bool) -> Iterator[Source]:
    """Images of an archive, in its order; a damaged archive ends in one entry with a fault."""
    kept: dict[str, tuple[str, str]] = {}
    entries: list[Source] = []
    fault = None
    try:
        with Archives() as archives:
            for name in archives.members(path):
                stem, suffix = os.path.splitext(name)
                if is_called_image(name):
                    entries.append(Source(f"{path}/{name}", path, name, shard=path))
                elif sidecar and suffix.lower() in SIDECARS:
                    kept[name] = _read_sidecar(archives, path, name)
    except DataError as error:
        fault = copy(error)  # without the frames that it came from
    for entry in entries:
        stem = os.path.splitext(entry.member or "")[0]
        beside = [kept[stem + ending] for ending in SIDECARS if stem + ending in kept]
        prompt = next((text for text, _ in beside if text), "")
        notes = [note for text, note in beside if note and (text or not prompt)]
        notes += ["its sidecars differ"] if len({text for text, _ in beside if text}) > 1 else []
        yield replace(entry, prompt=prompt, note="; ".join(notes))
    if fault or not entries:
        reason = fault or DataError(f"images in {path}", "none")
        yield Source(path, path, fault=reason, shard=path)


def _read_sidecar(archives: Archives, path: str, name: str) -> tuple[str, str]:
    """Prompt and note of a sidecar in an archive; one that cannot be read is a note."""
    try:
        content = archives.read(path, name, MAX_SIDECAR_BYTES)
    except TooLargeError:
        return "", f"no prompt read: {path}/{name} has more than {MAX_SIDECAR_BYTES} bytes"
    except DataError as error:
        return "", f"no prompt read: {error}"
    return prompt_of_sidecar(f"{path}/{name}", content)


def with_content(
    sources: Iterable[Source], metadata: bool = False, is_job: bool = False
) -> Iterator[Source]:
    """The sources, members of archives with their bytes: archives are read once, in order.

    ``metadata``: prompts are those that image generators wrote into the files. ``is_job``: rows
    are to say which file they are of.
    """
    with Archives() as archives:
        for source in sources:
            source = replace(source, in_metadata=metadata, is_job=is_job)
            is_here = source.content is not None or source.given is not NOTHING
            if source.member is not None and not source.fault and not is_here:
                try:
                    content = archives.read(source.path, source.member)
                    source = replace(source, content=content)
                except DataError as error:
                    source = replace(source, fault=copy(error))
            yield source


def keyed(sources: Iterable[Source]) -> Iterator[tuple[str, Source]]:
    """Stable key of each source: the number of its shard, and its place in there.

    Images between two archives are a shard as well. Keys sort as the sources stand.
    """
    shard, place, last = 0, 0, None
    for source in sources:
        if last is not None and source.shard != last:
            shard, place = shard + 1, 0
        yield key_of(shard, place), source
        place, last = place + 1, source.shard


def key_of(shard: int, place: int) -> str:
    """Key of the image at ``place`` of a shard, both from 0."""
    return f"{shard:08d}-{place:010d}"


def with_prompts(sources: Sequence[Source], prompts: dict[str, str]) -> list[Source]:
    """Sources with the prompts of a table, by name."""
    return [replace(entry, prompt=prompts.get(entry.name, entry.prompt)) for entry in sources]
