"""The whole job on a sample set drawn here: train, evaluate on unseen prompts, score a folder.

    python tools/demo.py --out out/demo

Every step is a ``dcmpl`` command, printed before it runs, so that it can be repeated.
"""

import argparse
import csv
import shlex
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from rich.progress import track

from dcmpl.cli.main import main as dcmpl
from defects import degrade, draw_defects, pseudo_mos
from drawings import corrupted, draw_scene, render, to_bytes

SIDE = 320
PROMPTS, PER_PROMPT = 60, 6
GENERATORS = {"steady": 0.0, "plain": 0.5, "wild": 1.0}
"""How much of the drawn defects a made-up generator shows."""


def draw_sample_set(folder: Path, prompts: int, seed: int) -> None:
    """``img/*.png`` and ``data.csv``: images whose defects and deviations are known.

    The MOS (1 to 5) is what is left of flawless after the defects, and after every thing
    that the image shows otherwise than its prompt says, with a rater's noise.
    """
    (folder / "img").mkdir(parents=True)
    with (folder / "data.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "prompt", "mos_quality", "mos_alignment", "generator"])
        for number in track(range(prompts), "drawing images"):
            rng = np.random.default_rng([seed, number])
            asked = draw_scene(rng)
            for version in range(PER_PROMPT):
                generator = list(GENERATORS)[version % len(GENERATORS)]
                defects = {
                    name: severity * rng.uniform(GENERATORS[generator], 1)
                    for name, severity in draw_defects(rng).items()
                }
                shown, wrong = asked, int(rng.integers(4))
                for _ in range(wrong):
                    shown = corrupted(shown, rng)
                image = degrade(render(shown, rng, SIDE), defects, rng)
                name = f"{generator}_{number:03}_{version}.png"
                Image.fromarray(to_bytes(image)).save(folder / "img" / name)
                quality = np.clip(pseudo_mos(defects) + rng.normal(0, 0.15), 1, 5)
                spoilt = 1 + (quality - 1) * 0.9**wrong  # what is spoilt follows nothing
                alignment = np.clip(0.5 * spoilt + 0.5 * (5 - wrong) + rng.normal(0, 0.15), 1, 5)
                rows.writerow(
                    [
                        f"img/{name}",
                        asked.caption(),
                        f"{quality:.3f}",
                        f"{alignment:.3f}",
                        generator,
                    ]
                )


def contact_sheet(scores: Path, out: Path) -> None:
    """The scored images from worst to best, each with its score under it."""
    with scores.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "ok"]
    rows.sort(key=lambda row: float(row["quality"]))
    side, columns = 160, 6
    sheet = Image.new("RGB", (columns * side, -(-len(rows) // columns) * (side + 16)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, row in enumerate(rows):
        x, y = place % columns * side, place // columns * (side + 16)
        sheet.paste(Image.open(row["image"]).convert("RGB").resize((side, side)), (x, y))
        pen.text((x + 4, y + side + 2), f"quality {float(row['quality']):.2f}", fill="black")
    sheet.save(out)


def run(*words: str) -> None:
    """Run one command of ``dcmpl`` and stop where it fails."""
    print(f"\n$ dcmpl {shlex.join(words)}", flush=True)
    code = dcmpl(words)
    if code:
        sys.exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder; emptied first")
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    out, start = options.out, time.time()
    if out.exists() and not (out / "data" / "data.csv").exists():
        parser.error(f"expected a new folder or an earlier demo at {out}, got something else")
    shutil.rmtree(out, ignore_errors=True)
    draw_sample_set(out / "data", PROMPTS, seed=0)
    draw_sample_set(out / "new", 3, seed=1)
    table = str(out / "data" / "data.csv")
    training = ["--data", table, "--mos-scale", "1", "5", "--epochs", str(options.epochs)]
    run("train", *training, "--out", str(out / "run"), "--seed", "0")
    run("evaluate", str(out / "run"), "--split", "test")
    scores = out / "scores.csv"
    run("score", str(out / "new" / "img"), "--model", str(out / "run"), "-o", str(scores))
    contact_sheet(scores, out / "scores.png")
    print(
        f"\ndone in {time.time() - start:.0f} s; look at\n"
        f"  {out}/run/quality.png     predictions against opinions, prompts never seen\n"
        f"  {out}/run/metrics.json    the table above, with intervals\n"
        f"  {out}/scores.png          new images from worst to best\n"
        f"  {out}/scores.csv          their scores"
    )


if __name__ == "__main__":
    main()
