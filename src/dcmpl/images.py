"""Pictures to windows: decode, orient, flatten, pad, cut. One definition for all uses.

A decoded picture is uint8 RGB, (3, height, width). A window is a square of the backbone's
input size at native resolution; nothing is ever resized, because resizing removes what
quality is judged by. What is smaller than a window is continued by its mirror image.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, features
from torch import Tensor

from dcmpl.config import check_views
from dcmpl.errors import DataError

__all__ = [
    "MAX_PIXELS",
    "MAX_SIDE",
    "random_window",
    "read_image",
    "to_unit_range",
    "window_corners",
    "windows",
]

MAX_PIXELS = 89_000_000
"""A larger picture is refused before it is decoded; Pillow itself warns a little above."""

MAX_SIDE = 65_535
"""A longer side is refused too: its windows would be mirrored to that length."""

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"]
FORMATS += ["AVIF"] if features.check("avif") else []
"""Only these are tried, whatever a file is called: some decoders start other programs."""

BACKGROUND = (255, 255, 255)
"""Transparent pictures are laid on this colour."""

PAPER_SIZE, PAPER_STRIDE = 224, 64
BLOCK = 8


def read_image(path: str | Path) -> UInt8[Tensor, "3 height width"]:
    """Decode one file; of an animation the first frame.

    Raises :class:`DataError` with the reason where that is not possible.
    """
    with quiet_pillow():
        return decode(path)


def decode(path: str | Path) -> UInt8[Tensor, "3 height width"]:
    """:func:`read_image` for threads, whose starter holds :func:`quiet_pillow`."""
    with _unreadable_is_an_error(str(path)), Image.open(path, formats=FORMATS) as image:
        return _decoded(image, str(path))


def from_pil(image: Image.Image) -> UInt8[Tensor, "3 height width"]:
    """The same for a Pillow image, which may not have been decoded yet."""
    with quiet_pillow(), _unreadable_is_an_error("a Pillow image"):
        return _decoded(image, "a Pillow image")


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """No warnings on sizes and metadata; around threads, not inside them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _unreadable_is_an_error(what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"expected a picture at {what}, found no file") from None
    except DataError:
        raise
    except Exception as error:  # decoders raise anything on damaged files
        reason = str(error).replace("\n", " ").rstrip(".") or type(error).__name__
        raise DataError(f"expected a picture that can be decoded, got {what}: {reason}") from error


def _decoded(image: Image.Image, what: str) -> UInt8[Tensor, "3 height width"]:
    """RGB: turned upright, 16 bit scaled to 8, laid on white."""
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        raise DataError(
            f"expected at most {MAX_PIXELS} pixels and sides of at most {MAX_SIDE}, "
            f"got {image.width} x {image.height} in {what}: scale it down first"
        )
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise DataError(f"expected whole numbers for pixels, got fractions in {what}: save as PNG")
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float32)
        image = Image.fromarray(np.clip(values / 257, 0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        image = Image.alpha_composite(canvas, image)
    pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def fill(image: UInt8[Tensor, "3 h w"], size: int) -> UInt8[Tensor, "3 h2 w2"]:
    """``image`` with both sides at least ``size``, continued by mirroring where short."""
    missing = [max(0, size - side) for side in image.shape[1:]]
    if not any(missing):
        return image
    padding = [(0, 0), *((short // 2, short - short // 2) for short in missing)]
    return torch.from_numpy(np.pad(image.numpy(), padding, mode="symmetric"))


def window_corners(height: int, width: int, size: int, views: str) -> list[tuple[int, int]]:
    """Top left corners of the windows of one picture, all at multiples of 8 pixels.

    ``windows``: all that fit at the paper's stride (64 for 224, in proportion for other
    sizes). ``center``: one. ``grid-N``: N x N, evenly from edge to edge. JPEG codes blocks
    of 8, whose borders are evidence; a window that cuts them elsewhere shows other evidence.

    >>> window_corners(512, 512, 224, "windows")[:3]
    [(0, 0), (0, 64), (0, 128)]
    >>> len(window_corners(512, 512, 224, "windows"))
    25
    >>> window_corners(512, 768, 256, "grid-2")
    [(0, 0), (0, 512), (256, 0), (256, 512)]
    """

    def starts(length: int) -> list[int]:
        spare = max(0, length - size)
        if check_views(views) == "windows":
            stride = BLOCK * max(1, round(size * PAPER_STRIDE / PAPER_SIZE / BLOCK))
            return list(range(0, spare + 1, stride))
        count = 1 if views == "center" else int(views.removeprefix("grid-"))
        even = [spare / 2] if count == 1 else [i * spare / (count - 1) for i in range(count)]
        return sorted({BLOCK * int(start // BLOCK) for start in even})

    return [(top, left) for top in starts(height) for left in starts(width)]


def windows(
    image: UInt8[Tensor, "3 h w"], size: int, views: str
) -> Iterator[UInt8[Tensor, "3 size size"]]:
    """The windows of one picture as slices of it."""
    image = fill(image, size)
    for top, left in window_corners(image.shape[1], image.shape[2], size, views):
        yield image[:, top : top + size, left : left + size]


def random_window(
    image: UInt8[Tensor, "3 h w"], size: int, rng: np.random.Generator, step: int = 1
) -> UInt8[Tensor, "3 size size"]:
    """A window anywhere in the picture, mirrored left to right half of the time.

    It starts at multiples of ``step`` pixels; with 8, JPEG's blocks lie in it as they do in
    the windows that are scored.
    """
    image = fill(image, size)
    top, left = (step * int(rng.integers((side - size) // step + 1)) for side in image.shape[1:])
    window = image[:, top : top + size, left : left + size]
    return window.flip(2) if rng.random() < 0.5 else window


def to_unit_range(pixels: UInt8[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 3 h w"]:
    """uint8 0..255 to float32 0..1."""
    return pixels.float() / 255
