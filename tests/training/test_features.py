"""An image's score is its own: no batch, order or neighbour changes it."""

import random
import threading
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dcmpl.config import TARGETS, ModelConfig, TrainConfig
from dcmpl.data.datasets import load_table
from dcmpl.data.splits import ValidationPart
from dcmpl.data.table import ImageTable, MosScale
from dcmpl.images.decode import read_image
from dcmpl.images.windows import random_window, windows
from dcmpl.metrics import srcc
from dcmpl.model.dcmpl import DCMPL
from dcmpl.model.stem import to_unit_range
from dcmpl.presets import PRESETS, with_settings
from dcmpl.scoring.engines import Answer, Question, all_scores, score_images
from dcmpl.scoring.torch_engine import TorchEngine, by_target, predict_table
from dcmpl.training.features import (
    FrozenEngine,
    FrozenTable,
    freeze_draws,
    freeze_table,
    precision_context,
    warn_of_precision,
)
from dcmpl.training.loop import validate
from dcmpl.weights.backbones import load_backbone

TOLERANCE = 1e-6
"""Batches of other sizes add up in another order: a few float32 roundings of a value < 1."""


@pytest.fixture(scope="module")
def model(small_backbone: Path) -> DCMPL:
    backbone = load_backbone(str(small_backbone))
    return DCMPL(backbone.clip, backbone.tokenizer, ModelConfig(), 0).eval()


