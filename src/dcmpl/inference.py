"""A model that is being trained or measured, and a table of pictures: predictions.

Only validation may run the towers in bfloat16. A picture's score is the mean over its windows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcmpl.config import TARGETS
from dcmpl.images import read_image
from dcmpl.model import DCMPL
from dcmpl.packing import outputs_of
from dcmpl.progress import track
from dcmpl.stem import to_unit_range
from dcmpl.table import ImageTable
from dcmpl.views import windows

__all__ = [
    "FrozenTable",
    "freeze_table",
    "precision_context",
    "predict_frozen",
    "predict_table",
]

BATCH = 64


def precision_context(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Where the towers' matrix products are done in bfloat16, or nothing at all."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def _scores(
    model: DCMPL,
    pictures: Iterable[Iterable[Any]],
    precision: str,
    batch_size: int,
    frozen: bool = False,
) -> Iterator[Tensor]:
    """(tasks,) float64 per picture, given as windows of pixels or of what is ``frozen``."""
    device = model.mean.device

    @torch.inference_mode()
    def outputs(batch: Sequence[Any]) -> Tensor:
        inputs = torch.stack(list(batch)).to(device).float() if frozen else _pixels(batch, device)
        with precision_context(device, precision):
            scores = model(inputs, condition, frozen)
        values: Tensor = scores.values
        return values.T.double().cpu()

    with torch.inference_mode(), precision_context(device, precision):
        condition = None if model.reads_batch else model.condition()
    apart = 1 if model.reads_batch else None
    for found in outputs_of(pictures, outputs, batch_size, chunk=apart):
        yield torch.stack(found).mean(0)


def _pixels(batch: Sequence[np.ndarray], device: torch.device) -> Tensor:
    return to_unit_range(torch.from_numpy(np.stack(batch)).to(device))


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
    def outputs(batch: Sequence[np.ndarray]) -> Tensor:
        with precision_context(device, precision):
            return model.frozen(_pixels(batch, device)).cpu().to(kept or torch.float32)

    paths = list(table.frame["image"])
    cut = (windows(read_image(p), size, views) for p in track(paths, "reading pictures once"))
    parts = [torch.stack(found) for found in outputs_of(cut, outputs, BATCH)]
    starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
    return FrozenTable(torch.cat(parts), starts, {path: row for row, path in enumerate(paths)})


def predict_frozen(
    model: DCMPL, table: ImageTable, frozen: FrozenTable, precision: str
) -> np.ndarray:
    """:func:`predict_table` for pictures whose frozen part is known."""
    known = (frozen[path] for path in table.frame["image"])
    return _as_targets(model, _scores(model, known, precision, 4 * BATCH, frozen=True))
