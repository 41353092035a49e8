"""A model that is being trained or measured, and a table of pictures: predictions.

Only validation may run the towers in bfloat16. A picture's score is the mean over its windows.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int, Int64
from torch import Tensor

from dcmpl.data.table import ImageTable, as_group
from dcmpl.images.decode import read_image
from dcmpl.images.windows import windows
from dcmpl.model.dcmpl import DCMPL
from dcmpl.model.prompt_reader import Texts
from dcmpl.model.stem import to_unit_range
from dcmpl.model.tokenizer import Tokens
from dcmpl.progress import track
from dcmpl.scoring.batching import outputs_of

__all__ = [
    "FrozenTable",
    "PromptsOf",
    "by_target",
    "freeze_table",
    "precision_context",
    "predict_frozen",
    "predict_table",
    "shuffled_prompts",
    "texts_of",
]

BATCH = 64


class PromptsOf:
    """The prompts of a table, each once; ``rows`` says which one each picture has."""

    def __init__(self, table: ImageTable) -> None:
        rows, names = pd.factorize(table.frame["prompt"])
        self.texts: list[str] = names.tolist()
        self.rows: Int64[np.ndarray, " pictures"] = rows.astype(np.int64)


def precision_context(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Where the towers' matrix products are done in bfloat16, or nothing at all."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def _scores(
    model: DCMPL,
    pictures: Iterable[Iterable[Any]],
    prompts: PromptsOf,
    precision: str,
    batch_size: int,
    frozen: bool = False,
) -> Iterator[Tensor]:
    """(tasks,) float64 per picture, given as windows of pixels or of what is ``frozen``."""
    device = model.mean.device

    @torch.inference_mode()
    def outputs(batch: Sequence[Any]) -> Tensor:
        windows, asked = zip(*batch, strict=True)
        inputs = (
            torch.stack(list(windows)).to(device).float() if frozen else _pixels(windows, device)
        )
        texts = None if tokens is None else texts_of(tokens, torch.tensor(asked))
        with precision_context(device, precision):
            scores = model(inputs, condition, frozen, texts)
        values: Tensor = scores.values
        return values.T.cpu().double()

    tokens = model.tokens_of(prompts.texts) if model.config.aux.reads_prompt else None
    with torch.inference_mode(), precision_context(device, precision):
        condition = None if model.reads_batch else model.condition()
    apart = 1 if model.reads_batch else None
    both = zip(pictures, prompts.rows.tolist(), strict=True)
    asking = (((window, row) for window in picture) for picture, row in both)
    for found in outputs_of(asking, outputs, batch_size, chunk=apart):
        yield torch.stack(found).mean(0)


def texts_of(
    tokens: Tokens, own: Int[Tensor, " batch"], other: Int[Tensor, " batch"] | None = None
) -> Texts:
    """Those rows of ``tokens`` that a batch needs, each once."""
    asked = own if other is None else torch.cat([own, other])
    chosen, places = torch.unique(asked.cpu(), return_inverse=True)
    rows = chosen.numpy()
    return Texts(
        Tokens(tokens.ids[rows], tokens.end[rows]),
        places[: len(own)],
        None if other is None else places[len(own) :],
    )


def _pixels(batch: Sequence[np.ndarray], device: torch.device) -> Tensor:
    return to_unit_range(torch.from_numpy(np.stack(batch)).to(device))


def _as_targets(model: DCMPL, rows: Iterable[Tensor], table: ImageTable) -> np.ndarray:
    """(rows, targets that the table has), NaN where the model has no such task."""
    values = torch.stack(list(rows)).numpy()
    return by_target(values, model.config.tasks, table)


def by_target(values: np.ndarray, tasks: Sequence[str], table: ImageTable) -> np.ndarray:
    """Columns for ``tasks`` as columns for the targets of a table, NaN for what is not there."""
    found = np.full((len(values), len(table.asked)), np.nan)
    for column, task in enumerate(tasks):
        if task in table.asked:
            found[:, table.asked.index(task)] = values[:, column]
    return found


def predict_table(
    model: DCMPL, table: ImageTable, views: str, precision: str, what: str
) -> np.ndarray:
    """(rows, targets of the table) predictions in [0, 1]; ``what`` names the progress bar.

    NaN for a task that the model has not.
    """
    size = model.clip.config.image_size
    paths = track(table.frame["image"], what)
    cut = (windows(read_image(path), size, views) for path in paths)
    return _as_targets(model, _scores(model, cut, PromptsOf(table), precision, BATCH), table)


def shuffled_prompts(table: ImageTable, seed: int = 0) -> list[str]:
    """For each picture the prompt of one that has another, drawn from ``seed``.

    Its own where no other has one. Texts that differ in case or blanks only are the same.
    """
    rng, frame = np.random.default_rng(seed), table.frame
    prompts, texts = frame["prompt"].tolist(), as_group(frame["prompt"]).to_numpy(str)
    groups = frame["group"].to_numpy(str)
    found = []
    for row, prompt in enumerate(prompts):
        others = np.flatnonzero((groups != groups[row]) & (texts != texts[row]) & (texts != ""))
        found.append(prompts[rng.choice(others)] if len(others) else prompt)
    return found


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
            parts = [function(part).cpu() for part in self.values.split(batch_size)]
        return FrozenTable(torch.cat(parts), self.starts, self.rows)


def freeze_table(model: DCMPL, table: ImageTable, views: str, precision: str) -> FrozenTable:
    """:meth:`DCMPL.frozen` of all windows of all pictures; links to one file share theirs.

    Kept in float16 where training is in bfloat16, which is finer, and in float32 else.
    """
    device, size = model.mean.device, model.clip.config.image_size
    halved = precision == "bf16" and model.config.frozen_part != "embedding"

    @torch.inference_mode()
    def outputs(batch: Sequence[np.ndarray]) -> Tensor:
        with precision_context(device, precision):
            found = model.frozen(_pixels(batch, device)).cpu()
        return found.half() if halved else found.float()

    files = {path: os.path.realpath(path) for path in table.frame["image"]}
    rows = {file: row for row, file in enumerate(dict.fromkeys(files.values()))}
    cut = (windows(read_image(f), size, views) for f in track(rows, "reading pictures once"))
    starts, values = [0], torch.empty(0)
    for found in outputs_of(cut, outputs, BATCH):
        start, end = starts[-1], starts[-1] + len(found)
        if end > len(values):
            # One block that doubles: small tensors among large passing ones tear the memory up.
            grown = found[0].new_empty(2 * end + BATCH, *found[0].shape)
            if start:
                grown[:start] = values[:start]
            values = grown
        values[start:end] = torch.stack(found)
        starts.append(end)
    return FrozenTable(values[: starts[-1]], starts, {p: rows[file] for p, file in files.items()})


def predict_frozen(
    model: DCMPL, table: ImageTable, frozen: FrozenTable, precision: str
) -> np.ndarray:
    """:func:`predict_table` for pictures whose frozen part is known."""
    known = (frozen[path] for path in table.frame["image"])
    prompts = PromptsOf(table)
    rows = _scores(model, known, prompts, precision, 4 * BATCH, frozen=True)
    return _as_targets(model, rows, table)
