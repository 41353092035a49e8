"""MPA fed by what the towers made of the prompts, as CMPA's own code does it.

Both towers run block by block. Behind each block the outputs in the prompts' places are
averaged, over the pictures in one tower and over the texts in the other, and prompt
attention makes the next layer's prompts from them. The prompts found this way depend on
the pictures of the batch; the towers then run with them as with any others.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dcmpl.clip import Clip, put
from dcmpl.prompts import CoupledPrompts, LayerPrompts

__all__ = ["prompts_from_outputs"]


def prompts_from_outputs(
    prompts: CoupledPrompts,
    clip: Clip,
    ids: Int[Tensor, "texts length"],
    tokens: Float[Tensor, "batch tokens width"],
) -> LayerPrompts:
    """The prompts of all layers that both towers have, at most ``prompts.depths`` of them."""
    text, visual = prompts.first()
    made = LayerPrompts([text], [visual])
    n, patches = len(text), tokens.shape[1]
    slots = visual.to(tokens.dtype).expand(len(tokens), -1, -1)
    x_text, x_visual = clip.text.begin(ids, text), clip.visual.ln_pre(torch.cat([tokens, slots], 1))
    for layer in range(1, min(prompts.depths)):
        x_text = clip.text.transformer.resblocks[layer - 1](x_text, causal=True)
        x_visual = clip.visual.transformer.resblocks[layer - 1](x_visual, causal=False)
        text, visual = prompts.following(
            layer, x_text[:, 1 : 1 + n].mean(0), x_visual[:, patches:].mean(0)
        )
        x_text, x_visual = put(x_text, text, 1), put(x_visual, visual, patches)
        made.text.append(text)
        made.visual.append(visual)
    return made
