"""What is done with the files once they are scored: the worst moved away, the best copied."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from dcmpl.errors import DataError
from dcmpl.outputs import Row
from dcmpl.sources import Entry

__all__ = ["copy_best", "move_below"]

Scored = tuple[Entry, Row]


def move_below(
    scored: Iterable[Scored], by: str, threshold: float, folder: Path
) -> tuple[int, list[str]]:
    """Move the files whose score is below ``threshold`` into ``folder``.

    What could not be read stays where it is. Nothing is overwritten: a name that is taken
    gets a number. Returns how many were moved and, as sentences, which could not be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    moved, faults = 0, []
    for entry, row in scored:
        if row[by] is None or row[by] >= threshold or not Path(entry.path).exists():
            continue
        try:
            place = _free(folder, entry.path)
            shutil.move(entry.path, place)
            moved += 1
        except OSError as error:
            faults.append(f"expected to move {entry.path}, got: {error.strerror or error}")
    return moved, faults


def copy_best(scored: Iterable[Scored], folder: Path) -> tuple[int, list[str]]:
    """Copy the files, or members of archives, into ``folder``; the best come first.

    The same file that is there already is left; another of that name stays, and the copy
    gets a number. Returns as :func:`move_below`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copied, faults = 0, []
    for entry, _ in scored:
        try:
            content = entry.content()
            there = folder / os.path.basename(entry.member or entry.path)
            if not (there.is_file() and there.read_bytes() == content):
                _free(folder, there.name).write_bytes(content)
            copied += 1
        except DataError as error:
            faults.append(str(error))
        except OSError as error:
            faults.append(f"expected to copy {entry.name}, got: {error.strerror or error}")
    return copied, faults


def _free(folder: Path, path: str) -> Path:
    """``folder`` / the file's name, or name-2, name-3, ... where that is taken."""
    stem, suffix = os.path.splitext(os.path.basename(path))
    place, number = folder / f"{stem}{suffix}", 2
    while place.exists():
        place, number = folder / f"{stem}-{number}{suffix}", number + 1
    return place
