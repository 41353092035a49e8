"""Training batches: windows of images, drawn from the seed and the epoch alone."""

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

__all__ = ["Batch", "EpochWindows", "epoch_loader"]


class Batch(NamedTuple):
    """Batch of windows with the opinions and the prompt of their images."""

    inputs: Float[Tensor, "batch *shape"]
    targets: Float[Tensor, "batch targets"]
    prompts: Int[Tensor, " batch"]


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


def epoch_loader(
    data: EpochWindows,
    config: TrainConfig,
    epoch: int,
    workers: int,
    share: tuple[int, int] = (0, 1),
) -> "DataLoader[Batch]":
    """The epoch's batches of ``batch_size`` windows, in the epoch's order.

    ``share``: the number of this process, from 0, and how many there are. Each takes its part
    of every batch, at least one image, so that all take equally many steps.
    """
    order = np.random.default_rng([config.seed, epoch]).permutation(len(data)).tolist()
    images = max(1, config.batch_size // config.crops)
    whole = [order[i : i + images] for i in range(0, len(order), images)]
    batches = [batch[share[0] :: share[1]] or batch[:1] for batch in whole]

    return DataLoader(data, batch_sampler=batches, collate_fn=joined, num_workers=workers)


def joined(items: list[Batch]) -> Batch:
    """Collate the windows of several images; at module level, so that spawned workers find it."""
    return Batch(*map(torch.cat, zip(*items, strict=True)))
