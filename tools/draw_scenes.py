"""A data set of drawings whose prompts are more or less true, to see what a model reads.

    python tools/draw_scenes.py --out DIR [--images 24000] [--captions 6] [--seed 0]

Each image shows a scene; half of them have one to three defects. Its prompt is the caption
with 0 to 8 of its eleven facts replaced: MOS of alignment 5 - 4 faults / 11, of quality the
pseudo-MOS. ``data.csv`` also holds the right caption and one with a single fault, in
``wrong_in``. Further captions are rows of links to the same image.
"""

import argparse
import csv
import os
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from dcmpl.data.table import ImageTable
from defects import degrade, draw_defects, pseudo_mos
from drawings import PARTS, Scene, draw_scene, render, to_bytes, with_faults

SIZE, MOST_FAULTS = 256, 8
COLUMNS = (
    *("image", "prompt", "generator", "mos_quality", "mos_alignment"),
    *("faults", "right", "wrong", "wrong_in"),
)


def draw(folder: Path, captions: int, seed: int, number: int) -> list[dict[str, Any]]:
    """Write an image and links to it; returns a row for each."""
    rng = np.random.default_rng([seed, number])
    scene = draw_scene(rng)
    image = render(scene, rng, SIZE)
    defects = draw_defects(rng) if rng.random() < 0.5 else {}
    faults = int(rng.integers(0, MOST_FAULTS + 1))
    wrong = with_faults(scene, 1, rng)
    name = f"images/{number:05}.png"
    pixels = to_bytes(degrade(image, defects, rng))
    Image.fromarray(pixels).save(folder / name, compress_level=1)
    differ = zip(PARTS, facts(scene), facts(wrong), strict=True)
    known = {
        "generator": "degraded" if defects else "clean",
        "mos_quality": f"{pseudo_mos(defects):.4f}",
        "right": scene.caption(),
        "wrong": wrong.caption(),
        "wrong_in": next(part for part, ours, theirs in differ if ours != theirs),
    }
    rows = [told(scene, faults, rng) | {"image": name} | known]
    for again in range(1, captions):
        rng = np.random.default_rng([seed, number, again])
        link = f"images/{number:05}-{again}.png"
        (folder / link).symlink_to(f"{number:05}.png")
        faults = int(rng.integers(0, MOST_FAULTS + 1))
        rows.append(told(scene, faults, rng) | {"image": link} | known)
    return rows


def told(scene: Scene, faults: int, rng: np.random.Generator) -> dict[str, Any]:
    """A prompt with so many faults, and how well the image follows it."""
    return {
        "prompt": with_faults(scene, faults, rng).caption(),
        "mos_alignment": f"{5 - 4 * faults / len(PARTS):.4f}",
        "faults": faults,
    }


def each_once(table: ImageTable) -> ImageTable:
    """The rows of drawings, without those of links to them."""
    return table.select(~table.frame["image"].map(os.path.islink))


def facts(scene: Scene) -> list[str]:
    """What it says of each of ``PARTS``."""
    things = (scene.first, scene.second)
    of_things = [f for t in things for f in (t.size, t.texture, t.colour, t.shape)]
    return [*of_things, scene.relation, scene.background, scene.tint]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--images", type=int, default=24000)
    parser.add_argument("--captions", type=int, default=6, help="prompts of each image")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    (options.out / "images").mkdir(parents=True)
    with Pool() as pool, (options.out / "data.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        drawing = partial(draw, options.out, options.captions, options.seed)
        drawn = pool.imap(drawing, range(options.images), chunksize=32)
        for rows in track(drawn, "drawing", options.images):
            writer.writerows(rows)


if __name__ == "__main__":
    main()
