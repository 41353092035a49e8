"""Leaks between parts: shared prompts, identical files, near-duplicate images.

Prompts alone do not tell: AGIQA-3K has five Midjourney images, byte for byte, under two
prompts each.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from scipy import fft
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional as F

from dcmpl.data.splits import Split
from dcmpl.data.table import ImageTable, as_group
from dcmpl.errors import DataError
from dcmpl.files import sha256_of
from dcmpl.images.decode import cores, decode, quiet_pillow
from dcmpl.progress import track

__all__ = [
    "ALIKE_BITS",
    "KINDS",
    "LOOK_BYTES",
    "ImageFacts",
    "Leak",
    "check_images",
    "check_leaks",
    "find_leaks",
    "look_of",
    "survey",
    "tied_units",
]


SIDE, FREQUENCIES = 64, 16
FLAT = 1.0
"""Grey deviation, in steps of 256, below which an image shows nothing."""

LOOK_BYTES = FREQUENCIES**2 // 8
ALIKE_BITS = 28
"""Of 255 bits: images that differ in no more are near-duplicates."""

THUMB = 16
"""Side of the small copies, (16, 16, 3), whose differences tie smooth images: those have little
but a slope or an outline, and most bits of their look are noise."""

ALIKE_LEVELS, ALIKE_SHARE = 1.5, 0.05
"""Small copies that differ by no more levels of 256, and by no more of their own deviation, in
the root of the mean square, are of near-duplicates."""


@dataclass(frozen=True)
class ImageFacts:
    """Hash, size and flatness of an image; only ``fault`` for an unreadable one."""

    fault: DataError | None = None
    sha256: str = ""
    look: bytes = b""
    flat: bool = False
    width: int = 0
    height: int = 0
    thumb: bytes = field(default=bytes(THUMB**2 * 3), repr=False)


def grey_of(image: UInt8[np.ndarray, "h w 3"]) -> Tensor:
    """Mean of the three colour channels, (h, w)."""
    # Colours first: the sum then runs over whole planes.
    return torch.from_numpy(image).permute(2, 0, 1).contiguous().float().mean(0)


def look_of(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Perceptual hash of an image: 32 bytes, nearly equal for near-duplicates."""
    grey = F.adaptive_avg_pool2d(grey_of(image)[None, None], SIDE)[0, 0]
    low = fft.dctn(grey.numpy().astype(np.float64), norm="ortho")[:FREQUENCIES, :FREQUENCIES]
    values = low.ravel()[1:]
    return np.packbits(values > np.median(values)).tobytes()


