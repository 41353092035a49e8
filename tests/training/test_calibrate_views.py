"""``--views auto``: the fewest views that are enough, measured on validation and kept."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import Capture, made_table, refused
from dcmpl.cli.main import main
from dcmpl.errors import RunError, UsageError
from dcmpl.files import sealed
from dcmpl.images.decode import read_image
from dcmpl.model.tokenizer import Ids, Parts
from dcmpl.runs import read_run, read_split, table_of_run, validation_images
from dcmpl.scoring import export
from dcmpl.scoring.batching import lanes
from dcmpl.scoring.calibration import CALIBRATION, read_calibration
from dcmpl.scoring.engines import Engine, read_export
from dcmpl.scoring.files import read_manifest
from dcmpl.scoring.scorer import Scorer
from dcmpl.scoring.torch_engine import TorchEngine, load_model
from dcmpl.training import calibrate as fewest
from dcmpl.training.calibrate import TOLERANCE, compare_views, enough_views, fewest_views
from exported import Made

pytest_plugins = ("exported", "calibrated")

KINDS = ["center", "grid-2", "grid-3", "grid-4", "windows"]


class Mean:
    """Scores a window by its mean brightness, for the second task by that of its red."""

    name, precision, tasks, size, batch = "mean", "fp32", ("quality", "alignment"), 32, 16

    reads: str | None = None

    def parts(self, text: str, long: str) -> Parts:
        return Parts(((),))

    def __call__(self, windows: np.ndarray, texts: Sequence[Sequence[Ids]] = ()) -> np.ndarray:
        return np.stack([windows.mean((1, 2, 3)), windows[..., 0].mean((1, 2))], axis=1) / 255

    def lanes(self, count: int) -> Any:
        return lanes(count)


def stripes(*values: int) -> np.ndarray:
    """An image 32 wide, whose windows below one another have these values."""
    rows = np.repeat(np.array(values, np.uint8), 8)
    return np.broadcast_to(rows[:, None, None], (len(rows), 32, 3)).copy()


def rows_at(**of_share: float) -> list[dict[str, Any]]:
    return [{"views": k.replace("_", "-"), "of_share": value} for k, value in of_share.items()]


# What is enough


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (rows_at(center=0.0, grid_2=0.0, windows=0.0), "center"),
        (rows_at(center=TOLERANCE, grid_2=0.0, windows=0.0), "center"),  # within: no more than
        (rows_at(center=TOLERANCE + 1e-9, grid_2=0.01, windows=0.0), "grid-2"),
        (rows_at(center=0.1, grid_2=0.1, grid_3=0.1, grid_4=0.1, windows=0.0), "windows"),
        (rows_at(center=0.1, grid_2=0.01, grid_3=0.5, windows=0.0), "grid-2"),
        (rows_at(center=float("nan"), grid_2=0.01, windows=0.0), "grid-2"),
    ],
)
def test_first_views_within_the_tolerance_are_enough(
    rows: list[dict[str, Any]], expected: str
) -> None:
    assert fewest_views(rows) == expected


def test_tolerance_is_of_a_range_of_one_and_for_19_of_20_images() -> None:
    assert (fewest.TOLERANCE, fewest.SHARE) == (0.02, 0.95)


def test_distances_are_those_to_the_mean_over_all_windows() -> None:
    engine = Mean()
    assert isinstance(engine, Engine)
    # 4 windows fit, at rows 0, 8, 16 and 24; the middle one begins at 8.
    image = stripes(0, 0, 0, 0, 80, 80, 80)
    found = compare_views(engine, [image])
    assert [row["views"] for row in found] == KINDS
    windows = np.array([0, 20, 40, 60]) / 255
    expected = [abs(windows[chosen].mean() - windows.mean()) for chosen in ([1], [0, 3])]
    assert [row["most"] for row in found[:2]] == pytest.approx(expected)
    assert [row["windows"] for row in found] == [1, 2, 3, 4, 4]
    for row in found:
        assert row["mean"] == row["most"] == row["of_share"]
    assert found[-1]["most"] == 0


def test_task_that_differs_most_counts() -> None:
    image = stripes(0, 0, 0, 0, 80, 80, 80)
    image[..., 1:] = 0  # now it is seen by red, and a third of it by brightness
    (center, *_) = compare_views(Mean(), [image])
    assert center["most"] == pytest.approx(abs(20 - 30) / 255)


@pytest.mark.parametrize(("odd", "expected"), [(1, "center"), (2, "grid-2")])
def test_one_image_of_forty_may_be_farther_off_but_not_three(odd: int, expected: str) -> None:
    ramp = stripes(0, 0, 0, 0, 80, 80, 80)  # center is off by 10 of 255; grid-2 by nothing
    flat = stripes(*[9] * 7)
    images = [ramp] * (2 * odd - 1) + [flat] * (41 - 2 * odd)
    rows = compare_views(Mean(), images)
    assert rows[0]["most"] == pytest.approx(10 / 255)
    assert rows[0]["mean"] == pytest.approx(10 / 255 * (2 * odd - 1) / 40)
    assert fewest_views(rows) == expected


def test_small_images_have_one_window_in_any_views() -> None:
    rows = compare_views(Mean(), [stripes(7), stripes(1, 2, 3, 4)])
    assert [(row["windows"], row["most"]) for row in rows] == [(1, 0)] * 5


# Of a run


def opened(folder: Path, **fields: Any) -> Scorer:
    return Scorer.from_pretrained(folder, device="cpu", views="auto", **fields)


def test_views_of_a_run_are_measured_on_its_validation_part_when_it_is_calibrated(
    calibrated_run: Path,
) -> None:
    run, model = load_model(calibrated_run, device="cpu")
    split = read_split(calibrated_run, run)
    assert split is not None
    validation = split.validation_part(table_of_run(run)).table
    engine = TorchEngine(model, run.learned)
    images = [read_image(path) for path in validation.frame["image"]]
    wanted = fewest_views(compare_views(engine, images))
    assert enough_views(engine, validation) == wanted
    assert opened(calibrated_run).views == wanted
    calibration = read_calibration(calibrated_run, run.weights_sha256)
    assert calibration is not None
    assert calibration.enough_views == wanted


def without_measuring(*_: object) -> None:
    raise AssertionError("views were compared once more")


def test_opening_a_run_for_its_views_measures_and_writes_nothing(
    calibrated_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fewest, "compare_views", without_measuring)
    before = {path.name: path.read_bytes() for path in calibrated_run.iterdir()}
    opened(calibrated_run)
    assert {path.name: path.read_bytes() for path in calibrated_run.iterdir()} == before
    assert torch.is_grad_enabled()


def keep(folder: Path, views: str | None) -> None:
    """Have a calibrated run say that these are enough."""
    found = read_calibration(folder, read_run(folder).weights_sha256)
    assert found is not None
    replace(found, enough_views=views).write(folder)


def test_views_that_were_found_score_as_those_that_are_named(
    copied: Path, judged_data: Path
) -> None:
    keep(copied, "grid-3")
    paths = [judged_data.with_name(f"{i:03}.png") for i in range(3)]
    found = opened(copied)
    assert found.views == "grid-3"
    named = Scorer.from_pretrained(copied, device="cpu", views="grid-3")
    assert found.score(paths) == named.score(paths)
    assert Scorer.from_pretrained(copied, device="cpu").views == "grid-2"  # as it was trained
    assert Scorer.from_pretrained(copied, device="cpu", views="center").views == "center"


def test_views_are_known_where_the_images_of_the_run_are_gone(
    copied: Path, judged_data: Path, tmp_path: Path
) -> None:
    keep(copied, "grid-3")
    described = read_run(copied)
    assert described.source is not None
    moved = replace(described.source, path=str(tmp_path / "gone.csv"))
    replace(described, source=moved).write(copied)
    image, out = judged_data.with_name("000.png"), tmp_path / "x.csv"
    words = ["score", image, "--model", copied, "--views", "auto", "-o", out]
    assert main([str(word) for word in words]) == 0
    assert read_manifest(out)["views"] == "grid-3"


def test_views_that_were_never_measured_are_refused_in_one_sentence(
    copied: Path, judged_data: Path, capsys: Capture, tmp_path: Path
) -> None:
    keep(copied, None)
    image, out = judged_data.with_name("000.png"), tmp_path / "x.csv"
    words = ["score", image, "--model", copied, "--views", "auto", "-o", out]
    told = refused(capsys, 2, *words)
    assert told == (
        f"expected a model that knows how few views are enough for --views auto, got {copied}, "
        "which does not: name --views"
    )
    assert not out.exists()


def test_validation_images_are_those_that_chose_the_epoch(
    trained_run: Path, image_data: Path
) -> None:
    names = json.loads((trained_run / "split.json").read_text())["val"]
    shown = validation_images(trained_run, read_run(trained_run))
    assert len(shown) == len(names) == 4
    for name, pixels in zip(sorted(names), shown, strict=True):
        assert (pixels == read_image(image_data.with_name(name))).all()


def test_uncalibrated_run_does_not_know_how_few_views_are_enough(trained_run: Path) -> None:
    with pytest.raises(UsageError, match=r"how few views are enough .*: name --views"):
        opened(trained_run)


@pytest.mark.parametrize(("there", "looked_at"), [(1, 1), (64, 64), (65, 33), (127, 64), (256, 64)])
def test_many_images_are_thinned_out_evenly(
    monkeypatch: pytest.MonkeyPatch, there: int, looked_at: int
) -> None:
    measured: list[int] = []

    def compare(engine: Engine, images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        measured.append(len(images))
        return rows_at(center=1.0, grid_3=0.0)

    monkeypatch.setattr(fewest, "compare_views", compare)
    monkeypatch.setattr(fewest, "read_image", lambda path: stripes(1))
    table = made_table(mos_quality=[3.0] * there)
    assert enough_views(Mean(), table) == "grid-3"
    assert measured == [looked_at]


@pytest.mark.parametrize("views", ["nothing", 3, "auto"])
def test_calibration_with_other_views_is_refused(copied: Path, views: object) -> None:
    file = copied / CALIBRATION
    record = json.loads(file.read_text())
    del record["digest"]
    file.write_bytes(sealed({**record, "enough_views": views}))
    with pytest.raises(RunError, match="expected a calibration at"):
        opened(copied)


def test_views_of_an_export_are_those_of_the_calibration_inside(
    made: Made, calibrated_run: Path, tmp_path: Path
) -> None:
    folder = made.copied(tmp_path / "copy")
    record = json.loads((folder / "export.json").read_text())
    del record["digest"]
    calibration = json.loads((calibrated_run / CALIBRATION).read_text())
    inside = {**calibration, "enough_views": "grid-4"}
    del inside["digest"]
    (folder / "export.json").write_bytes(sealed({**record, "calibration": inside}))
    assert Scorer.from_pretrained(folder, engine="onnx", views="auto").views == "grid-4"
    assert Scorer.from_pretrained(folder, engine="onnx").views == record["views"]


@pytest.mark.usefixtures("copied_models")
def test_views_of_a_calibrated_run_are_in_its_export_and_said(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "FP32_DRIFT", 1.0)  # the models that are copied are of another run
    keep(copied, "grid-3")
    found = Made.by(copied, "-o", tmp_path / "export")
    assert "--views auto is grid-3" in found.said.splitlines()
    calibration = read_export(found.folder).calibration
    assert calibration is not None
    assert calibration.enough_views == "grid-3"


def test_export_of_an_uncalibrated_run_says_nothing_of_views(made: Made) -> None:
    assert "--views auto" not in made.said
    with pytest.raises(UsageError, match=r"how few views are enough .*: name --views"):
        Scorer.from_pretrained(made.folder, engine="onnx", views="auto")
