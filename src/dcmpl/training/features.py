"""Frozen features of a table, computed once, and the prompts of a table."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int, Int64
from torch import Tensor

from dcmpl.config import TrainConfig
from dcmpl.data.table import ImageTable, as_group
from dcmpl.images.coats import random_windows
from dcmpl.images.decode import cores, read_image
from dcmpl.images.windows import windows
from dcmpl.model.dcmpl import DCMPL
from dcmpl.model.prompt_reader import Texts
from dcmpl.model.stem import to_unit_range
from dcmpl.model.tokenizer import Ids, Tokens
from dcmpl.progress import say, track
from dcmpl.scoring.batching import outputs_of
from dcmpl.scoring.torch_engine import ModelEngine, core_lanes, has_bfloat16

__all__ = [
    "Frozen",
    "FrozenEngine",
    "FrozenTable",
    "PromptsOf",
    "freeze_draws",
    "freeze_table",
    "precision_context",
    "shuffled_prompts",
    "texts_of",
    "warn_of_precision",
]

BATCH = 16


class PromptsOf:
    """Distinct prompts of a table; ``rows`` is the prompt of each image."""

    def __init__(self, table: ImageTable) -> None:
        rows, names = pd.factorize(table.frame["prompt"])
        self.texts: list[str] = names.tolist()
        self.rows: Int64[np.ndarray, " images"] = rows.astype(np.int64)


def precision_context(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Context of the towers' matrix products: bfloat16 where the device has units, or none."""
    if precision == "bf16" and has_bfloat16(device):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def warn_of_precision(device: torch.device, precision: str) -> None:
    """Print where the towers do not compute in the chosen number format."""
    if precision == "bf16" and not has_bfloat16(device):
        say(f"note: {device.type} has no units for bfloat16 here; the towers compute in float32")


def texts_of(tokens: Tokens, own: Int[Tensor, " batch"]) -> Texts:
    """Prompts of a batch, each once."""
    chosen, places = torch.unique(own.cpu(), return_inverse=True)
    rows = chosen.numpy()
    return Texts(Tokens(tokens.ids[rows], tokens.end[rows]), places)


def _pixels(batch: Sequence[np.ndarray], device: torch.device) -> Tensor:
    return to_unit_range(torch.from_numpy(np.stack(batch)).to(device))


def shuffled_prompts(table: ImageTable, seed: int = 0) -> list[str]:
    """Shuffled prompts: for each image another image's different prompt, drawn from ``seed``.

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
    """Frozen features of all windows of some images, computed once.

    Window w of the image at ``path`` is ``values[starts[rows[path]] + w]``.
    """

    values: Tensor
    starts: list[int]
    rows: dict[str, int]

    def __getitem__(self, path: str) -> Tensor:
        """Features (windows, ...) of one image."""
        row = self.rows[path]
        return self.values[self.starts[row] : self.starts[row + 1]]

    def mapped(
        self, function: Callable[[Tensor], Tensor], batch_size: int = 4 * BATCH
    ) -> "FrozenTable":
        """Table with ``function`` of the features."""
        with torch.inference_mode():
            parts = [function(part).cpu() for part in self.values.split(batch_size)]
        return FrozenTable(torch.cat(parts), self.starts, self.rows)


@dataclass(frozen=True)
class Frozen:
    """Frozen features of the windows that a run is trained on, and of those that are scored."""

    training: FrozenTable
    scored: FrozenTable

    @property
    def of_views(self) -> FrozenTable | None:
        """Frozen features of the scored views of all images, where a run is trained on them."""
        return self.scored if self.training is self.scored else None


def freeze_table(model: DCMPL, table: ImageTable, views: str, precision: str) -> FrozenTable:
    """Compute the frozen features of all windows of all images; links to one file share theirs.

    Kept in float16 where training is in bfloat16, which is finer, and in float32 else.
    """
    size = model.clip.config.image_size
    return _freeze(model, table, lambda path, _: windows(read_image(path), size, views), precision)


def freeze_draws(model: DCMPL, table: ImageTable, config: TrainConfig) -> FrozenTable:
    """Compute the frozen features of ``config.draws`` random windows of each image.

    What is drawn depends on the image's name alone, so that runs of other seeds and splits
    share it.
    """
    size = model.clip.config.image_size

    def drawn(path: str, name: str) -> list[np.ndarray]:
        rng = np.random.default_rng(list(name.encode()))
        return random_windows(read_image(path), size, rng, config.draws, config.coats)

    return _freeze(model, table, drawn, config.precision)


def _freeze(
    model: DCMPL,
    table: ImageTable,
    cut: Callable[[str, str], Iterable[np.ndarray]],
    precision: str,
) -> FrozenTable:
    """Frozen features of the windows that ``cut`` makes of an image's path and name."""
    device = model.mean.device
    halved = precision == "bf16" and model.config.frozen_part != "embedding"

    @torch.inference_mode()
    def outputs(batch: Sequence[np.ndarray]) -> Tensor:
        with precision_context(device, precision):
            found = model.frozen(_pixels(batch, device)).cpu()
        return found.half() if halved else found.float()

    files = {path: os.path.realpath(path) for path in table.frame["image"]}
    rows = {file: row for row, file in enumerate(dict.fromkeys(files.values()))}
    names: dict[str, str] = {}
    for path, name in zip(table.frame["image"], table.frame["name"], strict=True):
        names.setdefault(files[path], name)
    images = (cut(file, names[file]) for file in track(rows, "reading images once"))
    starts, values, count = [0], torch.empty(0), cores()
    with core_lanes(count) as pool:
        for found in outputs_of(images, outputs, BATCH, pool=pool, depth=count):
            start, end = starts[-1], starts[-1] + len(found)
            if end > len(values):
                # One block that doubles: small tensors among large ones tear the memory up.
                grown = found[0].new_empty(2 * end + BATCH, *found[0].shape)
                if start:
                    grown[:start] = values[:start]
                values = grown
            values[start:end] = torch.stack(found)
            starts.append(end)
    return FrozenTable(values[: starts[-1]], starts, {p: rows[file] for p, file in files.items()})


class FrozenEngine(ModelEngine):
    """Engine of :func:`predict_table` that scores frozen features."""

    batch = 4 * BATCH

    def __init__(self, model: DCMPL, tasks: Sequence[str], frozen: FrozenTable) -> None:
        super().__init__(model, tasks)
        self.model, self.frozen = model, frozen
        with torch.inference_mode():
            self.condition = model.condition()
        self._columns = [model.config.tasks.index(task) for task in tasks]

    def windows_of(self, path: str, views: str) -> Iterator[np.ndarray]:
        """Rows of an image's windows; ``views`` must be those of the frozen features."""
        return iter(self.frozen[path].numpy())

    @torch.inference_mode()
    def __call__(
        self, windows: Any, texts: Sequence[Sequence[Ids]] = ()
    ) -> Float64[np.ndarray, "rows tasks"]:
        """Scores (rows, tasks) of ``windows``, rows of a :class:`FrozenTable`."""
        inputs = torch.from_numpy(windows).to(self.device).float()
        own = [text for of_window in texts for text in of_window]
        read = None
        if self._reader is not None:
            known = {text: row for row, text in enumerate(dict.fromkeys(own))}
            tokens = self.model.tokenizer.framed(list(known), self.model.slots)
            read = Texts(tokens, torch.tensor([known[text] for text in own]))
        scores = self.model(inputs, self.condition, True, read)
        values: np.ndarray = scores.values.cpu().double().numpy()[self._columns].T
        return values
