"""Image tower of ``small``: what a frozen trunk sees becomes an embedding beside the texts.

The text tower is there already and is not changed. The embedding of a picture is taught

1. the direction that ImageNet's classifier gives it among the texts: the embeddings of the
   class names, weighed by the classifier's logits (in the manner of Norouzi et al., *Zero-Shot
   Learning by Convex Combination of Semantic Embeddings*, arXiv:1312.5650, but linear, so that
   it holds for pictures unlike the training ones),
2. its caption among those of other pictures, and among ones with a single fault,
3. the strongest components of what the trunk sees, and the pseudo-MOS, so that what people
   judge quality by survives.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from jaxtyping import Float
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from dcmpl.data.table import ImageTable
from dcmpl.images.decode import read_image
from dcmpl.images.windows import windows
from dcmpl.metrics import srcc
from dcmpl.model.clip import Block, Clip
from dcmpl.model.stem import (
    LIMIT,
    NORMALIZATION,
    STATISTICS,
    TRUNK_NORMALIZATION,
    HybridStem,
    to_unit_range,
)
from dcmpl.model.tokenizer import Tokenizer
from drawings import BACKGROUNDS
from small.pictures import Pool
from small.text_tower import embed

COMPONENTS, MEANINGS = 160, 96
"""Whitened components of the summary, and directions of class names, that the embedding tells."""

BESIDE = 0.5
"""Length of a component in the first embedding, where a meaning's is 1."""

WEIGHTS = {
    "class names": 1.0,
    "image to text": 0.25,
    "text to image": 0.25,
    "components": 4.0,
    "pseudo-MOS": 0.5,
}
RATE, DECAY, WARM = 4e-4, 0.05, 0.05
SUBJECTS = 64
"""Of a step, each with both of its pictures."""


def hybrid_stem(clip: Clip) -> HybridStem:
    """The stem of ``clip``, which is of that kind."""
    assert isinstance(clip.visual.stem, HybridStem)
    return clip.visual.stem


def whitened(rows: Tensor, count: int) -> Tensor:
    """(count, columns): maps to principal components of unit deviation."""
    rows = rows - rows.mean(0)
    values, directions = torch.linalg.eigh(rows.T @ rows / len(rows))
    chosen = slice(-count, None)
    maps: Tensor = (directions[:, chosen] / values[chosen].clamp(min=1e-8).sqrt()).T.flip(0)
    return maps


def columns(stem: HybridStem) -> list[slice]:
    """Columns of a cell's numbers by what they are of: a map's means, its deviations, ..."""
    counts = []
    for width, is_fine in zip(stem.trunk.widths, stem.fine, strict=True):
        counts += [width] * (1 + is_fine)
    ends = np.cumsum([*counts, STATISTICS]).tolist()
    return [slice(start, end) for start, end in pairwise([0, *ends])]


def head_columns(stem: HybridStem) -> slice:
    """Columns of a cell's numbers that are the means of the trunk's head."""
    return columns(stem)[-3 if stem.fine[-1] else -2]


@dataclass(frozen=True)
class Classifier:
    """ImageNet's classifier behind the trunk, and the embeddings of its classes' names."""

    weight: Float[Tensor, "classes head"]
    bias: Float[Tensor, " classes"]
    names: Float[Tensor, "classes joint"]

    @staticmethod
    def of(state: Mapping[str, Tensor], names: Tensor) -> "Classifier":
        """Classifier of the package's tensors."""
        return Classifier(state["_fc.weight"].float(), state["_fc.bias"].float(), names.float())

    @property
    def map(self) -> Float[Tensor, "joint head"]:
        """Linear map from the head's means to a direction among the texts, but for a constant."""
        return (self.names - self.names.mean(0)).T @ self.weight

    def meanings(self, stem: HybridStem, statistics: Tensor) -> Float[Tensor, "pictures joint"]:
        """Unit directions of pictures among the texts."""
        head = head_columns(stem)
        means = torch.cat([part[..., head].float().mean(1) for part in statistics.split(100)])
        constant = (self.names - self.names.mean(0)).T @ self.bias
        return F.normalize(means @ self.map.T + constant, dim=-1)


def summaries(stem: HybridStem, statistics: Tensor) -> Float[Tensor, "pictures twice"]:
    """Standardised summaries of all pictures."""
    return torch.cat([stem.standardised(part.float())[0] for part in statistics.split(100)])


def scale_of(stem: HybridStem, rows: Float[Tensor, "rows numbers"]) -> Float[Tensor, " numbers"]:
    """Deviations of numbers; none is far below what others of its map have.

    What drawings hardly show, as the channel of dogs, photographs do.
    """
    deviations = rows.std(0)
    for part in columns(stem):
        deviations[part] = deviations[part].clamp(min=float(deviations[part].median()))
    return deviations + 1e-3


