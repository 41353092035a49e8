"""The image adapter: a small bottleneck that refines an image embedding.

Paper: Gao et al., *CLIP-Adapter: Better Vision-Language Models with Feature Adapters*,
arXiv:2110.04544, eqs. 3 and 6. As in its code: no bias, and a ReLU behind both layers.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["ImageAdapter"]


class ImageAdapter(nn.Module):
    """f* = ratio A(f) + (1 - ratio) f with A = ReLU(W2 ReLU(W1 f)).

    ``residual_ratio`` lies in [0, 1]; 0 leaves every embedding as it was, bit for bit.
    """

    def __init__(self, width: int, reduction: int, residual_ratio: float) -> None:
        super().__init__()
        self.residual_ratio = residual_ratio
        self.down = nn.Linear(width, width // reduction, bias=False)
        self.up = nn.Linear(width // reduction, width, bias=False)

    def forward(self, embedding: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        if self.residual_ratio == 0:
            return embedding
        refined = torch.relu(self.up(torch.relu(self.down(embedding))))
        return self.residual_ratio * refined + (1 - self.residual_ratio) * embedding
