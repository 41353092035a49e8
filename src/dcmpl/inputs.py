"""Pictures in the forms that a program has them: a path, a Pillow image, an array, a tensor."""

import sys
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from PIL import Image

from dcmpl.errors import DataError
from dcmpl.images import Picture, decode, from_pil

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Input", "is_tensor", "name_of", "read_input", "text_of"]

Input = Union[str, Path, Image.Image, np.ndarray, "Tensor"]
"""A file, a Pillow image, uint8 RGB of shape (height, width, 3), or a tensor (3, height, width)
of floats in [0, 1]."""


def name_of(picture: Input) -> str:
    return str(picture) if isinstance(picture, (str, Path)) else ""


def text_of(prompt: object) -> str:
    """A prompt as text; empty where a table has none (None, NaN or pandas' NA)."""
    if isinstance(prompt, str):
        return prompt
    return "" if prompt is None or str(prompt) in ("nan", "<NA>", "NaT") else str(prompt)


def is_tensor(picture: Any) -> bool:
    torch = sys.modules.get("torch")  # who has a tensor has imported it
    return torch is not None and isinstance(picture, torch.Tensor)


def read_input(picture: Input, one_at_a_time: Lock) -> Picture:
    if isinstance(picture, (str, Path)):
        return decode(picture)
    if isinstance(picture, Image.Image):
        with one_at_a_time:
            return from_pil(picture)
    if is_tensor(picture):
        return Picture(_of_tensor(picture))
    return Picture(_of_array(picture))


def _of_array(picture: Any) -> np.ndarray:
    if not isinstance(picture, np.ndarray):
        raise DataError(
            f"expected a path, a Pillow image, an array or a tensor, got {type(picture).__name__}"
        )
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise DataError(
            "expected an array of uint8 RGB, (height, width, 3), got "
            f"{picture.dtype} of shape {picture.shape}"
        )
    return picture


def _of_tensor(picture: Any) -> np.ndarray:
    """Rounded to bytes, as the picture would be when saved."""
    shape = tuple(picture.shape)
    if not picture.is_floating_point() or len(shape) != 3 or shape[0] != 3 or not picture.numel():
        raise DataError(
            "expected a tensor of floats in [0, 1], (3, height, width), got "
            f"{picture.dtype} of shape {shape}"
        )
    values = picture.detach().float().cpu().numpy()
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise DataError(f"expected a tensor of floats in [0, 1], got {low:g} to {high:g}")
    return np.ascontiguousarray(np.rint(values * 255).astype(np.uint8).transpose(1, 2, 0))