@torch.inference_mode()
def start_tower(clip: Clip, statistics: Tensor, classifier: Classifier) -> Tensor:
    """Set the stem's centre and scale; start its maps, the blocks and the projection.

    The class token starts from the summary's whitened components, and from the directions in
    which the class names differ most. Returns these numbers of all pictures, the
    (pictures, ``COMPONENTS`` + ``MEANINGS``) targets. The blocks start as the identity, and the
    projection gives a meaning its direction among the texts and the components those beside
    them: what the tower learns from drawings is added to it, where it would else be mixed into
    it for good.
    """
    stem, visual = hybrid_stem(clip), clip.visual
    some = torch.cat([part.float().flatten(0, 1) for part in statistics[::8].split(100)])
    stem.center.copy_(some.mean(0))
    stem.scale.copy_(scale_of(stem, some))
    summary, count = summaries(stem, statistics), len(stem.center)
    stem.summary_center.copy_(summary.mean(0))
    halves = (scale_of(stem, half) for half in summary.split(count, dim=1))
    stem.summary_scale.copy_(torch.cat(list(halves)))
    summary = summaries(stem, statistics)
    width, head = len(stem.cell_map.bias), head_columns(stem)
    assert width == COMPONENTS + MEANINGS
    strongest = torch.linalg.svd(classifier.map, full_matrices=False)[0][:, :MEANINGS]
    raw = stem.scale[head] * stem.summary_scale[head]
    meanings = torch.zeros(MEANINGS, summary.shape[1])
    meanings[:, head] = (strongest.T @ classifier.map) * raw
    spread = (summary @ meanings.T).std(0)[:, None]
    meanings /= spread
    both = torch.cat([whitened(summary, COMPONENTS), meanings])
    stem.summary_map.weight.copy_(both)
    cells = ((some[::16] - stem.center) / stem.scale).clamp(-LIMIT, LIMIT)
    stem.cell_map.weight.copy_(whitened(cells, width))
    stem.summary_map.bias.zero_()
    stem.cell_map.bias.zero_()
    beside = torch.linalg.svd(strongest)[0].T[MEANINGS : MEANINGS + COMPONENTS]
    spread /= spread.square().mean().sqrt()
    visual.proj.copy_(torch.cat([BESIDE * beside, spread * strongest.T]))
    for block in cast(Sequence[Block], visual.transformer.resblocks):
        for last in (block.attn.out_proj, block.mlp.c_proj):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    return (summary @ both.T).clone()


class Student(nn.Module):
    """The CLIP and the two linear readouts that only training needs."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.clip = clip
        clip.text.requires_grad_(False)
        hybrid_stem(clip).trunk.requires_grad_(False)
        self.components = nn.Linear(clip.config.embed_dim, COMPONENTS + MEANINGS)
        self.components.weight.data.copy_(torch.linalg.pinv(clip.visual.proj.detach()).T)
        self.pseudo_mos = nn.Linear(clip.config.embed_dim, 1)

    def image_embedding(self, statistics: Tensor) -> Tensor:
        """From numbers of the cells that are known already."""
        visual = self.clip.visual
        with torch.autocast("cpu", enabled=False):  # as the stem does it
            tokens = visual.join(hybrid_stem(self.clip).seen(statistics.float()))
        embedding: Tensor = visual.encode(tokens)
        return embedding


@dataclass(frozen=True)
class Lessons:
    """What the pictures of a pool are to be told by."""

    pool: Pool
    meanings: Tensor
    components: Tensor
    captions: Tensor
    wrong: Tensor


@torch.inference_mode()
def text_embeddings(clip: Clip, tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Unit embeddings of many texts."""
    ids = [tokenizer.parts(text).ids[0] for text in texts]
    parts = [ids[start : start + 256] for start in range(0, len(ids), 256)]
    return torch.cat([embed(clip.text, tokenizer, part) for part in parts]).clone()


def losses(student: Student, lessons: Lessons, rows: Tensor) -> dict[str, Tensor]:
    """The parts of one step's loss, each per picture."""
    known = student.image_embedding(lessons.pool.statistics[rows]).float()
    image = F.normalize(known, dim=-1)
    text = torch.cat([lessons.captions[rows], lessons.wrong[rows]])
    logits = torch.exp(student.clip.logit_scale) * image @ text.T
    count = torch.arange(len(rows))
    mos = (lessons.pool.mos[rows] - 3) / 1.2
    return {
        "class names": 1 - (image * lessons.meanings[rows]).sum(1).mean(),
        "image to text": F.cross_entropy(logits, count),
        "text to image": F.cross_entropy(logits[:, : len(rows)].T, count),
        "components": F.smooth_l1_loss(
            student.components(known), lessons.components[rows].clamp(-4, 4)
        ),
        "pseudo-MOS": F.mse_loss(student.pseudo_mos(known)[:, 0], mos),
    }


