"""What is learned besides the adapters: prompts of both towers and how they are coupled.

Paper: Lu et al., *A Deep Cross-modal Prompt Learning Network for Artificial Intelligence
Generated Image Quality Assessment*, Displays 91, 103208 (2025); its figure and abstract.
The block of prompt attention follows the equations of CMPA, Liu et al., *Deeply Coupled
Cross-Modal Prompt Learning*, arXiv:2305.17903, eqs. 4-7; the fusion layers follow
CLIP-AGIQA, Fu et al., arXiv:2406.16641.

Differs from CMPA: it reads the prompts that entered a block, not what the block made of
them (the figure of the paper draws it so), and the text branch is updated as well.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dcmpl.clip import MLP, Attention, TowerConfig

__all__ = [
    "AuxiliaryPrompts",
    "CrossModalBlock",
    "Fusion",
    "MainPrompts",
    "PromptAttention",
    "context_tokens",
]


def _heads(width: int) -> int:
    """CLIP's and CMPA's width / 64; one head where that is no whole number."""
    return 1 if width % 64 else width // 64


def context_tokens(layers: int, n_context: int, width: int) -> nn.ParameterList:
    """One free (n_context, width) prompt per layer, drawn from N(0, 0.02^2)."""
    return nn.ParameterList(torch.randn(n_context, width) * 0.02 for _ in range(layers))


class CrossModalBlock(nn.Module):
    """Half of prompt attention: the prompts of one modality, asked by the other's.

    own' = own + MHA(q = LN1(W other), k = v = LN1(own));  out = own' + MLP(LN2(own')).
    """

    def __init__(self, width: int, other_width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(other_width, width)
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, _heads(width))
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, 4 * width, "quick_gelu")

    def forward(
        self, own: Float[Tensor, "n width"], other: Float[Tensor, "n other_width"]
    ) -> Float[Tensor, "n width"]:
        query = self.ln_1(self.proj(other))
        own = own + self.attn(query[None], self.ln_1(own)[None])[0]
        out: Tensor = own + self.mlp(self.ln_2(own))
        return out


class PromptAttention(nn.Module):
    """Multimodal prompt attention (MPA): the prompts of layer l to those of layer l + 1.

    Both halves read the old prompts of the other modality.
    """

    def __init__(self, text_width: int, vision_width: int) -> None:
        super().__init__()
        self.text = CrossModalBlock(text_width, vision_width)
        self.visual = CrossModalBlock(vision_width, text_width)

    def forward(
        self, text: Float[Tensor, "n text_width"], visual: Float[Tensor, "n vision_width"]
    ) -> tuple[Float[Tensor, "n text_width"], Float[Tensor, "n vision_width"]]:
        return self.text(text, visual), self.visual(visual, text)


class AuxiliaryPrompts(nn.Module):
    """Prompts of the alignment task: free in layer 1, from there on made by MPA."""

    def __init__(self, text: TowerConfig, vision: TowerConfig, n_context: int) -> None:
        super().__init__()
        self.depths = text.layers, vision.layers
        self.text = context_tokens(1, n_context, text.width)
        self.visual = context_tokens(1, n_context, vision.width)
        self.attention = PromptAttention(text.width, vision.width)

    def forward(self) -> tuple[list[Tensor], list[Tensor]]:
        """The text prompts and the visual prompts of every layer.

        The recursion goes as deep as the deeper tower.
        """
        text, visual = [self.text[0]], [self.visual[0]]
        for _ in range(max(self.depths) - 1):
            next_text, next_visual = self.attention(text[-1], visual[-1])
            text.append(next_text)
            visual.append(next_visual)
        return text[: self.depths[0]], visual[: self.depths[1]]


class Fusion(nn.Module):
    """Layers F_1..F_L: the main visual prompt of a layer, guided by the auxiliary one.

    P_l = F_l([V^m_l ; V^a_l]), linear 2 d_v -> d_v. All start equal and train apart.
    Nothing is detached: the main loss trains the auxiliary prompts too.
    """

    def __init__(self, layers: int, vision_width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(2 * vision_width, vision_width) for _ in range(layers)
        )
        for layer in self.layers[1:]:
            layer.load_state_dict(self.layers[0].state_dict())

    def forward(self, main: list[Tensor], auxiliary: list[Tensor]) -> list[Tensor]:
        return [
            layer(torch.cat([m, a], dim=-1))
            for layer, m, a in zip(self.layers, main, auxiliary, strict=True)
        ]


class MainPrompts(nn.Module):
    """Prompts of the quality task: free in every layer, the visual ones fused."""

    def __init__(self, text: TowerConfig, vision: TowerConfig, n_context: int) -> None:
        super().__init__()
        self.text = context_tokens(text.layers, n_context, text.width)
        self.visual = context_tokens(vision.layers, n_context, vision.width)
        self.fusion = Fusion(vision.layers, vision.width)

    def forward(self, auxiliary_visual: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The text prompts and the fused visual prompts of every layer."""
        return list(self.text), self.fusion(list(self.visual), auxiliary_visual)
