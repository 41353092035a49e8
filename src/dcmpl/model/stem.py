"""Stems, from pixels to tokens: CLIP's patch convolution, image statistics, or a trunk.

:class:`PatchStem` is CLIP's (arXiv:2103.00020). :class:`StatisticsStem` takes natural-scene
statistics in the manner of DCT-domain quality assessment (Saad, Bovik, Charrier, *Blind Image
Quality Assessment: A Natural Scene Statistics Approach in the DCT Domain*, IEEE TIP 21(8),
2012), :class:`HybridStem` the maps of a convolutional network that was trained on photographs.
"""

import math

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.nn import functional as F

from dcmpl.model.trunk import STRIDES, Trunk, TrunkConfig

__all__ = [
    "NORMALIZATION",
    "TRUNK_NORMALIZATION",
    "CellStem",
    "HybridStem",
    "PatchStem",
    "StatisticsStem",
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

LUMA_SCALES, CHROMA_SCALES = 4, 3
FLOOR = 4e-3
"""Added to a coefficient's size before the logarithm: about a quarter of an 8-bit step."""
LIMIT = 5.0
"""Standardised statistics are cut here, so that no flat image dominates."""


def to_unit_range(windows: Num[Tensor, "batch h w 3"]) -> Float[Tensor, "batch 3 h w"]:
    """Convert pixels of 0..255, colours last, to float32 in 0..1, colours first."""
    return windows.permute(0, 3, 1, 2).float() / 255


class PatchStem(nn.Module):
    """Linear map of each patch, as in CLIP; its summary of the image is zero."""

    def __init__(self, image_size: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)

    def forward(
        self, images: Float[Tensor, "batch 3 size size"]
    ) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch patches width"]]:
        patches = self.conv1(images).flatten(2).mT
        return patches.new_zeros(len(patches), patches.shape[2]), patches


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
            # The same count of blocks per cell at every scale.
            numbers += _energies(plane, kernels, max(1, 8 >> scale), cells)
            plane = F.avg_pool2d(plane, 2)
    mean = F.adaptive_avg_pool2d(images, cells)
    highest, lowest = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    numbers += [mean, F.adaptive_avg_pool2d(images.square(), cells) - mean.square()]
    numbers += [F.adaptive_avg_pool2d(x, cells) for x in (highest - lowest, lowest, highest)]
    return torch.cat(numbers, dim=1).flatten(2).mT


class CellStem(nn.Module):
    """Cells of ``patch_size`` pixels to tokens; the class token starts from their summary.

    Frozen numbers of each cell, ``count`` of them, go through one learned linear map. The
    summary holds mean and deviation of every number over the cells: the level and the evenness
    that people judge. ``center`` and ``scale`` are fitted to the images the backbone was trained
    on.
    """

    center: Tensor
    scale: Tensor
    summary_center: Tensor
    summary_scale: Tensor

    def __init__(self, image_size: int, patch_size: int, width: int, count: int) -> None:
        super().__init__()
        self.cells = image_size // patch_size
        for name, size in (("", count), ("summary_", 2 * count)):
            self.register_buffer(f"{name}center", torch.zeros(size))
            self.register_buffer(f"{name}scale", torch.ones(size))
        self.cell_map = nn.Linear(count, width)
        self.summary_map = nn.Linear(2 * count, width)

    def statistics(
        self, images: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch cells2 numbers"]:
        """Numbers of every cell, before they are standardised."""
        raise NotImplementedError

    def standardised(
        self, statistics: Float[Tensor, "batch cells2 numbers"]
    ) -> tuple[Float[Tensor, "batch twice"], Float[Tensor, "batch cells2 numbers"]]:
        """Summary and cells, standardised by the backbone's training images."""
        cells = ((statistics - self.center) / self.scale).clamp(-LIMIT, LIMIT)
        summary = torch.cat([cells.mean(1), cells.std(1, correction=0)], dim=1)
        summary = ((summary - self.summary_center) / self.summary_scale).clamp(-LIMIT, LIMIT)
        return summary, cells

    def tokens(
        self, statistics: Float[Tensor, "batch cells2 numbers"]
    ) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch cells2 width"]]:
        """Tokens of standardised numbers: the learned part of the stem."""
        summary, cells = self.standardised(statistics)
        return self.summary_map(summary), self.cell_map(cells)

    def forward(
        self, images: Float[Tensor, "batch 3 size size"]
    ) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch cells2 width"]]:
        """Tokens of images, in float32: the maps weigh small differences of large numbers."""
        with torch.autocast(images.device.type, enabled=False):
            return self.tokens(self.statistics(images.float()))


class StatisticsStem(CellStem):
    """Natural-scene statistics of each cell, without training."""

    luma: Tensor
    chroma: Tensor

    def __init__(self, image_size: int, patch_size: int, width: int) -> None:
        count = 2 * 63 * LUMA_SCALES + 2 * 2 * 15 * CHROMA_SCALES + 9
        super().__init__(image_size, patch_size, width, count)
        self.register_buffer("luma", dct_kernels(8), persistent=False)
        self.register_buffer("chroma", dct_kernels(4), persistent=False)

    def statistics(
        self, images: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch cells2 numbers"]:
        return cell_statistics(images, self.cells, self.luma, self.chroma)


class HybridStem(CellStem):
    """Maps of a frozen trunk at several depths: their mean in each cell, and their deviation.

    The deviation is left out where a map has no more than one place in a cell. No map has a
    grid of its own that a crop or a resize could put out of step, as JPEG's blocks have.
    ``images`` are normalised by ``TRUNK_NORMALIZATION``.
    """

    gain: Tensor
    shift: Tensor

    def __init__(self, image_size: int, patch_size: int, width: int, trunk: TrunkConfig) -> None:
        made = Trunk(trunk)
        self.fine = [patch_size > stride for stride in STRIDES]
        fine = sum(w for w, is_fine in zip(made.widths, self.fine, strict=True) if is_fine)
        super().__init__(image_size, patch_size, width, sum(made.widths) + fine)
        self.trunk = made
        known = NORMALIZATION[TRUNK_NORMALIZATION]
        mean, deviation = (torch.tensor(values)[:, None, None] for values in known)
        self.register_buffer("gain", deviation * 255 / 128, persistent=False)
        self.register_buffer("shift", (mean * 255 - 127) / 128, persistent=False)

    def statistics(
        self, images: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch cells2 numbers"]:
        numbers = []
        for found, is_fine in zip(
            self.trunk(images * self.gain + self.shift), self.fine, strict=True
        ):
            mean = F.adaptive_avg_pool2d(found, self.cells)
            numbers.append(mean)
            if is_fine:
                power = F.adaptive_avg_pool2d(found.square(), self.cells)
                numbers.append((power - mean.square()).clamp(min=VARIANCE_FLOOR).sqrt())
        return torch.cat(numbers, dim=1).flatten(2).mT


VARIANCE_FLOOR = 1e-6
