"""Train the embedded backbone ``tiny`` from scratch: one command, one seed, no download.

    python tools/train_tiny.py --out src/dcmpl/backbones/tiny

1. Draw scenes, each with two sets of defects, and keep the statistics of every image.
2. Fit the stem to them: centre, scale, and maps that start as whitened principal components.
3. Train both towers: images and captions find each other among wrong ones; the image
   embedding must also tell the summary statistics and the pseudo-MOS, so that what people
   judge quality by survives in it.
4. Measure on drawings never seen and write the model card's figures.
"""

import argparse
import json
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F

from dcmpl.metrics import srcc
from dcmpl.model.clip import Clip, as_tensors
from dcmpl.model.stem import NORMALIZATION, StatisticsStem
from dcmpl.model.tokenizer import END, START
from dcmpl.model.tokenizer import Tokenizer as Words
from dcmpl.weights.layouts import read_config
from defects import degrade, draw_defects, pseudo_mos, words
from drawings import corrupted, draw_scene, render, to_bytes

SIZES: dict[str, Any] = {
    "projection_dim": 512,
    "vision_config": {
        "hidden_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "intermediate_size": 768,
        "image_size": 256,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
        "stem": "statistics",
    },
    "text_config": {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 512,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
    },
}
PER_TASK = 50  # scenes drawn by one task of the pool
COMPONENTS = 192  # principal components of the summary that the embedding must tell


@dataclass(frozen=True)
class Pool:
    """Two images per scene; row 2 i and 2 i + 1 show scene i."""

    statistics: Tensor  # (images, cells, numbers), float16
    mos: Tensor  # (images,), 1 to 5
    captions: list[str]
    wrong: list[str]  # the same words for a scene that differs in one thing
    graded: list[str]  # and for one that differs in ``faults`` things, 0 to 5
    faults: Tensor  # (images,)

    def __len__(self) -> int:
        return len(self.mos)


def draw_some(task: tuple[int, int]) -> Pool:
    """``PER_TASK`` scenes; ``task`` is (seed, number of the task)."""
    torch.set_num_threads(1)
    size = SIZES["vision_config"]["image_size"]
    stem = StatisticsStem(size, SIZES["vision_config"]["patch_size"], 8)
    mean, std = (torch.tensor(v)[:, None, None] for v in NORMALIZATION["imagenet"])
    numbers, mos, captions, wrong, graded, faults = [], [], [], [], [], []
    for i in range(PER_TASK):
        rng = np.random.default_rng([*task, i])
        scene = draw_scene(rng)
        clean = render(scene, rng, size)
        for _ in range(2):
            defects = draw_defects(rng)
            image = torch.from_numpy(to_bytes(degrade(clean, defects, rng))).permute(2, 0, 1)
            with torch.inference_mode():
                numbers.append(stem.statistics(((image / 255 - mean) / std)[None])[0].half())
            opening = words(defects, rng)
            mos.append(pseudo_mos(defects))
            captions.append(f"{opening} of {scene.caption()}")
            wrong.append(f"{opening} of {corrupted(scene, rng).caption()}")
            faults.append(int(rng.integers(6)))
            other = scene
            for _ in range(faults[-1]):
                other = corrupted(other, rng)
            graded.append(f"{opening} of {other.caption()}")
    statistics = torch.stack(numbers).clone()  # a clone is no inference tensor any more
    return Pool(statistics, torch.tensor(mos), captions, wrong, graded, torch.tensor(faults))


