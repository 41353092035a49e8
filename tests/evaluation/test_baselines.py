"""Floors are what they say, fitted on training alone, and better than chance."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import made_table
from dcmpl.data.datasets import load_table
from dcmpl.data.table import ImageTable, MosScale
from dcmpl.evaluation.baselines import BASELINES, predict_baselines, statistics_of
from dcmpl.metrics import srcc

EXACT = 1e-6
"""Opinions in [0, 1] pass through float32."""

TRAINING = made_table(
    generator=["a", "a", "b", "b", "b"],
    mos_quality=[1.0, 2.0, 5.0, 4.0, np.nan],
    mos_alignment=[np.nan, np.nan, 3.0, 1.0, 5.0],
)
TESTED = made_table(generator=["b", "a", "unseen", "a"], mos_quality=[5.0, 5.0, 5.0, 5.0])


def test_generators_mean_equals_a_hand_computation() -> None:
    """On 1 to 5: a is (0 + 1/4) / 2, b is (1 + 3/4) / 2, all four together 1/2."""
    found = predict_baselines(TRAINING, TESTED, None)["generator"]
    assert found[:, 0] == pytest.approx([7 / 8, 1 / 8, 1 / 2, 1 / 8], abs=EXACT)


def test_generator_that_training_does_not_know_gets_the_mean_over_rows() -> None:
    """Of the judged rows, and not of the generators' means: a is judged once, b twice."""
    training = made_table(generator=["a", "b", "b"], mos_quality=[1.0, 5.0, 5.0])
    found = predict_baselines(training, TESTED, None)["generator"]
    assert found[2, 0] == pytest.approx(2 / 3, abs=EXACT)


def test_generator_that_is_not_judged_on_a_target_gets_its_overall_mean() -> None:
    """Alignment of b is 1/2, 0 and 1; nobody judged a's."""
    found = predict_baselines(TRAINING, TESTED, None)["generator"]
    assert found[:, 1] == pytest.approx([1 / 2] * 4, abs=EXACT)


def test_target_that_nobody_judged_is_nan(three: dict[str, np.ndarray]) -> None:
    training, tested = placed(TRAINING, [0, 1, 2, 0, 1]), placed(TESTED, [2, 1, 0, 0])
    for found in predict_baselines(training, tested, three).values():
        assert found.shape == (4, 3)
        assert np.isnan(found[:, 2]).all()
        assert np.isfinite(found[:, :2]).all()


def test_opinions_of_the_tested_images_are_not_asked(three: dict[str, np.ndarray]) -> None:
    training, tested = placed(TRAINING, [0, 1, 2, 0, 1]), placed(TESTED, [2, 1, 0, 0])
    other = ImageTable("made", tested.scale, tested.frame.assign(mos_quality=[1.0, 2, 3, np.nan]))
    first, second = (predict_baselines(training, t, three) for t in (tested, other))
    assert all(np.array_equal(first[f], second[f], equal_nan=True) for f in BASELINES)


def test_without_statistics_there_is_only_the_generators_mean(
    three: dict[str, np.ndarray],
) -> None:
    assert set(predict_baselines(TRAINING, TESTED, None)) == {"generator"}
    with_both = predict_baselines(placed(TRAINING, [0] * 5), placed(TESTED, [1] * 4), three)
    assert list(with_both) == list(BASELINES) == ["generator", "statistics"]


def placed(table: ImageTable, images: list[int]) -> ImageTable:
    """The table with these of the three images."""
    return ImageTable("made", table.scale, table.frame.assign(image=[f"/{i}.png" for i in images]))


@pytest.fixture
def three() -> dict[str, np.ndarray]:
    """Statistics of three images, made up."""
    rng = np.random.default_rng(0)
    return {f"/{i}.png": rng.normal(size=20).astype(np.float32) for i in range(3)}


def test_equal_opinions_are_predicted_as_they_are(three: dict[str, np.ndarray]) -> None:
    training = placed(made_table(mos_quality=[4.0] * 4), [0, 1, 2, 0])
    found = predict_baselines(training, placed(TESTED, [0, 1, 2, 1]), three)["statistics"]
    assert found[:, 0] == pytest.approx([0.75] * 4, abs=EXACT)


