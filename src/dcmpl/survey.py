"""One pass over the pictures of a table: which decode, which are flat, which look alike.

Two hashes tell pictures apart: SHA-256 of the file, and 255 bits of how the picture looks
(signs of its lowest cosine frequencies, as in perceptual hashing by Zauner, *Implementation and
Benchmarking of Perceptual Image Hash Functions*, 2010), which survive re-encoding and scaling
but neither cropping nor mirroring.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from scipy import fft
from torch import Tensor
from torch.nn import functional as F

from dcmpl.errors import DataError
from dcmpl.files import sha256_of
from dcmpl.images.decode import cores, decode, quiet_pillow
from dcmpl.progress import track
from dcmpl.table import ImageTable

__all__ = ["ALIKE_BITS", "LOOK_BYTES", "PictureFacts", "check_pictures", "look_of", "survey"]

SIDE, FREQUENCIES = 64, 16
FLAT = 1.0
"""Grey deviation, in steps of 256, below which a picture shows nothing."""

LOOK_BYTES = FREQUENCIES**2 // 8
ALIKE_BITS = 28
"""Of 255 bits: pictures that differ in no more are near-duplicates."""


@dataclass(frozen=True)
class PictureFacts:
    """What one look at a picture tells; only ``fault`` where it cannot be read."""

    fault: str = ""
    sha256: str = ""
    look: bytes = b""
    flat: bool = False
    width: int = 0
    height: int = 0


def grey_of(picture: UInt8[np.ndarray, "h w 3"]) -> Tensor:
    """The mean of the three colours."""
    # Colours first: the sum then runs over whole planes.
    return torch.from_numpy(picture).permute(2, 0, 1).contiguous().float().mean(0)


def look_of(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """32 bytes that near-duplicates nearly share."""
    grey = F.adaptive_avg_pool2d(grey_of(picture)[None, None], SIDE)[0, 0]
    low = fft.dctn(grey.numpy().astype(np.float64), norm="ortho")[:FREQUENCIES, :FREQUENCIES]
    values = low.ravel()[1:]
    return np.packbits(values > np.median(values)).tobytes()


def _facts(path: str) -> PictureFacts:
    try:
        picture = decode(path).pixels
        sha256 = sha256_of(Path(path))
    except DataError as error:
        return PictureFacts(fault=str(error))
    except OSError as error:
        return PictureFacts(fault=f"expected a picture at {path}, got: {error.strerror or error}")
    flat = float(grey_of(picture).std(correction=0)) < FLAT
    height, width = picture.shape[:2]
    return PictureFacts("", sha256, look_of(picture), flat, width, height)


def survey(paths: Iterable[str], what: str = "checking pictures") -> dict[str, PictureFacts]:
    """Facts of every picture, in parallel; faults are among them, nothing is raised.

    Links to one file are looked at once, but each has its own fault.
    """
    files = {path: os.path.realpath(path) for path in paths}
    chosen = {file: path for path, file in reversed(files.items())}

    def looked() -> Iterator[PictureFacts]:
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


def check_pictures(table: ImageTable) -> dict[str, PictureFacts]:
    """Facts of all pictures; raises :class:`DataError` naming all that cannot be read."""
    found = survey(table.frame["image"])
    faults = [facts.fault for facts in found.values() if facts.fault]
    if faults:
        raise DataError(
            f"expected {len(table)} readable pictures, {len(faults)} are not, "
            "mend them or take their rows out:\n" + "\n".join(f"  {fault}" for fault in faults)
        )
    return found