def train(student: Student, lessons: Lessons, steps: int, seed: int) -> None:
    """AdamW, one cycle, bfloat16."""
    rng = np.random.default_rng([seed, 3])
    learned = [p for p in student.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learned if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=WARM)
    began = time.time()
    for step in track(range(steps), "training"):
        subjects = rng.choice(len(lessons.pool) // 2, SUBJECTS, replace=False)
        rows = torch.from_numpy(np.concatenate([2 * subjects, 2 * subjects + 1]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            parts = losses(student, lessons, rows)
            loss = torch.stack([WEIGHTS[name] * part for name, part in parts.items()]).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            student.clip.logit_scale.clamp_(max=4.6052)  # CLIP's limit, ln 100
        if step % 50 == 0 or step == steps - 1:
            told = "  ".join(f"{name} {part.item():.3f}" for name, part in parts.items())
            print(f"step {step:5d}  {time.time() - began:6.0f} s  {told}", flush=True)


@torch.inference_mode()
def own_prompt_figures(clip: Clip, tokenizer: Tokenizer, table: ImageTable) -> dict[str, float]:
    """How well real images find their own prompts among all of a table; none was trained on.

    The cosine of an image's own prompt against every other prompt's, how often its own is the
    nearest, and the SRCC of that cosine to the opinions on alignment.
    """
    prompts = sorted(table.frame["prompt"].unique())
    text, visual = text_embeddings(clip, tokenizer, prompts), clip.visual
    known = NORMALIZATION[TRUNK_NORMALIZATION]
    mean, deviation = (torch.tensor(values)[:, None, None] for values in known)
    size, found = clip.config.image_size, []
    for path in track(table.frame["image"], "looking at real images"):
        cut = np.stack(list(windows(read_image(path), size, "tiles")))
        seen = visual((to_unit_range(torch.from_numpy(cut)) - mean) / deviation)
        found.append(F.normalize(F.normalize(seen, dim=-1).mean(0), dim=-1))
    cosine = torch.stack(found) @ text.T
    rows = torch.arange(len(cosine))
    own = cosine[rows, [prompts.index(prompt) for prompt in table.frame["prompt"]]]
    above = (own[:, None] > cosine).float().sum(1) / (len(prompts) - 1)
    opinions = table.targets(["alignment"])[:, 0]
    return {
        "own prompt above another's, AGIQA-3K": above.mean().item(),
        "own prompt first of 240, AGIQA-3K": (own == cosine.amax(1)).float().mean().item(),
        "SRCC of the cosine to alignment, AGIQA-3K": srcc(own.numpy(), opinions),
    }


@torch.inference_mode()
def figures(student: Student, tokenizer: Tokenizer, pool: Pool) -> dict[str, float]:
    """What the model card states of pictures that training never saw."""
    clip = student.clip
    embedding = torch.cat([student.image_embedding(s) for s in pool.statistics.split(100)])
    image = F.normalize(embedding, dim=-1)
    cosine = image @ text_embeddings(clip, tokenizer, pool.captions).T
    rows = torch.arange(len(pool))
    few = [cosine[r][:, r].argmax(1) == torch.arange(len(r)) for r in rows.split(64)]
    wrong = (image * text_embeddings(clip, tokenizer, pool.wrong)).sum(1)
    graded = (image * text_embeddings(clip, tokenizer, pool.graded)).sum(1)
    mos = student.pseudo_mos(embedding)[:, 0]
    shown = [re.search(r"on a (\w+) \w+ background", caption) for caption in pool.captions]
    drawn = [row for row, match in enumerate(shown) if match]
    kinds = sorted(BACKGROUNDS)
    names = text_embeddings(clip, tokenizer, [f"a {kind} background" for kind in kinds])
    right = [kinds[c] for c in (image[drawn] @ names.T).argmax(1).tolist()]
    matches = [match[1] for match in shown if match]
    return {
        "pictures": len(pool),
        "top-1 caption among 64": torch.cat(few).float().mean().item(),
        f"background among {len(kinds)}, zero-shot": float(
            np.mean([a == b for a, b in zip(right, matches, strict=True)])
        ),
        "captions with one fault told apart": (cosine.diagonal() > wrong).float().mean().item(),
        "SRCC of cosine to faults in the caption": -srcc(graded.numpy(), pool.faults.numpy()),
        "SRCC of the pseudo-MOS readout": srcc(mos.numpy(), pool.mos.numpy()),
    }
