"""Columns in, columns out: the scorer's rows for engines that hand dictionaries to a class."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dcmpl import storage
from dcmpl.errors import UsageError
from dcmpl.integrations.batch import BatchScorer
from dcmpl.scoring.files import is_text, row_of
from dcmpl.scoring.results import Scores
from dcmpl.scoring.scorer import Scorer

pytest_plugins = ("calibrated", "stores")

COUNT = 67
"""Images, more than a chunk of 64."""


@pytest.fixture(scope="module")
def batch(calibrated_run: Path) -> BatchScorer:
    return BatchScorer(calibrated_run)


@pytest.fixture(scope="module")
def paths(judged_data: Path) -> list[str]:
    return [str(path) for path in sorted(judged_data.parent.glob("*.png"))[:COUNT]]


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return [f"a fox {i}" for i in range(COUNT)]


@pytest.fixture(scope="module")
def scores(calibrated_run: Path, paths: list[str], prompts: list[str]) -> Scores:
    return Scorer.from_pretrained(calibrated_run, workers=1).score(paths, prompts)


def check_equal(found: dict[str, Any], scores: Scores) -> None:
    """Check that every column has the bits of the scores, but the names."""
    rows = [row_of(score) for score in scores]
    for name in {*rows[0]} - {"image", "prompt"}:
        wanted = [row[name] for row in rows]
        if is_text(name):
            assert [*found[name]] == wanted, name
        else:
            known = np.array([np.nan if v is None else v for v in wanted], np.float64)
            assert found[name].tobytes() == known.tobytes(), name


def test_paths_have_the_scores_of_the_scorer_bit_for_bit(
    batch: BatchScorer, paths: list[str], prompts: list[str], scores: Scores
) -> None:
    found = batch({"image": paths, "prompt": prompts})
    check_equal(found, scores)
    assert [*found["image"]] == paths
    assert [*found["prompt"]] == prompts
    assert tuple(found) == batch.columns
    assert {"quality_mos", "quality_label", "alignment_percentile"} <= {*found}


@pytest.mark.parametrize("form", ["bytes", "bytearray", "memoryview", "hub", "hub path"])
def test_files_in_memory_have_the_scores_of_their_paths(
    batch: BatchScorer, paths: list[str], prompts: list[str], scores: Scores, form: str
) -> None:
    contents = [Path(path).read_bytes() for path in paths]
    images: dict[str, list[Any]] = {
        "bytes": [*contents],
        "bytearray": [*map(bytearray, contents)],
        "memoryview": [*map(memoryview, contents)],
        "hub": [{"bytes": c, "path": f"{i}.png"} for i, c in enumerate(contents)],
        "hub path": [{"bytes": None, "path": path} for path in paths],
    }
    found = batch({"image": images[form], "prompt": prompts})
    check_equal(found, scores)
    names = {"hub": [f"{i}.png" for i in range(COUNT)], "hub path": paths}
    assert [*found["image"]] == names.get(form, [""] * COUNT)


@pytest.mark.parametrize("form", ["pillow", "array", "one array", "objects"])
def test_decoded_images_have_the_scores_of_their_files(
    batch: BatchScorer, paths: list[str], prompts: list[str], scores: Scores, form: str
) -> None:
    images: Any = [Image.open(path) for path in paths]
    if form != "pillow":
        images = [np.asarray(image) for image in images]
    if form == "one array":
        images = np.stack(images)
    if form == "objects":
        column = np.empty(COUNT, dtype=object)
        column[:] = images
        images = column
    check_equal(batch({"image": images, "prompt": np.array(prompts)}), scores)


def test_url_has_the_score_of_its_file(
    batch: BatchScorer, paths: list[str], scores: Scores, bucket: str
) -> None:
    storage.write(f"{bucket}/a.png", Path(paths[0]).read_bytes())
    found = batch({"image": [f"{bucket}/a.png", f"{bucket}/gone.png"], "prompt": ["a fox 0"] * 2})
    assert found["quality"][0] == scores[0].quality
    assert [*found["image"]] == [f"{bucket}/a.png", f"{bucket}/gone.png"]
    assert found["status"][1] == "error"


def test_columns_may_have_other_names(calibrated_run: Path, paths: list[str]) -> None:
    named = BatchScorer(calibrated_run, image="file", prompt="caption", targets=["quality"])
    found = named({"file": paths[:2], "caption": ["a", "b"], "id": [7, 8]})
    assert [*found["image"]] == paths[:2]
    assert [*found["prompt"]] == ["a", "b"]
    assert found["id"] == [7, 8]
    assert "file" not in found
    assert np.isnan(found["alignment"]).all()


def test_missing_prompts_are_empty(batch: BatchScorer, paths: list[str], scores: Scores) -> None:
    found = batch({"image": paths[:5]})
    assert [*found["prompt"]] == [""] * 5
    missing = [None, float("nan"), pd.NA, pd.NaT, np.nan]
    again = batch({"image": paths[:5], "prompt": missing})
    assert [*again["prompt"]] == [""] * 5
    assert [*again["quality"]] == [*found["quality"]] == [s.quality for s in scores[:5]]


def test_what_is_no_image_is_a_row_and_the_others_have_their_scores(
    batch: BatchScorer, paths: list[str], scores: Scores, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_text("no image")
    bad = [
        *[None, {"bytes": None, "path": None}, {"bytes": None, "path": ""}, {}],
        *[b"", b"no image", Path(paths[0]).read_bytes()[:300], {"bytes": b"x", "path": "x.png"}],
        *[str(tmp_path / "bad.png"), str(tmp_path / "gone.png"), "", "http://x/a.png"],
        *["s3://name:TOPSECRET@bucket/a.png", float("nan"), 7, np.zeros((2, 2)), {"bytes": "x"}],
        *[np.zeros(5), np.full((40, 40, 3), np.nan), {"bytes": [1, 2], "path": "x"}],
    ]
    images = [each for image in bad for each in (image, paths[0])] + [paths[1]]
    found = batch({"image": images, "prompt": ["a fox 0"] * len(images)})
    assert [*found["status"]] == ["error", "ok"] * len(bad) + ["ok"]
    for name in ("quality", "alignment", "quality_mos", "quality_spread"):
        assert np.isnan(found[name][:-1:2]).all()
        assert not np.isnan(found[name][1::2]).any()
    for reason in found["reason"][:-1:2]:
        assert reason.startswith("expected ")
        assert "\n" not in reason
        assert "TOPSECRET" not in reason
    assert found["reason"][0] == "expected an image in every row, got none"
    assert [*found["reason"][1::2]] == [""] * (len(bad))
    assert len({*found["quality"][1:-1:2]}) == 1
    assert found["quality"][1] == pytest.approx(scores[0].quality, abs=1e-6)


def test_columns_have_the_kinds_that_are_documented(
    batch: BatchScorer, paths: list[str], tmp_path: Path
) -> None:
    for images in (paths[:2], [None, None], []):
        found = batch({"image": images})
        for name in batch.columns:
            kind = np.dtype(object) if is_text(name) else np.dtype(np.float64)
            assert (found[name].dtype, found[name].shape) == (kind, (len(images),)), name


def test_other_columns_are_carried_as_they_are(batch: BatchScorer, paths: list[str]) -> None:
    tensors, ids = np.zeros((2, 3, 3)), np.arange(2, dtype=np.int8)
    found = batch({"id": ids, "image": paths[:2], "tensor": tensors})
    assert found["id"] is ids
    assert found["tensor"] is tensors


@pytest.mark.parametrize("name", ["quality", "status", "quality_mos", "authenticity"])
def test_column_that_scores_would_overwrite_is_refused(
    batch: BatchScorer, paths: list[str], name: str
) -> None:
    with pytest.raises(UsageError) as caught:
        batch({"image": paths[:1], name: [1]})
    assert str(caught.value) == (
        f"expected columns of other names than scores have, got {name}: rename it, or leave it out"
    )


def test_column_called_image_beside_the_one_that_is_named_is_refused(
    calibrated_run: Path, paths: list[str]
) -> None:
    named = BatchScorer(calibrated_run, image="file")
    with pytest.raises(UsageError, match="got image: rename it"):
        named({"file": paths[:1], "image": ["mine"]})


def test_missing_column_is_refused(batch: BatchScorer) -> None:
    with pytest.raises(UsageError) as caught:
        batch({"picture": ["a.png"], "prompt": ["x"]})
    assert str(caught.value) == (
        "expected a column image, got picture, prompt: name it with image="
    )


def test_unknown_option_is_refused_before_anything_is_opened() -> None:
    with pytest.raises(UsageError, match="did you mean views"):
        BatchScorer("nowhere", veiws="center")
    BatchScorer("nowhere")  # opened where it is called


def test_copy_opens_the_model_anew_and_gives_the_same_bits(
    batch: BatchScorer,
    paths: list[str],
    prompts: list[str],
    scores: Scores,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batch({"image": []})
    content = pickle.dumps(batch)
    assert len(content) < 2000
    opened, real = list[Any](), Scorer.from_pretrained
    monkeypatch.setattr(
        Scorer, "from_pretrained", lambda *given: opened.append(given) or real(*given)
    )
    copy = pickle.loads(content)
    assert opened == []
    for start in (0, 64):
        part = slice(start, start + 64)
        found = copy({"image": paths[part], "prompt": prompts[part]})
        check_equal(found, Scores(scores[part]))
    assert len(opened) == 1
    assert copy.options == batch.options


def test_one_core_is_taken_unless_more_are_named(calibrated_run: Path) -> None:
    assert BatchScorer().options.workers == 1
    assert BatchScorer(workers=2).options.workers == 2