def thumb_of(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Small copy of an image: the means of 16 x 16 cells, (16, 16, 3) uint8."""
    planes = torch.from_numpy(image).permute(2, 0, 1).contiguous().float()[None]
    cells: np.ndarray = F.adaptive_avg_pool2d(planes, THUMB)[0].permute(1, 2, 0).round().numpy()
    return cells.astype(np.uint8).tobytes()


def _facts(path: str) -> ImageFacts:
    try:
        image = decode(path).pixels
        sha256 = sha256_of(Path(path))
    except DataError as error:
        return ImageFacts(fault=copy(error))  # without the frames, which hold the image
    except (OSError, ValueError) as error:  # a path may hold what no path can
        reason = getattr(error, "strerror", None) or error
        return ImageFacts(fault=DataError(f"an image at {path}", reason=reason))
    flat = float(grey_of(image).std(correction=0)) < FLAT
    height, width = image.shape[:2]
    return ImageFacts(None, sha256, look_of(image), flat, width, height, thumb_of(image))


def survey(paths: Iterable[str], what: str = "checking images") -> dict[str, ImageFacts]:
    """Facts of every image, in parallel; faults are among them, nothing is raised.

    Links to one file are looked at once, but each has its own fault.
    """
    files = {path: _real(path) for path in paths}
    chosen = {file: path for path, file in reversed(files.items())}

    def looked() -> Iterator[ImageFacts]:
        with ThreadPoolExecutor(max_workers=cores()) as pool:
            yield from pool.map(_facts, chosen.values())

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the pool is the parallelism
    try:
        with quiet_pillow():
            of_file = dict(zip(chosen, track(looked(), what, len(chosen)), strict=True))
            # A fault names its path, so that of a link is its own.
            return {
                path: _facts(path)
                if of_file[file].fault and path != chosen[file]
                else of_file[file]
                for path, file in files.items()
            }
    finally:
        torch.set_num_threads(threads)


def _real(path: str) -> str:
    try:
        return os.path.realpath(path)
    except ValueError:  # what no path can hold
        return path


def check_images(table: ImageTable) -> dict[str, ImageFacts]:
    """Facts of all images; raises :class:`DataError` naming all that cannot be read."""
    found = survey(table.frame["image"])
    faults = [facts.fault for facts in found.values() if facts.fault]
    if faults:
        raise DataError(
            f"{len(table)} readable images",
            f"{len(faults)} that are not",
            "mend them or take their rows out:\n" + "\n".join(f"  {fault}" for fault in faults),
        )
    return found


Facts = Mapping[str, ImageFacts]

KINDS = {"prompt": "share a prompt", "file": "are the same file", "look": "look the same"}
ROWS = 1024


@dataclass(frozen=True)
class Leak:
    """Two images that must not be on two sides; ``kind`` is one of ``KINDS``."""

    kind: str
    known: str
    tested: str


class _Looks(NamedTuple):
    """Hashes and small copies of all images but flat ones.

    Row numbers, hashes (rows, bits), copies (rows, 768), and the most squared difference that
    near-duplicates of a copy have; none have those of a table without copies.
    """

    rows: np.ndarray
    bits: np.ndarray
    thumbs: np.ndarray
    most: np.ndarray


def _looks(table: ImageTable, facts: Facts) -> _Looks:
    paths = table.frame["image"].tolist()
    rows = [i for i, path in enumerate(paths) if not facts[path].flat]
    bits = np.frombuffer(b"".join(facts[paths[i]].look for i in rows), np.uint8)
    cells = np.frombuffer(b"".join(facts[paths[i]].thumb for i in rows), np.uint8)
    thumbs = cells.reshape(-1, THUMB**2 * 3).astype(np.float32)
    thumbs = thumbs - 128  # small numbers: differences of large squares would be rounded
    most = np.minimum(ALIKE_LEVELS, ALIKE_SHARE * thumbs.std(1)) ** 2 * thumbs.shape[1]
    return _Looks(
        np.array(rows, dtype=int),
        np.unpackbits(bits.reshape(-1, LOOK_BYTES), axis=1).astype(np.float32),
        thumbs,
        most,
    )


def _alike(
    ours: ImageTable, theirs: ImageTable, facts: Facts
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of rows whose images are near-duplicates, block by block."""
    here, there = _looks(ours, facts), _looks(theirs, facts)
    if not len(here.rows) or not len(there.rows):
        return
    for start in range(0, len(here.rows), ROWS):
        block = slice(start, start + ROWS)
        # Bits are 0 and 1, so that the squared distance counts those that differ.
        alike = _distances(here.bits[block], there.bits) <= ALIKE_BITS
        most = np.minimum(here.most[block][:, None], there.most)
        alike |= _distances(here.thumbs[block], there.thumbs) < most
        near, far = np.nonzero(alike)
        yield here.rows[start + near], there.rows[far]


def _distances(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Squared distances of all rows to all rows."""
    found: np.ndarray = (ours**2).sum(1)[:, None] + (theirs**2).sum(1) - 2 * (ours @ theirs.T)
    return found


def _codes(table: ImageTable, facts: Facts) -> Iterator[tuple[str, list[str]]]:
    """Codes of every row by kind of tie; rows of equal code are tied, empty codes tie nothing."""
    paths = table.frame["image"]
    yield "prompt", table.frame["group"].tolist()
    yield "prompt", as_group(table.frame["prompt"]).tolist()
    yield "file", ["" if facts[path].flat else facts[path].sha256 for path in paths]


def tied_units(table: ImageTable, facts: Facts) -> np.ndarray:
    """Unit numbers (rows,); rows of one unit are connected by shared prompts or images.

    Dealing out whole units leaks nothing. Raises :class:`DataError` where an image of the
    table could not be read.
    """
    size = len(table)
    if fault := next((f for f in (facts[p].fault for p in table.frame["image"]) if f), None):
        raise copy(fault)
    ones, others = [np.arange(size)], [np.arange(size)]
    for _, codes in _codes(table, facts):
        first: dict[str, int] = {}
        for row, code in enumerate(codes):
            if code:
                ones.append(np.array([row]))
                others.append(np.array([first.setdefault(code, row)]))
    for rows, columns in _alike(table, table, facts):
        ones.append(rows)
        others.append(columns)
    pairs = np.concatenate(ones), np.concatenate(others)
    graph = coo_matrix((np.ones(len(pairs[0]), bool), pairs), shape=(size, size))
    units: np.ndarray = connected_components(graph, directed=False)[1]
    return units


def find_leaks(training: ImageTable, tested: ImageTable, facts: Facts) -> list[Leak]:
    """Leaks from ``training`` into ``tested``: one per tested image and kind."""
    found: dict[tuple[str, str], Leak] = {}

    def note(kind: str, ours: int, theirs: int) -> None:
        known, name = training.frame["name"].iloc[ours], tested.frame["name"].iloc[theirs]
        found.setdefault((kind, name), Leak(kind, known, name))

    for (kind, ours), (_, theirs) in zip(
        _codes(training, facts), _codes(tested, facts), strict=True
    ):
        first = {code: row for row, code in reversed(list(enumerate(ours))) if code}
        for row, code in enumerate(theirs):
            if code in first:
                note(kind, first[code], row)
    for rows, columns in _alike(training, tested, facts):
        for ours, theirs in zip(rows.tolist(), columns.tolist(), strict=True):
            paths = training.frame["image"].iloc[ours], tested.frame["image"].iloc[theirs]
            if facts[paths[0]].sha256 != facts[paths[1]].sha256:
                note("look", ours, theirs)
    return list(found.values())


def check_leaks(
    split: Split, table: ImageTable, facts: Facts, allowed: frozenset[str]
) -> list[str]:
    """Check a split; returns sentences on the leaks that its protocol commits by design.

    Training is held against validation and test, validation against test. Raises
    :class:`DataError`, naming images, for leaks of kinds that are not ``allowed``.
    """
    notes = ["the epoch is chosen on the test part"] if split.selects_on_test else []
    pairs = [("train", "test")]
    pairs += [] if split.selects_on_test else [("train", "val"), ("val", "test")]
    for first, second in pairs:
        parts = split.rows(table, first), split.rows(table, second)
        leaks = find_leaks(*parts, facts)
        for kind, text in KINDS.items():
            some = [leak for leak in leaks if leak.kind == kind]
            if not some:
                continue
            shown = "; ".join(f"{leak.tested} and {leak.known}" for leak in some[:3])
            more = f" and {len(some) - 3} more" if len(some) > 3 else ""
            sentence = (
                f"{len(some)} of {len(parts[1])} {second} images {text} with one of {first}"
                f" ({shown}{more})"
            )
            if kind not in allowed:
                raise DataError(
                    f"no leak between {first} and {second}",
                    sentence,
                    "mend the split, or name a protocol that commits it",
                )
            notes.append(sentence)
    return notes
