"""Crops of an image at the backbone's input size: windows on a grid, or one random window.

All views but ``resize`` cut at native resolution, because resizing removes what quality is
judged by. What is smaller than a window is continued by its mirror image.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dcmpl.config import check_views

__all__ = ["random_window", "too_small", "window_corners", "windows"]

PAPER_SIZE, PAPER_STRIDE = 224, 64
BLOCK = 8


def _fill(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    """``image`` mirrored at its edges where a side is shorter than ``size``."""
    missing = [max(0, size - side) for side in image.shape[:2]]
    if not any(missing):
        return image
    padding = [*((short // 2, short - short // 2) for short in missing), (0, 0)]
    return np.pad(image, padding, mode="symmetric")


def window_corners(height: int, width: int, size: int, views: str) -> list[tuple[int, int]]:
    """Top left corners of the windows of one image, all at multiples of 8 pixels.

    ``windows``: all that fit at the paper's stride (64 for 224, in proportion for other
    sizes), and the last one at the right and at the lower edge. ``paper-windows``: without
    those, as CLIP-AGIQA's script cuts (arXiv:2406.16641), which never sees the last 32 pixels
    of 512. ``center``: one. ``grid-N``: N x N, evenly from edge to edge. ``tiles``: as
    ``grid-N``, with as many to each side as its length is windows long, rounded.

    JPEG codes blocks of 8, whose borders are evidence; a window that cuts them elsewhere shows
    other evidence. So up to 7 pixels at an edge stay unseen where a side is no multiple of 8.

    >>> window_corners(224, 512, 224, "windows")
    [(0, 0), (0, 64), (0, 128), (0, 192), (0, 256), (0, 288)]
    >>> len(window_corners(512, 512, 224, "windows"))
    36
    >>> len(window_corners(512, 512, 224, "paper-windows"))
    25
    >>> window_corners(512, 768, 256, "grid-2")
    [(0, 0), (0, 512), (256, 0), (256, 512)]
    >>> window_corners(512, 768, 512, "tiles"), window_corners(640, 600, 512, "tiles")
    ([(0, 0), (0, 256)], [(64, 40)])
    """

    def starts(length: int) -> list[int]:
        spare = max(0, length - size)
        if check_views(views) in ("windows", "paper-windows"):
            stride = BLOCK * max(1, round(size * PAPER_STRIDE / PAPER_SIZE / BLOCK))
            edge = [BLOCK * (spare // BLOCK)] if views == "windows" else []
            return sorted({*range(0, spare + 1, stride), *edge})
        if views == "tiles":
            count = max(1, round(length / size))
        else:
            count = 1 if views == "center" else int(views.removeprefix("grid-"))
        even = [spare / 2] if count == 1 else [i * spare / (count - 1) for i in range(count)]
        return sorted({BLOCK * int(start // BLOCK) for start in even})

    return [(top, left) for top in starts(height) for left in starts(width)]


def too_small(image: UInt8[np.ndarray, "h w 3"], size: int, views: str) -> str:
    """A note on an image that fills no window of ``size``; empty where it fills one."""
    height, width = image.shape[:2]
    if min(height, width) >= size:
        return ""
    done = "scaled up" if views == "resize" else "mirrored at its edges"
    return (
        f"{width} x {height} is smaller than a window of {size} x {size}: {done}, so that its "
        "score compares with no larger image's"
    )


def windows(
    image: UInt8[np.ndarray, "h w 3"], size: int, views: str
) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
    """The windows of one image; none of them keeps the image in memory."""
    if views == "resize":
        yield _resized(image, size)
        return
    image = _fill(image, size)
    for top, left in window_corners(image.shape[0], image.shape[1], size, views):
        yield image[top : top + size, left : left + size].copy()


def _resized(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The middle square of an image, scaled to a window as CLIP's own preprocessing does.

    Antialiased bicubic by Pillow. The square is cut first, so no panorama grows.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    whole = Image.fromarray(image)
    return np.asarray(whole.resize((size, size), Image.Resampling.BICUBIC, box=box))


def random_window(
    image: UInt8[np.ndarray, "h w 3"], size: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "size size 3"]:
    """A window anywhere in the image, mirrored left to right half of the time."""
    image = _fill(image, size)
    top, left = (int(rng.integers(side - size + 1)) for side in image.shape[:2])
    window = image[top : top + size, left : left + size]
    return window[:, ::-1] if rng.random() < 0.5 else window
