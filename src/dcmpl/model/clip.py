"""The two towers of CLIP, with a block loop that takes one prompt tensor per layer.

Paper: Radford et al., *Learning Transferable Visual Models From Natural Language
Supervision*, arXiv:2103.00020. Parameter names are OpenAI's, so their weights and
open_clip's load as they are.

The slots of prompts are *replaced* before every block that is given a prompt, as in
MaPLe (arXiv:2210.03117). Without prompts the towers are plain CLIP.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from dcmpl.model.stem import HybridStem, PatchStem, Seen
from dcmpl.model.tokenizer import Tokens
from dcmpl.model.trunk import TRUNKS

__all__ = [
    "VIT_B_32",
    "Clip",
    "ClipConfig",
    "TextTower",
    "TowerConfig",
    "VisionTower",
    "as_tensors",
    "put",
]

Activation = Literal["gelu", "quick_gelu"]
Stem = Literal["patch", "hybrid"]
Prompts = Sequence[Tensor | None]
"""One entry per block; None leaves what the block before it made in the slots."""


@dataclass(frozen=True)
class TowerConfig:
    """Sizes of one transformer. ``hidden`` is the width inside its MLPs."""

    width: int
    layers: int
    heads: int
    hidden: int
    activation: Activation
    layer_norm_eps: float = 1e-5


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of a whole CLIP.

    ``stem`` says how an image becomes tokens; ``trunk`` of ``TRUNKS`` is for a hybrid one.
    """

    vision: TowerConfig
    text: TowerConfig
    embed_dim: int
    image_size: int
    patch_size: int
    vocab_size: int
    context_length: int
    stem: Stem = "patch"
    trunk: str = "lite0"


VIT_B_32 = ClipConfig(
    vision=TowerConfig(768, 12, 12, 3072, "quick_gelu"),
    text=TowerConfig(512, 12, 8, 2048, "quick_gelu"),
    embed_dim=512,
    image_size=224,
    patch_size=32,
    vocab_size=49408,
    context_length=77,
)
"""The backbone of the paper."""


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of OpenAI's weights.

    Written with SiLU, whose gradient is one kernel and keeps one tensor instead of two.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(1.702 * x) / 1.702


