"""Stems, from pixels to tokens: CLIP's patch convolution, or a trunk beside image statistics.

:class:`PatchStem` is CLIP's (arXiv:2103.00020). :class:`HybridStem` takes the maps of a
convolutional network that was trained on photographs, and natural-scene statistics in the
manner of DCT-domain quality assessment (Saad, Bovik, Charrier, *Blind Image Quality Assessment:
A Natural Scene Statistics Approach in the DCT Domain*, IEEE TIP 21(8), 2012).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.nn import functional as F

from dcmpl.model.trunk import STRIDES, Trunk, TrunkConfig

__all__ = [
    "NORMALIZATION",
    "TRUNK_NORMALIZATION",
    "HybridStem",
    "PatchStem",
    "Seen",
    "cell_statistics",
    "to_unit_range",
]

NORMALIZATION = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Mean and deviation of pixels in 0..1, by which images come to a stem."""

TRUNK_NORMALIZATION = "imagenet"
"""What a hybrid stem takes, since its trunk is frozen."""

STATISTICS = 693
LUMA_SCALES, CHROMA_SCALES = 4, 3
BLOCK_STRIDES = 5, 5, 3, 1
"""Pixels from block to block at each scale. Odd, so that in every cell blocks stand in all places
of JPEG's grid of 8 pixels alike, and a crop, which moves the grid, changes no average."""

FLOOR = 4e-3
"""Added to a coefficient's size before the logarithm: about a quarter of an 8-bit step."""
VARIANCE_FLOOR = 1e-6
LIMIT = 5.0
"""Standardised statistics are cut here, so that no flat image dominates."""


def to_unit_range(windows: Num[Tensor, "batch h w 3"]) -> Float[Tensor, "batch 3 h w"]:
    """Convert pixels of 0..255, colours last, to float32 in 0..1, colours first."""
    return windows.permute(0, 3, 1, 2).float() / 255


class Seen(NamedTuple):
    """What a stem makes of images.

    ``summary`` are its standardised numbers of the whole image, none for CLIP's; ``first`` is
    what it adds to the class token, made of them.
    """

    first: Float[Tensor, "batch width"]
    patches: Float[Tensor, "batch patches width"]
    summary: Float[Tensor, "batch numbers"]


class PatchStem(nn.Module):
    """Linear map of each patch, as in CLIP; its summary of the image has no ``numbers``."""

    numbers = 0

    def __init__(self, image_size: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)

    def forward(self, images: Float[Tensor, "batch 3 size size"]) -> Seen:
        patches = self.conv1(images).flatten(2).mT
        first = patches.new_zeros(len(patches), patches.shape[2])
        return Seen(first, patches, first[:, :0])


def dct_kernels(size: int) -> Float[Tensor, "frequencies 1 size size"]:
    """The orthonormal DCT-II of ``size`` x ``size`` blocks, without the constant one."""
    k = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * (k[None] + 0.5) * k[:, None]) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    kernels = torch.einsum("ux,vy->uvxy", basis, basis).reshape(-1, 1, size, size)
    return kernels[1:].float()


def _energies(
    plane: Float[Tensor, "batch 1 h w"], kernels: Tensor, stride: int, cells: int
) -> list[Float[Tensor, "batch frequencies cells cells"]]:
    """Mean log magnitude and peakedness of each DCT frequency in each cell.

    Peaked = log of the root mean square less the mean log: 0 for a constant size.
    """
    reach = kernels.shape[-1] - 1
    coefficients = F.conv2d(
        F.pad(plane, (0, reach, 0, reach), mode="reflect"), kernels, None, stride
    )
    mean_log = F.adaptive_avg_pool2d((coefficients.abs() + FLOOR).log(), cells)
    power = F.adaptive_avg_pool2d(coefficients.square(), cells)
    return [mean_log, 0.5 * (power + FLOOR**2).log() - mean_log]


def cell_statistics(
    images: Float[Tensor, "batch 3 size size"], cells: int, luma: Tensor, chroma: Tensor
) -> Float[Tensor, "batch cells2 statistics"]:
    """Natural-scene statistics: 693 numbers for each of ``cells`` x ``cells`` cells.

    Luma at 4 scales (63 frequencies of 8 x 8 blocks) and two opponent colours at 3 scales
    (15 of 4 x 4), two numbers each; nine of colour. ``luma`` and ``chroma`` are the
    kernels of :func:`dct_kernels`.
    """
    red, green, blue = images.split(1, dim=1)
    brightness = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = [(brightness, luma, LUMA_SCALES)]
    planes += [(0.5 * (c - brightness), chroma, CHROMA_SCALES) for c in (blue, red)]
    numbers = []
    for plane, kernels, scales in planes:
        for scale in range(scales):
            numbers += _energies(plane, kernels, BLOCK_STRIDES[scale], cells)
            plane = F.avg_pool2d(plane, 2)
    mean = F.adaptive_avg_pool2d(images, cells)
    highest, lowest = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    numbers += [mean, F.adaptive_avg_pool2d(images.square(), cells) - mean.square()]
    numbers += [F.adaptive_avg_pool2d(x, cells) for x in (highest - lowest, lowest, highest)]
    return torch.cat(numbers, dim=1).flatten(2).mT


