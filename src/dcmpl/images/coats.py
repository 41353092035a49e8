"""Coats of an image: what happens to a file on its way, while it still shows the same.

Crops, resizes and another encoding. A score should not depend on them; training shows them at
random, and ``dcmpl evaluate --robust`` measures what each does.
"""

import io
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dcmpl.images.windows import random_window

__all__ = ["COATS", "Coat", "random_coat", "random_windows"]

Pixels = UInt8[np.ndarray, "_ _ 3"]
Coat = Callable[[Pixels], Pixels]


def cropped(image: Pixels, top: int, left: int) -> Pixels:
    """Image without its first ``top`` rows and ``left`` columns; at least one of each is kept."""
    return image[min(top, len(image) - 1) :, min(left, image.shape[1] - 1) :]


def resized(image: Pixels, factor: float) -> Pixels:
    """Image whose sides are ``factor`` as long, antialiased bicubic."""
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


LONGEST = {"JPEG": 65_500, "WEBP": 16_383}
"""Pixels of a side that the formats can hold, as their libraries write them."""


def encoded(image: Pixels, kind: str, quality: int) -> Pixels:
    """Image after one trip through JPEG or WebP of a quality from 0 to 100.

    One whose side the format cannot hold is left as it is.
    """
    if max(image.shape[:2]) > LONGEST[kind]:
        return image
    with io.BytesIO() as file:
        Image.fromarray(image).save(file, kind, quality=quality)
        with Image.open(file) as opened:
            return np.asarray(opened.convert("RGB"))


COATS: Mapping[str, Coat] = {
    "crop of 3 and 5": lambda image: cropped(image, 3, 5),
    "resize to 7/8": lambda image: resized(image, 7 / 8),
    "resize to 5/4": lambda image: resized(image, 5 / 4),
    "JPEG 75": lambda image: encoded(image, "JPEG", 75),
    "WebP 80": lambda image: encoded(image, "WEBP", 80),
}
"""Coats that robustness is measured by. What comes out is lossless, as a PNG of it would be."""

SMALLEST, LARGEST = 0.6, 1.6
WORST, BEST = 60, 95


def random_coat(image: Pixels, rng: np.random.Generator) -> Pixels:
    """An image in a coat drawn from ``rng``.

    One time in two resized by 0.6 to 1.6, each factor as likely as its inverse; then encoded
    as JPEG of quality 60 to 95, as WebP of the same, or, one time in three, not at all.
    """
    if rng.random() < 0.5:
        image = resized(image, float(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST)))))
    kind = ("JPEG", "WEBP", None)[rng.integers(3)]
    return image if kind is None else encoded(image, kind, int(rng.integers(WORST, BEST + 1)))


def random_windows(
    image: Pixels, size: int, rng: np.random.Generator, count: int, coats: bool
) -> list[Pixels]:
    """``count`` windows (size, size, 3) anywhere in an image, each in a random coat or none has."""
    return [
        random_window(random_coat(image, rng) if coats else image, size, rng) for _ in range(count)
    ]