def test_predictions_stay_in_the_unit_range() -> None:
    """Opinions at the two ends, and images beyond both."""
    x = np.linspace(-3, 3, 41).astype(np.float32)
    statistics = {f"/{i}.png": np.array([x[i], x[i] ** 3]) for i in range(41)}
    training = placed(made_table(mos_quality=[1.0] * 12 + [5.0] * 12), [*range(8, 32)])
    tested = placed(made_table(mos_quality=[3.0] * 41), [*range(41)])
    found = predict_baselines(training, tested, statistics)["statistics"][:, 0]
    assert (found >= 0).all()
    assert (found <= 1).all()
    assert found.max() - found.min() > 0.5


def test_statistics_are_told_apart_where_one_is_constant(three: dict[str, np.ndarray]) -> None:
    """One more column that says nothing changes nothing but the kernel's width."""
    constant = {path: np.append(x, np.float32(0.1)) for path, x in three.items()}
    training = placed(made_table(mos_quality=[1.0, 3.0, 5.0] * 4), [0, 1, 2] * 4)
    tested = placed(made_table(mos_quality=[3.0] * 3), [0, 1, 2])
    found = predict_baselines(training, tested, constant)["statistics"][:, 0]
    assert np.argsort(found).tolist() == [0, 1, 2]
    assert found[2] - found[0] > 0.5


def halves(table: ImageTable) -> tuple[ImageTable, ImageTable]:
    """Of the 12 prompts the first eight, and the others."""
    number = table.frame["prompt"].str.rsplit(" ", n=1).str[1].astype(int)
    return table.select(number < 8), table.select(number >= 8)


@pytest.fixture(scope="module")
def noise(image_data: Path) -> tuple[ImageTable, dict[str, np.ndarray]]:
    """Images whose noise is their quality, and their statistics."""
    table = load_table(image_data, MosScale(1, 5))
    return table, statistics_of(table.frame["image"])


def test_statistics_floor_beats_chance_on_images_whose_noise_is_their_quality(
    noise: tuple[ImageTable, dict[str, np.ndarray]],
) -> None:
    training, tested = halves(noise[0])
    assert (len(training), len(tested)) == (32, 16)
    found = predict_baselines(training, tested, noise[1])
    # Of 16 values chance reaches 0.8 once in several thousand draws.
    assert srcc(found["statistics"][:, 0], tested.targets()[:, 0]) > 0.8
    # Generators take turns and say little here.
    assert abs(srcc(found["generator"][:, 0], tested.targets()[:, 0])) < 0.8


def test_statistics_floor_learns_nothing_from_shuffled_opinions(
    noise: tuple[ImageTable, dict[str, np.ndarray]],
) -> None:
    table, statistics = noise
    rng, found = np.random.default_rng(0), []
    for _ in range(20):
        mos = rng.permutation(table.frame["mos_quality"])
        shuffled = ImageTable("made", table.scale, table.frame.assign(mos_quality=mos))
        training, tested = halves(shuffled)
        predicted = predict_baselines(training, tested, statistics)["statistics"][:, 0]
        found.append(srcc(predicted, tested.targets()[:, 0]))
    # One has a deviation of 1 / sqrt(15), the mean of 20 one of 0.06; it leans a little the
    # other way, since what training has more of the test has less of.
    assert -0.3 < np.mean(found) < 0.18


def test_floors_are_the_same_again(
    noise: tuple[ImageTable, dict[str, np.ndarray]],
) -> None:
    table, statistics = noise
    training, tested = halves(table)
    first, second = (predict_baselines(training, tested, statistics) for _ in range(2))
    assert all(np.array_equal(first[f], second[f], equal_nan=True) for f in BASELINES)
    few = tested.frame["image"].tolist()[:4]
    again = statistics_of(few)
    assert all(np.array_equal(again[path], statistics[path]) for path in few)


IMAGES: dict[str, Callable[[], np.ndarray]] = {
    "black": lambda: np.zeros((64, 64, 3), np.uint8),
    "white": lambda: np.full((300, 300, 3), 255, np.uint8),
    "one pixel": lambda: np.full((1, 1, 3), 90, np.uint8),
    "noise": lambda: np.random.default_rng(0).integers(0, 256, (80, 500, 3), dtype=np.uint8),
}


def test_every_image_has_1386_finite_statistics(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{name}.png") for name in IMAGES]
    for path, make in zip(paths, IMAGES.values(), strict=True):
        Image.fromarray(make()).save(path)
    found = statistics_of([*paths, *paths])
    assert list(found) == paths
    assert {x.shape for x in found.values()} == {(1386,)}
    assert all(np.isfinite(x).all() for x in found.values())
    assert not np.array_equal(found[paths[0]], found[paths[3]])
