"""The image adapter: a small bottleneck that refines an image embedding.

Paper: Gao et al., *CLIP-Adapter: Better Vision-Language Models with Feature Adapters*,
arXiv:2110.04544, eqs. 3 and 6. As in its code: no bias, and a ReLU behind both layers.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dcmpl.config import AdapterConfig

__all__ = ["ImageAdapter"]


class ImageAdapter(nn.Module):
    """f* = ratio A(f) + (1 - ratio) f with A = ReLU(W2 ReLU(W1 f)).

    A fixed ratio of 0 leaves every embedding as it was, bit for bit. A learned one is kept
    in [0, 1].
    """

    def __init__(self, width: int, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        bottleneck = max(1, width // config.reduction)
        self.down = nn.Linear(width, bottleneck, bias=False)
        self.up = nn.Linear(bottleneck, width, bias=False)
        self.ratio: float | nn.Parameter = config.ratio
        if config.learnable_ratio:
            self.ratio = nn.Parameter(torch.tensor(float(config.ratio)))

    def forward(self, embedding: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        if self.config.ratio == 0 and not self.config.learnable_ratio:
            return embedding
        ratio = self.ratio.clamp(0, 1) if isinstance(self.ratio, Tensor) else self.ratio
        refined = self.up(torch.relu(self.down(embedding)))
        if self.config.final_relu:
            refined = torch.relu(refined)
        mixed: Tensor = ratio * refined + (1 - ratio) * embedding
        return mixed
