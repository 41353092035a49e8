"""DCMPL: a frozen CLIP, prompts in every block, and two scores per picture.

Paper: Lu et al., Displays 91, 103208 (2025). The auxiliary task (alignment) and the main
task (quality) run through the same frozen towers with prompts of their own; the visual
prompts of the main task are guided by the auxiliary ones.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dcmpl.adapter import ImageAdapter
from dcmpl.clip import Clip
from dcmpl.config import ModelConfig, WordPair
from dcmpl.prompts import AuxiliaryPrompts, MainPrompts
from dcmpl.tokenizer import Tokenizer

__all__ = ["DCMPL", "Condition", "Scores", "is_trainable", "trainable_parameters"]

NORMALIZATION = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


@dataclass(frozen=True)
class Scores:
    """One number per picture and task, each in [0, 1], higher is better."""

    quality: Float[Tensor, " batch"]
    alignment: Float[Tensor, " batch"]


@dataclass(frozen=True)
class Condition:
    """All that a score needs and that no picture changes.

    ``prompts[l]`` (2, n, width) holds layer l's visual prompts of quality and alignment;
    ``text_features`` (2, 2, joint) are unit vectors, (task, positive / negative).
    """

    prompts: list[Float[Tensor, "tasks n width"]]
    text_features: Float[Tensor, "tasks words joint"]


def is_trainable(name: str) -> bool:
    """Whether the parameter of that name is learned: all but the backbone is.

    Freezing, the optimiser, checkpoints and counts all ask here.
    """
    return not name.startswith("clip.")


class DCMPL(nn.Module):
    """``model(images)`` gives :class:`Scores`; ``images`` are RGB in [0, 1], (N, 3, S, S)."""

    mean: Tensor
    std: Tensor

    def __init__(self, clip: Clip, tokenizer: Tokenizer, config: ModelConfig, seed: int) -> None:
        super().__init__()
        sizes = clip.config
        self.config = config
        self.clip = clip
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.alignment_prompts = AuxiliaryPrompts(sizes.text, sizes.vision, config.n_context)
            self.quality_prompts = MainPrompts(sizes.text, sizes.vision, config.n_context)
            self.quality_adapter, self.alignment_adapter = (
                ImageAdapter(sizes.embed_dim, config.adapter_reduction, config.adapter_ratio)
                for _ in range(2)
            )
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(is_trainable(name))
        for name, value in zip(("mean", "std"), NORMALIZATION[config.normalization], strict=True):
            self.register_buffer(name, torch.tensor(value)[:, None, None], persistent=False)
        for task, words in self._word_pairs():
            tokens = tokenizer([f"{words.positive}.", f"{words.negative}."], config.n_context)
            self.register_buffer(f"{task}_ids", tokens.ids, persistent=False)
            self.register_buffer(f"{task}_end", tokens.end, persistent=False)

    def _word_pairs(self) -> Iterator[tuple[str, WordPair]]:
        yield "quality", self.config.quality_words
        yield "alignment", self.config.alignment_words

    def condition(self) -> Condition:
        """Prompts and text features for the present weights."""
        auxiliary_text, auxiliary_visual = self.alignment_prompts()
        main_text, main_visual = self.quality_prompts(auxiliary_visual)
        quality = self.clip.text(self.quality_ids, self.quality_end, main_text)
        alignment = self.clip.text(self.alignment_ids, self.alignment_end, auxiliary_text)
        return Condition(
            prompts=[torch.stack(pair) for pair in zip(main_visual, auxiliary_visual, strict=True)],
            text_features=F.normalize(torch.stack([quality, alignment]).float(), dim=-1),
        )

    def embed(self, images: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "b t width"]:
        """Tokens of the pictures before the first block; nothing in them is learned here."""
        with torch.no_grad():
            tokens: Tensor = self.clip.visual.embed((images - self.mean) / self.std)
        return tokens

    def score_tokens(
        self, tokens: Float[Tensor, "batch tokens width"], condition: Condition
    ) -> Scores:
        """Both tasks' scores; the two image passes run as one batch."""
        n = len(tokens)
        prompts = [layer.repeat_interleave(n, dim=0) for layer in condition.prompts]
        embedding = self.clip.visual.encode(tokens.repeat(2, 1, 1), prompts).unflatten(0, (2, n))
        refined = torch.stack(
            [self.quality_adapter(embedding[0]), self.alignment_adapter(embedding[1])]
        )
        # Whatever the towers' precision: a logit of 100 times a cosine needs more than 3 digits.
        with torch.autocast(refined.device.type, enabled=False):
            cosine = F.normalize(refined.float(), dim=-1) @ condition.text_features.mT
            logits = self.clip.logit_scale.float().exp() * cosine
            quality, alignment = logits.softmax(dim=-1)[..., 0]
        return Scores(quality, alignment)

    def forward(
        self, images: Float[Tensor, "batch 3 size size"], condition: Condition | None = None
    ) -> Scores:
        """Score ``images``; pass a :meth:`condition` to compute it once for many batches."""
        return self.score_tokens(self.embed(images), condition or self.condition())


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The learned tensors by name."""
    return {name: p for name, p in model.named_parameters() if is_trainable(name)}
