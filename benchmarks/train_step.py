"""What a training step costs, beside a plain transcription of CLIP-AGIQA's schedule.

    python benchmarks/train_step.py [--rounds 3] [--batch 64]

ViT-B/32 with random weights, 8 prompts in every block of both towers, Adam. The reference's
schedule is two separate image passes, texts of all 77 tokens and float32, with PyTorch's own
attention module. Every variant takes its turn in each round of one process, and the medians
are compared; peak memory is that of a process of its own for each. Also: an epoch's step where
nothing visual is learned and image embeddings are computed once.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from dcmpl.config import TrainConfig
from dcmpl.model.clip import VIT_B_32, Clip, QuickGELU
from dcmpl.model.dcmpl import DCMPL, trainable_parameters
from dcmpl.model.prompts import context_tokens
from dcmpl.model.tokenizer import Tokens
from dcmpl.presets import PRESETS
from dcmpl.training.batches import Batch
from dcmpl.training.loop import fast_float32, train_step

LAYERS, N, JOINT = 12, 8, 512
Step = Callable[[Tensor, Tensor], float]


class PlainBlock(nn.Module):
    """A block of CLIP with PyTorch's attention module, as OpenAI's code has it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), QuickGELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Plain(nn.Module):
    """CLIP-AGIQA with two tasks: prompts in every block, one pass after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 768, 32, 32, bias=False)
        self.cls, self.positions = (
            nn.Parameter(torch.randn(768)),
            nn.Parameter(torch.randn(50, 768)),
        )
        self.visual = nn.ModuleList(PlainBlock(768, 12) for _ in range(LAYERS))
        self.ln_pre, self.ln_post = nn.LayerNorm(768), nn.LayerNorm(768)
        self.visual_out = nn.Parameter(torch.randn(768, JOINT) * 768**-0.5)
        self.words = nn.Parameter(torch.randn(2, 77, 512) * 0.02)
        self.text = nn.ModuleList(PlainBlock(512, 8) for _ in range(LAYERS))
        self.ln_final = nn.LayerNorm(512)
        self.text_out = nn.Parameter(torch.randn(512, JOINT) * 512**-0.5)
        self.register_buffer("mask", torch.full((77, 77), float("-inf")).triu(1))
        self.requires_grad_(False)
        self.text_prompts = nn.ModuleList(context_tokens(LAYERS, N, 512) for _ in range(2))
        self.visual_prompts = nn.ModuleList(context_tokens(LAYERS, N, 768) for _ in range(2))
        self.fusion = nn.ModuleList(nn.Linear(1536, 768) for _ in range(LAYERS))

    def encode_image(self, images: Tensor, prompts: list[Tensor]) -> Tensor:
        x = self.patches(images).flatten(2).mT
        x = torch.cat([self.cls.expand(len(x), 1, -1), x], dim=1) + self.positions
        spread = [prompt.expand(len(x), -1, -1) for prompt in prompts]
        x = self.ln_pre(torch.cat([x, spread[0]], dim=1)).transpose(0, 1)
        for index, block in enumerate(self.visual):
            if index:
                x = torch.cat([x[:-N], spread[index].transpose(0, 1)])
            x = block(x, None)
        return self.ln_post(x[0]) @ self.visual_out

    def encode_text(self, prompts: nn.ParameterList) -> Tensor:
        spread = [prompt.expand(2, -1, -1) for prompt in prompts]
        x = torch.cat([self.words[:, :1], spread[0], self.words[:, 1 + N :]], dim=1).transpose(0, 1)
        for index, block in enumerate(self.text):
            if index:
                x = torch.cat([x[:1], spread[index].transpose(0, 1), x[1 + N :]])
            x = block(x, self.mask)
        return self.ln_final(x[12]) @ self.text_out

    def forward(self, images: Tensor) -> Tensor:
        main, aux = self.visual_prompts
        fused = [
            layer(torch.cat([m, a], -1)) for layer, m, a in zip(self.fusion, main, aux, strict=True)
        ]
        scores = []
        for visual, text in ((fused, self.text_prompts[0]), (list(aux), self.text_prompts[1])):
            image = F.normalize(self.encode_image(images, visual), dim=-1)
            logits = 100 * image @ F.normalize(self.encode_text(text), dim=-1).T
            scores.append(logits.softmax(-1)[:, 0])
        return torch.stack(scores, dim=1)


def reference() -> Step:
    model = Plain()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step(images: Tensor, targets: Tensor) -> float:
        quality, alignment = F.mse_loss(model(images), targets, reduction="none").mean(0)
        loss = quality + 0.1 * alignment
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


class Words:
    """Texts of CLIP's vocabulary without its file: start, slots, two words, full stop, end."""

    def __call__(self, texts: list[str], n_context: int) -> Tokens:
        rows = [
            [49406, *[0] * n_context, 886 + index, 1125, 269, 49407] for index in range(len(texts))
        ]
        return Tokens(np.array(rows), np.array([len(row) - 1 for row in rows]))


