"""Every image gets its row, in order, whatever its form and its neighbours."""

import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from dcmpl.data.sources import Source
from dcmpl.errors import RunError, UsageError
from dcmpl.images.decode import read_image
from dcmpl.scoring.results import Score
from dcmpl.scoring.scorer import Scorer

TOLERANCE = 1e-6
"""Batches of other sizes add up in another order: a few float32 roundings of a value < 1."""


@pytest.fixture(scope="module")
def scorer(trained_run: Path) -> Scorer:
    # Small, so that batches end within the lists below.
    return Scorer.from_pretrained(trained_run, device="cpu", batch_size=3)


@pytest.fixture(scope="module")
def paths(image_data: Path) -> list[Path]:
    return [image_data.parent / f"{i:02}.png" for i in range(8)]


@pytest.fixture(scope="module")
def alone(scorer: Scorer, paths: list[Path]) -> dict[Path, float]:
    """Quality of each image, scored by itself."""
    found = {path: scorer.score([path])[0].quality for path in paths}
    return {path: value for path, value in found.items() if value is not None}


def values(scores: list[Score]) -> list[float | None]:
    return [value for score in scores for value in (score.quality, score.alignment)]


def test_pillow_images_score_as_their_files(scorer: Scorer, paths: list[Path]) -> None:
    images = [Image.open(path) for path in paths]
    found = scorer.score(images)
    assert values(found) == pytest.approx(values(scorer.score(paths)), abs=TOLERANCE)


def test_arrays_score_as_their_files(scorer: Scorer, paths: list[Path]) -> None:
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    found = scorer.score(arrays)
    assert values(found) == pytest.approx(values(scorer.score(paths)), abs=TOLERANCE)


def test_text_paths_score_as_path_objects(scorer: Scorer, paths: list[Path]) -> None:
    assert scorer.score([str(path) for path in paths]) == scorer.score(paths)


def test_scores_lie_between_zero_and_one(scorer: Scorer, paths: list[Path]) -> None:
    assert all(value is not None and 0 <= value <= 1 for value in values(scorer.score(paths)))


def test_row_names_its_file(scorer: Scorer, paths: list[Path]) -> None:
    assert [score.image for score in scorer.score(paths)] == [str(path) for path in paths]


def test_row_of_an_image_in_memory_has_no_name(scorer: Scorer) -> None:
    assert scorer.score([Image.new("RGB", (40, 40))])[0].image == ""


def test_array_is_left_as_it_was(scorer: Scorer) -> None:
    array = np.full((40, 40, 3), 9, np.uint8)
    scorer.score([array])
    assert (array == 9).all()


def test_read_only_array_is_scored(scorer: Scorer) -> None:
    array = np.full((40, 40, 3), 9, np.uint8)
    array.flags.writeable = False
    assert scorer.score([array])[0].status == "ok"


def test_no_images_give_no_rows(scorer: Scorer) -> None:
    assert scorer.score([]) == []


def test_one_prompt_is_for_all(scorer: Scorer, paths: list[Path]) -> None:
    assert {score.prompt for score in scorer.score(paths, "a fox")} == {"a fox"}


def test_prompts_go_to_their_images(scorer: Scorer, paths: list[Path]) -> None:
    prompts = [f"prompt {i}" for i in range(len(paths))]
    assert [score.prompt for score in scorer.score(paths, prompts)] == prompts


def test_no_prompt_is_an_empty_one(scorer: Scorer, paths: list[Path]) -> None:
    assert scorer.score(paths[:1])[0].prompt == ""


@pytest.mark.parametrize("count", [0, 1, 3])
def test_wrong_number_of_prompts_is_a_usage_error(
    scorer: Scorer, paths: list[Path], count: int
) -> None:
    with pytest.raises(UsageError) as caught:
        scorer.score(paths[:2], ["a"] * count)
    assert str(caught.value) == f"expected one prompt for each of 2 images, got {count}"


