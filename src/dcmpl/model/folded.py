"""Folded model: a trained model with everything precomputed that no image changes.

No prompt depends on an image. So the text towers become one vector for each
word pair, the prompts of every block become the keys and values that they are to its
attention, normalisation becomes part of the patch projection, and what only other tasks need
is dropped. Neither text tower nor tokenizer is kept.
"""

import copy
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.nn import functional as F

from dcmpl.errors import UsageError
from dcmpl.model.clip import MLP, Block, QuickGELU, VisionTower
from dcmpl.model.dcmpl import DCMPL
from dcmpl.model.prompt_reader import text_vectors
from dcmpl.model.stem import HybridStem, PatchStem, Seen, to_unit_range
from dcmpl.model.tokenizer import Parts

__all__ = ["Folded", "TextReader"]

GELU_SLOPE = 1.702


class FoldedPatches(nn.Module):
    """The patch convolution of normalised pixels as one linear map of bytes.

    w ((x / 255) - mean) / std = (w / (255 std)) x - sum(w mean / std).
    """

    def __init__(self, stem: PatchStem, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        device = stem.conv1.weight.device
        # In double precision on the CPU, for not every device has it.
        weight, mean, std = (t.detach().cpu().double() for t in (stem.conv1.weight, mean, std))
        width, _, self.patch, _ = weight.shape
        weight = weight / std
        bias = -(weight * mean).sum((1, 2, 3))
        # Bytes lie row by row, colour last; so do the inputs of this map.
        rows = (weight / 255).permute(0, 2, 3, 1).reshape(width, -1)
        self.project = _linear(rows.float().to(device), bias.float().to(device))

    def forward(self, windows: Num[Tensor, "batch size size 3"]) -> Seen:
        cells = windows.shape[1] // self.patch
        x = windows.reshape(-1, cells, self.patch, cells, 3 * self.patch).transpose(2, 3)
        x = x.reshape(-1, cells * cells, 3 * self.patch**2)
        patches: Tensor = self.project(x.to(self.project.weight.dtype))
        first = torch.zeros_like(patches[:, 0])
        return Seen(first, patches, first[:, :0])


class FoldedCells(nn.Module):
    """The numbers of the cells of normalised pixels, always in float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, stem: HybridStem, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.stem = _shared(stem)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, windows: Num[Tensor, "batch size size 3"]) -> Seen:
        seen: Seen = self.stem((to_unit_range(windows) - self.mean) / self.std)
        return seen


class FoldedBlock(nn.Module):
    """Block of the image tower with its deep prompts precomputed as keys and values.

    ``prompts`` has one entry per branch; ``joins`` names the branches whose prompt becomes
    tokens instead, because the next block uses their outputs.
    """

    def __init__(self, block: Block, prompts: Sequence[Tensor | None], joins: Sequence[bool]):
        super().__init__()
        self.heads = block.attn.heads
        self.ln_1, self.ln_2 = _shared(block.ln_1), _shared(block.ln_2)
        weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
        width = weight.shape[1]
        self.query = _linear(weight[:width], bias[:width])
        self.key_value = _linear(weight[width:], bias[width:])
        self.out = _shared(block.attn.out_proj)
        self.mlp = _without_slope(block.mlp)
        self.joins = tuple(joins)
        for branch, prompt in enumerate(prompts):
            if prompt is not None and not joins[branch]:
                prompt = self.key_value(block.ln_1(prompt))
            self.register_buffer(f"prompt_{branch}", prompt)

    def lower_prompts(self) -> None:
        """Convert the prompts' keys and values to the precision of the matrices."""
        for branch, joins in enumerate(self.joins):
            prompt = getattr(self, f"prompt_{branch}")
            if prompt is not None and not joins:
                setattr(self, f"prompt_{branch}", prompt.to(self.query.weight.dtype))

    def forward(self, x: Tensor, branch: int, patches: int, first_only: bool) -> Tensor:
        """Run the block; ``first_only`` computes and returns the first token alone."""
        prompt: Tensor | None = getattr(self, f"prompt_{branch}")
        if prompt is not None:
            x = x[:, :patches]
            if self.joins[branch]:
                x, prompt = torch.cat([x, prompt.expand(x.shape[0], -1, -1)], dim=1), None
        kind = self.query.weight.dtype
        y = self.ln_1(x).to(kind)
        k, v = self.key_value(y).chunk(2, dim=-1)
        if first_only:
            x, y = x[:, :1], y[:, :1]
        q = self.query(y)
        if prompt is not None:
            pairs = zip((k, v), prompt.expand(x.shape[0], -1, -1).chunk(2, dim=-1), strict=True)
            k, v = (torch.cat(pair, dim=1) for pair in pairs)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.ln_2(x).to(kind))
        return out


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Linear layer of these weights in float32, on their device."""
    made = nn.Linear(weight.shape[1], weight.shape[0], device="meta")  # draws no numbers
    for name, value in (("weight", weight), ("bias", bias)):
        value = value.detach().to(torch.float32, copy=True)
        setattr(made, name, nn.Parameter(value, requires_grad=False))
    return made


def _shared(module: nn.Module) -> nn.Module:
    """Module that shares the tensors of another but not its settings."""
    kept = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()}
    return copy.deepcopy(module, kept)


def _without_slope(mlp: MLP) -> nn.Module:
    """MLP with the slope of QuickGELU folded into its matrices."""
    if not isinstance(mlp.gelu, QuickGELU):
        return _shared(mlp)
    first = _linear(mlp.c_fc.weight * GELU_SLOPE, mlp.c_fc.bias * GELU_SLOPE)
    last = _linear(mlp.c_proj.weight / GELU_SLOPE, mlp.c_proj.bias)
    return nn.Sequential(first, nn.SiLU(), last)


class Readout(nn.Module):
    """Readout of a task: adapted image embedding to a score in [0, 1].

    Softmax over a pair of words is the sigmoid of the difference, so a pair is one vector:
    exp(logit_scale) (positive - negative).
    """

    pairs: Tensor
    scale: Tensor

    def __init__(self, model: DCMPL, index: int, words: Sequence[Tensor]) -> None:
        super().__init__()
        self.linear: nn.Linear | None = None
        tasks = model.config.tasks
        reads = model.config.reads_prompt and tasks[index] == "alignment"
        self.reader = _shared(model.reader) if reads else None
        adapter = model.adapter_of(tasks[index] if words else tasks[0])
        self.adapter = None if adapter is None else _shared(adapter)
        if model.config.readout == "linear":
            rows = slice(index, index + 1)
            self.linear = _linear(model.linear.weight[rows], model.linear.bias[rows])
            return
        positive, negative = words[index].unflatten(0, (-1, 2)).unbind(1)
        scale = model.clip.logit_scale.exp()
        self.register_buffer("pairs", scale * (positive - negative))
        if reads:
            self.register_buffer("scale", scale)

    def forward(
        self,
        embedding: Float[Tensor, "batch joint"],
        summary: Float[Tensor, "batch numbers"],
        vectors: Float[Tensor, "batch joint"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """Scores (N,); ``vectors`` of the prompts are for a readout with a prompt reader."""
        if self.adapter is not None:
            embedding = self.adapter(embedding, summary)
        if self.linear is not None:
            score: Tensor = self.linear(embedding)[:, 0].clamp(0, 1)
            return score
        embedding = F.normalize(embedding, dim=-1)
        apart = embedding @ self.pairs.T
        if self.reader is not None and vectors is not None:
            logits = self.scale * (embedding * vectors).sum(-1)
            apart = apart + self.reader(logits)[:, None]
        return apart.sigmoid().mean(-1)


class TextReader:
    """Text encoder of a folded model, for the prompts of images."""

    @torch.no_grad()
    def __init__(self, model: DCMPL) -> None:
        self.tower = model.clip.text
        self.prompts = [prompt.detach() for prompt in model.condition().text]
        self.tokenizer, self.slots = model.tokenizer, model.slots

    def parts(self, text: str, long: str) -> Parts:
        """Token chunks of a prompt; see :meth:`dcmpl.model.tokenizer.Tokenizer.parts`."""
        return self.tokenizer.parts(text, self.slots, long)

    def __call__(self, texts: Sequence[tuple[int, ...]]) -> Float[Tensor, "texts joint"]:
        """Unit vectors of one prompt per window; equal prompts are encoded once."""
        known = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        tokens = self.tokenizer.framed(list(known), self.slots)
        vectors = text_vectors(self.tower, tokens, self.prompts)
        return vectors[torch.tensor([known[text] for text in texts]).to(vectors.device)]


class Folded(nn.Module):
    """Folded model: windows (N, size, size, 3) in bytes to scores; made of a trained model.

    Pixels are RGB from 0 to 255, bytes or, where a gradient is to reach them, floats.
    """

    @torch.no_grad()
    def __init__(self, model: DCMPL, tasks: Sequence[str]) -> None:
        """Fold ``model`` for ``tasks``; raises :class:`UsageError` for tasks it does not have."""
        super().__init__()
        if unknown := [task for task in tasks if task not in model.config.tasks]:
            raise UsageError(f"tasks of this model ({', '.join(model.config.tasks)})", unknown[0])
        condition = model.condition()
        visual, clip = model.clip.visual, model.clip
        self.start: Tensor
        self.positions: Tensor
        self.proj: Tensor
        self.tasks = tuple(tasks)
        self.size = clip.config.image_size
        indices = [model.config.tasks.index(task) for task in tasks]
        of_task = [min(index, len(condition.visual) - 1) for index in indices]
        if model.config.readout == "linear":  # all tasks read the main branch
            of_task = [0] * len(indices)
        branches = sorted(set(of_task)) if model.config.has_visual_prompts else [0]
        self.branch_of = [branches.index(b) if b in branches else 0 for b in of_task]
        stem = visual.stem
        self.stem = (
            FoldedPatches(stem, model.mean, model.std)
            if isinstance(stem, PatchStem)
            else FoldedCells(stem, model.mean, model.std)
        )
        self.register_buffer("start", visual.class_embedding + visual.positional_embedding[0])
        self.register_buffer("positions", visual.positional_embedding[1:].clone())
        self.readouts = nn.ModuleList(Readout(model, index, condition.words) for index in indices)
        self.ln_pre, self.ln_post = _shared(visual.ln_pre), _shared(visual.ln_post)
        given = [condition.visual[b] if model.config.has_visual_prompts else [] for b in branches]
        self.blocks = _folded_blocks(visual, given)
        self.register_buffer("proj", visual.proj.clone())
        self.requires_grad_(False)
        self.eval()

    @property
    def branches(self) -> int:
        """Number of tower passes that the tasks need."""
        return max(self.branch_of) + 1

    def in_bfloat16(self) -> "Folded":
        """Copy with the blocks' matrix products in bfloat16; tokens stay in float32."""
        lower = copy.copy(self)  # what is not changed is shared
        lower._modules = {**self._modules, "blocks": copy.deepcopy(self.blocks)}
        for module in lower.blocks.modules():
            if isinstance(module, nn.Linear):
                module.bfloat16()
        for block in cast(Sequence[FoldedBlock], lower.blocks):
            block.lower_prompts()
        return lower

    def forward(
        self,
        windows: Num[Tensor, "batch size size 3"],
        vectors: Float[Tensor, "texts joint"] | None = None,
        rows: Int[Tensor, " texts"] | None = None,
    ) -> Float[Tensor, "texts tasks"]:
        """Scores (windows, tasks); ``vectors`` are those of prompts, for a model that reads.

        With ``rows`` text i is one of the window in row ``rows[i]``, and so is score i.
        """
        first, patches, summary = self.stem(windows)
        tokens = torch.cat([(self.start + first)[:, None], patches + self.positions], dim=1)
        entering: Tensor = self.ln_pre(tokens)
        embeddings = []
        for branch in range(self.branches):
            x = entering
            for index, block in enumerate(self.blocks):
                x = block(x, branch, tokens.shape[1], index == len(self.blocks) - 1)
            embeddings.append(self.ln_post(x[:, 0]) @ self.proj)
        if rows is not None:
            embeddings, summary = [x[rows] for x in embeddings], summary[rows]
        scores = [
            readout(embeddings[branch], summary, vectors)
            for readout, branch in zip(self.readouts, self.branch_of, strict=True)
        ]
        return torch.stack(scores, dim=1)


def _folded_blocks(visual: VisionTower, given: Sequence[Sequence[Tensor]]) -> nn.ModuleList:
    """Folded blocks; ``given[branch][i]`` is the prompt of block i, and the last one stays."""
    blocks = cast(Sequence[Block], visual.transformer.resblocks)
    last = len(blocks) - 1
    made = []
    for index, block in enumerate(blocks):
        prompts, joins = [], []
        for of_branch in given:
            prompt = of_branch[index].detach() if index < len(of_branch) else None
            if index == 0 and prompt is not None:
                prompt = visual.ln_pre(prompt)
            prompts.append(prompt)
            joins.append(index < last and index + 1 >= len(of_branch))
        made.append(FoldedBlock(block, prompts, joins))
    return nn.ModuleList(made)