def ours(preset: str, precision: str, frozen: bool = False) -> Step:
    model = DCMPL(Clip(VIT_B_32), Words(), PRESETS[preset].model, seed=0)
    parameters = trainable_parameters(model).values()
    optimizer = torch.optim.Adam(parameters, lr=1e-4)
    config = TrainConfig(precision=precision)
    known: dict[int, Tensor] = {}

    def step(images: Tensor, targets: Tensor) -> float:
        inputs = images
        if frozen:  # computed once and kept, as the trainer does
            if id(images) not in known:
                known[id(images)] = model.frozen(images)
            inputs = known[id(images)]
        batch = Batch(inputs, targets, torch.zeros(len(inputs), dtype=torch.long))
        with fast_float32():
            return train_step(model, optimizer, batch, config, Accelerator(), frozen)

    return step


VARIANTS: dict[str, Callable[[], Step]] = {
    "reference's schedule, fp32": reference,
    "clip-agiqa, fp32": lambda: ours("clip-agiqa", "fp32"),
    "clip-agiqa, bf16": lambda: ours("clip-agiqa", "bf16"),
    "dcmpl, fp32": lambda: ours("dcmpl", "fp32"),
    "dcmpl, bf16": lambda: ours("dcmpl", "bf16"),
    "coop, embeddings kept, fp32": lambda: ours("coop", "fp32", frozen=True),
}


def inputs(batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, 224, 224, generator=generator)
    return images, torch.rand(batch, 2, generator=generator)


def peak_memory(name: str, batch: int) -> float:
    """GiB that a process of its own takes at most over one step."""
    words = [sys.executable, __file__, "--batch", str(batch), "--memory-of", name]
    done = subprocess.run(words, check=True, capture_output=True, text=True)  # noqa: S603  (this file itself)
    return float(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="behind one that warms up")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="append the figures to this JSON lines file")
    options = parser.parse_args()
    torch.manual_seed(0)
    batch = inputs(options.batch)
    if options.memory_of:
        VARIANTS[options.memory_of]()(*batch)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        return
    # First, while this process is small: a child begins with its parent's peak.
    gib = {name: peak_memory(name, options.batch) for name in VARIANTS}
    steps = {name: make() for name, make in VARIANTS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for turn in range(options.rounds + 1):  # the first round warms up
        for name, step in steps.items():
            start = time.perf_counter()
            step(*batch)
            if turn:
                seconds[name].append(time.perf_counter() - start)
        print(f"round {turn} of {options.rounds}", file=sys.stderr, flush=True)
    del steps
    rows = {}
    for name, times in seconds.items():
        rows[name] = {"seconds": statistics.median(times), "gib": gib[name]}
    base = rows["reference's schedule, fp32"]
    print(f"{'':32} s per step   of reference   peak GiB   of reference")
    for name, row in rows.items():
        print(
            f"{name:32} {row['seconds']:10.3f} {row['seconds'] / base['seconds']:14.2f} "
            f"{row['gib']:10.2f} {row['gib'] / base['gib']:14.2f}"
        )
    kept = rows["coop, embeddings kept, fp32"]["seconds"]
    print(f"embeddings kept: {rows['dcmpl, fp32']['seconds'] / kept:.0f} x faster than dcmpl, fp32")
    if options.out:
        record = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}
        with options.out.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
