"""The towers and the score written out plainly, for tests to compare with."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dcmpl.model.dcmpl import DCMPL, Condition, trainable_parameters
from dcmpl.model.tokenizer import Tokenizer


def close(found: Tensor, expected: Tensor) -> None:
    """Equal but for float32 sums in another order, of values of order 1."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def all_equal(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def linear(layer: Any, x: Tensor) -> Tensor:
    mapped: Tensor = x @ layer.weight.T + layer.bias
    return mapped


def image_embedding(model: DCMPL, images: Tensor, prompts: Sequence[Tensor]) -> Tensor:
    """The image tower block by block; the slots stand last, and behind the last prompt stay."""
    tower = model.clip.visual
    x = tower.embed((images - model.mean) / model.std)
    patches = x.shape[1]
    if prompts:
        x = torch.cat([x, prompts[0].expand(len(x), -1, -1)], dim=1)
    x = tower.ln_pre(x)
    for layer, block in enumerate(tower.transformer.resblocks):
        if 0 < layer < len(prompts):
            x = torch.cat([x[:, :patches], prompts[layer].expand(len(x), -1, -1)], dim=1)
        x = block(x, causal=False)
    embedding: Tensor = tower.ln_post(x[:, 0]) @ tower.proj
    return embedding


def text_embeddings(
    model: DCMPL, tokenizer: Tokenizer, words: Sequence[str], prompts: Sequence[Tensor]
) -> Tensor:
    """The text tower block by block, one text at a time; the slots follow the start token."""
    tower, n, found = model.clip.text, len(prompts[0]) if prompts else 0, []
    for word in words:
        ids = torch.from_numpy(tokenizer([f"{word}."], n).ids[0])
        x = tower.token_embedding(ids)
        if prompts:
            x = torch.cat([x[:1], prompts[0], x[1 + n :]])
        x = x + tower.positional_embedding[: len(x)]
        for layer, block in enumerate(tower.transformer.resblocks):
            if 0 < layer < len(prompts):
                x = torch.cat([x[:1], prompts[layer], x[1 + n :]])
            x = block(x[None], causal=True)[0]
        found.append(tower.ln_final(x[-1]) @ tower.text_projection)
    return torch.stack(found)


def score(model: DCMPL, image: Tensor, text: Tensor) -> Tensor:
    """The softmax weight of the first of two texts."""
    cosine = F.cosine_similarity(image[:, None], text[None], dim=-1)
    weights: Tensor = (model.clip.logit_scale.exp() * cosine).softmax(dim=-1)
    return weights[:, 0]


def leave_gradients(model: DCMPL, score: Tensor) -> set[str]:
    """Names of the learned tensors that ``score`` depends on."""
    model.zero_grad(set_to_none=True)
    score.sum().backward()
    learned = trainable_parameters(model).items()
    return {name for name, p in learned if p.grad is not None and p.grad.any()}


def image_embeddings(model: DCMPL, frozen: Tensor, condition: Condition) -> list[Tensor]:
    """Each task's image embedding behind its adapter, as the model computes it."""
    seen, summary = model._apart(frozen, model.config.frozen_part)
    return model._adapted_embeddings(model._encoded(seen, condition.visual), summary, None)
