"""What is done with the files once they are scored: the worst moved away, the best copied."""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

from dcmpl.data.sources import Entry
from dcmpl.errors import DataError
from dcmpl.files import put_in_place, write_whole

__all__ = ["copy_best", "move"]


def move(entries: Iterable[Entry], folder: Path) -> tuple[int, list[str]]:
    """Move files into ``folder``; those that are gone, as from an earlier try, are passed over.

    Nothing is overwritten: a name that is taken gets a number. Returns how many were moved
    and, as sentences, which could not be. Raises :class:`OSError` where there can be no folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    moved, faults = 0, []
    for entry in entries:
        if not os.path.lexists(entry.path):
            continue
        try:
            place = next(p for p in _places(folder, entry.path) if not os.path.lexists(p))
            _move(entry.path, place)
            moved += 1
        except OSError as error:
            faults.append(f"expected to move {entry.path}, got: {error.strerror or error}")
    return moved, faults


def copy_best(entries: Iterable[Entry], folder: Path) -> tuple[int, list[str]]:
    """Copy the files, or members of archives, into ``folder``; the best come first.

    The same file that is there already is left; another of that name stays, and the copy
    gets a number. Returns, and raises, as :func:`move`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copied, faults = 0, []
    for entry in entries:
        try:
            content = entry.content()
            places = _places(folder, entry.member or entry.path)
            place = next(p for p in places if not os.path.lexists(p) or _holds(p, content))
            if not os.path.lexists(place):
                write_whole(place, content)
            copied += 1
        except DataError as error:
            faults.append(str(error))
        except OSError as error:
            faults.append(f"expected to copy {entry.name}, got: {error.strerror or error}")
    return copied, faults


def _move(source: str, place: Path) -> None:
    """To another disk by way of a copy, which is whole or not there at all."""
    try:
        os.rename(source, place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        temporary = place.with_name(f".{place.name}.tmp")
        try:
            shutil.copy2(source, temporary)
            put_in_place(temporary, place)
        finally:
            with suppress(OSError):
                temporary.unlink()
        os.unlink(source)


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def _places(folder: Path, path: str) -> Iterator[Path]:
    """``folder`` / the file's name, then name-2, name-3, ..."""
    stem, suffix = os.path.splitext(os.path.basename(path))
    yield folder / f"{stem}{suffix}"
    for number in count(2):
        yield folder / f"{stem}-{number}{suffix}"
