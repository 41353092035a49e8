"""Pictures in, one score per task and picture out: the only scoring loop.

Validation, evaluation and the scorer all run it; only validation may run the towers in
bfloat16. Windows of several pictures share a batch; a picture's score is the mean over its
windows.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dcmpl.datasets import ImageTable
from dcmpl.images import read_image, to_unit_range, windows
from dcmpl.model import DCMPL, Condition
from dcmpl.progress import track

__all__ = ["PictureScore", "precision_context", "predict_table", "score_pictures"]


@dataclass(frozen=True)
class PictureScore:
    """Both tasks' scores of one picture, in [0, 1]."""

    quality: float
    alignment: float


def precision_context(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Where the towers' matrix products are done in bfloat16, or nothing at all."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def score_pictures(
    model: DCMPL,
    pictures: Iterable[Tensor],
    views: str,
    batch_size: int = 64,
    precision: str = "fp32",
) -> Iterator[PictureScore]:
    """One :class:`PictureScore` per picture, in order, as soon as its last window is scored.

    ``pictures`` are uint8 (3, height, width) and are taken one at a time; ``batch_size``
    counts windows. What holds memory is one batch and the pictures it touches.
    """
    size = model.clip.config.image_size
    device = model.mean.device
    with torch.inference_mode(), precision_context(device, precision):
        condition = model.condition()
    waiting: list[Tensor] = []
    owners: list[int] = []
    sums: dict[int, Tensor] = {}
    counts: dict[int, int] = {}

    def flush() -> None:
        scores = _score_windows(model, torch.stack(waiting), condition, precision)
        for owner, score in zip(owners, scores, strict=True):
            sums[owner] = sums.get(owner, torch.zeros(2, dtype=torch.float64)) + score
        waiting.clear()
        owners.clear()

    def finished(before: int) -> Iterator[PictureScore]:
        for owner in sorted(o for o in counts if o < before):
            quality, alignment = (sums.pop(owner) / counts.pop(owner)).tolist()
            yield PictureScore(quality, alignment)

    index = -1
    for index, picture in enumerate(pictures):
        counts[index] = 0
        for window in windows(picture, size, views):
            waiting.append(window)
            owners.append(index)
            counts[index] += 1
            if len(waiting) == batch_size:
                flush()
        yield from finished(owners[0] if owners else index + 1)
    if waiting:
        flush()
    yield from finished(index + 1)


def predict_table(
    model: DCMPL, table: ImageTable, views: str, precision: str, what: str
) -> np.ndarray:
    """(rows, 2) predicted quality and alignment, in [0, 1]; ``what`` names the progress bar."""
    pictures = (read_image(path) for path in track(table.frame["image"], what))
    scores = score_pictures(model, pictures, views, precision=precision)
    return np.array([[score.quality, score.alignment] for score in scores])


def _score_windows(model: DCMPL, batch: Tensor, condition: Condition, precision: str) -> Tensor:
    """(windows, 2) float64 on the CPU: quality and alignment."""
    device = model.mean.device
    with torch.inference_mode(), precision_context(device, precision):
        scores = model(to_unit_range(batch.to(device)), condition)
    return torch.stack([scores.quality, scores.alignment], dim=1).double().cpu()
