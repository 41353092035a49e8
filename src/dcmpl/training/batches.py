"""Training batches: windows of images, drawn from the seed and the epoch alone.

Several processes share every batch. What is drawn belongs to the place of an image in the whole
batch, so that it does not depend on how many there are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dcmpl.config import TrainConfig
from dcmpl.data.table import ImageTable
from dcmpl.images.coats import random_windows
from dcmpl.images.decode import read_image
from dcmpl.model.stem import to_unit_range
from dcmpl.training.features import FrozenTable, PromptsOf

__all__ = ["ALONE", "Batch", "EpochWindows", "Share", "Whole", "epoch_batches", "epoch_loader"]


class Whole(NamedTuple):
    """Whole batch of which a process has a part.

    ``places`` are those of its windows. One that borrowed them, for want of an image of its own,
    leaves them out of the loss (``counts`` is false).
    """

    targets: Float[Tensor, "whole targets"]
    prompts: Int[Tensor, " whole"]
    places: Int[Tensor, " batch"]
    counts: bool


class Batch(NamedTuple):
    """Batch of windows with the opinions and the prompt of their images.

    ``whole`` is the batch of all processes, None where this is all of it.
    """

    inputs: Float[Tensor, "batch *shape"]
    targets: Float[Tensor, "batch targets"]
    prompts: Int[Tensor, " batch"]
    whole: Whole | None = None


class Share(NamedTuple):
    """Share of a process in every batch: its number, from 0, and how many there are."""

    process: int
    processes: int

    def places(self, count: int) -> list[int]:
        """Places of its images in a batch of ``count``.

        Where there are too few images it borrows the first, so that all take equally many steps.
        """
        return list(range(self.process, count, self.processes)) or [0]


ALONE = Share(0, 1)


class EpochWindows(Dataset[Batch]):
    """Data set of an epoch: row -> ``crops`` windows of that image and its opinions.

    Pixels from anywhere in the image, or, with ``frozen``, some of its windows in there.
    """

    def __init__(
        self,
        table: ImageTable,
        size: int,
        config: TrainConfig,
        epoch: int,
        frozen: FrozenTable | None,
        tasks: Sequence[str],
    ) -> None:
        self.paths = list(table.frame["image"])
        self.targets = torch.from_numpy(table.targets(tasks))
        self.prompts = torch.from_numpy(PromptsOf(table).rows)
        self.size, self.config, self.epoch, self.frozen = size, config, epoch, frozen

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Batch:
        rng = np.random.default_rng([self.config.seed, self.epoch, row])
        crops = self._crops(self.paths[row], rng)
        count = len(crops)
        return Batch(crops, self.targets[row].expand(count, -1), self.prompts[row].expand(count))

    def _crops(self, path: str, rng: np.random.Generator) -> Tensor:
        count = self.config.crops
        if self.frozen is not None:
            known = self.frozen[path]
            return known[torch.from_numpy(rng.integers(len(known), size=count))].float()
        crops = random_windows(read_image(path), self.size, rng, count, self.config.coats)
        return to_unit_range(torch.from_numpy(np.stack(crops)))

    def whole(self, rows: Sequence[int], share: Share) -> Whole:
        """Whole batch of the images in these rows, as the process with ``share`` of it needs it."""
        windows = torch.tensor(rows).repeat_interleave(self.config.crops)
        places = torch.arange(len(windows)).unflatten(0, (len(rows), -1))[share.places(len(rows))]
        counts = share.process < len(rows)
        return Whole(self.targets[windows], self.prompts[windows], places.flatten(), counts)


def epoch_batches(images: int, config: TrainConfig, epoch: int) -> list[list[int]]:
    """Rows of every batch of ``batch_size`` windows, in the epoch's order."""
    order = np.random.default_rng([config.seed, epoch]).permutation(images).tolist()
    count = max(1, config.batch_size // config.crops)
    return [order[i : i + count] for i in range(0, len(order), count)]


def epoch_loader(
    data: EpochWindows, config: TrainConfig, epoch: int, workers: int, share: Share = ALONE
) -> "DataLoader[Batch]":
    """The epoch's batches, or with ``share`` the part of each that is this process's."""
    own = [
        [rows[place] for place in share.places(len(rows))]
        for rows in epoch_batches(len(data), config, epoch)
    ]
    return DataLoader(data, batch_sampler=own, collate_fn=joined, num_workers=workers)


def joined(items: list[Batch]) -> Batch:
    """Collate the windows of several images; at module level, so that spawned workers find it."""
    inputs, targets, prompts, _ = zip(*items, strict=True)
    return Batch(torch.cat(inputs), torch.cat(targets), torch.cat(prompts))