def test_missing_image_gets_a_row_with_its_reason(scorer: Scorer, tmp_path: Path) -> None:
    path = tmp_path / "no.png"
    reason = f"expected an image at {path}, got no file"
    assert scorer.score([path], "a fox") == [Score(str(path), "a fox", reason=reason)]


def test_row_with_a_reason_is_an_error(scorer: Scorer, tmp_path: Path) -> None:
    assert scorer.score([tmp_path / "no.png"])[0].status == "error"


WRONG_ARRAYS = {
    "float": np.zeros((40, 40, 3), np.float32),
    "gray": np.zeros((40, 40), np.uint8),
    "rgba": np.zeros((40, 40, 4), np.uint8),
    "channels first": np.zeros((3, 40, 40), np.uint8),
    "empty": np.zeros((0, 40, 3), np.uint8),
}


@pytest.mark.parametrize("kind", WRONG_ARRAYS)
def test_wrong_array_gets_a_row_with_its_reason(scorer: Scorer, kind: str) -> None:
    (found,) = scorer.score([WRONG_ARRAYS[kind]])
    assert found.reason.startswith("expected an array of uint8 RGB, (height, width, 3), got ")


def test_pillow_image_of_a_truncated_file_gets_a_row_with_its_reason(
    scorer: Scorer, paths: list[Path], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.png"
    cut.write_bytes(paths[0].read_bytes()[:2000])
    with Image.open(cut) as image:
        bad, good = scorer.score([image, paths[1]])
    assert (bad.status, good.status) == ("error", "ok")


@settings(deadline=None, max_examples=20)
@given(pattern=st.lists(st.booleans(), max_size=8))
def test_bad_images_at_any_place_leave_the_others_as_they_are(
    scorer: Scorer, paths: list[Path], alone: dict[Path, float], pattern: list[bool]
) -> None:
    wanted = list(zip(paths, pattern, strict=False))
    names = [path if good else path.with_name(f"no {path.name}") for path, good in wanted]
    found = scorer.score(names)
    assert [score.image for score in found] == [str(name) for name in names]
    assert [score.status == "ok" for score in found] == pattern
    expected = [alone[path] for path, good in wanted if good]
    qualities = [score.quality for score in found if score.quality is not None]
    assert qualities == pytest.approx(expected, abs=TOLERANCE)


def test_stream_takes_images_as_it_needs_them(scorer: Scorer, paths: list[Path]) -> None:
    taken = []

    def pairs() -> Iterator[tuple[Path, str]]:
        for path in 20 * paths:
            taken.append(path)
            yield path, ""

    next(scorer.stream(pairs()))
    under_way = scorer.batch_size * (scorer.workers + 1)  # one window each
    assert len(taken) <= under_way + scorer.workers + 3  # and those that are read meanwhile


def test_scorer_needs_the_backbone_of_the_run(
    trained_run: Path, small_backbone: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(small_backbone, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    tensors["logit_scale"] = tensors["logit_scale"] + 1
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(RunError, match="expected the backbone the run was trained with"):
        Scorer.from_pretrained(trained_run, backbone=str(other))


def test_backbone_that_moved_can_be_named(
    trained_run: Path, small_backbone: Path, tmp_path: Path, scorer: Scorer, paths: list[Path]
) -> None:
    moved = Path(shutil.copytree(small_backbone, tmp_path / "moved"))
    found = Scorer.from_pretrained(trained_run, backbone=str(moved), device="cpu", batch_size=3)
    assert found.score(paths) == scorer.score(paths)


def test_folder_that_is_no_run_is_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="expected a run folder made by dcmpl train at "):
        Scorer.from_pretrained(tmp_path)


def test_scorer_leaves_gradients_on(scorer: Scorer, paths: list[Path]) -> None:
    scorer.score(paths[:1])
    assert torch.is_grad_enabled()


def test_tensors_score_as_their_files(scorer: Scorer, paths: list[Path]) -> None:
    tensors = [torch.from_numpy(read_image(path)).permute(2, 0, 1) / 255 for path in paths]
    wanted = pytest.approx(values(scorer.score(paths)), abs=TOLERANCE)
    assert values(scorer.score(tensors)) == wanted
    assert values(scorer.score(torch.stack(tensors))) == wanted


def test_tensor_of_half_precision_is_scored(scorer: Scorer) -> None:
    tensor = torch.full((3, 40, 40), 0.5, dtype=torch.bfloat16, requires_grad=True)
    assert scorer.score([tensor])[0].status == "ok"


WRONG_TENSORS = {
    "whole numbers": torch.zeros((3, 40, 40), dtype=torch.uint8),
    "gray": torch.zeros((40, 40)),
    "channels last": torch.zeros((40, 40, 3)),
    "empty": torch.zeros((3, 0, 40)),
    "above one": torch.full((3, 40, 40), 1.01),
    "below zero": torch.full((3, 40, 40), -0.01),
    "not a number": torch.full((3, 40, 40), float("nan")),
}


@pytest.mark.parametrize("kind", WRONG_TENSORS)
def test_wrong_tensor_gets_a_row_with_its_reason(scorer: Scorer, kind: str) -> None:
    (found,) = scorer.score([WRONG_TENSORS[kind]])
    assert found.reason.startswith("expected a tensor of floats in [0, 1]")


@pytest.mark.parametrize("wrong", [None, 5, b"a.png", [1, 2]])
def test_anything_else_gets_a_row_with_its_reason(scorer: Scorer, wrong: Any) -> None:
    assert scorer.score([wrong])[0].reason == (
        f"expected a path, a Pillow image, an array or a tensor, got {type(wrong).__name__}"
    )


@pytest.mark.parametrize("one", ["a.png", Path("a.png"), Image.new("RGB", (40, 40))])
def test_one_image_instead_of_a_list_is_a_usage_error(scorer: Scorer, one: Any) -> None:
    with pytest.raises(UsageError) as caught:
        scorer.score(one)
    kind = type(one).__name__
    assert str(caught.value) == f"expected a list of images, got one {kind}: put it in a list"


def test_one_tensor_instead_of_a_batch_is_a_usage_error(scorer: Scorer) -> None:
    with pytest.raises(UsageError, match=r"a tensor \(N, 3, height, width\), got one of shape"):
        scorer.score(torch.zeros(3, 40, 40))


def test_note_says_that_an_image_is_smaller_than_a_window(scorer: Scorer) -> None:
    small, large = scorer.score([np.zeros((20, 40, 3), np.uint8), np.zeros((40, 40, 3), np.uint8)])
    assert small.note == (
        "40 x 20 is smaller than a window of 32 x 32: mirrored at its edges, so that its score "
        "compares with no larger image's"
    )
    assert large.note == ""


def test_note_says_what_was_done_to_read_an_image(scorer: Scorer, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGBA", (40, 40), (9, 9, 9, 100)).save(path)
    (found,) = scorer.score([path])
    assert (found.status, found.note) == ("ok", "transparent parts laid on white")


def test_index_is_the_place_of_the_image(scorer: Scorer, paths: list[Path]) -> None:
    asked = (Source(str(path), str(path)) for path in paths[:3])
    assert [row.index for row in scorer.rows(asked, start=64)] == [64, 65, 66]


def test_only_the_targets_that_are_asked_for_are_computed(
    trained_run: Path, scorer: Scorer, paths: list[Path]
) -> None:
    found = Scorer.from_pretrained(trained_run, device="cpu", targets=["alignment"]).score(paths)
    assert {row.quality for row in found} == {None}
    wanted = [row.alignment for row in scorer.score(paths)]
    assert [row.alignment for row in found] == pytest.approx(wanted, abs=TOLERANCE)


@pytest.mark.parametrize("target", ["authenticity", "beauty"])
def test_target_that_was_not_learned_is_a_usage_error(trained_run: Path, target: str) -> None:
    with pytest.raises(UsageError) as caught:
        Scorer.from_pretrained(trained_run, targets=[target])
    assert str(caught.value) == (
        f"expected targets that {trained_run} predicts (quality, alignment), got {target}"
    )


WRONG_WORDS = {
    "engine": ({"engine": "tpu"}, "expected an engine of auto, torch, onnx, openvino"),
    "precision": ({"precision": "fp64"}, "a precision of fp32, bf16, int8, got auto and fp64"),
    "views": (
        {"views": "all"},
        "expected views to be windows, paper-windows, center, tiles, resize or grid-N",
    ),
    "engine of exports": ({"engine": "onnx"}, "expected an exported model for the engine onnx"),
    "precision of exports": ({"precision": "int8"}, "dcmpl export makes models of int8"),
}


@pytest.mark.parametrize("kind", WRONG_WORDS)
def test_what_a_run_cannot_do_is_a_usage_error(trained_run: Path, kind: str) -> None:
    words, told = WRONG_WORDS[kind]
    with pytest.raises(UsageError, match=told):
        Scorer.from_pretrained(trained_run, **words)


def test_views_may_be_chosen(trained_run: Path, scorer: Scorer, paths: list[Path]) -> None:
    assert scorer.views == "center"
    assert Scorer.from_pretrained(trained_run, views="resize").views == "resize"
    found = Scorer.from_pretrained(trained_run, views="windows", device="cpu").score(paths)
    assert all(row.status == "ok" for row in found)
    assert values(found) != values(scorer.score(paths))


@pytest.mark.parametrize("workers", [1, 5])
def test_scores_do_not_depend_on_the_workers(
    trained_run: Path, scorer: Scorer, paths: list[Path], workers: int
) -> None:
    other = Scorer.from_pretrained(trained_run, device="cpu", workers=workers, batch_size=3)
    assert other.score(paths) == scorer.score(paths)


def test_scoring_leaves_threads_and_warnings_as_they_were(
    scorer: Scorer, paths: list[Path]
) -> None:
    before = torch.get_num_threads(), threading.active_count(), list(warnings.filters)
    list(scorer.stream((path, "") for path in paths))
    next(scorer.stream((path, "") for path in paths))
    assert (torch.get_num_threads(), threading.active_count(), warnings.filters) == before


def test_loss_is_one_less_the_score_and_has_gradients(scorer: Scorer, paths: list[Path]) -> None:
    pixels = torch.from_numpy(np.stack([read_image(path) for path in paths])) / 255
    images = pixels.permute(0, 3, 1, 2).requires_grad_()
    loss = scorer.as_loss("alignment")(images)
    wanted = [1 - (row.alignment or 0) for row in scorer.score(paths)]
    assert loss.tolist() == pytest.approx(wanted, abs=TOLERANCE)
    loss.sum().backward()
    assert images.grad is not None
    assert (images.grad.flatten(1).abs().amax(1) > 0).all()


def test_loss_of_what_is_not_predicted_is_a_usage_error(scorer: Scorer) -> None:
    with pytest.raises(UsageError, match="got authenticity"):
        scorer.as_loss("authenticity")


@pytest.mark.parametrize("workers", [0, -3])
def test_scorer_refuses_fewer_than_one_worker(trained_run: Path, workers: int) -> None:
    with pytest.raises(UsageError, match="1 to 1024 workers"):
        Scorer.from_pretrained(trained_run, workers=workers)


def test_array_of_images_is_scored_as_the_list_of_them(trained_run: Path) -> None:
    scorer = Scorer.from_pretrained(trained_run, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 44, 3), dtype=np.uint8)
    assert [s.quality for s in scorer.score(pixels)] == [
        s.quality for s in scorer.score(list(pixels))
    ]
