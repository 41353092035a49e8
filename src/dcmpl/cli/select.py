"""``dcmpl select``: keep, copy or move scored images, the best ones or by label."""

import errno
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from dcmpl.cli.options import Arguments, Command, Flag, check_not_read, check_scores_replace
from dcmpl.errors import DataError, RunError, UsageError, nearest
from dcmpl.files import put_in_place, write_whole
from dcmpl.images.archives import Archives, in_archive, read_file
from dcmpl.progress import say

__all__ = ["SELECT"]

FORMATS = (".csv", ".jsonl", ".parquet")

FLAGS = (
    Flag(
        "SCORES",
        "file of dcmpl score or dcmpl merge",
        required=True,
        metavar="SCORES",
        at_url="file",
    ),
    Flag(
        "--by",
        "what best means: a target, or a number that goes with one, as quality_mos",
        default="quality",
        metavar="COLUMN",
    ),
    Flag("--top", "only the K best", int, metavar="K"),
    Flag("--above", "only images of at least this value", float, metavar="VALUE"),
    Flag("--below", "only images of less than this value", float, metavar="VALUE"),
    Flag("--bins", "into one folder per label, from bad to excellent", bool, False),
    Flag("--copy", "copy the images into this folder", metavar="DIR"),
    Flag("--move", "move the images into this folder", metavar="DIR"),
    Flag("--out", "write their rows, best first", short="-o", metavar="FILE"),
)

Row = Mapping[str, Any]


def select(arguments: Arguments) -> int:
    """Choose rows of a file of scores, and write them or copy or move their images."""
    _check(arguments)
    from dcmpl.scoring.files import best_first, read_scores

    rows = list(read_scores(Path(arguments.SCORES)))
    _check_column(arguments.by, rows)
    scored = [row for row in rows if _is_number(row.get(arguments.by))]
    chosen = [scored[i] for i in best_first([row[arguments.by] for row in scored])]
    low = -float("inf") if arguments.above is None else arguments.above
    high = float("inf") if arguments.below is None else arguments.below
    chosen = [row for row in chosen if low <= row[arguments.by] < high][: arguments.top]
    if len(scored) < len(rows):
        say(f"{len(rows) - len(scored)} of {len(rows)} rows have no {arguments.by}")
    if arguments.out is not None:
        _write_rows(Path(arguments.out), chosen, arguments.SCORES)
    faults = _place(chosen, arguments)
    for fault in faults:
        say(fault)
    if not (arguments.copy or arguments.move or arguments.out):
        for row in chosen:
            print(row["image"])
    return 3 if faults else 0


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _check(arguments: Arguments) -> None:
    scores = Path(arguments.SCORES)
    if scores.suffix.lower() not in FORMATS:
        raise UsageError(f"a file of scores that ends in {', '.join(FORMATS)}", scores)
    if not scores.is_file():
        raise UsageError(f"a file of scores at {scores}", "no file")
    if arguments.top is not None and arguments.top < 1:
        raise UsageError("--top of at least 1", arguments.top)
    if arguments.copy and arguments.move:
        raise UsageError("--copy or --move", "both", "leave one out")
    folder = arguments.move if arguments.copy is None else arguments.copy
    if folder == "":
        raise UsageError("a folder for the images", "an empty path")
    if arguments.bins and not folder:
        raise UsageError("--copy DIR or --move DIR with --bins", "neither")
    if folder and Path(folder).exists() and not Path(folder).is_dir():
        raise UsageError("a folder for the images", f"a file at {folder}")
    if arguments.out is not None:
        out = Path(arguments.out)
        if out.suffix.lower() not in FORMATS or out.is_dir():
            raise UsageError(f"-o to be a file that ends in {', '.join(FORMATS)}", out)
        check_not_read(arguments.out, [arguments.SCORES])
        check_scores_replace(arguments.out)


def _check_column(by: str, rows: Sequence[Row]) -> None:
    """Raises :class:`UsageError` where ``by`` is no column of numbers."""
    known = [
        name for name in (rows[0] if rows else {}) if any(_is_number(row.get(name)) for row in rows)
    ]
    if rows and by not in known:
        hint = nearest(by, known, "score with a model that predicts it")
        raise UsageError(f"--by of {', '.join(known) or 'nothing'}", by, hint)


