"""Fourteen graded defects of pictures, with the words that a caption has for them."""

import io
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from PIL import Image
from scipy import ndimage

from drawings import Picture, noise_field, to_bytes

Defect = Callable[[Picture, float, Generator], Picture]
"""(picture, severity in [0, 1], rng) -> picture of the same size, not yet cut to [0, 1]."""


def jpeg(picture: Picture, quality: int) -> Picture:
    """The picture after one trip through JPEG."""
    file = io.BytesIO()
    Image.fromarray(to_bytes(picture)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), np.float32) / 255


def _smooth(picture: Picture, sigma: float) -> Picture:
    return np.asarray(ndimage.gaussian_filter(picture, (sigma, sigma, 0)))


def _resized(picture: Picture, side: int, method: Image.Resampling) -> Picture:
    image = Image.fromarray(to_bytes(picture)).resize((side, side), method)
    return np.asarray(image, np.float32) / 255


def blur(picture: Picture, s: float, rng: Generator) -> Picture:
    return _smooth(picture, 0.4 + 3.6 * s**1.5)


def shake(picture: Picture, s: float, rng: Generator) -> Picture:
    axis = int(rng.integers(2))
    return np.asarray(ndimage.uniform_filter1d(picture, 2 + int(16 * s), axis=axis))


def upsample(picture: Picture, s: float, rng: Generator) -> Picture:
    side = len(picture)
    method = Image.Resampling([0, 2, 3, 1][rng.integers(4)])  # nearest, linear, cubic, lanczos
    small = _resized(picture, max(16, int(side / (1.3 + 4.7 * s))), Image.Resampling.BOX)
    return _resized(small, side, method)


def ringing(picture: Picture, s: float, rng: Generator) -> Picture:
    return picture + (0.4 + 3 * s) * (picture - _smooth(picture, 1 + 1.5 * rng.random()))


def compression(picture: Picture, s: float, rng: Generator) -> Picture:
    return jpeg(picture, int(60 - 56 * s**0.6))


def noise(picture: Picture, s: float, rng: Generator) -> Picture:
    grain = rng.standard_normal(picture.shape, dtype=np.float32)
    if rng.random() < 0.4:
        grain = _smooth(grain, 0.8) * 2
    if rng.random() < 0.4:
        grain = grain[..., :1]
    return picture + (0.01 + 0.2 * s) * grain


def checkerboard(picture: Picture, s: float, rng: Generator) -> Picture:
    """The grid that transposed convolutions leave."""
    period = int(rng.choice([2, 4, 8]))
    tile = rng.standard_normal((period, period, 3)).astype(np.float32)
    tile = np.tile(tile - tile.mean((0, 1)), (len(picture) // period + 1,) * 2 + (1,))
    tile = tile[: len(picture), : len(picture)]
    return picture * (1 + (0.02 + 0.2 * s) * tile)


def _displaced(picture: Picture, dy: np.ndarray, dx: np.ndarray) -> Picture:
    y, x = np.mgrid[: len(picture), : len(picture)].astype(np.float32)
    place = [y + dy, x + dx]
    layers = [ndimage.map_coordinates(c, place, order=1, mode="reflect") for c in picture.T]
    return np.stack(layers).T.transpose(1, 0, 2)


def warp(picture: Picture, s: float, rng: Generator) -> Picture:
    size, reach = len(picture), (0.01 + 0.12 * s) * len(picture)
    fields = [noise_field(rng, size, rng.uniform(1.4, 2.4)) - 0.5 for _ in range(2)]
    return _displaced(picture.transpose(1, 0, 2), reach * fields[0], reach * fields[1])


def swap(picture: Picture, s: float, rng: Generator) -> Picture:
    """Blocks exchanged: parts in wrong places."""
    out, block = picture.copy(), len(picture) // int(rng.choice([6, 8, 12]))
    for _ in range(1 + int(9 * s)):
        (a, b), (c, d) = rng.integers(0, len(picture) - block, (2, 2))
        first = out[a : a + block, b : b + block].copy()
        out[a : a + block, b : b + block] = out[c : c + block, d : d + block]
        out[c : c + block, d : d + block] = first
    return out


def smear(picture: Picture, s: float, rng: Generator) -> Picture:
    """Detail lost in patches, as by a weak painter."""
    side = 3 + 2 * int(4 * s)
    flat = np.stack([ndimage.median_filter(c, side) for c in picture.transpose(2, 0, 1)], axis=-1)
    where = noise_field(rng, len(picture), 1.8)[..., None] < 0.3 + 0.7 * s
    return np.where(where, flat, picture)


def fade(picture: Picture, s: float, rng: Generator) -> Picture:
    mean = picture.mean()
    return mean + (picture - mean) * (1 - 0.85 * s) + 0.15 * s


def oversaturate(picture: Picture, s: float, rng: Generator) -> Picture:
    gray = picture.mean(-1, keepdims=True)
    return gray + (picture - gray) * (1.4 + 3 * s)


def darken(picture: Picture, s: float, rng: Generator) -> Picture:
    return picture * (0.75 - 0.65 * s)


def overexpose(picture: Picture, s: float, rng: Generator) -> Picture:
    return picture * (1.3 + 1.7 * s) + 0.15 * s


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


def degrade(picture: Picture, defects: dict[str, float], rng: Generator) -> Picture:
    """``picture`` with each named defect at its severity, one after the other."""
    for name, severity in defects.items():
        picture = np.clip(DEFECTS[name](picture, severity, rng), 0, 1).astype(np.float32)
    return picture


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