@pytest.fixture(scope="module")
def engine(model: DCMPL) -> TorchEngine:
    return TorchEngine(model, model.config.tasks)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Nine images of 1 to 35 windows."""
    rng = np.random.default_rng(0)
    shapes = [(40, 44), (32, 32), (7, 9), (70, 90), (32, 100), (1, 1), (60, 33), (50, 50), (40, 80)]
    return [rng.integers(256, size=(*shape, 3), dtype=np.uint8) for shape in shapes]


def pixels_of(image: np.ndarray, views: str) -> torch.Tensor:
    return to_unit_range(torch.from_numpy(np.stack(list(windows(image, 32, views)))))


@pytest.fixture(scope="module")
def expected(model: DCMPL, images: list[np.ndarray]) -> np.ndarray:
    """Each image alone, its windows in one call of the model."""
    found = []
    for image in images:
        with torch.inference_mode():
            scores = model(pixels_of(image, "windows"))
        found.append([scores[task].mean().item() for task in model.config.tasks])
    return np.array(found)


def scored(
    engine: TorchEngine, images: Iterable[np.ndarray | None], batch_size: int = 32
) -> np.ndarray:
    found = answers(engine, images, "windows", batch_size)
    return np.array([answer.scores for answer in found if answer is not None])


def answers(
    engine: TorchEngine, images: Iterable[np.ndarray | None], views: str, batch_size: int = 16
) -> Iterator[Answer | None]:
    keyed = ((None, Question(image)) for image in images)
    return (answer for _, answer in score_images(engine, keyed, views, batch_size=batch_size))


def assert_equal(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE)


def test_images_of_the_fixture_have_different_scores(expected: np.ndarray) -> None:
    assert len(set(expected[:, 0].round(5))) == len(expected)


def test_score_is_the_mean_over_the_windows(
    engine: TorchEngine, images: list[np.ndarray], expected: np.ndarray
) -> None:
    assert_equal(scored(engine, images), expected)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 1000])
def test_score_does_not_depend_on_the_batch_size(
    engine: TorchEngine, images: list[np.ndarray], expected: np.ndarray, batch_size: int
) -> None:
    assert_equal(scored(engine, images, batch_size), expected)


def test_score_does_not_depend_on_the_order(
    engine: TorchEngine, images: list[np.ndarray], expected: np.ndarray
) -> None:
    order = list(range(len(images)))
    random.Random(1).shuffle(order)
    assert_equal(scored(engine, [images[i] for i in order], 4), expected[order])


@pytest.mark.parametrize("index", [0, 3, 5])
def test_score_does_not_depend_on_the_neighbours(
    engine: TorchEngine, images: list[np.ndarray], expected: np.ndarray, index: int
) -> None:
    assert_equal(scored(engine, [images[index]], 4), expected[[index]])


def test_no_images_give_no_scores(engine: TorchEngine) -> None:
    assert list(score_images(engine, [], "windows")) == []


def test_no_image_gives_no_score_and_leaves_the_others(
    engine: TorchEngine, images: list[np.ndarray], expected: np.ndarray
) -> None:
    given = [None, images[0], None, None, images[3], None]
    found = list(answers(engine, given, "windows", 4))
    assert [row is None for row in found] == [image is None for image in given]
    assert_equal(np.array([row.scores for row in found if row is not None]), expected[[0, 3]])


def test_all_scores_are_those_of_the_images(
    engine: TorchEngine, images: list[np.ndarray], expected: np.ndarray
) -> None:
    assert_equal(all_scores(engine, images, "windows"), expected)


def test_scores_lie_between_zero_and_one(expected: np.ndarray) -> None:
    assert ((expected >= 0) & (expected <= 1)).all()


@pytest.mark.parametrize(("batch_size", "most"), [(1, 1), (4, 4), (5, 5)])
def test_images_are_taken_only_as_a_batch_needs_them(
    engine: TorchEngine, batch_size: int, most: int
) -> None:
    taken = []

    def source() -> Iterator[np.ndarray]:
        for i in range(50):
            taken.append(i)
            yield np.full((32, 32, 3), i, np.uint8)

    next(answers(engine, source(), "center", batch_size))
    assert len(taken) <= most


def test_images_that_are_scored_are_let_go(engine: TorchEngine) -> None:
    held: list[weakref.ref[np.ndarray]] = []
    alive = 0

    def source() -> Iterator[np.ndarray]:
        for i in range(30):
            image = np.full((32, 32, 3), i, np.uint8)
            held.append(weakref.ref(image))
            yield image
            del image

    for _ in answers(engine, source(), "center", 4):
        alive = max(alive, sum(ref() is not None for ref in held))
    assert alive <= 5  # one batch of four and the image at hand


def test_taking_scores_leaves_gradients_as_they_were(
    engine: TorchEngine, images: list[np.ndarray]
) -> None:
    next(answers(engine, images, "center", 1))
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_two_threads_may_score_with_one_model(
    engine: TorchEngine, images: list[np.ndarray], expected: np.ndarray
) -> None:
    found: dict[int, np.ndarray] = {}

    def work(name: int) -> None:
        found[name] = scored(engine, images, 5 + name)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in range(2):
        assert_equal(found[name], expected)


@pytest.fixture(scope="module")
def table(image_data: Path) -> ImageTable:
    return load_table(image_data, MosScale(1, 5))


READS_PLAIN_IMAGES = with_settings(
    PRESETS["dcmpl-prompted"].model,
    ["model.mpa.form=none", "model.vision_depth=0", "model.fusion.on=false"],
)
FROZEN_UP_TO = {
    "first block": PRESETS["dcmpl"].model,
    "embedding, for a reader": READS_PLAIN_IMAGES,
    "embedding": PRESETS["coop-deep"].model,
}


@pytest.fixture(scope="module", params=FROZEN_UP_TO)
def either(small_backbone: Path, request: pytest.FixtureRequest) -> DCMPL:
    """A model of each frozen part; where it reads prompts, one whose reader has learned."""
    backbone = load_backbone(str(small_backbone))
    model = DCMPL(backbone.clip, backbone.tokenizer, FROZEN_UP_TO[request.param], 0).eval()
    if model.reads_prompt:
        torch.nn.init.constant_(model.reader.share, 0.5)
    return model


@pytest.fixture(scope="module")
def frozen(either: DCMPL, table: ImageTable) -> FrozenTable:
    return freeze_table(either, table, "windows", "fp32")


def test_frozen_part_is_kept_for_every_window(
    either: DCMPL, table: ImageTable, frozen: FrozenTable
) -> None:
    path = table.frame["image"][7]
    pixels = pixels_of(read_image(path), "windows")
    torch.testing.assert_close(frozen[path], either.frozen(pixels), atol=1e-5, rtol=0)


def test_scores_from_the_frozen_part_are_those_of_the_images(
    either: DCMPL, table: ImageTable, frozen: FrozenTable
) -> None:
    tasks = either.config.tasks
    wanted, _ = predict_table(TorchEngine(either, tasks), table, "windows", "scoring")
    found, _ = predict_table(FrozenEngine(either, tasks, frozen), table, "windows", "scoring")
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE)


def test_task_that_the_model_has_not_is_nan(either: DCMPL, table: ImageTable) -> None:
    tasks = either.config.tasks
    scores, _ = predict_table(TorchEngine(either, tasks), table, "center", "scoring")
    found = by_target(scores, tasks, table)
    absent = [target not in either.config.tasks for target in TARGETS]
    assert np.isnan(found).all(axis=0).tolist() == absent


def test_links_to_one_file_share_its_frozen_part(
    either: DCMPL, table: ImageTable, tmp_path: Path
) -> None:
    path = table.frame["image"][7]
    (tmp_path / "link.png").symlink_to(path)
    images = [path, table.frame["image"][8], str(tmp_path / "link.png")]
    some = ImageTable(table.name, table.scale, table.frame[:3].assign(image=images))
    found = freeze_table(either, some, "center", "fp32")
    assert len(found.values) == 2
    assert found[images[2]].data_ptr() == found[images[0]].data_ptr()
    assert not torch.equal(found[images[0]], found[images[1]])


def test_plain_embedding_is_that_of_the_tower_without_prompts(
    either: DCMPL, table: ImageTable, frozen: FrozenTable
) -> None:
    path = table.frame["image"][7]
    pixels = pixels_of(read_image(path), "windows")
    with torch.inference_mode():
        wanted = either.clip.visual((pixels - either.mean) / either.std)
        found = either.plain_embedding(frozen[path])
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_frozen_part_follows_from_the_tokens_before_the_first_block(
    either: DCMPL, images: list[np.ndarray]
) -> None:
    pixels = pixels_of(images[0], "windows")
    tokens = either.clip.visual.embed((pixels - either.mean) / either.std)
    with torch.inference_mode():
        assert torch.equal(either.frozen_of(tokens), either.frozen(pixels))


def test_frozen_part_can_be_mapped(frozen: FrozenTable) -> None:
    mapped = frozen.mapped(lambda values: 2 * values, batch_size=5)
    assert torch.equal(mapped.values, 2 * frozen.values)
    assert (mapped.starts, mapped.rows) == (frozen.starts, frozen.rows)


def test_row_without_a_prompt_has_no_alignment_either_way(
    either: DCMPL, table: ImageTable, frozen: FrozenTable
) -> None:
    blank = table.frame["prompt"].where(table.frame.index != 3, " ")
    some = ImageTable(table.name, table.scale, table.frame.assign(prompt=blank))
    tasks = either.config.tasks
    for engine in (TorchEngine(either, tasks), FrozenEngine(either, tasks, frozen)):
        scores, _ = predict_table(engine, some, "windows", "scoring")
        missing = np.isnan(scores).any(axis=1)
        assert missing.tolist() == [either.reads_prompt and row == 3 for row in range(len(some))]


def test_validation_leaves_out_what_evaluation_leaves_out(
    either: DCMPL, table: ImageTable, frozen: FrozenTable
) -> None:
    blank = table.frame["prompt"].where(table.frame.index % 2 == 0, "")
    some = ImageTable(table.name, table.scale, table.frame.assign(prompt=blank))
    tasks, config = either.config.tasks, TrainConfig(views="windows")
    scores, _ = predict_table(TorchEngine(either, tasks), some, "windows", "scoring")
    opinion = some.targets(tasks)
    for known in (None, frozen):
        found = validate(either, ValidationPart(some), config, known)
        for column, task in enumerate(tasks):
            rows = np.isfinite(scores[:, column])
            wanted = srcc(scores[rows, column], opinion[rows, column])
            assert found[f"{task}_srcc"] == pytest.approx(wanted, abs=1e-9)


# Drawn windows

DRAWN = TrainConfig(windows="drawn", draws=3, coats=True, views="center")


@pytest.fixture(scope="module")
def drawn(model: DCMPL, table: ImageTable) -> FrozenTable:
    return freeze_draws(model, table, DRAWN)


def test_drawn_windows_are_as_many_as_asked_for_and_differ(
    drawn: FrozenTable, table: ImageTable
) -> None:
    assert len(drawn.values) == 3 * len(table)
    found = drawn[table.frame["image"][7]]
    assert len(found) == 3
    assert not torch.equal(found[0], found[1])


def test_drawn_windows_of_an_image_do_not_depend_on_the_others(
    model: DCMPL, drawn: FrozenTable, table: ImageTable
) -> None:
    some = ImageTable(table.name, table.scale, table.frame[5:9].reset_index(drop=True))
    found = freeze_draws(model, some, DRAWN)
    for path in some.frame["image"]:
        torch.testing.assert_close(found[path], drawn[path], rtol=0, atol=1e-5)


def test_drawn_windows_without_coats_show_the_image_s_own_pixels(
    model: DCMPL, table: ImageTable
) -> None:
    plain = freeze_draws(model, table, replace(DRAWN, coats=False, draws=1))
    path, name = table.frame["image"][7], table.frame["name"][7]
    rng = np.random.default_rng(list(name.encode()))
    window = random_window(read_image(path), 32, rng)
    wanted = model.frozen(to_unit_range(torch.from_numpy(window[None].copy())))
    torch.testing.assert_close(plain[path], wanted, rtol=0, atol=1e-5)


def test_image_that_stands_in_two_rows_is_drawn_once(model: DCMPL, table: ImageTable) -> None:
    twice = [table.frame["image"][7]] * 2
    some = ImageTable(table.name, table.scale, table.frame[:2].assign(image=twice))
    assert len(freeze_draws(model, some, DRAWN).values) == DRAWN.draws
    assert len(freeze_table(model, some, "center", "fp32").values) == 1


# Number formats


@pytest.mark.parametrize("has_units", [True, False])
def test_bfloat16_is_used_where_there_are_units_for_it(
    monkeypatch: pytest.MonkeyPatch, has_units: bool
) -> None:
    """Without them PyTorch's products are several times slower than those of float32."""
    here, x = torch.device("cpu"), torch.ones(2, 2)
    monkeypatch.setattr("dcmpl.training.features.has_bfloat16", lambda device: has_units)
    for precision, wanted in (("bf16", has_units), ("fp32", False)):
        with precision_context(here, precision):
            assert ((x @ x).dtype == torch.bfloat16) == wanted


@pytest.mark.parametrize(
    ("precision", "has_units", "is_told"),
    [("bf16", False, True), ("bf16", True, False), ("fp32", False, False)],
)
def test_number_format_that_is_not_used_is_told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    precision: str,
    has_units: bool,
    is_told: bool,
) -> None:
    monkeypatch.setattr("dcmpl.training.features.has_bfloat16", lambda device: has_units)
    warn_of_precision(torch.device("cpu"), precision)
    told = "note: cpu has no units for bfloat16 here; the towers compute in float32\n"
    assert capsys.readouterr().err == told * is_told