ACTIVATIONS: dict[Activation, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


class MLP(nn.Module):
    """width -> hidden -> width, as in every block of CLIP and of prompt attention."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.gelu = ACTIVATIONS[activation]()
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(self.gelu(self.c_fc(x)))
        return out


class Attention(nn.Module):
    """Multi-head attention with one fused matrix for query, key and value.

    With ``context`` queries come from ``x``, keys and values from ``context``. ``extra`` tokens
    are keys and values but no queries; there may be fewer of them than of ``x``, each for an
    equal part of the batch.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        context: Float[Tensor, "batch keys width"] | None = None,
        causal: bool = False,
        extra: Float[Tensor, "*groups slots width"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        weight, bias, width = self.in_proj_weight, self.in_proj_bias, x.shape[-1]
        if context is None:
            q, k, v = F.linear(x, weight, bias).chunk(3, dim=-1)
        else:
            q = F.linear(x, weight[:width], bias[:width])
            k, v = F.linear(context, weight[width:], bias[width:]).chunk(2, dim=-1)
        if extra is not None:
            of_extra = _spread(F.linear(extra, weight[width:], bias[width:]), len(x))
            k, v = (
                torch.cat(pair, dim=1) for pair in zip((k, v), of_extra.chunk(2, -1), strict=True)
            )
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """One pre-norm residual block."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.attn = Attention(config.width, config.heads)
        self.ln_2 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.mlp = MLP(config.width, config.hidden, config.activation)

    def forward(
        self, x: Tensor, causal: bool, prompt: Tensor | None = None, first_only: bool = False
    ) -> Tensor:
        """Run the block; ``prompt`` tokens are keys and values only, their outputs are never used.

        ``first_only``: the same holds for all tokens but the first, which alone comes back.
        """
        y = self.ln_1(x)
        extra = None if prompt is None else self.ln_1(prompt)
        if first_only:
            x = x[:, :1] + self.attn(y[:, :1], context=y, extra=extra)
        else:
            x = x + self.attn(y, causal=causal, extra=extra)
        return cast(Tensor, x + self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    """Loop over blocks, the only place where deep prompts meet the tokens."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def forward(
        self,
        x: Float[Tensor, "batch tokens width"],
        deep_prompts: Prompts = (),
        start: int = 0,
        causal: bool = False,
    ) -> Float[Tensor, "batch tokens width"]:
        """Run all blocks; ``deep_prompts[i]``, ([batch,] n, width), enters block ``i + 1``.

        It replaces the tokens ``start .. start + n``.
        """
        for index, block in enumerate(self.resblocks):
            if 0 < index <= len(deep_prompts):
                x = put(x, deep_prompts[index - 1], start)
            x = block(x, causal)
        return x

    def first_token(
        self, x: Float[Tensor, "batch tokens width"], prompts: Prompts
    ) -> Float[Tensor, "batch width"]:
        """First token after the last block.

        ``prompts[i]`` stands behind ``x`` in block i. Equivalent to appending prompt tokens and
        replacing them before every block with a prompt; outputs that are never used are not
        computed.
        """
        last, tokens = len(self.resblocks) - 1, x.shape[1]
        given = [*prompts, *[None] * (last + 2 - len(prompts))]
        # Without prompts this is plain CLIP, bit for bit.
        prompted = any(prompt is not None for prompt in given)
        for index, block in enumerate(self.resblocks):
            prompt, following = given[index : index + 2]
            if prompt is not None:
                x = x[:, :tokens]
                if following is None and index < last:  # the next block reads these slots
                    x, prompt = torch.cat([x, _spread(prompt.to(x.dtype), len(x))], dim=1), None
            x = block(x, False, prompt, first_only=prompted and index == last)
        return x[:, 0]


def _spread(prompt: Tensor, batch: int) -> Tensor:
    """Expand ([groups,] n, width) to (batch, n, width), each group for an equal share."""
    if prompt.ndim == 2 or len(prompt) == 1:
        return prompt.expand(batch, -1, -1)
    return prompt.repeat_interleave(batch // len(prompt), dim=0)


def put(x: Tensor, prompt: Tensor | None, start: int) -> Tensor:
    """Replace the slots of ``x`` from ``start`` on by ``prompt``."""
    if prompt is None:
        return x
    prompt = _spread(prompt.to(x.dtype), len(x))
    return torch.cat([x[:, :start], prompt, x[:, start + prompt.shape[1] :]], dim=1)


class VisionTower(nn.Module):
    """Images to image embeddings. Prompts stand after the patches, without position."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width = config.vision.width
        sizes = config.image_size, config.patch_size, width
        self.stem: PatchStem | HybridStem
        if config.stem == "hybrid":
            self.stem = HybridStem(*sizes, TRUNKS[config.trunk])
        else:
            self.stem = PatchStem(*sizes)
        tokens = (config.image_size // config.patch_size) ** 2 + 1
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(tokens, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width, eps=config.vision.layer_norm_eps)
        self.transformer = Transformer(config.vision)
        self.ln_post = nn.LayerNorm(width, eps=config.vision.layer_norm_eps)
        self.proj = nn.Parameter(torch.randn(width, config.embed_dim) * width**-0.5)

    def embed(
        self, images: Float[Tensor, "batch 3 size size"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Class token and patches with their positions, before any prompt."""
        return self.join(self.stem(images))

    def join(self, seen: Seen) -> Float[Tensor, "batch tokens width"]:
        """Class token and patches of the stem's output, with positions."""
        cls = self.class_embedding + seen.first
        return torch.cat([cls[:, None], seen.patches], dim=1) + self.positional_embedding

    def encode(
        self, tokens: Float[Tensor, "batch tokens width"], prompts: Prompts = ()
    ) -> Float[Tensor, "batch joint"]:
        """Run the blocks; ``prompts`` has one entry per block, first to last.

        Each is (n, width), or (groups, n, width) with one for each equal part of the batch.
        """
        if prompts and prompts[0] is not None:
            prompts = [self.ln_pre(prompts[0]), *prompts[1:]]
        x = self.transformer.first_token(self.ln_pre(tokens), prompts)
        return cast(Tensor, self.ln_post(x) @ self.proj)

    def forward(
        self, images: Float[Tensor, "batch 3 size size"], prompts: Prompts = ()
    ) -> Float[Tensor, "batch joint"]:
        return self.encode(self.embed(images), prompts)


def as_tensors(
    tokens: Tokens, device: torch.device | str = "cpu"
) -> tuple[Int[Tensor, "texts length"], Int[Tensor, " texts"]]:
    """Ids and places of the end tokens, as a text tower on ``device`` takes them."""
    return torch.from_numpy(tokens.ids).to(device), torch.from_numpy(tokens.end).to(device)


class TextTower(nn.Module):
    """Token ids to text embeddings. Prompts stand in positions 1..n, after the start token."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width = config.text.width
        self.token_embedding = nn.Embedding(config.vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.randn(config.context_length, width) * 0.01)
        self.transformer = Transformer(config.text)
        self.ln_final = nn.LayerNorm(width, eps=config.text.layer_norm_eps)
        self.text_projection = nn.Parameter(torch.randn(width, config.embed_dim) * width**-0.5)
        nn.init.normal_(self.token_embedding.weight, std=0.02)

    def forward(
        self,
        ids: Int[Tensor, "texts length"],
        end: Int[Tensor, " texts"],
        prompts: Prompts = (),
    ) -> Float[Tensor, "texts joint"]:
        """Text embeddings; ``end`` is the position of each text's end token, later tokens are cut.

        The mask is causal, so nothing behind the end token can reach it and the cut
        changes no result.
        """
        ids = ids[:, : int(end.max()) + 1]
        x = put(self.token_embedding(ids), prompts[0] if prompts else None, 1)
        x = x + self.positional_embedding[: ids.shape[1]]
        x = self.transformer(x, prompts[1:], 1, causal=True)
        rows = torch.arange(len(x), device=x.device)
        return cast(Tensor, self.ln_final(x[rows, end]) @ self.text_projection)


class Clip(nn.Module):
    """Both towers and the logit scale, the logarithm of the factor of a cosine."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = VisionTower(config)
        self.text = TextTower(config)
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))  # ln(1 / 0.07), CLIP's start