def draw_pool(seed: int, scenes: int) -> Pool:
    """Scenes drawn on all cores."""
    tasks = [(seed, k) for k in range(scenes // PER_TASK)]
    with multiprocessing.get_context("spawn").Pool() as workers:
        parts = list(track(workers.imap(draw_some, tasks), "drawing", total=len(tasks)))
    return Pool(
        torch.cat([p.statistics for p in parts]),
        torch.cat([p.mos for p in parts]),
        [caption for p in parts for caption in p.captions],
        [caption for p in parts for caption in p.wrong],
        [caption for p in parts for caption in p.graded],
        torch.cat([p.faults for p in parts]),
    )


def train_tokenizer(captions: list[str], path: Path) -> None:
    """Byte pairs of the captions and of the words that DCMPL scores with."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=["<|pad|>", START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    score_words = ["good photo. bad photo. aligned photo. misaligned photo."] * len(captions)
    tokenizer.train_from_iterator([*captions, *score_words], trainer)
    tokenizer.save(str(path))


def whitened(rows: Tensor, count: int) -> Tensor:
    """(count, columns): maps to principal components of unit deviation."""
    rows = rows - rows.mean(0)
    _, values, directions = torch.linalg.svd(rows, full_matrices=False)
    return directions[:count] * (len(rows) ** 0.5 / values[:count, None])


def fit_stem(stem: StatisticsStem, statistics: Tensor) -> Tensor:
    """Set centre and scale, start the maps; returns the (images, COMPONENTS) targets."""
    cells = torch.cat([part.float().flatten(0, 1) for part in statistics.split(500)][::4])
    stem.center.copy_(cells.mean(0))
    stem.scale.copy_(cells.std(0) + 1e-3)
    summary = torch.cat([stem.standardised(part.float())[0] for part in statistics.split(500)])
    stem.summary_center.copy_(summary.mean(0))
    stem.summary_scale.copy_(summary.std(0) + 1e-3)
    summary = torch.cat([stem.standardised(part.float())[0] for part in statistics.split(500)])
    width = len(stem.cell_map.bias)
    with torch.no_grad():
        stem.summary_map.weight.copy_(whitened(summary, width))
        few = ((cells[::16] - stem.center) / stem.scale).clamp(-5, 5)
        stem.cell_map.weight.copy_(whitened(few, width))
        stem.summary_map.bias.zero_()
        stem.cell_map.bias.zero_()
    return summary @ whitened(summary, COMPONENTS).T


def statistics_stem(clip: Clip) -> StatisticsStem:
    """The stem of ``clip``, which is of that kind."""
    assert isinstance(clip.visual.stem, StatisticsStem)
    return clip.visual.stem


class Student(nn.Module):
    """The CLIP and the two linear readouts that only training needs."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip
        self.components = nn.Linear(clip.config.embed_dim, COMPONENTS)
        self.pseudo_mos = nn.Linear(clip.config.embed_dim, 1)

    def image_embedding(self, statistics: Tensor) -> Tensor:
        """From statistics that are known already."""
        visual = self.clip.visual
        with torch.autocast("cpu", enabled=False):  # as the stem does it
            tokens = visual.join(*statistics_stem(self.clip).tokens(statistics.float()))
        embedding: Tensor = visual.encode(tokens)
        return embedding


def losses(
    student: Student, tokenizer: Words, pool: Pool, targets: Tensor, rows: Tensor
) -> dict[str, Tensor]:
    """The parts of one step's loss, each per image."""
    embedding = student.image_embedding(pool.statistics[rows])
    image = F.normalize(embedding.float(), dim=-1)
    tokens = tokenizer([pool.captions[i] for i in rows] + [pool.wrong[i] for i in rows])
    text = F.normalize(student.clip.text(*as_tensors(tokens)).float(), dim=-1)
    logits = torch.exp(student.clip.logit_scale) * image @ text.T
    count = torch.arange(len(rows))
    known = embedding.float()
    return {
        "image to text": F.cross_entropy(logits, count),
        "text to image": F.cross_entropy(logits[:, : len(rows)].T, count),
        "statistics": F.smooth_l1_loss(student.components(known), targets[rows].clamp(-4, 4)),
        "pseudo-MOS": F.mse_loss(student.pseudo_mos(known)[:, 0], (pool.mos[rows] - 3) / 1.2),
    }


WEIGHTS = {"image to text": 0.5, "text to image": 0.5, "statistics": 4.0, "pseudo-MOS": 0.5}


def train(
    student: Student, tokenizer: Words, pool: Pool, targets: Tensor, steps: int, seed: int
) -> None:
    """AdamW, cosine from 1e-3, 128 images a step, both images of a scene together."""
    rng = np.random.default_rng([seed, 1])
    decayed = [p for p in student.parameters() if p.ndim > 1]
    plain = [p for p in student.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps, pct_start=0.05)
    start = time.time()
    for step in track(range(steps), "training"):
        scenes = rng.choice(len(pool) // 2, 64, replace=False)
        rows = torch.from_numpy(np.concatenate([2 * scenes, 2 * scenes + 1]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            parts = losses(student, tokenizer, pool, targets, rows)
            loss = torch.stack([WEIGHTS[name] * part for name, part in parts.items()]).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            student.clip.logit_scale.clamp_(max=4.6052)  # CLIP's limit, ln 100
        if step % 50 == 0 or step == steps - 1:
            told = "  ".join(f"{name} {part.item():.3f}" for name, part in parts.items())
            print(f"step {step:5d}  {time.time() - start:6.0f} s  {told}", flush=True)


@torch.inference_mode()
def card_figures(student: Student, tokenizer: Words, pool: Pool) -> dict[str, float]:
    """What the model card states, measured on drawings that training never saw."""

    def text_features(captions: list[str]) -> Tensor:
        tokens = tokenizer(captions)
        return F.normalize(student.clip.text(*as_tensors(tokens)), dim=-1)

    embedding = torch.cat([student.image_embedding(s) for s in pool.statistics.split(250)])
    image = F.normalize(embedding, dim=-1)
    cosine = image @ text_features(pool.captions).T
    few = [
        cosine[rows][:, rows].argmax(1) == torch.arange(len(rows))
        for rows in torch.arange(len(pool)).split(64)
    ]
    wrong = (image * text_features(pool.wrong)).sum(1)
    graded = (image * text_features(pool.graded)).sum(1)
    mos = student.pseudo_mos(embedding)[:, 0]
    return {
        "images": len(pool),
        "top-1 caption among 64": torch.cat(few).float().mean().item(),
        "top-1 caption among all": (cosine.argmax(1) == torch.arange(len(pool)))
        .float()
        .mean()
        .item(),
        "captions with one fault told apart": (cosine.diagonal() > wrong).float().mean().item(),
        "SRCC of cosine to faults in the caption": -srcc(graded.numpy(), pool.faults.numpy()),
        "SRCC of the pseudo-MOS readout": srcc(mos.numpy(), pool.mos.numpy()),
    }


def save_backbone(clip: Clip, folder: Path) -> None:
    """The folder that :mod:`dcmpl.weights.backbones` loads; tensors in half precision."""
    state = {name: t.detach().half().contiguous() for name, t in clip.state_dict().items()}
    save_file(state, folder / "model.safetensors")


def build(folder: Path, captions: list[str], seed: int) -> tuple[Clip, Words]:
    """An untrained CLIP of ``SIZES`` and its tokenizer, whose files go to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    train_tokenizer(captions, folder / "tokenizer.json")
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    sizes = json.loads(json.dumps(SIZES))
    sizes["text_config"]["vocab_size"] = vocabulary
    (folder / "config.json").write_text(json.dumps(sizes, indent=2) + "\n")
    torch.manual_seed(seed)
    config = read_config(folder / "config.json")
    return Clip(config), Words(folder / "tokenizer.json", config.context_length)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the backbone")
    parser.add_argument("--scenes", type=int, default=8000, help="two images each")
    parser.add_argument("--steps", type=int, default=800, help="of 128 images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_float32_matmul_precision("medium")
    pool = draw_pool(options.seed, options.scenes)
    held_out = draw_pool(options.seed + 1_000_000, 500)
    clip, tokenizer = build(options.out, pool.captions, options.seed)
    targets = fit_stem(statistics_stem(clip), pool.statistics)
    student = Student(clip)
    train(student, tokenizer, pool, targets, options.steps, options.seed)
    save_backbone(clip, options.out)
    found = card_figures(student.eval(), tokenizer, held_out)
    figures = {name: round(value, 3) for name, value in found.items()}
    (options.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print("\n".join(f"{name:40} {value:g}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
