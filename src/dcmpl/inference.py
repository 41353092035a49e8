"""Pictures in, one score per picture and task out: the only scoring loop.

Validation, evaluation and the scorer all run it; only validation may run the towers in
bfloat16. Windows of several pictures share a batch; a picture's score is the mean over its
windows.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dcmpl.config import TARGETS
from dcmpl.images import read_image, to_unit_range, windows
from dcmpl.model import DCMPL
from dcmpl.progress import track
from dcmpl.table import ImageTable

__all__ = [
    "FrozenTable",
    "freeze_table",
    "precision_context",
    "predict_frozen",
    "predict_table",
    "score_pictures",
]

BATCH = 64


def precision_context(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Where the towers' matrix products are done in bfloat16, or nothing at all."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def _of_windows(
    outputs: Callable[[Tensor], Tensor],
    pictures: Iterable[Iterable[Tensor]],
    batch_size: int,
    apart: bool = False,
) -> Iterator[Tensor]:
    """For each picture, in order, what ``outputs`` gives for its windows, (windows, ...).

    A picture is given as its windows, and comes back as soon as the last of them is done.
    What holds memory is one batch and the pictures it touches. ``apart``: no batch holds
    windows of two pictures.
    """
    waiting: list[Tensor] = []
    owners: list[int] = []
    done: dict[int, list[Tensor]] = {}

    def flush() -> None:
        for owner, output in zip(owners, outputs(torch.stack(waiting)), strict=True):
            done[owner].append(output)
        waiting.clear()
        owners.clear()

    def finished(before: int) -> Iterator[Tensor]:
        for owner in sorted(o for o in done if o < before):
            yield torch.stack(done.pop(owner))

    index = -1
    for index, picture in enumerate(pictures):
        done[index] = []
        for window in picture:
            waiting.append(window)
            owners.append(index)
            if len(waiting) == batch_size:
                flush()
        if apart and waiting:
            flush()
        yield from finished(owners[0] if owners else index + 1)
    if waiting:
        flush()
    yield from finished(index + 1)


def _scores(
    model: DCMPL,
    pictures: Iterable[Iterable[Tensor]],
    precision: str,
    batch_size: int,
    frozen: bool = False,
) -> Iterator[Tensor]:
    """(tasks,) float64 per picture, given as windows of pixels or of what is ``frozen``."""
    device = model.mean.device

    @torch.inference_mode()
    def outputs(batch: Tensor) -> Tensor:
        batch = batch.to(device)
        with precision_context(device, precision):
            scores = model(batch.float() if frozen else to_unit_range(batch), condition, frozen)
        values: Tensor = scores.values
        return values.T.double().cpu()

    with torch.inference_mode(), precision_context(device, precision):
        condition = None if model.reads_batch else model.condition()
    for found in _of_windows(outputs, pictures, batch_size, apart=model.reads_batch):
        yield found.mean(0)


def score_pictures(
    model: DCMPL,
    pictures: Iterable[Tensor],
    views: str,
    batch_size: int = BATCH,
    precision: str = "fp32",
) -> Iterator[dict[str, float]]:
    """Each picture's score in [0, 1] per task, in order, as soon as its last window is scored.

    ``pictures`` are uint8 (3, height, width) and are taken one at a time; ``batch_size``
    counts windows.
    """
    size = model.clip.config.image_size
    cut = (windows(picture, size, views) for picture in pictures)
    for values in _scores(model, cut, precision, batch_size):
        yield dict(zip(model.config.tasks, values.tolist(), strict=True))


def _as_targets(model: DCMPL, rows: Iterable[Tensor]) -> np.ndarray:
    """(rows, targets), NaN where the model has no such task."""
    values = torch.stack(list(rows)).numpy()
    found = np.full((len(values), len(TARGETS)), np.nan)
    for column, task in enumerate(model.config.tasks):
        found[:, TARGETS.index(task)] = values[:, column]
    return found


def predict_table(
    model: DCMPL, table: ImageTable, views: str, precision: str, what: str
) -> np.ndarray:
    """(rows, 2) predicted quality and alignment, in [0, 1]; ``what`` names the progress bar.

    NaN for a task that the model has not.
    """
    size = model.clip.config.image_size
    paths = track(table.frame["image"], what)
    cut = (windows(read_image(path), size, views) for path in paths)
    return _as_targets(model, _scores(model, cut, precision, BATCH))


@dataclass(frozen=True)
class FrozenTable:
    """What the frozen part of a model makes of all windows of some pictures, computed once.

    Window w of the picture at ``path`` is ``values[starts[rows[path]] + w]``.
    """

    values: Tensor
    starts: list[int]
    rows: dict[str, int]

    def __getitem__(self, path: str) -> Tensor:
        """(windows, ...) of one picture."""
        row = self.rows[path]
        return self.values[self.starts[row] : self.starts[row + 1]]

    def mapped(
        self, function: Callable[[Tensor], Tensor], batch_size: int = 4 * BATCH
    ) -> "FrozenTable":
        """The same windows with ``function`` of their values."""
        with torch.inference_mode():
            parts = [function(part) for part in self.values.split(batch_size)]
        return FrozenTable(torch.cat(parts), self.starts, self.rows)


def freeze_table(model: DCMPL, table: ImageTable, views: str, precision: str) -> FrozenTable:
    """:meth:`DCMPL.frozen` of all windows of all pictures.

    Kept in float16 where training is in bfloat16, which is finer, and in float32 else.
    """
    device, size = model.mean.device, model.clip.config.image_size
    kept = torch.float16 if precision == "bf16" and model.config.has_visual_prompts else None

    @torch.inference_mode()
    def outputs(batch: Tensor) -> Tensor:
        with precision_context(device, precision):
            return model.frozen(to_unit_range(batch.to(device))).cpu().to(kept or torch.float32)

    paths = list(table.frame["image"])
    cut = (windows(read_image(p), size, views) for p in track(paths, "reading pictures once"))
    parts = list(_of_windows(outputs, cut, BATCH))
    starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
    return FrozenTable(torch.cat(parts), starts, {path: row for row, path in enumerate(paths)})


def predict_frozen(
    model: DCMPL, table: ImageTable, frozen: FrozenTable, precision: str
) -> np.ndarray:
    """:func:`predict_table` for pictures whose frozen part is known."""
    known = (frozen[path] for path in table.frame["image"])
    return _as_targets(model, _scores(model, known, precision, 4 * BATCH, frozen=True))
