"""Multimodal prompt attention (MPA): the prompts of a layer produce those of the next.

The block follows the equations of CMPA, Liu et al., *Deeply Coupled Cross-Modal Prompt
Learning*, arXiv:2305.17903, eqs. 4-7; its other forms are the open choices of the paper,
which prints no equation. In all of them both halves read the old prompts of the other
modality, and what a direction leaves out passes unchanged.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dcmpl.config import MpaConfig
from dcmpl.model.clip import MLP, Attention

__all__ = ["CrossModalBlock", "JointBlock", "prompt_attention"]

TextPrompt = Float[Tensor, "n text_width"]
VisualPrompt = Float[Tensor, "n vision_width"]


def _heads(width: int) -> int:
    """Number of heads: width / 64 as in CLIP and CMPA; one where that is no whole number."""
    return 1 if width % 64 else width // 64


class CrossModalBlock(nn.Module):
    """Half of prompt attention: the prompts of one modality attend to the other's.

    own' = own + MHA(q = LN1(W other), k = v = LN1(own));  out = own' + MLP(LN2(own')).
    With ``swapped`` the query is own and key and value are the other's; without ``mlp``
    own' is the result.
    """

    def __init__(
        self, width: int, other_width: int, mlp: bool = True, swapped: bool = False
    ) -> None:
        super().__init__()
        self.swapped = swapped
        self.proj = nn.Linear(other_width, width)
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, _heads(width))
        self.ln_2 = nn.LayerNorm(width) if mlp else None
        self.mlp = MLP(width, 4 * width, "quick_gelu") if mlp else None

    def forward(
        self, own: Float[Tensor, "n width"], other: Float[Tensor, "n other_width"]
    ) -> Float[Tensor, "n width"]:
        asking, asked = self.ln_1(self.proj(other)), self.ln_1(own)
        if self.swapped:
            asking, asked = asked, asking
        own = own + self.attn(asking[None], asked[None])[0]
        if self.mlp is None or self.ln_2 is None:
            return own
        out: Tensor = own + self.mlp(self.ln_2(own))
        return out

    def residual_ends(self) -> list[nn.Linear]:
        """Last layers of the residual branches."""
        return [self.attn.out_proj, *([self.mlp.c_proj] if self.mlp is not None else [])]


class CrossModalAttention(nn.Module):
    """Prompt attention as in CMPA: one half for each modality to update."""

    def __init__(self, text_width: int, vision_width: int, config: MpaConfig) -> None:
        super().__init__()
        form = {"mlp": config.form != "cmpa_no_mlp", "swapped": config.form == "swapped_query"}
        changes_text = config.directions in ("both", "vision_to_text")
        changes_visual = config.directions in ("both", "text_to_vision")
        self.text = CrossModalBlock(text_width, vision_width, **form) if changes_text else None
        self.visual = CrossModalBlock(vision_width, text_width, **form) if changes_visual else None

    def forward(self, text: TextPrompt, visual: VisualPrompt) -> tuple[TextPrompt, VisualPrompt]:
        next_text = text if self.text is None else self.text(text, visual)
        return next_text, visual if self.visual is None else self.visual(visual, text)

    def residual_ends(self) -> list[nn.Linear]:
        halves = (half for half in (self.text, self.visual) if half is not None)
        return [layer for half in halves for layer in half.residual_ends()]


class JointBlock(nn.Module):
    """Prompt attention as in MuDPT: one self-attention over the prompts of both modalities.

    Miao et al., arXiv:2306.11400. The text prompts enter and leave by linear maps; x is
    [W_in T ; V], x' = x + MHA(LN1(x)), x'' = x' + MLP(LN2(x')); V comes from its half of
    x'', T is T + W_out of the other half.
    """

    def __init__(self, text_width: int, vision_width: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(text_width, vision_width)
        self.ln_1 = nn.LayerNorm(vision_width)
        self.attn = Attention(vision_width, _heads(vision_width))
        self.ln_2 = nn.LayerNorm(vision_width)
        self.mlp = MLP(vision_width, 4 * vision_width, "quick_gelu")
        self.proj_out = nn.Linear(vision_width, text_width)

    def forward(self, text: TextPrompt, visual: VisualPrompt) -> tuple[TextPrompt, VisualPrompt]:
        x = torch.cat([self.proj_in(text), visual])
        x = x + self.attn(self.ln_1(x)[None])[0]
        x = x + self.mlp(self.ln_2(x))
        return text + self.proj_out(x[: len(text)]), x[len(text) :]

    def residual_ends(self) -> list[nn.Linear]:
        return [self.attn.out_proj, self.mlp.c_proj, self.proj_out]


def prompt_attention(text_width: int, vision_width: int, config: MpaConfig) -> nn.Module:
    """Prompt attention block of the form in ``config``: (text, visual) -> (text, visual).

    With ``identity_start`` it begins by changing nothing.
    """
    block: JointBlock | CrossModalAttention
    if config.form == "joint":
        block = JointBlock(text_width, vision_width)
    else:
        block = CrossModalAttention(text_width, vision_width, config)
    if config.identity_start:
        for layer in block.residual_ends():
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return block
