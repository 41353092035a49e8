"""A picture's score is its own: no batch, order or neighbour changes it."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dcmpl.config import TARGETS, ModelConfig, MpaConfig
from dcmpl.datasets import load_table
from dcmpl.images import read_image, to_unit_range, windows
from dcmpl.inference import (
    FrozenTable,
    freeze_table,
    predict_frozen,
    predict_table,
    score_pictures,
)
from dcmpl.model import DCMPL
from dcmpl.presets import PRESETS
from dcmpl.table import ImageTable, MosScale
from dcmpl.weights import load_backbone

TOLERANCE = 1e-6
"""Batches of other sizes add up in another order: a few float32 roundings of a value < 1."""


@pytest.fixture(scope="module")
def model(small_backbone: Path) -> DCMPL:
    backbone = load_backbone(str(small_backbone))
    return DCMPL(backbone.clip, backbone.tokenizer, ModelConfig(), 0).eval()


@pytest.fixture(scope="module")
def pictures() -> list[Tensor]:
    """Nine pictures of 1 to 35 windows."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(40, 44), (32, 32), (7, 9), (70, 90), (32, 100), (1, 1), (60, 33), (50, 50), (40, 80)]
    return [
        torch.randint(256, (3, *shape), generator=generator, dtype=torch.uint8) for shape in shapes
    ]


Found = dict[str, float]


def flat(scores: Iterator[Found] | list[Found]) -> list[float]:
    return [value for score in scores for value in (score["quality"], score["alignment"])]


@pytest.fixture(scope="module")
def expected(model: DCMPL, pictures: list[Tensor]) -> list[Found]:
    """Each picture alone, its windows in one call of the model."""
    found = []
    for picture in pictures:
        with torch.inference_mode():
            scores = model(to_unit_range(torch.stack(list(windows(picture, 32, "windows")))))
        found.append({t: scores[t].mean().item() for t in scores.tasks})
    return found


def test_pictures_of_the_fixture_have_different_scores(expected: list[Found]) -> None:
    assert len({round(score["quality"], 5) for score in expected}) == len(expected)


def test_score_is_the_mean_over_the_windows(
    model: DCMPL, pictures: list[Tensor], expected: list[Found]
) -> None:
    found = score_pictures(model, pictures, "windows")
    assert flat(found) == pytest.approx(flat(expected), abs=TOLERANCE)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 1000])
def test_score_does_not_depend_on_the_batch_size(
    model: DCMPL, pictures: list[Tensor], expected: list[Found], batch_size: int
) -> None:
    found = score_pictures(model, pictures, "windows", batch_size)
    assert flat(found) == pytest.approx(flat(expected), abs=TOLERANCE)


def test_score_does_not_depend_on_the_order(
    model: DCMPL, pictures: list[Tensor], expected: list[Found]
) -> None:
    order = list(range(len(pictures)))
    random.Random(1).shuffle(order)
    found = score_pictures(model, [pictures[i] for i in order], "windows", 4)
    assert flat(found) == pytest.approx(flat([expected[i] for i in order]), abs=TOLERANCE)


@pytest.mark.parametrize("index", [0, 3, 5])
def test_score_does_not_depend_on_the_neighbours(
    model: DCMPL, pictures: list[Tensor], expected: list[Found], index: int
) -> None:
    found = score_pictures(model, [pictures[index]], "windows", 4)
    assert flat(found) == pytest.approx(flat([expected[index]]), abs=TOLERANCE)


def test_no_pictures_give_no_scores(model: DCMPL) -> None:
    assert list(score_pictures(model, [], "windows")) == []


def test_scores_lie_between_zero_and_one(expected: list[Found]) -> None:
    assert all(0 <= value <= 1 for value in flat(expected))


@pytest.mark.parametrize(("batch_size", "most"), [(1, 1), (4, 4), (5, 5)])
def test_pictures_are_taken_only_as_a_batch_needs_them(
    model: DCMPL, batch_size: int, most: int
) -> None:
    taken = []

    def source() -> Iterator[Tensor]:
        for i in range(50):
            taken.append(i)
            yield torch.full((3, 32, 32), i, dtype=torch.uint8)

    scores = score_pictures(model, source(), "center", batch_size)
    next(scores)
    assert len(taken) <= most


