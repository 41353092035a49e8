"""Training batches: drawn from seed and epoch alone, shared out, with negative prompts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dcmpl.config import TrainConfig
from dcmpl.data.datasets import load_table
from dcmpl.data.table import ImageTable, MosScale
from dcmpl.training.batches import EpochWindows, Share, epoch_batches, epoch_loader

CONFIG = TrainConfig(batch_size=10, seed=3)
TASKS = ("quality", "alignment")


@pytest.fixture(scope="module")
def table(image_data: Path) -> ImageTable:
    return load_table(image_data, MosScale(1, 5))


def epoch_of(table: ImageTable, epoch: int = 1, config: TrainConfig = CONFIG) -> EpochWindows:
    return EpochWindows(table, 32, config, epoch, None, TASKS)


def test_windows_depend_on_seed_epoch_and_row_alone(table: ImageTable) -> None:
    one, again, later = epoch_of(table), epoch_of(table), epoch_of(table, 2)
    for row in (7, 0, 7):  # in any order
        assert torch.equal(one[row].inputs, again[row].inputs)
    assert not torch.equal(one[7].inputs, later[7].inputs)
    other = epoch_of(table, config=replace(CONFIG, seed=4))
    assert not torch.equal(one[7].inputs, other[7].inputs)


def test_every_image_is_in_one_batch_of_an_epoch(table: ImageTable) -> None:
    batches = list(epoch_loader(epoch_of(table), CONFIG, 1, 0))
    assert [len(batch.targets) for batch in batches] == [10, 10, 10, 10, 8]
    found = torch.cat([batch.targets[:, 0] for batch in batches])
    wanted = torch.from_numpy(table.targets(TASKS))[:, 0]
    assert torch.equal(found.sort().values, wanted.sort().values)
    assert not torch.equal(found, wanted)


def test_crops_of_an_image_share_its_opinion_and_fill_the_batch(table: ImageTable) -> None:
    config = replace(CONFIG, crops=5)
    batch = next(iter(epoch_loader(epoch_of(table, config=config), config, 1, 0)))
    assert len(batch.inputs) == 10
    assert (batch.targets[:5] == batch.targets[0]).all()
    assert not torch.equal(batch.inputs[0], batch.inputs[1])


@pytest.mark.parametrize("count", [2, 3])
def test_shares_of_processes_make_the_batch(table: ImageTable, count: int) -> None:
    whole = epoch_loader(epoch_of(table), CONFIG, 1, 0)
    shares = [epoch_loader(epoch_of(table), CONFIG, 1, 0, Share(i, count)) for i in range(count)]
    for batch, *parts in zip(whole, *shares, strict=True):
        found = torch.cat([part.targets[:, 0] for part in parts])
        assert torch.equal(found.sort().values, batch.targets[:, 0].sort().values)


def test_process_without_an_image_of_its_own_takes_another_s(table: ImageTable) -> None:
    """Or it would take fewer steps, and the others would wait for it."""
    config = replace(CONFIG, batch_size=47)  # and one image
    shares = [epoch_loader(epoch_of(table), config, 1, 0, Share(i, 2)) for i in range(2)]
    assert [[len(b.targets) for b in share] for share in shares] == [[24, 1], [23, 1]]


def test_whole_batch_of_a_part_is_the_same_for_all_processes(table: ImageTable) -> None:
    config = replace(CONFIG, crops=2)
    data, rows = epoch_of(table, config=config), epoch_batches(len(table), config, 1)[0]
    alone = data.whole(rows, Share(0, 1))
    parts = [data.whole(rows, Share(i, 2)) for i in range(2)]
    assert all(torch.equal(part.targets, alone.targets) for part in parts)
    assert torch.equal(torch.cat([part.places for part in parts]).sort().values, alone.places)
    loaders = [epoch_loader(data, config, 1, 0, Share(i, 2)) for i in range(2)]
    for part, loader in zip(parts, loaders, strict=True):
        assert torch.equal(next(iter(loader)).targets, alone.targets[part.places])


def test_borrowed_image_counts_nothing(table: ImageTable) -> None:
    data = epoch_of(table)
    assert [data.whole([7], Share(i, 2)).counts for i in range(2)] == [True, False]
