"""Decode files and Pillow images to upright sRGB pixels, the same way everywhere.

An image is uint8 RGB, (height, width, 3). Files come from strangers: sizes are checked before
anything is decoded, and whatever a decoder stumbles over is one sentence.
"""

import io
import os
import stat
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError, features

from dcmpl.errors import DataError, UsageError
from dcmpl.images.archives import read_file
from dcmpl.images.chunks import without_large_chunks
from dcmpl.images.colour import raw_mode, to_srgb
from dcmpl.images.metadata import texts_of
from dcmpl.storage import is_url

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "MAX_PIXELS",
    "MAX_SIDE",
    "DecodedImage",
    "Input",
    "cores",
    "decode",
    "decode_bytes",
    "from_pil",
    "is_called_image",
    "is_image",
    "is_tensor",
    "name_of",
    "quiet_pillow",
    "read_image",
    "read_input",
    "text_of",
]


MAX_PIXELS = 150_000_000
"""A larger image is refused before it is decoded: this many take about 2 GB for a moment."""

MAX_SIDE = 65_535
"""A longer side is refused too: its windows would be mirrored to that length."""

FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"]
FORMATS += ["AVIF"] if features.check("avif") else []
"""Only these are tried, whatever a file is called: some decoders start other programs."""

HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

ORIENTATION = 0x0112
"""The EXIF tag."""


@dataclass(frozen=True)
class DecodedImage:
    """Pixels of an image, notes on its conversion, and the texts in its file."""

    pixels: UInt8[np.ndarray, "height width 3"]
    notes: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)


def cores() -> int:
    """Number of cores this process may use, and so of images decoded at a time."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_image(path: str | Path) -> UInt8[np.ndarray, "height width 3"]:
    """Decode one file; of an animation the first frame.

    Raises :class:`DataError` with the reason where that is not possible.
    """
    with quiet_pillow():
        return decode(path).pixels


def decode(path: str | Path) -> DecodedImage:
    """Decode one file in a thread whose starter holds :func:`quiet_pillow`."""
    if is_url(path):
        return decode_bytes(read_file(str(path)), str(path))
    return _opened(str(path), path)


def decode_bytes(content: bytes, what: str) -> DecodedImage:
    """Decode the bytes of a file; ``what`` names it in errors."""
    return _opened(what, io.BytesIO(content))


def from_pil(image: Image.Image) -> DecodedImage:
    """Convert a Pillow image, which may not be decoded yet."""
    with _unreadable_is_an_error("a Pillow image"):
        return _decoded(image, "a Pillow image")


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings on sizes and metadata; hold it around threads, not inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _unreadable_is_an_error(what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"an image at {what}", "no file") from None
    except DataError:
        raise
    except Exception as error:  # decoders raise anything on damaged files
        reason = str(error).replace("\n", " ").rstrip(".") or type(error).__name__
        raise DataError("an image that can be decoded", what, reason=reason) from error


def _opened(what: str, source: str | Path | io.BytesIO) -> DecodedImage:
    with _unreadable_is_an_error(what):
        if not isinstance(source, io.BytesIO) and not stat.S_ISREG(Path(source).stat().st_mode):
            raise DataError(f"a file at {what}", "something else")
        try:
            return _read(what, source)
        except DataError:
            raise
        except Exception as error:
            for bare in (False, True):
                if (again := _again(what, source, bare)) is not None:
                    return again
            if isinstance(error, UnidentifiedImageError):  # Pillow's sentence may hold an address
                wanted, reason = "an image that can be decoded", "cannot identify image file"
                raise DataError(wanted, what, reason=reason) from None
            raise


def _again(what: str, source: str | Path | io.BytesIO, bare: bool) -> DecodedImage | None:
    """Decode a PNG without what keeps Pillow from its pixels; None where that does not help."""
    content = source.getvalue() if isinstance(source, io.BytesIO) else read_file(str(source))
    less = without_large_chunks(content, bare)
    if less is None:
        return None
    try:
        found = _read(what, io.BytesIO(less))
    except Exception:
        return None
    lost = "texts, profile and EXIF not read" if bare else "texts or profile too large to read"
    return replace(found, notes=(lost, *found.notes))


def _read(what: str, source: str | Path | io.BytesIO) -> DecodedImage:
    image: Image.Image
    try:
        image = Image.open(source, formats=FORMATS)
    except UnidentifiedImageError:
        if not _is_heif(source):
            raise
        image = _open_heif(source, what)
    with image:
        return _decoded(image, what)


def _is_heif(source: str | Path | io.BytesIO) -> bool:
    if isinstance(source, io.BytesIO):
        start = source.getvalue()[:12]
    else:
        with Path(source).open("rb") as file:
            start = file.read(12)
    return start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS


def _open_heif(source: str | Path | io.BytesIO, what: str) -> Image.Image:
    try:
        from pillow_heif import open_heif
    except ImportError:
        raise DataError(
            f"pillow-heif for {what}", "none", "pip install 'dcmpl-agiqa[heif]'"
        ) from None
    found = open_heif(source, convert_hdr_to_8bit=True)
    _check_size(found.size, what)
    image: Image.Image = found.to_pillow()
    return image


def _check_size(size: tuple[int, int], what: str) -> None:
    if size[0] * size[1] > MAX_PIXELS or max(size) > MAX_SIDE:
        raise DataError(
            f"at most {MAX_PIXELS} pixels and sides of at most {MAX_SIDE}",
            f"{size[0]} x {size[1]} in {what}",
            "scale it down first",
        )


def _decoded(image: Image.Image, what: str) -> DecodedImage:
    """Convert to upright sRGB, with notes on what was changed."""
    _check_size(image.size, what)
    notes = _frame(image)
    raw = raw_mode(image)
    image.load()
    try:
        exif = image.getexif()
        turn = TURNS.get(exif.get(ORIENTATION, 1))
        texts = texts_of(image, exif)
    except Exception:  # broken metadata is no reason to refuse pixels
        turn, texts = None, texts_of(image, Image.Exif())
        notes.append("EXIF not read, nor an orientation in it")
    if turn is not None:  # a copy of a large image is not made for fun
        image = image.transpose(turn)
    rgb, changed = to_srgb(image, raw, what)
    return DecodedImage(np.array(rgb), (*notes, *changed), texts)


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Orientation in EXIF -> what makes the image upright."""


