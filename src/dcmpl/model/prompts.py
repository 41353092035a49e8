"""Context tokens and deep prompts of both towers, and their coupling.

Paper: Lu et al., *A Deep Cross-modal Prompt Learning Network for Artificial Intelligence
Generated Image Quality Assessment*, Displays 91, 103208 (2025); its figure and abstract.
The fusion layers follow CLIP-AGIQA, Fu et al., arXiv:2406.16641; visual prompts made from
text are MaPLe's, Khattak et al., arXiv:2210.03117.

Differs from CMPA: MPA reads the prompts that entered a layer, not what the layer made of them
(the figure of the paper draws it so), and text prompts change as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dcmpl.config import FusionConfig, ModelConfig, MpaConfig
from dcmpl.model.clip import TowerConfig
from dcmpl.model.prompt_attention import prompt_attention

__all__ = [
    "CoupledPrompts",
    "FreePrompts",
    "Fusion",
    "LayerPrompts",
    "context_tokens",
]


@dataclass(frozen=True)
class LayerPrompts:
    """Prompts of every layer: ``text[l]`` (n, text width) and ``visual[l]`` (n, vision width).

    Behind the last of them a tower goes on with what its blocks made of them.
    """

    text: list[Tensor]
    visual: list[Tensor]


def context_tokens(layers: int, n_context: int, width: int) -> nn.ParameterList:
    """One free (n_context, width) prompt per layer, drawn from N(0, 0.02^2)."""
    return nn.ParameterList(torch.randn(n_context, width) * 0.02 for _ in range(layers))


def _equal_layers(count: int, into: int, out: int, equal: bool = True) -> nn.ModuleList:
    """Linear layers, one per layer; with ``equal`` all start as copies of the first."""
    layers = nn.ModuleList(nn.Linear(into, out) for _ in range(count))
    for layer in layers[1:] if equal else ():
        layer.load_state_dict(layers[0].state_dict())
    return layers


def _upto(depth: int | None, layers: int) -> int:
    return layers if depth is None else min(depth, layers)


class FreePrompts(nn.Module):
    """Free prompts in every layer; visual prompts may be linear maps of the text prompts."""

    def __init__(self, text: TowerConfig, vision: TowerConfig, config: ModelConfig) -> None:
        super().__init__()
        n, text_depth = config.n_context, _upto(config.text_depth, text.layers)
        visual_depth = _upto(config.vision_depth, vision.layers)
        self.text = context_tokens(text_depth, n, text.width)
        self.from_text = None
        if config.vision_source == "text":
            visual_depth = min(visual_depth, text_depth)
            self.from_text = _equal_layers(visual_depth, text.width, vision.width)
            visual_depth = 0
        self.visual = context_tokens(visual_depth, n, vision.width)
        self.depths = text_depth, len(self.from_text or self.visual)

    def forward(self) -> LayerPrompts:
        visual = list(self.visual)
        if self.from_text is not None:
            visual = [layer(t) for layer, t in zip(self.from_text, self.text, strict=False)]
        return LayerPrompts(list(self.text), visual)


class CoupledPrompts(nn.Module):
    """Prompts of the auxiliary task: free in layer 1, then produced by prompt attention.

    The recursion goes as deep as the deeper tower; what only the shallower one would read
    behind its last layer is not made.
    """

    def __init__(self, text: TowerConfig, vision: TowerConfig, config: ModelConfig) -> None:
        super().__init__()
        self.config = config.mpa
        depths = [_upto(config.mpa.depth, tower.layers) for tower in (text, vision)]
        self.depths = depths[0], depths[1]
        deepest = max(depths)
        # A layer's prompts are read by its tower, and by the attention that makes the next.
        read = [max(depth, deepest - 1) for depth in depths]
        free = {
            "generated": [1, 1],
            "generated_plus_free": read,
            "independent": [deepest, deepest],
        }[self.config.deep]
        if self.config.deep == "independent":
            read = depths
        self.text = context_tokens(free[0], config.n_context, text.width)
        self.visual = context_tokens(free[1], config.n_context, vision.width)
        made = range(2, deepest + 1)
        if self.config.share == "shared":
            made = made[:1]
        self.attention = nn.ModuleList(
            prompt_attention(text.width, vision.width, self._halves(layer, read)) for layer in made
        )

    def _halves(self, layer: int, read: Sequence[int]) -> MpaConfig:
        """Configuration of the block that produces ``layer``, without a half that is never read."""
        is_both = self.config.directions == "both" and self.config.form != "joint"
        if self.config.share == "shared" or not is_both or layer <= min(read):
            return self.config
        if read[0] < read[1]:
            return replace(self.config, directions="text_to_vision")
        return replace(self.config, directions="vision_to_text")

    def first(self) -> tuple[Tensor, Tensor]:
        """Text and visual prompts of layer 1."""
        return self.text[0], self.visual[0]

    def following(self, layer: int, text: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
        """Prompts of the layer after ``layer`` (from 1), given its own."""
        attention = self.attention[layer - 1 if self.config.share == "per_layer" else 0]
        if self.config.deep == "independent":
            text, visual = self.text[layer], self.visual[layer]
        text, visual = attention(text, visual)
        if self.config.deep == "generated_plus_free":
            text = text + self.text[layer] if layer < len(self.text) else text
            visual = visual + self.visual[layer] if layer < len(self.visual) else visual
        return text, visual

    def forward(self) -> LayerPrompts:
        made = [self.first()]
        for layer in range(1, max(self.depths)):
            made.append(self.following(layer, *made[-1]))
        text, visual = (list(prompts) for prompts in zip(*made, strict=True))
        return LayerPrompts(text[: self.depths[0]], visual[: self.depths[1]])


class Fusion(nn.Module):
    """Layers F_1..F_L: the main visual prompt of a layer, guided by an auxiliary one.

    P_l = F_l([V^m_l ; V^a_l]), linear 2 d_v -> d_v. Where there is no auxiliary prompt to
    guide it, the main one stays as it is.
    """

    def __init__(self, main: int, auxiliary: int, vision_width: int, config: FusionConfig) -> None:
        """Build fusion layers for ``main`` and ``auxiliary``, the layers that have prompts."""
        super().__init__()
        self.config = config
        both = main if config.aux_tap == "first_layer" else min(main, auxiliary)
        count = _upto(config.depth, both)
        self.layers = _equal_layers(count, 2 * vision_width, vision_width, config.clone_start)

    def forward(self, main: list[Tensor], auxiliary: list[Tensor]) -> list[Tensor]:
        if self.config.aux_tap == "first_layer":
            auxiliary = [auxiliary[0] for _ in main]
        if self.config.detach_aux:
            auxiliary = [prompt.detach() for prompt in auxiliary]
        fused = [
            layer(torch.cat([m, a], dim=-1))
            for layer, m, a in zip(self.layers, main, auxiliary, strict=False)
        ]
        return [*fused, *main[len(fused) :]]
