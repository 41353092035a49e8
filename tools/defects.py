"""Fourteen graded defects of images, with the words that a caption has for them."""

import io
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from PIL import Image
from scipy import ndimage

from drawings import Pixels, noise_field, to_bytes

Defect = Callable[[Pixels, float, Generator], Pixels]
"""(image, severity in [0, 1], rng) -> image of the same size, not yet cut to [0, 1]."""


def jpeg(image: Pixels, quality: int) -> Pixels:
    """The image after one trip through JPEG."""
    file = io.BytesIO()
    Image.fromarray(to_bytes(image)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), np.float32) / 255


def _smooth(image: Pixels, sigma: float) -> Pixels:
    return np.asarray(ndimage.gaussian_filter(image, (sigma, sigma, 0)))


def _resized(image: Pixels, side: int, method: Image.Resampling) -> Pixels:
    resized = Image.fromarray(to_bytes(image)).resize((side, side), method)
    return np.asarray(resized, np.float32) / 255


def blur(image: Pixels, s: float, rng: Generator) -> Pixels:
    return _smooth(image, 0.4 + 3.6 * s**1.5)


def shake(image: Pixels, s: float, rng: Generator) -> Pixels:
    axis = int(rng.integers(2))
    return np.asarray(ndimage.uniform_filter1d(image, 2 + int(16 * s), axis=axis))


def upsample(image: Pixels, s: float, rng: Generator) -> Pixels:
    side = len(image)
    method = Image.Resampling([0, 2, 3, 1][rng.integers(4)])  # nearest, linear, cubic, lanczos
    small = _resized(image, max(16, int(side / (1.3 + 4.7 * s))), Image.Resampling.BOX)
    return _resized(small, side, method)


def ringing(image: Pixels, s: float, rng: Generator) -> Pixels:
    return image + (0.4 + 3 * s) * (image - _smooth(image, 1 + 1.5 * rng.random()))


def compression(image: Pixels, s: float, rng: Generator) -> Pixels:
    return jpeg(image, int(60 - 56 * s**0.6))


def noise(image: Pixels, s: float, rng: Generator) -> Pixels:
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    if rng.random() < 0.4:
        grain = _smooth(grain, 0.8) * 2
    if rng.random() < 0.4:
        grain = grain[..., :1]
    return image + (0.01 + 0.2 * s) * grain


def checkerboard(image: Pixels, s: float, rng: Generator) -> Pixels:
    """The grid that transposed convolutions leave."""
    period = int(rng.choice([2, 4, 8]))
    tile = rng.standard_normal((period, period, 3)).astype(np.float32)
    tile = np.tile(tile - tile.mean((0, 1)), (len(image) // period + 1,) * 2 + (1,))
    tile = tile[: len(image), : len(image)]
    return image * (1 + (0.02 + 0.2 * s) * tile)


def _displaced(image: Pixels, dy: np.ndarray, dx: np.ndarray) -> Pixels:
    y, x = np.mgrid[: len(image), : len(image)].astype(np.float32)
    place = [y + dy, x + dx]
    layers = [ndimage.map_coordinates(c, place, order=1, mode="reflect") for c in image.T]
    return np.stack(layers).T.transpose(1, 0, 2)


def warp(image: Pixels, s: float, rng: Generator) -> Pixels:
    size, reach = len(image), (0.01 + 0.12 * s) * len(image)
    fields = [noise_field(rng, size, rng.uniform(1.4, 2.4)) - 0.5 for _ in range(2)]
    return _displaced(image.transpose(1, 0, 2), reach * fields[0], reach * fields[1])


def swap(image: Pixels, s: float, rng: Generator) -> Pixels:
    """Blocks exchanged: parts in wrong places."""
    out, block = image.copy(), len(image) // int(rng.choice([6, 8, 12]))
    for _ in range(1 + int(9 * s)):
        (a, b), (c, d) = rng.integers(0, len(image) - block, (2, 2))
        first = out[a : a + block, b : b + block].copy()
        out[a : a + block, b : b + block] = out[c : c + block, d : d + block]
        out[c : c + block, d : d + block] = first
    return out


def smear(image: Pixels, s: float, rng: Generator) -> Pixels:
    """Detail lost in patches, as by a weak painter."""
    side = 3 + 2 * int(4 * s)
    flat = np.stack([ndimage.median_filter(c, side) for c in image.transpose(2, 0, 1)], axis=-1)
    where = noise_field(rng, len(image), 1.8)[..., None] < 0.3 + 0.7 * s
    return np.where(where, flat, image)


def fade(image: Pixels, s: float, rng: Generator) -> Pixels:
    mean = image.mean()
    return mean + (image - mean) * (1 - 0.85 * s) + 0.15 * s


def oversaturate(image: Pixels, s: float, rng: Generator) -> Pixels:
    gray = image.mean(-1, keepdims=True)
    return gray + (image - gray) * (1.4 + 3 * s)


def darken(image: Pixels, s: float, rng: Generator) -> Pixels:
    return image * (0.75 - 0.65 * s)


def overexpose(image: Pixels, s: float, rng: Generator) -> Pixels:
    return image * (1.3 + 1.7 * s) + 0.15 * s


DEFECTS: dict[str, Defect] = {
    "blurry": blur,
    "shaky": shake,
    "pixelated": upsample,
    "oversharpened": ringing,
    "compressed": compression,
    "noisy": noise,
    "gridded": checkerboard,
    "warped": warp,
    "scrambled": swap,
    "smeared": smear,
    "faded": fade,
    "oversaturated": oversaturate,
    "dark": darken,
    "overexposed": overexpose,
}


def degrade(image: Pixels, defects: dict[str, float], rng: Generator) -> Pixels:
    """``image`` with each named defect at its severity, one after the other."""
    for name, severity in defects.items():
        image = np.clip(DEFECTS[name](image, severity, rng), 0, 1).astype(np.float32)
    return image


def draw_defects(rng: Generator) -> dict[str, float]:
    """None to three defects; a light and a heavy one are equally likely."""
    count = rng.choice(4, p=[0.15, 0.4, 0.3, 0.15])
    names = rng.choice(list(DEFECTS), count, replace=False)
    return {str(name): float(rng.random()) for name in names}


def pseudo_mos(defects: dict[str, float]) -> float:
    """1 (spoilt) to 5 (flawless): every defect takes up to 85 % of what is left."""
    return 1 + 4 * float(np.prod([1 - 0.85 * s for s in defects.values()]))


def words(defects: dict[str, float], rng: Generator) -> str:
    """How a caption opens: ``a good photo``, ``a bad, very blurry and slightly dark photo``."""
    mos = pseudo_mos(defects)
    grade = "good" if mos > 3.6 else "fair" if mos > 2.3 else "bad"
    degree = {n: "slightly" if s < 0.35 else "" if s < 0.7 else "very" for n, s in defects.items()}
    named = " and ".join(f"{d} {n}".strip() for n, d in degree.items())
    if rng.random() < 0.3 or not named:
        return f"a {grade} photo"
    return f"a {named} photo" if rng.random() < 0.4 else f"a {grade}, {named} photo"
