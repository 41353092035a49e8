"""Prompt-conditioned alignment: prompt tokens cross-attend to image patches and add a logit offset.

Where the paper's alignment never reads the prompt, this does: the text goes through the
prompted text tower, its words attend to one another and to the patches of the auxiliary
branch, and what they find moves the logit of the word pair. It starts at nothing, so the
model begins as the paper's.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dcmpl.model.clip import Block, TextTower, TowerConfig
from dcmpl.model.tokenizer import Tokens

__all__ = ["Reader", "Reading", "Texts"]

BLOCKS, HEAD, MOST = 2, 64, 256


@dataclass(frozen=True)
class Texts:
    """Tokenised prompts of a batch: ``own[i]`` is the row of image i's prompt in ``tokens``.

    ``other[i]`` is the row of a negative prompt, for the matching loss.
    """

    tokens: Tokens
    own: Int[Tensor, " batch"]
    other: Int[Tensor, " batch"] | None = None


@dataclass(frozen=True)
class Reading:
    """Encoded prompts of a batch, and the row of each image's prompt.

    ``words`` are the states of the tokens, ``keep`` masks the padding, ``vectors`` are the
    unit embeddings of whole texts.
    """

    words: Float[Tensor, "texts length width"]
    keep: Bool[Tensor, "texts length"]
    end: Int[Tensor, " texts"]
    vectors: Float[Tensor, "texts joint"]

    def of(self, rows: Int[Tensor, " batch"]) -> "Reading":
        """Reading of one prompt per image."""
        return Reading(self.words[rows], self.keep[rows], self.end[rows], self.vectors[rows])

    @staticmethod
    def begin(
        tower: TextTower,
        ids: Int[Tensor, "texts length"],
        end: Int[Tensor, " texts"],
        prompts: list[Tensor],
    ) -> "Reading":
        """Encode prompts with the context tokens ``prompts`` of the reading branch."""
        ids = ids[:, : int(end.max()) + 1]
        states = tower.states(ids, prompts)
        places = torch.arange(ids.shape[1], device=ids.device)
        vectors = F.normalize(tower.at_end(states, end).float(), dim=-1)
        return Reading(tower.ln_final(states), places <= end[:, None], end, vectors)


class ReadingBlock(Block):
    """Transformer block of query tokens: self-attention, then cross-attention to the patches."""

    def forward(  # type: ignore[override]  # patches, where a tower's block has its prompts
        self,
        x: Float[Tensor, "batch words width"],
        patches: Float[Tensor, "batch patches width"],
        keep: Bool[Tensor, "batch keys"],
    ) -> Float[Tensor, "batch words width"]:
        y = self.ln_1(x)
        x = x + self.attn(y, context=torch.cat([y, self.ln_1(patches)], dim=1), keep=keep)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Reader(nn.Module):
    """Prompt reader: the offset that an image's prompt adds to its alignment logit.

    A linear map of the end token, behind blocks in which all words ask the patches, and of
    the cosine of image and text.
    """

    def __init__(self, text_width: int, vision_width: int) -> None:
        super().__init__()
        width = min(max(HEAD, vision_width // HEAD * HEAD), MOST)
        config = TowerConfig(width, BLOCKS, width // HEAD, 4 * width, "quick_gelu")
        self.ln_patches = nn.LayerNorm(vision_width)
        self.from_words = nn.Linear(text_width, width)
        self.from_patches = nn.Linear(vision_width, width)
        self.blocks = nn.ModuleList(ReadingBlock(config) for _ in range(BLOCKS))
        self.ln = nn.LayerNorm(width)
        self.out = nn.Linear(width + 1, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        embedding: Float[Tensor, "batch joint"],
        patches: Float[Tensor, "batch patches width"],
        reading: Reading,
    ) -> Float[Tensor, " batch"]:
        """Logit offsets (N,); ``embedding`` of any length, one prompt per image in ``reading``."""
        x = self.from_words(reading.words)
        asked = self.from_patches(self.ln_patches(patches))
        seen = reading.keep.new_ones(asked.shape[:2])
        keep = torch.cat([reading.keep, seen], dim=1)
        for block in self.blocks:
            x = block(x, asked, keep)
        rows = torch.arange(len(x), device=x.device)
        found = self.ln(x[rows, reading.end])
        cosine = (F.normalize(embedding.float(), dim=-1) * reading.vectors).sum(-1, keepdim=True)
        logit: Tensor = self.out(torch.cat([found, cosine.to(found.dtype)], dim=-1))[:, 0]
        return logit
