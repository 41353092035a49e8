"""DCMPL: a frozen CLIP, prompts in its blocks, and one score per image and task.

Paper: Lu et al., Displays 91, 103208 (2025). The auxiliary task (alignment) and the main
task (quality) run through the same frozen towers with prompts of their own; the visual
prompts of the main task are guided by the auxiliary ones. Every rival of its line is a
configuration of the same parts (``dcmpl.presets``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dcmpl.config import ModelConfig
from dcmpl.errors import UsageError
from dcmpl.model.adapter import Dropout, ImageAdapter
from dcmpl.model.clip import Clip, as_tensors
from dcmpl.model.prompt_reader import Reader, Texts, text_vectors
from dcmpl.model.prompts import (
    CoupledPrompts,
    FreePrompts,
    Fusion,
    LayerPrompts,
)
from dcmpl.model.stem import NORMALIZATION, TRUNK_NORMALIZATION, Seen
from dcmpl.model.tokenizer import Tokenizer, Tokens

__all__ = [
    "DCMPL",
    "Condition",
    "Scores",
    "is_trainable",
    "trainable_parameters",
]


@dataclass(frozen=True)
class Scores:
    """One number per task and image, each in [0, 1], higher is better.

    ``mismatch``: where texts were read, the cross-entropy of telling an image's own text from
    all others of the batch by CLIP's own logits.
    """

    tasks: tuple[str, ...]
    values: Float[Tensor, "tasks batch"]
    mismatch: Float[Tensor, " batch"] | None = None

    def __getitem__(self, task: str) -> Float[Tensor, " batch"]:
        if task not in self.tasks:
            raise UsageError(f"one of this model's tasks ({', '.join(self.tasks)})", task)
        return self.values[self.tasks.index(task)]

    @property
    def quality(self) -> Float[Tensor, " batch"]:
        """Quality scores (N,); raises :class:`UsageError` for a model without that task."""
        return self["quality"]

    @property
    def alignment(self) -> Float[Tensor, " batch"]:
        """Alignment scores (N,); raises :class:`UsageError` for a model without that task."""
        return self["alignment"]


@dataclass(frozen=True)
class Condition:
    """Visual prompts and text vectors of a model: what a score needs beside the image.

    ``visual[b][l]`` (n, width) is layer l's visual prompt of the main branch (b = 0) or the
    auxiliary one; ``words[t]`` (2 pairs, joint) are task t's unit text vectors, each
    positive word before its negative. ``text`` are the text prompts of the branch that reads.
    """

    visual: list[list[Float[Tensor, "n width"]]]
    words: list[Float[Tensor, "_ joint"]]
    text: list[Float[Tensor, "n text_width"]]


def is_trainable(name: str) -> bool:
    """Whether the parameter called ``name`` is learned: all but the backbone's.

    Freezing, the optimiser, checkpoints and counts all ask here.
    """
    return not name.startswith("clip.")


class DCMPL(nn.Module):
    """``model(images)`` gives :class:`Scores`; ``images`` are RGB in [0, 1], (N, 3, S, S)."""

    mean: Tensor
    std: Tensor

    def __init__(self, clip: Clip, tokenizer: Tokenizer, config: ModelConfig, seed: int) -> None:
        super().__init__()
        text, vision = clip.config.text, clip.config.vision
        if clip.config.stem == "hybrid" and config.normalization != TRUNK_NORMALIZATION:
            raise UsageError(
                f"model.normalization={TRUNK_NORMALIZATION} for a backbone with a trunk",
                config.normalization,
                "leave it out",
            )
        self.config = config
        self.clip = clip
        self.tokenizer = tokenizer
        self.auxiliary: CoupledPrompts | FreePrompts | None = None
        self.fusion: Fusion | None = None
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            if len(config.tasks) > 1:
                kind = FreePrompts if config.mpa.form == "none" else CoupledPrompts
                self.auxiliary = kind(text, vision, config)
            self.main = FreePrompts(text, vision, config)
            if config.fusion.on and self.auxiliary is not None:
                depths = self.main.depths[1], self.auxiliary.depths[1]
                self.fusion = Fusion(*depths, vision.width, config.fusion)
            summed = clip.visual.stem.numbers if config.adapter.reads_summary else 0
            self.adapters = nn.ModuleDict(
                {
                    task: ImageAdapter(clip.config.embed_dim, config.adapter, summed)
                    for task in self._adapted
                }
            )
            if config.reads_prompt:
                self.reader = Reader()
            if config.readout == "linear":
                self.linear = nn.Linear(clip.config.embed_dim, len(config.tasks))
                nn.init.zeros_(self.linear.weight)
                nn.init.zeros_(self.linear.bias)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(is_trainable(name))
        for name, value in zip(("mean", "std"), NORMALIZATION[config.normalization], strict=True):
            self.register_buffer(name, torch.tensor(value)[:, None, None], persistent=False)
        for task, pairs in config.words.items():
            slots = config.n_context if len(self._branch(task).text) else 0
            tokens = tokenizer([f"{word}." for pair in pairs for word in pair], slots)
            for part, numbers in zip(("ids", "end"), as_tensors(tokens), strict=True):
                self.register_buffer(f"{task}_{part}", numbers, persistent=False)

    @property
    def _adapted(self) -> tuple[str, ...]:
        """Tasks with an adapter of their own; a shared adapter is the first task's."""
        tasks, where = self.config.tasks, self.config.adapter
        chosen = {"both": tasks, "main": tasks[:1], "aux": tasks[1:], "none": ()}[where.where]
        return chosen[:1] if where.shared else chosen

    def _branch(self, task: str) -> CoupledPrompts | FreePrompts:
        if self.auxiliary is None or task == self.config.tasks[0]:
            return self.main
        return self.auxiliary

    @property
    def reads_prompt(self) -> bool:
        """Whether alignment reads the prompt of the image."""
        return self.config.reads_prompt

    @property
    def reading_branch(self) -> int:
        """Branch whose context tokens read the prompt of the image: alignment's."""
        return int(self.auxiliary is not None and self.config.tasks[0] != "alignment")

    def tokens_of(self, texts: Sequence[str]) -> Tokens:
        """Token ids of image prompts, behind the slots of context tokens.

        One too long loses its end; :meth:`Tokenizer.parts` says how much.
        """
        return self.tokenizer(texts, self.slots)

    @property
    def slots(self) -> int:
        """Number of slots of context tokens in an image prompt."""
        branch = self.auxiliary if self.reading_branch else self.main
        return self.config.n_context if branch is not None and len(branch.text) else 0

    def frozen(self, images: Float[Tensor, "batch 3 size size"]) -> Tensor:
        """Frozen features of images: what the towers make of them before anything learned.

        Tokens before the first block, (N, tokens, width); where no visual prompt is learned,
        the image embedding, (N, joint). Where the stem has a summary, that stands behind them:
        (N, tokens * width + numbers) or (N, joint + numbers).
        """
        with torch.no_grad():
            return self.frozen_of(
                self.tokens_seen(self.clip.visual.stem((images - self.mean) / self.std))
            )

    def tokens_seen(self, seen: Seen) -> Tensor:
        """Tokens before the first block, and the summary behind them where there is one."""
        tokens = self.clip.visual.join(seen)
        if not self.clip.visual.stem.numbers:
            return tokens
        return torch.cat([tokens.flatten(1), seen.summary], dim=1)

    def frozen_of(self, tokens_seen: Tensor) -> Tensor:
        """Frozen features of images, from what :meth:`tokens_seen` gave for them."""
        if self.config.frozen_part == "tokens":
            return tokens_seen
        tokens, summary = self._apart(tokens_seen, "tokens")
        embedding = self.clip.visual.encode(tokens)
        return embedding if summary is None else torch.cat([embedding, summary], dim=1)

    def plain_embedding(self, frozen: Tensor) -> Float[Tensor, "batch joint"]:
        """Image embedding without deep prompts, from frozen features."""
        part = self.config.frozen_part
        seen, _ = self._apart(frozen, part)
        return self.clip.visual.encode(seen) if part == "tokens" else seen

    def _apart(
        self, frozen: Tensor, part: Literal["tokens", "embedding"]
    ) -> tuple[Tensor, Tensor | None]:
        """``part`` of frozen features, and the stem's summary (N, numbers) where it has one."""
        numbers = self.clip.visual.stem.numbers
        if not numbers:
            return frozen, None
        seen, summary = frozen.split([frozen.shape[1] - numbers, numbers], dim=1)
        if part == "tokens":
            seen = seen.unflatten(1, (-1, self.clip.config.vision.width))
        return seen, summary

    def prompts(self) -> list[LayerPrompts]:
        """Prompts of the main branch and, in a model with two branches, of the auxiliary branch."""
        main = self.main()
        if self.auxiliary is None:
            return [main]
        auxiliary = self.auxiliary()
        if self.fusion is not None:
            main = LayerPrompts(main.text, self.fusion(main.visual, auxiliary.visual))
        return [main, auxiliary]

    def condition(self) -> Condition:
        """Visual prompts and text vectors for the present weights."""
        branches = self.prompts()
        if self.config.round_prompts:
            branches = [_rounded(branch) for branch in branches]
        words = []
        if self.config.readout == "words":
            for index, task in enumerate(self.config.tasks):
                ids, end = getattr(self, f"{task}_ids"), getattr(self, f"{task}_end")
                text = self.clip.text(ids, end, branches[min(index, len(branches) - 1)].text)
                words.append(F.normalize(text.float(), dim=-1))
        text = branches[self.reading_branch].text
        return Condition([branch.visual for branch in branches], words, text)

    def score(
        self,
        frozen: Tensor,
        condition: Condition | None = None,
        texts: Texts | None = None,
        dropout: Dropout | None = None,
    ) -> Scores:
        """Scores of every task from frozen features.

        Without ``texts`` alignment is judged from the image alone. ``dropout`` is for training.
        """
        if condition is None:
            condition = self.condition()
        seen, summary = self._apart(frozen, self.config.frozen_part)
        encoded = self._encoded(seen, condition.visual)
        embeddings = self._adapted_embeddings(encoded, summary, dropout)
        vectors = None
        if texts is not None and self.reads_prompt:
            vectors = text_vectors(self.clip.text, texts.tokens, condition.text)
        # Whatever the towers' precision: a logit of 100 times a cosine needs more than 3 digits.
        with torch.autocast(frozen.device.type, enabled=False):
            if self.config.readout == "linear":
                values = self.linear(embeddings[0].float()).clamp(0, 1).T
                return Scores(self.config.tasks, values)
            added, mismatch = None, None
            if texts is not None and vectors is not None:
                own = texts.own.to(frozen.device)
                seen = embeddings[self.config.tasks.index("alignment")].float()
                logits = self.logits(seen, vectors)
                added = self.reader(logits.gather(1, own[:, None])[:, 0])
                mismatch = F.cross_entropy(logits, own, reduction="none")
            values = torch.stack(
                [
                    self._score(e.float(), words, added if task == "alignment" else None)
                    for task, e, words in zip(
                        self.config.tasks, embeddings, condition.words, strict=True
                    )
                ]
            )
        return Scores(self.config.tasks, values, mismatch)

    def logits(
        self, embedding: Float[Tensor, "batch joint"], vectors: Float[Tensor, "texts joint"]
    ) -> Float[Tensor, "batch texts"]:
        """CLIP's own logits: exp(logit scale) times the cosine to unit ``vectors``."""
        scale: Tensor = self.clip.logit_scale.float().exp()
        return scale * (F.normalize(embedding, dim=-1) @ vectors.T)

    def _score(
        self, embedding: Float[Tensor, "batch joint"], words: Tensor, added: Tensor | None
    ) -> Tensor:
        """Mean softmax weight of the positive words; the offset ``added`` goes to their logits."""
        logits = self.logits(embedding, words).unflatten(-1, (-1, 2))
        if added is not None:
            logits = torch.stack([logits[..., 0] + added[:, None], logits[..., 1]], dim=-1)
        weights: Tensor = logits.softmax(dim=-1)[..., 0]
        return weights.mean(-1)

    def _adapted_embeddings(
        self, of_branch: list[Tensor], summary: Tensor | None, dropout: Dropout | None
    ) -> list[Tensor]:
        embeddings = []
        for index, task in enumerate(self.config.tasks):
            embedding, adapter = of_branch[min(index, len(of_branch) - 1)], self.adapter_of(task)
            embeddings.append(adapter(embedding, summary, dropout) if adapter else embedding)
        return embeddings

    def adapter_of(self, task: str) -> nn.Module | None:
        """Adapter of the image embedding of ``task``; None where it has none."""
        name = self._adapted[0] if self.config.adapter.shared else task
        return dict(self.adapters.items()).get(name)

    def _encoded(self, frozen: Tensor, visual: list[list[Tensor]]) -> list[Tensor]:
        """Image embedding of each branch."""
        if not self.config.has_visual_prompts:  # the branches do not differ
            return [frozen]
        tower = self.clip.visual
        depths = {len(prompts) for prompts in visual}
        if len(depths) > 1:  # slots that one branch renews and the other keeps
            return [tower.encode(frozen, prompts) for prompts in visual]
        branches = len(visual)
        layers = [torch.stack(branch_prompts) for branch_prompts in zip(*visual, strict=True)]
        both = tower.encode(frozen.repeat(branches, 1, 1), layers)
        return list(both.unflatten(0, (branches, len(frozen))))

    def forward(
        self,
        images: Tensor,
        condition: Condition | None = None,
        frozen: bool = False,
        texts: Texts | None = None,
        dropout: Dropout | None = None,
    ) -> Scores:
        """Score ``images``; pass a :meth:`condition` to compute it once for many batches.

        With ``frozen`` the first argument is what :meth:`frozen` gave for them. ``texts`` are
        their own, for a model that reads them.
        """
        return self.score(images if frozen else self.frozen(images), condition, texts, dropout)


def _rounded(prompts: LayerPrompts) -> LayerPrompts:
    """Prompts rounded as in CLIP-AGIQA's code: all but the first text prompt to float16."""

    def half(prompt: Tensor) -> Tensor:
        return prompt.half().to(prompt.dtype)

    return LayerPrompts(
        [*prompts.text[:1], *map(half, prompts.text[1:])], list(map(half, prompts.visual))
    )


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by name."""
    return {name: p for name, p in model.named_parameters() if is_trainable(name)}
