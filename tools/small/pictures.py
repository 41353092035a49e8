"""Pictures for the image tower of ``small``: drawn scenes and a few photographs, with defects.

Every subject is shown twice, with two sets of defects and in two coats (another file format,
another size, another crop), so that neither is mistaken for what a picture shows.
"""

import multiprocessing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from rich.progress import track
from torch import Tensor

from dcmpl.images.coats import random_coat
from dcmpl.images.windows import random_window
from dcmpl.model.stem import NORMALIZATION, TRUNK_NORMALIZATION, HybridStem, to_unit_range
from dcmpl.model.trunk import TRUNKS
from defects import degrade, draw_defects, pseudo_mos, words
from drawings import Pixels, corrupted, draw_scene, render, to_bytes

SIZE, CELL = 512, 64
PER_TASK = 20
PHOTO_SHARE, COAT_SHARE = 0.3, 0.5

PHOTOS = {
    "skimage/data/astronaut.png": "an astronaut in an orange suit before a flag",
    "skimage/data/brick.png": "a brick wall",
    "skimage/data/camera.png": "a cameraman on a field in black and white",
    "skimage/data/chelsea.png": "a tabby cat",
    "skimage/data/coffee.png": "a cup of coffee on a wooden table",
    "skimage/data/coins.png": "old coins in black and white",
    "skimage/data/grass.png": "grass in black and white",
    "skimage/data/gravel.png": "gravel in black and white",
    "skimage/data/hubble_deep_field.jpg": "galaxies in deep space",
    "skimage/data/ihc.png": "tissue under a microscope",
    "skimage/data/moon.png": "the surface of the moon",
    "skimage/data/motorcycle_left.png": "a motorcycle in a garage",
    "skimage/data/retina.jpg": "the retina of an eye",
    "skimage/data/rocket.jpg": "a rocket on its launch pad",
    "sklearn/datasets/images/china.jpg": "a Chinese palace by a lake",
    "sklearn/datasets/images/flower.jpg": "a red flower",
}
"""Photographs of the packages ``scikit-image`` and ``scikit-learn``, and what they show."""


@dataclass(frozen=True)
class Pool:
    """Pictures by twos: rows 2 i and 2 i + 1 show subject i."""

    statistics: Tensor  # (pictures, cells, numbers) of a hybrid stem, float16
    mos: Tensor  # (pictures,), 1 to 5
    captions: list[str]
    wrong: list[str]  # the same words for a subject that differs in one thing
    graded: list[str]  # and for one that differs in ``faults`` things, 0 to 5
    faults: Tensor  # (pictures,)

    def __len__(self) -> int:
        return len(self.mos)


@dataclass(frozen=True)
class Subject:
    """A clean image, and captions of it without how good it looks."""

    clean: Pixels
    caption: str
    wrong: str
    graded: str
    faults: int


def drawing(rng: Generator) -> Subject:
    scene = draw_scene(rng)
    other, faults = scene, int(rng.integers(6))
    for _ in range(faults):
        other = corrupted(other, rng)
    wrong = corrupted(scene, rng).caption()
    return Subject(render(scene, rng, SIZE), scene.caption(), wrong, other.caption(), faults)


def photograph(packages: Path, rng: Generator) -> Subject:
    """A square of a photograph, a half to the whole of its shorter side."""
    first, second = rng.choice(len(PHOTOS), 2, replace=False)
    file, caption = list(PHOTOS.items())[first]
    other = list(PHOTOS.values())[second]
    with Image.open(packages / file) as opened:
        image = opened.convert("RGB")
    side = int(min(image.size) * rng.uniform(0.5, 1))
    left, top = (int(rng.integers(length - side + 1)) for length in image.size)
    box = left, top, left + side, top + side
    resized = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)
    return Subject(np.asarray(resized, np.float32) / 255, caption, other, other, 5)


def draw_some(weights: Path, packages: Path, trunk: str, task: tuple[int, int]) -> Pool:
    """``PER_TASK`` subjects; ``task`` is (seed, number of the task)."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    stem = HybridStem(SIZE, CELL, 8, TRUNKS[trunk]).eval()
    stem.trunk.load_state_dict(torch.load(weights))
    known = NORMALIZATION[TRUNK_NORMALIZATION]
    mean, deviation = (torch.tensor(values)[:, None, None] for values in known)
    numbers, mos, faults = list[Tensor](), list[float](), list[int]()
    captions, wrong, graded = list[str](), list[str](), list[str]()
    for place in range(PER_TASK):
        rng = np.random.default_rng([*task, place])
        is_photo = rng.random() < PHOTO_SHARE
        subject = photograph(packages, rng) if is_photo else drawing(rng)
        for _ in range(2):
            defects = draw_defects(rng)
            image = to_bytes(degrade(subject.clean, defects, rng))
            if rng.random() < COAT_SHARE:
                image = random_window(random_coat(image, rng), SIZE, rng)
            with torch.inference_mode():
                pixels = to_unit_range(torch.from_numpy(image[None].copy()))
                numbers.append(stem.statistics((pixels - mean) / deviation)[0].half())
            opening = words(defects, rng)
            mos.append(pseudo_mos(defects))
            faults.append(subject.faults)
            for texts, caption in (
                (captions, subject.caption),
                (wrong, subject.wrong),
                (graded, subject.graded),
            ):
                texts.append(f"{opening} of {caption}")
    statistics = torch.stack(numbers).clone()  # a clone is no inference tensor any more
    return Pool(statistics, torch.tensor(mos), captions, wrong, graded, torch.tensor(faults))


def draw_pool(weights: Path, packages: Path, trunk: str, seed: int, subjects: int) -> Pool:
    """Subjects drawn on all cores; ``weights`` are the trunk's, in a file of PyTorch's."""
    tasks = [(seed, k) for k in range(subjects // PER_TASK)]
    work = partial(draw_some, weights, packages, trunk)
    with multiprocessing.get_context("spawn").Pool() as workers:
        parts = list(track(workers.imap(work, tasks), "drawing", total=len(tasks)))
    return Pool(
        torch.cat([p.statistics for p in parts]),
        torch.cat([p.mos for p in parts]),
        [caption for p in parts for caption in p.captions],
        [caption for p in parts for caption in p.wrong],
        [caption for p in parts for caption in p.graded],
        torch.cat([p.faults for p in parts]),
    )
