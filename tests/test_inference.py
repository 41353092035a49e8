"""A picture's score is its own: no batch, order or neighbour changes it."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dcmpl.config import ModelConfig
from dcmpl.images import to_unit_range, windows
from dcmpl.inference import PictureScore, score_pictures
from dcmpl.model import DCMPL
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


def flat(scores: Iterator[PictureScore] | list[PictureScore]) -> list[float]:
    return [value for score in scores for value in (score.quality, score.alignment)]


@pytest.fixture(scope="module")
def expected(model: DCMPL, pictures: list[Tensor]) -> list[PictureScore]:
    """Each picture alone, its windows in one call of the model."""
    found = []
    for picture in pictures:
        with torch.inference_mode():
            scores = model(to_unit_range(torch.stack(list(windows(picture, 32, "windows")))))
        found.append(PictureScore(scores.quality.mean().item(), scores.alignment.mean().item()))
    return found


def test_pictures_of_the_fixture_have_different_scores(expected: list[PictureScore]) -> None:
    assert len({round(score.quality, 5) for score in expected}) == len(expected)


def test_score_is_the_mean_over_the_windows(
    model: DCMPL, pictures: list[Tensor], expected: list[PictureScore]
) -> None:
    found = score_pictures(model, pictures, "windows")
    assert flat(found) == pytest.approx(flat(expected), abs=TOLERANCE)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 1000])
def test_score_does_not_depend_on_the_batch_size(
    model: DCMPL, pictures: list[Tensor], expected: list[PictureScore], batch_size: int
) -> None:
    found = score_pictures(model, pictures, "windows", batch_size)
    assert flat(found) == pytest.approx(flat(expected), abs=TOLERANCE)


def test_score_does_not_depend_on_the_order(
    model: DCMPL, pictures: list[Tensor], expected: list[PictureScore]
) -> None:
    order = list(range(len(pictures)))
    random.Random(1).shuffle(order)
    found = score_pictures(model, [pictures[i] for i in order], "windows", 4)
    assert flat(found) == pytest.approx(flat([expected[i] for i in order]), abs=TOLERANCE)


@pytest.mark.parametrize("index", [0, 3, 5])
def test_score_does_not_depend_on_the_neighbours(
    model: DCMPL, pictures: list[Tensor], expected: list[PictureScore], index: int
) -> None:
    found = score_pictures(model, [pictures[index]], "windows", 4)
    assert flat(found) == pytest.approx(flat([expected[index]]), abs=TOLERANCE)


def test_no_pictures_give_no_scores(model: DCMPL) -> None:
    assert list(score_pictures(model, [], "windows")) == []


def test_scores_lie_between_zero_and_one(expected: list[PictureScore]) -> None:
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
    model: DCMPL, pictures: list[Tensor], expected: list[PictureScore]
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
