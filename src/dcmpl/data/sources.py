"""Where images come from: files, folders, globs, archives and lists with prompts.

Nothing is unpacked to disk. What cannot be read stays in the list, to get its row.
"""

import glob
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dcmpl.errors import DataError, UsageError
from dcmpl.images.archives import Archives, TooLargeError, kind_of, read_file
from dcmpl.images.decode import (
    DecodedImage,
    decode,
    decode_bytes,
    is_called_image,
    is_image,
    read_input,
)
from dcmpl.images.metadata import prompt_in, whole_text

__all__ = [
    "LISTS",
    "PROMPTS_FROM",
    "PROMPT_COLUMNS",
    "Source",
    "find_sources",
    "read_list",
    "read_prompts",
    "with_content",
    "with_prompts",
]

PROMPTS_FROM = ("sidecar", "metadata")
"""Where prompts stand that are not given as words or as a table."""


LISTS = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".xlsx")

IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_name", "filename", "file", "path", "name")
PROMPT_COLUMNS = ("prompt", "text", "caption", "title")
"""The names in use, the first that is there counts."""


def _column(columns: Sequence[str], known: Sequence[str]) -> str | None:
    return next((name for name in known if name in columns), None)


def read_list(file: Path) -> Iterator[tuple[str, str]]:
    """(path, prompt) of every row of a table; paths are relative to it, prompts may be empty.

    Raises :class:`DataError` where it is no table or has no column of images.
    """
    from dcmpl.data.sheets import read_sheet  # imports pandas

    frame = read_sheet(file)
    image, prompt = (_column([*frame.columns], known) for known in (IMAGE_COLUMNS, PROMPT_COLUMNS))
    if image is None:
        raise DataError(
            f"a column of images in {file} ({', '.join(IMAGE_COLUMNS)})",
            ", ".join(map(str, frame.columns)),
        )
    prompts = frame[prompt] if prompt else [""] * len(frame)
    for name, text in zip(frame[image], prompts, strict=True):
        yield os.path.join(file.parent, name) if name else "", text