def test_pictures_that_are_scored_are_let_go(model: DCMPL) -> None:
    import weakref

    held: list[weakref.ref[Tensor]] = []
    alive = 0

    def source() -> Iterator[Tensor]:
        for i in range(30):
            picture = torch.full((3, 32, 32), i, dtype=torch.uint8)
            held.append(weakref.ref(picture))
            yield picture
            del picture

    for _ in score_pictures(model, source(), "center", 4):
        alive = max(alive, sum(ref() is not None for ref in held))
    assert alive <= 5  # one batch of four and the picture at hand


def test_taking_scores_leaves_gradients_as_they_were(model: DCMPL, pictures: list[Tensor]) -> None:
    scores = score_pictures(model, pictures, "center", 1)
    next(scores)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_two_threads_may_score_with_one_model(
    model: DCMPL, pictures: list[Tensor], expected: list[Found]
) -> None:
    found: dict[int, list[float]] = {}

    def work(name: int) -> None:
        found[name] = flat(score_pictures(model, pictures, "windows", 5 + name))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in range(2):
        assert found[name] == pytest.approx(flat(expected), abs=TOLERANCE)


@pytest.fixture(scope="module")
def table(picture_data: Path) -> ImageTable:
    return load_table(picture_data, MosScale(1, 5))


@pytest.fixture(scope="module", params=["visual prompts", "no visual prompts"])
def either(small_backbone: Path, request: pytest.FixtureRequest) -> DCMPL:
    """A model that is frozen up to its first block, and one up to the image embedding."""
    preset = "dcmpl" if request.param == "visual prompts" else "coop-deep"
    backbone = load_backbone(str(small_backbone))
    return DCMPL(backbone.clip, backbone.tokenizer, PRESETS[preset].model, 0).eval()


@pytest.fixture(scope="module")
def frozen(either: DCMPL, table: ImageTable) -> FrozenTable:
    return freeze_table(either, table, "windows", "fp32")


def test_frozen_part_is_kept_for_every_window(
    either: DCMPL, table: ImageTable, frozen: FrozenTable
) -> None:
    path = table.frame["image"][7]
    pixels = to_unit_range(torch.stack(list(windows(read_image(path), 32, "windows"))))
    torch.testing.assert_close(frozen[path], either.frozen(pixels), atol=1e-5, rtol=0)


def test_scores_from_the_frozen_part_are_those_of_the_pictures(
    either: DCMPL, table: ImageTable, frozen: FrozenTable
) -> None:
    wanted = predict_table(either, table, "windows", "fp32", "scoring")
    found = predict_frozen(either, table, frozen, "fp32")
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE)


def test_task_that_the_model_has_not_is_nan(either: DCMPL, table: ImageTable) -> None:
    found = predict_table(either, table, "center", "fp32", "scoring")
    absent = [target not in either.config.tasks for target in TARGETS]
    assert np.isnan(found).all(axis=0).tolist() == absent


def test_frozen_part_can_be_mapped(frozen: FrozenTable) -> None:
    mapped = frozen.mapped(lambda values: 2 * values, batch_size=5)
    assert torch.equal(mapped.values, 2 * frozen.values)
    assert (mapped.starts, mapped.rows) == (frozen.starts, frozen.rows)


def test_model_that_reads_the_batch_is_given_one_picture_at_a_time(
    small_backbone: Path, pictures: list[Tensor]
) -> None:
    backbone = load_backbone(str(small_backbone))
    config = ModelConfig(mpa=MpaConfig(source="encoder_outputs"))
    model = DCMPL(backbone.clip, backbone.tokenizer, config, 0).eval()
    together = flat(score_pictures(model, pictures, "windows", 1000))
    alone = [x for p in pictures for x in flat(score_pictures(model, [p], "windows", 1000))]
    assert together == pytest.approx(alone, abs=TOLERANCE)