def _write_rows(out: Path, rows: Sequence[Row], scores: str) -> None:
    """Write the chosen rows, with a manifest that names their source."""
    from dcmpl.files import sha256_of
    from dcmpl.scoring.files import write_scores

    columns = list(rows[0]) if rows else None
    job: dict[str, Any] = {"selected_from": sha256_of(Path(scores)), "count": len(rows)}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_scores(out, rows, {**job, **({"columns": columns} if columns else {})}, {})
    except OSError as error:
        raise RunError(f"to write {out}", reason=error.strerror or error) from error
    print(f"{len(rows)} rows: {out} and its manifest")


def _place(rows: Sequence[Row], arguments: Arguments) -> list[str]:
    """Copy or move the images of ``rows``; returns a sentence for every failure."""
    target = arguments.copy or arguments.move
    if target is None:
        return []
    folders: dict[Path, list[str]] = {}
    for row in rows:
        folder = Path(target) / _label(row, arguments.by) if arguments.bins else Path(target)
        folders.setdefault(folder, []).append(row["image"])
    done, faults = 0, list[str]()
    place = copy if arguments.copy else move
    try:
        for folder, images in folders.items():
            moved, more = place(list(dict.fromkeys(images)), folder)
            done, faults = done + moved, faults + more
    except OSError as error:
        raise RunError(f"a folder at {target}", reason=error.strerror or error) from error
    say(f"{done} {'copied' if arguments.copy else 'moved'} to {target}")
    return faults


def _label(row: Row, by: str) -> str:
    """The label of the target that ``by`` goes with."""
    from dcmpl.scoring.calibration import LABELS

    names = [str(name) for name in row if str(name).endswith("_label")]
    mine = [name for name in names if by.startswith(name.removesuffix("_label"))]
    label = row[max(mine, key=len)] if mine else None
    if label not in LABELS:  # it becomes a folder, so it may be no path
        raise UsageError(
            f"rows with a label for {by} with --bins",
            f"{'none' if label is None else label} for {row['image']}",
            "score with a calibrated run",
        )
    return str(label)


def move(images: Iterable[str], folder: Path) -> tuple[int, list[str]]:
    """Move files into ``folder``; files that an earlier try has moved are skipped.

    Nothing is overwritten: a name that is taken gets a number. Returns how many were moved
    and, as sentences, which could not be. Raises :class:`OSError` where there can be no folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    moved, faults = 0, []
    for image in images:
        if not os.path.lexists(image):
            if in_archive(image):
                faults.append(f"expected a file to move, got {image}: its image stays in there")
            continue
        try:
            place = next(p for p in _places(folder, image) if not os.path.lexists(p))
            _move(image, place)
            moved += 1
        except OSError as error:
            faults.append(f"expected to move {image}, got: {error.strerror or error}")
    return moved, faults


def copy(images: Iterable[str], folder: Path) -> tuple[int, list[str]]:
    """Copy files, or members of archives, into ``folder``.

    The same file that is there already is left; another of that name stays, and the copy
    gets a number. Returns, and raises, as :func:`move`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copied, faults = 0, []
    with Archives() as archives:  # each is searched once
        for image in images:
            inside = None if os.path.lexists(image) else in_archive(image)
            try:
                content = archives.read(*inside) if inside else read_file(image)
                places = _places(folder, image)
                place = next(p for p in places if not os.path.lexists(p) or _holds(p, content))
                if not os.path.lexists(place):
                    write_whole(place, content)
                copied += 1
            except DataError as error:
                faults.append(str(error))
            except OSError as error:
                faults.append(f"expected to copy {image}, got: {error.strerror or error}")
    return copied, faults


def _move(source: str, place: Path) -> None:
    """Move a file, between disks by an atomic copy; a relative link still leads to its file."""
    if os.path.islink(source) and not os.path.isabs(target := os.readlink(source)):
        beside = os.path.join(os.path.dirname(os.path.abspath(source)), target)
        os.symlink(os.path.relpath(os.path.realpath(beside), os.path.realpath(place.parent)), place)
        os.unlink(source)
        return
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


SELECT = Command(
    "Choose images by their scores; print them, write their rows, copy or move the files.",
    FLAGS,
    select,
)