def _frame(image: Image.Image) -> list[str]:
    """Note on which frame of several is decoded: the one the image stands at."""
    try:
        frames, frame = getattr(image, "n_frames", 1), image.tell()
    except Exception:  # of a frame behind this one
        image.seek(0)
        return ["the first of several frames, of which others cannot be read"]
    if frames < 2:
        return []
    return [f"the first of {frames} frames" if not frame else f"frame {frame + 1} of {frames}"]


Input = Union[str, Path, Image.Image, np.ndarray, "Tensor"]
"""A file, a Pillow image, uint8 RGB of shape (height, width, 3), or a tensor (3, height, width)
of floats in [0, 1]."""


def name_of(image: Input) -> str:
    return str(image) if isinstance(image, (str, Path)) else ""


def text_of(prompt: object) -> str:
    """Text of a prompt; empty for a table's missing ones (None, NaN or pandas' NA).

    Raises :class:`UsageError` for bytes, numbers and anything else that is no text.
    """
    if isinstance(prompt, str):
        return prompt
    if prompt is None or str(prompt) in ("nan", "<NA>", "NaT"):
        return ""
    raise UsageError("a prompt as a text", type(prompt).__name__, "decode it, or take str of it")


def is_tensor(image: Any) -> bool:
    torch = sys.modules.get("torch")  # who has a tensor has imported it
    return torch is not None and isinstance(image, torch.Tensor)


_ONE_AT_A_TIME = Lock()
"""Pillow images load on first use, which two threads must not do to one of them."""


def read_input(image: Input | DecodedImage) -> DecodedImage:
    """Decode an image in any accepted form; raises :class:`DataError` for other values."""
    if isinstance(image, DecodedImage):
        return image
    if isinstance(image, (str, Path)):
        return decode(image)
    if isinstance(image, Image.Image):
        with _ONE_AT_A_TIME:
            return from_pil(image)
    if is_tensor(image):
        return DecodedImage(_of_tensor(image))
    return DecodedImage(_of_array(image))


def _of_array(image: Any) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        raise DataError("a path, a Pillow image, an array or a tensor", type(image).__name__)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise DataError(
            "an array of uint8 RGB, (height, width, 3)", f"{image.dtype} of shape {image.shape}"
        )
    return image


def _of_tensor(image: Any) -> np.ndarray:
    """Pixels of a float tensor, rounded as a saved image would be."""
    shape = tuple(image.shape)
    if not image.is_floating_point() or len(shape) != 3 or shape[0] != 3 or not image.numel():
        raise DataError(
            "a tensor of floats in [0, 1], (3, height, width)", f"{image.dtype} of shape {shape}"
        )
    values = image.detach().float().cpu().numpy()
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise DataError("a tensor of floats in [0, 1]", f"{low:g} to {high:g}")
    return np.ascontiguousarray(np.rint(values * 255).astype(np.uint8).transpose(1, 2, 0))


IMAGES = frozenset(
    (
        *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp"),
        *(".tif", ".tiff", ".pbm", ".pgm", ".ppm", ".pnm", ".pfm"),
        *(".avif", ".avifs", ".heic", ".heif", ".hif"),
    )
)


def is_image(path: Path) -> bool:
    """Whether a file, or a broken link, has the name of an image."""
    return is_called_image(path.name) and os.path.lexists(path) and not os.path.isdir(path)


def is_called_image(name: str) -> bool:
    base = PurePosixPath(name).name
    return PurePosixPath(base).suffix.lower() in IMAGES and not base.startswith("._")
