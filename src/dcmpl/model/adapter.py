"""The image adapter: a small bottleneck that refines an image embedding.

Paper: Gao et al., *CLIP-Adapter: Better Vision-Language Models with Feature Adapters*,
arXiv:2110.04544, eqs. 3 and 6. As in its code: no bias, and a ReLU behind both layers.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dcmpl.config import AdapterConfig

__all__ = ["Dropout", "ImageAdapter"]


@dataclass(frozen=True)
class Dropout:
    """Leave out a share of the numbers of each image, drawn from ``dice``, in a training step.

    The others grow so that the mean stays (Srivastava et al., JMLR 15, 2014). Drawn on the
    CPU: one seed gives the same numbers on every device. ``part`` is for a batch that several
    processes share: how many images all of it has, and which of them are at hand. Drawn for all,
    so that an image's numbers do not depend on who computes it.
    """

    share: float
    dice: torch.Generator
    part: tuple[int, Int[Tensor, " batch"]] | None = None

    def __call__(self, numbers: Float[Tensor, "*batch count"]) -> Float[Tensor, "*batch count"]:
        if self.share == 0:
            return numbers
        count, places = self.part or (len(numbers), None)
        drawn = torch.rand((count, *numbers.shape[1:]), generator=self.dice)
        kept = (drawn if places is None else drawn[places]) >= self.share
        return numbers * kept.to(numbers.device) / (1 - self.share)


class ImageAdapter(nn.Module):
    """f* = ratio A(f, s) + (1 - ratio) f with A = ReLU(W2 ReLU(W1 [f, s])).

    s is what the stem summarises the image by, where the adapter reads it: ``numbers`` of
    them; the paper's adapter reads f alone. A fixed ratio of 0 leaves every embedding as it
    was, bit for bit. A learned one is kept in [0, 1].
    """

    def __init__(self, width: int, config: AdapterConfig, numbers: int = 0) -> None:
        super().__init__()
        self.config, self.numbers = config, numbers
        bottleneck = max(1, width // config.reduction)
        self.down = nn.Linear(width + numbers, bottleneck, bias=False)
        self.up = nn.Linear(bottleneck, width, bias=False)
        self.ratio: float | nn.Parameter = config.ratio
        if config.learnable_ratio:
            self.ratio = nn.Parameter(torch.tensor(float(config.ratio)))

    def forward(
        self,
        embedding: Float[Tensor, "*batch width"],
        summary: Float[Tensor, "*batch numbers"] | None = None,
        dropout: Dropout | None = None,
    ) -> Float[Tensor, "*batch width"]:
        """Adapted embeddings; ``dropout`` of the bottleneck is for training steps."""
        if self.config.ratio == 0 and not self.config.learnable_ratio:
            return embedding
        ratio = self.ratio.clamp(0, 1) if isinstance(self.ratio, Tensor) else self.ratio
        read = embedding
        if self.numbers and summary is not None:
            read = torch.cat([embedding, summary], dim=-1)
        hidden = torch.relu(self.down(read))
        refined = self.up(hidden if dropout is None else dropout(hidden))
        if self.config.final_relu:
            refined = torch.relu(refined)
        mixed: Tensor = ratio * refined + (1 - ratio) * embedding
        return mixed