def read_prompts(file: Path, images: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Image -> prompt from a table with the columns image and prompt.

    A row means the image of that path (as it is, or beside the table) or else of that file
    name. Returns the prompts and the rows' images that are none of ``images``. Raises
    :class:`DataError` where the file is no such table, or a row fits several images.
    """
    from dcmpl.data.sheets import read_sheet  # imports pandas

    frame = read_sheet(file)
    if not {"image", "prompt"} <= {*frame.columns}:
        raise DataError(
            f"the columns image and prompt in {file}", ", ".join(map(str, frame.columns))
        )
    by_path = {os.path.abspath(image): image for image in images}
    by_name: dict[str, list[str]] = {}
    for image in by_path.values():  # each once
        by_name.setdefault(os.path.basename(image), []).append(image)
    prompts: dict[str, str] = {}
    strange = []
    for row, prompt in zip(frame["image"], frame["prompt"], strict=True):
        beside = by_path.get(os.path.abspath(file.parent / row))
        exact = by_path.get(os.path.abspath(row)) or beside
        named = [exact] if exact else by_name.get(os.path.basename(row), [])
        if len(named) > 1:
            raise DataError(
                f"{row} in {file} to name one image", f"{named[0]} and {named[1]}", "write its path"
            )
        if not named:
            strange.append(row)
        elif prompts.setdefault(named[0], prompt) != prompt:
            raise DataError(f"one prompt for {row} in {file}", "two different ones")
    return prompts, strange


MAX_SIDECAR_BYTES = 64 * 2**10


NOTHING = object()
"""No image was given; None may be one that somebody tries to score."""


@dataclass(frozen=True, slots=True)
class Source:
    """Location of one image, the name of its row, and its prompt where known.

    ``member``: its name within the archive ``path``. ``content``: its bytes where they are in
    memory already. ``given``: the image itself, in a form a program has it. ``fault`` says why
    there is nothing to read, as for a damaged archive; ``note`` what the row should say, as of
    a sidecar that was too long to be a prompt. ``in_metadata``: the prompt is the one that an
    image generator wrote into the file.
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

    def read(self) -> DecodedImage:
        """Decode the image; raises :class:`DataError` with the reason where that fails."""
        if self.fault:
            raise self.fault
        if self.content is not None:
            return decode_bytes(self.content, self.name)
        if self.given is not NOTHING:
            return read_input(self.given)
        return decode(self.path)

    def prompt_of(self, image: DecodedImage) -> str:
        """Prompt of ``image``: the source's own, or from the metadata of the decoded image."""
        return prompt_in(image.texts) if self.in_metadata else self.prompt

    def file_content(self) -> bytes:
        """The bytes of the file; raises :class:`DataError`."""
        if self.fault:
            raise self.fault
        if self.member is None:
            return read_file(self.path)
        with Archives() as archives:
            return archives.read(self.path, self.member)


def find_sources(paths: Sequence[str], sidecar: bool = False) -> list[Source]:
    """Find the images of files, folders (recursively), globs, zip and tar archives, and lists.

    A file that is named is taken as it is; found twice, it is listed once. The rows of a list
    (CSV, TSV, JSON Lines, Parquet, XLSX) are taken as they are, relative to the list, with
    their prompts. ``sidecar``: prompts come from ``NAME.txt`` beside an image, in an archive
    also from "prompt" or "caption" in ``NAME.json``. Raises :class:`UsageError` where a
    folder or a glob holds no image, :class:`DataError` for a list that is none.
    """
    found: list[Source] = []
    seen: set[tuple[str, str | None]] = set()
    for path in paths:
        if not path:
            raise UsageError("the path of images", "an empty one")
        kind = _kind(path)
        for entry in _entries_of(path, kind, sidecar):
            place = os.path.abspath(entry.path), entry.member
            if kind != "list":
                if place in seen:
                    continue
                seen.add(place)
            found.append(entry)
    return found


def _kind(path: str) -> str:
    # os.path answers no where pathlib raises, as for a name that is too long.
    if os.path.isdir(path):
        return "folder"
    if not os.path.isfile(path):
        return "glob" if glob.has_magic(path) and not os.path.lexists(path) else "file"
    if path.lower().endswith(LISTS):
        return "list"
    return "archive" if kind_of(path) else "file"


def _entries_of(path: str, kind: str, sidecar: bool) -> Iterator[Source]:
    if kind == "list":
        for place, prompt in read_list(Path(path)):
            fault = (
                None if place else DataError(f"an image in every row of {path}", "an empty cell")
            )
            yield Source(place or path, place or path, prompt=prompt, fault=fault)
    elif kind == "archive":
        yield from _of_archive(path, sidecar)
    elif kind == "folder":
        yield from _some(_of_folder(path, sidecar), path)
    elif kind == "glob":
        matches = sorted(glob.glob(path, recursive=True))
        kinds = ((p, _kind(p)) for p in matches)
        inside = ((p, k) for p, k in kinds if k == "archive" or is_image(Path(p)))
        yield from _some((e for p, k in inside for e in _entries_of(p, k, sidecar)), path)
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
    closed: list[OSError] = []
    found = [
        os.path.join(folder, name)
        for folder, _, names in os.walk(path, onerror=closed.append)
        for name in names
        if is_image(Path(folder, name))
    ]
    yield from (_of_file(name, sidecar) for name in sorted(found, key=Path))
    for error in closed:
        fault = DataError(f"a folder that can be read at {error.filename}", reason=error.strerror)
        yield Source(str(error.filename), str(error.filename), fault=fault)


def _of_file(path: str, sidecar: bool) -> Source:
    prompt, note = "", ""
    if sidecar:
        beside = os.path.splitext(path)[0] + ".txt"
        with suppress(OSError):
            if os.path.isfile(beside):  # and no pipe
                with open(beside, "rb") as file:
                    content = file.read(MAX_SIDECAR_BYTES + 1)
                if len(content) > MAX_SIDECAR_BYTES:
                    note = too_long(beside)
                else:
                    prompt = _as_prompt(beside, content)
    return Source(path, path, prompt=prompt, note=note)


def too_long(sidecar: str) -> str:
    """Note of a row whose sidecar is too long to be a prompt."""
    return f"no prompt read: {sidecar} has more than {MAX_SIDECAR_BYTES} bytes"


def _as_prompt(name: str, content: bytes) -> str:
    """Prompt in a sidecar; of a JSON sidecar its "prompt" or "caption"."""
    text = content.decode("utf-8-sig", "replace").strip()
    if not name.endswith(".json"):
        return text
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    found = [record.get(name) for name in PROMPT_COLUMNS] if isinstance(record, dict) else []
    return whole_text(next((value.strip() for value in found if isinstance(value, str)), ""))


def _of_archive(path: str, sidecar: bool) -> Iterator[Source]:
    """Images of an archive, in its order; a damaged archive ends in one entry with a fault."""
    prompts: dict[str, str] = {}
    notes: dict[str, str] = {}
    entries: list[Source] = []
    fault = None
    try:
        with Archives() as archives:
            for name in archives.members(path):
                stem, suffix = os.path.splitext(name)
                if is_called_image(name):
                    entries.append(Source(f"{path}/{name}", path, name))
                elif sidecar and suffix in (".txt", ".json"):
                    try:
                        content = archives.read(path, name, MAX_SIDECAR_BYTES)
                        if prompt := _as_prompt(name, content):
                            prompts.setdefault(stem, prompt)
                    except TooLargeError:
                        notes.setdefault(stem, too_long(f"{path}/{name}"))
                    except DataError:  # a text that cannot be read is no prompt
                        continue
    except DataError as error:
        fault = copy(error)  # without the frames that it came from
    for entry in entries:
        stem = os.path.splitext(entry.member or "")[0]
        prompt = prompts.get(stem, "")
        yield replace(entry, prompt=prompt, note="" if prompt else notes.get(stem, ""))
    if fault or not entries:
        reason = fault or DataError(f"images in {path}", "none")
        yield Source(path, path, fault=reason)


def with_content(sources: Iterable[Source], metadata: bool = False) -> Iterator[Source]:
    """The sources, members of archives with their bytes: archives are read once, in order.

    ``metadata``: prompts are those that image generators wrote into the files.
    """
    with Archives() as archives:
        for source in sources:
            source = replace(source, in_metadata=metadata)
            if source.member is not None and not source.fault:
                try:
                    content = archives.read(source.path, source.member)
                    source = replace(source, content=content)
                except DataError as error:
                    source = replace(source, fault=copy(error))
            yield source


def with_prompts(sources: Sequence[Source], prompts: dict[str, str]) -> list[Source]:
    """Sources with the prompts of a table, by name."""
    return [replace(entry, prompt=prompts.get(entry.name, entry.prompt)) for entry in sources]
