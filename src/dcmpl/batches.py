"""What an epoch trains on: windows of pictures, drawn from the seed and the epoch alone."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dcmpl.config import TrainConfig
from dcmpl.images import read_image
from dcmpl.inference import FrozenTable
from dcmpl.stem import to_unit_range
from dcmpl.table import ImageTable
from dcmpl.views import random_window

__all__ = ["EpochWindows", "epoch_loader"]


class EpochWindows(Dataset[tuple[Tensor, Tensor]]):
    """Row -> ``crops`` windows of that picture, as this epoch draws them.

    Pixels from anywhere in the picture, or, with ``frozen``, some of its windows in there.
    """

    def __init__(
        self,
        table: ImageTable,
        size: int,
        config: TrainConfig,
        epoch: int,
        frozen: FrozenTable | None,
    ) -> None:
        self.paths = list(table.frame["image"])
        self.targets = torch.from_numpy(table.targets())
        self.size, self.config, self.epoch, self.frozen = size, config, epoch, frozen

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.config.seed, self.epoch, row])
        crops = self._crops(self.paths[row], rng)
        return crops, self.targets[row].expand(len(crops), -1)

    def _crops(self, path: str, rng: np.random.Generator) -> Tensor:
        step, count = self.config.crop_step, self.config.crops
        if self.frozen is not None:
            known = self.frozen[path]
            return known[torch.from_numpy(rng.integers(len(known), size=count))].float()
        picture = read_image(path)
        crops = [random_window(picture, self.size, rng, step) for _ in range(count)]
        return to_unit_range(torch.from_numpy(np.stack(crops)))


def epoch_loader(
    data: EpochWindows, config: TrainConfig, epoch: int, workers: int
) -> "DataLoader[tuple[Tensor, Tensor]]":
    """The epoch's batches of ``batch_size`` windows, in the epoch's order."""
    order = np.random.default_rng([config.seed, epoch]).permutation(len(data)).tolist()
    pictures = max(1, config.batch_size // config.crops)
    batches = [order[i : i + pictures] for i in range(0, len(order), pictures)]

    def joined(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        crops, targets = zip(*items, strict=True)
        return torch.cat(crops), torch.cat(targets)

    return DataLoader(data, batch_sampler=batches, collate_fn=joined, num_workers=workers)
