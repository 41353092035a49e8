"""Trunk: EfficientNet-Lite, the convolutional network before the tokens of a hybrid stem.

Tan, Le, *EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks*,
arXiv:1905.11946. The Lite variants have no squeeze-and-excitation, ReLU6 as their only
activation, and a stem, a head, a first and a last stage that do not grow with the network.
Batch normalisation is folded into the convolutions, since the trunk is frozen.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["STRIDES", "TRUNKS", "Trunk", "TrunkConfig", "fold_lite"]

STEM, HEAD = 32, 1280
"""Channels after the first and after the last convolution."""

STRIDES = (2, 4, 8, 16, 16, 32, 32, 32)
"""Pixels of an image beside one another for each place of the maps of :class:`Trunk`."""

BATCH_NORM_EPS = 1e-3


@dataclass(frozen=True)
class Stage:
    """Row of inverted residuals of one width; the first has the ``stride``, 1 or 2."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    width: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
"""Table 1 of the paper, of its network B0."""


@dataclass(frozen=True)
class TrunkConfig:
    """Factors by which widths and depths of the stages grow."""

    width: float = 1.0
    depth: float = 1.0

    @property
    def stages(self) -> Iterator[Stage]:
        """The stages: widths in steps of 8, the first and the last as deep as they were."""
        for place, stage in enumerate(STAGES):
            grows = 0 < place < len(STAGES) - 1
            repeats = math.ceil(stage.repeats * self.depth) if grows else stage.repeats
            wanted = stage.width * self.width
            width = max(8, int(wanted + 4) // 8 * 8)
            width += 8 if width < 0.9 * wanted else 0
            yield Stage(repeats, stage.kernel, stage.stride, stage.expansion, width)


TRUNKS: dict[str, TrunkConfig] = {
    "lite0": TrunkConfig(),
    "lite1": TrunkConfig(depth=1.1),
    "lite2": TrunkConfig(width=1.1, depth=1.2),
}


class Convolution(nn.Conv2d):
    """Convolution whose output has a ``stride``-th of the input's places, rounded up.

    Where the padding is odd, the odd pixel stands below and to the right, as in TensorFlow.
    """

    def __init__(self, inside: int, out: int, kernel: int, stride: int = 1, groups: int = 1):
        # With a stride of 1 the padding is even, and needs no padded copy of the input.
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inside, out, kernel, stride, padding, groups=groups)

    def forward(self, x: Float[Tensor, "batch inside h w"]) -> Float[Tensor, "batch out h2 w2"]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return super().forward(x)
        height, width = (
            max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in x.shape[2:]
        )
        if height or width:
            x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return super().forward(x)


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow; added to the input where the shape is the same.

    Sandler et al., *MobileNetV2*, arXiv:1801.04381.
    """

    def __init__(self, inside: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        self.expand = Convolution(inside, wide, 1) if expansion > 1 else None
        self.filter = Convolution(wide, wide, kernel, stride, groups=wide)
        self.project = Convolution(wide, out, 1)
        self.adds = stride == 1 and inside == out

    def forward(self, x: Float[Tensor, "batch inside h w"]) -> Float[Tensor, "batch out h2 w2"]:
        wide = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        out: Tensor = self.project(F.relu6(self.filter(wide), inplace=True))
        return x + out if self.adds else out


class Trunk(nn.Module):
    """EfficientNet-Lite up to its head, without a classifier; takes images of any size."""

    ends: set[int]
    widths: list[int]

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.stem = Convolution(3, STEM, 3, stride=2)
        blocks, inside = list[InvertedResidual](), STEM
        self.ends, self.widths = set[int](), list[int]()
        for stage in config.stages:
            for place in range(stage.repeats):
                stride = stage.stride if place == 0 else 1
                blocks.append(
                    InvertedResidual(inside, stage.width, stage.kernel, stride, stage.expansion)
                )
                inside = stage.width
            self.ends.add(len(blocks) - 1)
            self.widths.append(inside)
        self.widths.append(HEAD)
        self.blocks = nn.ModuleList(blocks)
        self.head = Convolution(inside, HEAD, 1)

    def forward(self, images: Float[Tensor, "batch 3 h w"]) -> list[Float[Tensor, "batch _ _ _"]]:
        """Maps after every stage, and the head's as the last; ``widths`` are their channels.

        ``images`` are (pixel - 127) / 128. The sides of the maps are those of the image divided
        by ``STRIDES``, rounded up.
        """
        x, maps = F.relu6(self.stem(images), inplace=True), []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.ends:
                maps.append(x)
        return [*maps, F.relu6(self.head(x), inplace=True)]


def fold_lite(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of :class:`Trunk` from those of the package ``efficientnet-lite-pytorch``.

    Each batch normalisation is folded into the convolution before it; the classifier is left
    out. Raises :class:`KeyError` where a tensor is missing.
    """
    found = {}
    for name, (convolution, normalisation) in _pairs(state):
        values = (state[f"{normalisation}.{kind}"].double() for kind in NORMALISATION)
        gain, bias, mean, variance = values
        scale = gain / torch.sqrt(variance + BATCH_NORM_EPS)
        weight = state[f"{convolution}.weight"].double()
        found[f"{name}.weight"] = (weight * scale[:, None, None, None]).float()
        found[f"{name}.bias"] = (bias - mean * scale).float()
    return found


NORMALISATION = "weight", "bias", "running_mean", "running_var"
PARTS = {
    "expand": ("_expand_conv", "_bn0"),
    "filter": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}


def _pairs(state: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Our name of each convolution, and the package's with that of its normalisation."""
    yield "stem", ("_conv_stem", "_bn0")
    yield "head", ("_conv_head", "_bn1")
    places = dict.fromkeys(n.split(".")[1] for n in state if n.startswith("_blocks."))
    for place in places:
        for ours, theirs in PARTS.items():
            convolution, normalisation = (f"_blocks.{place}.{name}" for name in theirs)
            if ours != "expand" or f"{convolution}.weight" in state:
                yield f"blocks.{place}.{ours}", (convolution, normalisation)
