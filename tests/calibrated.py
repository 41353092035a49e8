"""A short run that is calibrated, and what stands in for one; loaded as a plugin.

PYTEST_DONT_REWRITE: tests import it as well.
"""

import csv
import shutil
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Factory, shared
from dcmpl.data.table import MosScale
from dcmpl.model.tokenizer import Ids, Parts
from dcmpl.scoring.batching import lanes
from dcmpl.scoring.calibration import CALIBRATION, Calibration, Meaning
from dcmpl.training.calibrate import Judged

COUNT, PROMPTS = 120, 30
SCALE = MosScale(1.0, 5.0)


@pytest.fixture(scope="session")
def judged_data(tmp_path_factory: Factory) -> Path:
    """A CSV of 120 images of 30 prompts by two generators; noise lowers the MOS (1 to 5)."""
    return shared(tmp_path_factory, "judged", _write_judged) / "noise.csv"


def _write_judged(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    with (folder / "noise.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        columns = ["image", "prompt", "generator", "mos_quality", "std_quality", "mos_alignment"]
        writer.writerow(columns)
        for i in range(COUNT):
            noise = rng.random()
            # The right half is half as noisy, so that windows differ.
            each = np.where(np.arange(44) < 22, 1.0, 0.5)[None, :, None]
            pixels = 128 + each * rng.normal(0, 5 + 90 * noise, (40, 44, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i:03}.png")
            row = [5 - 4 * noise, 0.2 + rng.random(), 1 + 4 * rng.random()]
            about = [f"{i:03}.png", f"prompt {i % PROMPTS}", "ab"[i // PROMPTS % 2]]
            writer.writerow([*about, *(f"{value:.3f}" for value in row)])


@pytest.fixture(scope="session")
def calibrated_words(small_backbone: Path, judged_data: Path) -> list[str]:
    """The words of a ``dcmpl train`` that can be calibrated, all but ``--out``."""
    words = f"train --data {judged_data} --mos-scale 1 5 --backbone {small_backbone}"
    return f"{words} --epochs 2 --batch-size 16 --lr 0.003 --set train.views=grid-2".split()


@pytest.fixture(scope="session")
def calibrated_run(tmp_path_factory: Factory, calibrated_words: list[str]) -> Path:
    """A finished run of :func:`calibrated_words`; copy it before changing it."""
    from dcmpl.cli.main import main

    def train(folder: Path) -> None:
        assert main([*calibrated_words, "--out", str(folder)]) == 0

    return shared(tmp_path_factory, "calibrated", train)


@pytest.fixture
def copied(tmp_path: Path, calibrated_run: Path) -> Path:
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(calibrated_run, tmp_path / "copied"))


@pytest.fixture(scope="session")
def uncalibrated_run(tmp_path_factory: Factory, calibrated_run: Path) -> Path:
    """The same run as it was before it was calibrated."""
    folder = shutil.copytree(calibrated_run, tmp_path_factory.mktemp("runs") / "uncalibrated")
    (folder / CALIBRATION).unlink()
    return Path(folder)


def judged_of(
    scores: Sequence[float] | np.ndarray,
    mos: Sequence[float] | np.ndarray,
    *,
    spread: np.ndarray | None = None,
    raters: np.ndarray | None = None,
    per_prompt: int = 4,
) -> Judged:
    """Images whose windows agree and whose raters are not known, unless given."""
    count = len(scores)
    return Judged(
        np.array(scores, dtype=float),
        np.zeros(count) if spread is None else spread,
        np.array(mos, dtype=float),
        np.full(count, np.nan) if raters is None else raters,
        np.array([f"prompt {i // per_prompt}" for i in range(count)]),
    )


def drawn(rng: np.random.Generator, count: int, uneven: bool = False) -> Judged:
    """Opinions that rise with scores as a logistic does; ``uneven``: as unsure as windows are."""
    scores, spread = rng.random(count), rng.gamma(2, 0.05, count)
    noise = rng.normal(size=count) * (0.1 + 3 * spread if uneven else 0.35)
    mos = 1.3 + 3.4 / (1 + np.exp(-(scores - 0.5) / 0.15)) + noise
    return judged_of(scores, mos.clip(1, 5), spread=spread)


def plain_meaning(**fields: object) -> Meaning:
    """Scores that are places on a scale of 1 to 5, with errors of a deviation of one half."""
    known: dict[str, object] = {
        "low": 1.0,
        "high": 5.0,
        "population": tuple(np.linspace(0, 1, 101).tolist()),
        "spread": (0.25, 0.0, 0.0),
        "widths": {"0.5": 0.7, "0.8": 1.3, "0.9": 1.6, "0.95": 2.0},
    }
    return Meaning(**{**known, **fields})  # type: ignore[arg-type]


def plain_calibration(*targets: str, meaning: Meaning | None = None) -> Calibration:
    known = plain_meaning() if meaning is None else meaning
    return Calibration("made", "center", "0" * 64, dict.fromkeys(targets or ("quality",), known))


class Brightness:
    """An engine whose first score is how bright a window is; the second, how dark."""

    name, precision, size, batch = "torch", "fp32", 16, 16
    reads: str | None = None

    def __init__(self, *tasks: str) -> None:
        self.tasks = tasks or ("quality",)

    def __call__(self, windows: np.ndarray, texts: Sequence[Sequence[Ids]] = ()) -> np.ndarray:
        bright = windows.mean((1, 2, 3)) / 255
        found: np.ndarray = np.stack([bright, 1 - bright], axis=1)[:, : len(self.tasks)]
        return found

    def parts(self, text: str, long: str) -> Parts:
        return Parts(((),))

    def lanes(self, count: int) -> AbstractContextManager[Executor]:
        return lanes(count)


def grey(*levels: int) -> np.ndarray:
    """An image of one window for each level, side by side."""
    row = np.repeat(np.array(levels, np.uint8), Brightness.size)
    return np.broadcast_to(row[None, :, None], (Brightness.size, len(row), 3)).copy()