class HybridStem(nn.Module):
    """Cells of ``patch_size`` pixels to tokens; the class token starts from their summary.

    The frozen numbers of each cell go through one learned linear map: mean and deviation of the
    maps of a trunk at several depths, and natural-scene statistics. The deviation is left out
    where a map has no more than one place in a cell. The summary holds mean and deviation of
    every number over the cells: the level and the evenness that people judge. Nothing in it
    depends on where the grid of JPEG's blocks lies.

    ``images`` are normalised by ``TRUNK_NORMALIZATION``. ``center`` and ``scale`` are fitted to
    the images the backbone was trained on.
    """

    center: Tensor
    scale: Tensor
    summary_center: Tensor
    summary_scale: Tensor

    mean: Tensor
    deviation: Tensor
    luma: Tensor
    chroma: Tensor

    def __init__(self, image_size: int, patch_size: int, width: int, trunk: TrunkConfig) -> None:
        super().__init__()
        self.cells = image_size // patch_size
        self.trunk = Trunk(trunk)
        self.fine = [patch_size > stride for stride in STRIDES]
        count = STATISTICS + sum(
            w * (1 + is_fine) for w, is_fine in zip(self.trunk.widths, self.fine, strict=True)
        )
        for name, size in (("", count), ("summary_", 2 * count)):
            self.register_buffer(f"{name}center", torch.zeros(size))
            self.register_buffer(f"{name}scale", torch.ones(size))
        for name, values in zip(
            ("mean", "deviation"), NORMALIZATION[TRUNK_NORMALIZATION], strict=True
        ):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        for name, size in (("luma", 8), ("chroma", 4)):
            self.register_buffer(name, dct_kernels(size), persistent=False)
        self.numbers = 2 * count
        self.cell_map = nn.Linear(count, width)
        self.summary_map = nn.Linear(self.numbers, width)

    def statistics(
        self, images: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch cells2 numbers"]:
        """Numbers of every cell, before they are standardised.

        On a CPU one image after the other, whose maps fill the caches as they are.
        """
        if images.device.type == "cpu" and not torch.compiler.is_exporting():
            return torch.cat([self._numbers(image) for image in images.split(1)])
        return self._numbers(images)

    def _numbers(
        self, images: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch cells2 numbers"]:
        pixels = images * self.deviation + self.mean
        numbers = []
        for found, is_fine in zip(self.trunk((pixels * 255 - 127) / 128), self.fine, strict=True):
            mean = F.adaptive_avg_pool2d(found, self.cells)
            numbers.append(mean)
            if is_fine:
                power = F.adaptive_avg_pool2d(found.square(), self.cells)
                numbers.append((power - mean.square()).clamp(min=VARIANCE_FLOOR).sqrt())
        of_trunk = torch.cat(numbers, dim=1).flatten(2).mT
        return torch.cat(
            [of_trunk, cell_statistics(pixels, self.cells, self.luma, self.chroma)], dim=2
        )

    def standardised(
        self, statistics: Float[Tensor, "batch cells2 numbers"]
    ) -> tuple[Float[Tensor, "batch twice"], Float[Tensor, "batch cells2 numbers"]]:
        """Summary and cells, standardised by the backbone's training images."""
        cells = ((statistics - self.center) / self.scale).clamp(-LIMIT, LIMIT)
        summary = torch.cat([cells.mean(1), cells.std(1, correction=0)], dim=1)
        summary = ((summary - self.summary_center) / self.summary_scale).clamp(-LIMIT, LIMIT)
        return summary, cells

    def seen(self, statistics: Float[Tensor, "batch cells2 numbers"]) -> Seen:
        """What the stem makes of the numbers of cells: its learned part."""
        summary, cells = self.standardised(statistics)
        return Seen(self.summary_map(summary), self.cell_map(cells), summary)

    def forward(self, images: Float[Tensor, "batch 3 size size"]) -> Seen:
        """Tokens of images, in float32: the maps weigh small differences of large numbers."""
        with torch.autocast(images.device.type, enabled=False):
            return self.seen(self.statistics(images.float()))
