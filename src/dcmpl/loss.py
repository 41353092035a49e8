"""A model's score as a loss for whoever tunes a generator of pictures."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dcmpl.errors import UsageError
from dcmpl.images.windows import window_corners
from dcmpl.trained import TorchEngine

__all__ = ["ScoreLoss"]


class ScoreLoss(nn.Module):
    """``loss(images)``: 1 - score of each picture, (N,), lower is better.

    ``images`` are RGB in [0, 1], (N, 3, height, width), of at least a window's size; the
    gradient reaches them. Views are those of the scorer. Pixels are not rounded to bytes, so
    the value differs from the scorer's by what rounding changes. The model's own weights are
    frozen. Raises :class:`UsageError` for other shapes and ranges, and for a model that cannot be
    folded.
    """

    def __init__(self, engine: TorchEngine, target: str, views: str) -> None:
        super().__init__()
        if engine.apart:
            raise UsageError(
                "expected a model whose prompts do not depend on the pictures for a loss, got one "
                "with mpa.source=encoder_outputs"
            )
        self.network, self.device = engine.network, engine.device
        self.size, self.views = engine.size, views
        self.column = engine.tasks.index(target)

    def forward(self, images: Tensor) -> Float[Tensor, " batch"]:
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise UsageError(
                "expected floats of shape (N, 3, height, width), got "
                f"{images.dtype} of shape {tuple(images.shape)}"
            )
        if not len(images):
            return images.new_zeros(0)
        low, high = (float(value) for value in images.detach().aminmax())
        if not (low >= 0 and high <= 1):
            raise UsageError(f"expected images in [0, 1], got {low:g} to {high:g}: clamp them")
        cut = self._windows(images.float())
        windows = (torch.cat(cut).permute(0, 2, 3, 1) * 255).to(self.device)
        scores: Tensor = self.network(windows)[:, self.column].unflatten(0, (len(cut), -1))
        return (1 - scores.mean(0)).to(images.device)

    def _windows(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[2:]
        size, side = self.size, min(height, width)
        if self.views == "resize":
            top, left = (height - side) // 2, (width - side) // 2
            square = images[..., top : top + side, left : left + side]
            shape = (size, size)
            scaled = F.interpolate(square, shape, mode="bicubic", antialias=True)
            return [scaled.clamp(0, 1)]
        if side < size:
            raise UsageError(f"expected images of at least {size} x {size}, got {height} x {width}")
        corners = window_corners(height, width, size, self.views)
        return [images[..., t : t + size, x : x + size] for t, x in corners]
