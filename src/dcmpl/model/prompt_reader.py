"""Prompt-conditioned alignment: how near the prompt of an image is to it moves the alignment logit.

Where the paper's alignment never reads the prompt, this does: the text goes through the
prompted text tower, and its cosine to the image embedding of the auxiliary branch is added to
the logit of the word pair. It starts at nothing, so the model begins as the paper's.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dcmpl.model.clip import TextTower, as_tensors
from dcmpl.model.tokenizer import Tokens

__all__ = ["Reader", "Texts", "text_vectors"]


@dataclass(frozen=True)
class Texts:
    """Tokenised prompts of a batch: ``own[i]`` is the row of image i's prompt in ``tokens``."""

    tokens: Tokens
    own: Int[Tensor, " batch"]


def text_vectors(
    tower: TextTower, tokens: Tokens, prompts: list[Tensor]
) -> Float[Tensor, "texts joint"]:
    """Unit text embeddings of image prompts, with the context tokens ``prompts``."""
    ids, end = as_tensors(tokens, tower.positional_embedding.device)
    return F.normalize(tower(ids, end, prompts).float(), dim=-1)


class Reader(nn.Module):
    """Prompt reader: the offset that an image's prompt adds to its alignment logit.

    A learned share of CLIP's own logit, exp(logit scale) times the cosine, and a constant.
    """

    def __init__(self) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.zeros(()))
        self.constant = nn.Parameter(torch.zeros(()))

    def forward(self, logits: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Logit offsets (N,); ``logits`` are CLIP's own of images and their prompts."""
        return self.share * logits + self.constant
