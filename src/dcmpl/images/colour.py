"""Colours of an image as its maker saw them: 8-bit sRGB, transparent parts laid on white.

Each step that changes what the file holds leaves a note.
"""

import io
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from dcmpl.errors import DataError

__all__ = ["raw_mode", "to_srgb"]

BACKGROUND = (255, 255, 255)
"""Transparent images are laid on this colour."""

MAX_PROFILE_BYTES = 16 * 2**20
"""A larger colour profile is not read; those of printers have up to some 4 MB."""

NEUTRAL = 0.45455
"""The gamma of a PNG that needs no correction."""

LEAST_GAMMA = 0.1

GREY_LEVELS = {"L;2": 85, "L;4": 17}
"""Raw mode of a PNG -> the step between its levels of grey, once it is decoded."""


def raw_mode(image: Image.Image) -> str:
    """Layout of the pixels in the file, such as RGB;16B; empty where it is not known.

    It is gone once the image is loaded.
    """
    tiles: Any = getattr(image, "tile", None)
    mode = tiles[0][3] if tiles else ""
    mode = mode[0] if isinstance(mode, tuple) and mode else mode
    return mode if isinstance(mode, str) else ""


def to_srgb(image: Image.Image, raw: str, what: str) -> tuple[Image.Image, list[str]]:
    """RGB image in sRGB and notes on what was changed; ``raw`` is the raw mode.

    Raises :class:`DataError` for pixels whose range is not known.
    """
    notes: list[str] = []
    profile, info = image.info.get("icc_profile"), image.info
    alpha, gamma = _alpha(image, raw), None if profile else _gamma(info, notes)
    if image.mode.startswith("I") or image.mode == "F":
        image, gamma = _scaled(image, raw, what, gamma), None
        notes.append("16 bit scaled to 8")
    elif ";16" in raw:
        notes.append("16 bit scaled to 8")
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if alpha is None and image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    if image.mode in ("RGBA", "LA", "La", "RGBa", "RGBX", "1"):
        image = image.convert("L" if image.mode in ("LA", "La", "1") else "RGB")
    image, changed = _through_profile(image, profile)
    notes += changed
    if gamma is not None:
        levels = 255 * _shown(np.linspace(0, 1, 256), gamma)
        image = image.point(levels.round().astype(int).tolist() * 3)
    if not profile and "srgb" not in info and _has_other_primaries(info.get("chromaticity")):
        notes.append("its primaries are not applied")
    if alpha is not None and alpha.getextrema()[0] < 255:  # type: ignore[operator]  # of one band
        notes.append("transparent parts laid on white")
        canvas = Image.new("RGB", image.size, BACKGROUND)
        canvas.paste(image, mask=alpha)
        image = canvas
    return image, notes


def _alpha(image: Image.Image, raw: str) -> Image.Image | None:
    """Opacity where a file names one transparent grey or colour, in the depth of the file."""
    named = image.info.get("transparency")
    if image.mode not in ("1", "L", "RGB") and not image.mode.startswith("I"):
        return None  # a palette, or a channel of its own
    if not isinstance(named, (int, tuple)):
        return None
    levels = np.asarray(image)
    if image.mode == "1":
        hidden = levels == bool(named)
    elif isinstance(named, tuple):
        wanted = [value >> 8 if ";16" in raw else value & 255 for value in named]
        hidden = (levels == np.array(wanted)).all(-1) if len(wanted) == 3 else levels[..., 0] < 0
    elif image.mode == "L":
        step = GREY_LEVELS.get(raw, 1)
        hidden = levels == (named & (255 // step)) * step
    else:
        hidden = levels == named
    return Image.fromarray(np.where(hidden, 0, 255).astype(np.uint8))


def _scaled(image: Image.Image, raw: str, what: str, gamma: float | None) -> Image.Image:
    """Grey of 8 bit from grey of 16; other numbers have no white that is known.

    ``gamma`` is applied before, while there are levels enough in the dark.
    """
    if image.mode == "F":
        raise DataError("whole numbers for pixels", f"fractions in {what}", "save as PNG")
    values = np.asarray(image, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    if ";32" in raw or ";16S" in raw or low < 0 or high > 65_535:
        raise DataError(
            "pixels of 8 or 16 bit without a sign",
            f"32 bit or signed ones, {low:g} to {high:g}, in {what}",
            "save as PNG",
        )
    if gamma is not None:
        values = 65_535 * _shown(values / 65_535, gamma)
    return Image.fromarray((values / 257).round().astype(np.uint8))


def _through_profile(image: Image.Image, profile: Any) -> tuple[Image.Image, list[str]]:
    """RGB image, by its colour profile where it has one that says something else than sRGB."""
    notes = ["CMYK without a colour profile"] if image.mode == "CMYK" and not profile else []
    if not isinstance(profile, bytes) or not profile:
        return image.convert("RGB"), notes
    if len(profile) > MAX_PROFILE_BYTES:
        return image.convert("RGB"), ["its colour profile is too large to read"]
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode == "RGB" and own.profile.xcolor_space == "GRAY":
            raise ImageCms.PyCMSError("a profile of grey on colours")
        if image.mode == "L" and own.profile.xcolor_space.strip() == "RGB":
            image = image.convert("RGB")  # a grey image that was saved with its maker's profile
        probe = _probe(image.mode)
        if _same(_applied(probe, own), probe.convert("RGB")):
            return image.convert("RGB"), []
        return _applied(image, own), ["colour profile applied"]
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image.convert("RGB"), ["its colour profile cannot be read"]


SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
"""White, red, green and blue, as a PNG names them."""


def _has_other_primaries(found: Any) -> bool:
    if not isinstance(found, tuple) or len(found) != len(SRGB_PRIMARIES):
        return False
    return any(abs(a - b) > 0.01 for a, b in zip(found, SRGB_PRIMARIES, strict=True))


def _gamma(info: dict[Any, Any], notes: list[str]) -> float | None:
    """Gamma to apply, of a PNG that says that its levels are light to the power of it.

    As its specification asks of those who show it (W3C PNG, third edition, 13.13).
    """
    gamma = info.get("gamma")
    if "srgb" in info or not isinstance(gamma, float) or abs(gamma - NEUTRAL) <= 0.02:
        return None
    if not LEAST_GAMMA <= gamma <= 1 / LEAST_GAMMA:
        notes.append("its gamma makes no sense and is not applied")
        return None
    notes.append("gamma applied")
    return gamma


def _shown(levels: np.ndarray, gamma: float) -> np.ndarray:
    """Levels of sRGB, 0 to 1, of the light that ``levels`` of a gamma stand for."""
    light = levels ** (1 / gamma)
    shown: np.ndarray = np.where(
        light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055
    )
    return shown


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _applied(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    found = ImageCms.profileToProfile(image, profile, _srgb(), outputMode="RGB")
    if found is None:  # only where it was asked to work in place
        raise ValueError("no image")
    return found


@cache
def _probe(mode: str) -> Image.Image:
    """Image of colours from the whole range of a mode."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    levels = np.linspace(0, 255, 6 if channels > 1 else 256).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * channels, indexing="ij"), -1).reshape(1, -1, channels)
    return Image.frombytes(mode, (grid.shape[1], 1), grid.tobytes())


def _same(first: Image.Image, second: Image.Image) -> bool:
    """Whether two images differ by no more than rounding does."""
    steps = np.asarray(first, np.int16) - np.asarray(second, np.int16)
    return int(np.abs(steps).max()) <= 2
