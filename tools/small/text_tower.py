"""Text tower of ``small``: distilled from a teacher of sentences, on text alone.

Reimers, Gurevych, *Making Monolingual Sentence Embeddings Multilingual using Knowledge
Distillation*, arXiv:2004.09813: the student learns to give the teacher's embedding of any text.
The vocabulary is the teacher's, without what no Latin text needs, and its word embeddings are
where the student's begin.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
from rich.progress import track
from tokenizers import models, normalizers, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F

from dcmpl.model.clip import TextTower, as_tensors
from dcmpl.model.tokenizer import END, START, UNKNOWN, Ids, Tokenizer

PAD = "<|pad|>"
BATCH, SORTED = 256, 16
"""Texts of a step, and batches among which texts are sorted by length."""

RATE, DECAY, WARM = 2e-3, 0.05, 0.06
WORD_SCALE = 0.05
"""Deviation of the word embeddings that the student begins with."""

SIMILARITY = 2.0
"""Weight of the error of the cosines between texts, beside the cosine to the teacher."""


def write_tokenizer(words: Sequence[str], path: Path) -> dict[str, int]:
    """Write the student's tokenizer: the teacher's word pieces of ASCII letters and signs.

    Returns the vocabulary.
    """
    kept = [w for w in words if w.isascii() and not is_mark(w)]
    vocabulary = {token: index for index, token in enumerate([PAD, START, END, UNKNOWN, *kept])}
    made = tokenizers.Tokenizer(
        models.WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=100)
    )
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.save(str(path))
    return vocabulary


def is_mark(word: str) -> bool:
    """Whether a word is one of the teacher's marks, as [CLS] and [unused3]."""
    return word.startswith("[") and word.endswith("]") and len(word) > 2


def start_words(
    tower: TextTower, vocabulary: Mapping[str, int], known: Mapping[str, Tensor]
) -> None:
    """Set the word embeddings to the teacher's, where it has the word."""
    with torch.no_grad():
        for token, index in vocabulary.items():
            if token in known:
                tower.token_embedding.weight[index] = WORD_SCALE * known[token]


@dataclass(frozen=True)
class Lesson:
    """Texts as token ids, and the teacher's embeddings of them."""

    ids: tuple[Ids, ...]
    wanted: Tensor

    @staticmethod
    def of(texts: Sequence[str], wanted: Tensor, tokenizer: Tokenizer) -> "Lesson":
        return Lesson(tuple(tokenizer.parts(text).ids[0] for text in texts), wanted)

    def batches(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """Rows of one batch after another without end, of texts about as long as one another."""
        lengths = np.array([len(row) for row in self.ids])
        while True:
            some = rng.permutation(len(lengths))[: BATCH * SORTED]
            some = some[np.argsort(lengths[some], kind="stable")]
            batches = [some[start : start + BATCH] for start in range(0, len(some), BATCH)]
            yield from (batches[index] for index in rng.permutation(len(batches)))


def embed(tower: TextTower, tokenizer: Tokenizer, ids: Sequence[Ids]) -> Tensor:
    """Unit embeddings of texts."""
    found = tower(*as_tensors(tokenizer.framed(ids)))
    return F.normalize(found.float(), dim=-1)


def distil(
    tower: TextTower, tokenizer: Tokenizer, lesson: Lesson, held_out: Lesson, steps: int, seed: int
) -> None:
    """Train the tower: AdamW, one cycle, bfloat16."""
    rng = np.random.default_rng([seed, 2])
    table = tower.token_embedding.weight
    decayed = [p for p in tower.parameters() if p.ndim > 1 and p is not table]
    plain = [p for p in tower.parameters() if p.ndim <= 1 or p is table]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=WARM)
    began, batches = time.time(), lesson.batches(rng)
    for step in track(range(steps), "distilling"):
        rows = next(batches)
        wanted = lesson.wanted[torch.from_numpy(rows)].float()
        with torch.autocast("cpu", torch.bfloat16):
            found = embed(tower, tokenizer, [lesson.ids[row] for row in rows])
        cosine = (found * wanted).sum(1).mean()
        apart = (found @ found.T - wanted @ wanted.T).square().mean()
        optimizer.zero_grad()
        (1 - cosine + SIMILARITY * apart).backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 500 == 0 or step == steps - 1:
            told = "  ".join(f"{k} {v:.3f}" for k, v in figures(tower, tokenizer, held_out).items())
            print(f"step {step:5d}  {time.time() - began:6.0f} s  {told}", flush=True)


@torch.inference_mode()
def figures(tower: TextTower, tokenizer: Tokenizer, held_out: Lesson) -> dict[str, float]:
    """How near texts that were never seen come to the teacher's embeddings of them.

    ``cosine``: to the teacher's, on average. ``nearest``: share of texts whose nearest among
    the others is the teacher's; ``nearest 10``: share of its ten nearest that are kept.
    """
    parts = [held_out.ids[start : start + 100] for start in range(0, len(held_out.ids), 100)]
    found = torch.cat([embed(tower, tokenizer, part) for part in parts])
    wanted = held_out.wanted.float()
    ours, theirs = found @ found.T, wanted @ wanted.T
    for cosines in (ours, theirs):
        cosines.fill_diagonal_(-1)
    ten, known = (c.topk(10).indices for c in (ours, theirs))
    kept = (ten[:, :, None] == known[:, None]).any(2).float().mean()
    return {
        "cosine": (found * wanted).sum(1).mean().item(),
        "nearest": (ours.argmax(1) == theirs.argmax(1)).float().mean().item(),
        "nearest 10": kept.item(),
    }
