"""``--views auto``: the fewest views that are enough, measured on validation and kept."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import Capture, refused
from dcmpl.files import sealed
from dcmpl.images.decode import read_image
from dcmpl.model.tokenizer import Ids, Parts
from dcmpl.runs import MODEL, read_run, validation_pictures
from dcmpl.scoring.batching import lanes
from dcmpl.scoring.engines import Engine, read_export
from dcmpl.scoring.scorer import Scorer
from dcmpl.scoring.torch_engine import TorchEngine, load_model
from dcmpl.training import calibrate as fewest
from dcmpl.training.calibrate import TOLERANCE, compare_views, fewest_of_run, fewest_views
from exported import Made

pytest_plugins = ("exported",)

KINDS = ["center", "grid-2", "grid-3", "grid-4", "windows"]


class Mean:
    """Scores a window by its mean brightness, for the second task by that of its red."""

    name, precision, tasks, size, apart = "mean", "fp32", ("quality", "alignment"), 32, False

    reads: str | None = None

    def parts(self, text: str, long: str) -> Parts:
        return Parts(((),))

    def __call__(self, windows: np.ndarray, texts: Sequence[Sequence[Ids]] = ()) -> np.ndarray:
        return np.stack([windows.mean((1, 2, 3)), windows[..., 0].mean((1, 2))], axis=1) / 255

    def lanes(self, count: int) -> Any:
        return lanes(count)


def stripes(*values: int) -> np.ndarray:
    """A picture 32 wide, whose windows below one another have these values."""
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


def test_tolerance_is_of_a_range_of_one_and_for_19_of_20_pictures() -> None:
    assert (fewest.TOLERANCE, fewest.SHARE) == (0.02, 0.95)


def test_distances_are_those_to_the_mean_over_all_windows() -> None:
    engine = Mean()
    assert isinstance(engine, Engine)
    # 4 windows fit, at rows 0, 8, 16 and 24; the middle one begins at 8.
    picture = stripes(0, 0, 0, 0, 80, 80, 80)
    found = compare_views(engine, [picture])
    assert [row["views"] for row in found] == KINDS
    windows = np.array([0, 20, 40, 60]) / 255
    expected = [abs(windows[chosen].mean() - windows.mean()) for chosen in ([1], [0, 3])]
    assert [row["most"] for row in found[:2]] == pytest.approx(expected)
    assert [row["windows"] for row in found] == [1, 2, 3, 4, 4]
    for row in found:
        assert row["mean"] == row["most"] == row["of_share"]
    assert found[-1]["most"] == 0


def test_task_that_differs_most_counts() -> None:
    picture = stripes(0, 0, 0, 0, 80, 80, 80)
    picture[..., 1:] = 0  # now it is seen by red, and a third of it by brightness
    (center, *_) = compare_views(Mean(), [picture])
    assert center["most"] == pytest.approx(abs(20 - 30) / 255)


@pytest.mark.parametrize(("odd", "expected"), [(1, "center"), (2, "grid-2")])
def test_one_picture_of_forty_may_be_farther_off_but_not_three(odd: int, expected: str) -> None:
    ramp = stripes(0, 0, 0, 0, 80, 80, 80)  # center is off by 10 of 255; grid-2 by nothing
    flat = stripes(*[9] * 7)
    pictures = [ramp] * (2 * odd - 1) + [flat] * (41 - 2 * odd)
    rows = compare_views(Mean(), pictures)
    assert rows[0]["most"] == pytest.approx(10 / 255)
    assert rows[0]["mean"] == pytest.approx(10 / 255 * (2 * odd - 1) / 40)
    assert fewest_views(rows) == expected


def test_small_pictures_have_one_window_in_any_views() -> None:
    rows = compare_views(Mean(), [stripes(7), stripes(1, 2, 3, 4)])
    assert [(row["windows"], row["most"]) for row in rows] == [(1, 0)] * 5


# Of a run


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_run, tmp_path / "run"))


def opened(folder: Path, **fields: Any) -> Scorer:
    return Scorer.from_pretrained(folder, device="cpu", views="auto", **fields)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What is measured is grid-3; returns how many pictures it was measured on, each time."""
    measured: list[int] = []

    def compare(engine: Engine, pictures: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        measured.append(len(pictures))
        return rows_at(center=1.0, grid_3=0.0)

    monkeypatch.setattr(fewest, "compare_views", compare)
    return measured


def test_views_of_a_run_are_measured_on_its_validation_part_and_kept(run: Path) -> None:
    scorer = opened(run)
    record = json.loads((run / "views.json").read_text())
    described, model = load_model(run, device="cpu")
    shown = validation_pictures(run, described)
    rows = compare_views(TorchEngine(model, described.learned), shown)
    assert scorer.views == record["fewest_views"] == fewest_views(rows)
    assert record["identity"] == f"{described.identity} fp32 quality alignment"
    assert [row["views"] for row in record["views_compared"]] == KINDS
    found = [row["most"] for row in record["views_compared"]]
    assert found == pytest.approx([row["most"] for row in rows], abs=1e-6)
    assert found[0] > 0


def test_validation_pictures_are_those_that_chose_the_epoch(run: Path, picture_data: Path) -> None:
    names = json.loads((run / "split.json").read_text())["val"]
    shown = validation_pictures(run, read_run(run))
    assert len(shown) == len(names) == 4
    for name, pixels in zip(sorted(names), shown, strict=True):
        assert (pixels == read_image(picture_data.with_name(name))).all()


def test_views_are_measured_once(run: Path, always: list[int]) -> None:
    assert [opened(run).views, opened(run).views] == ["grid-3"] * 2
    assert always == [4]
    assert Scorer.from_pretrained(run, device="cpu").views == "center"  # what it was trained with
    assert Scorer.from_pretrained(run, device="cpu", views="grid-2").views == "grid-2"


def edited(content: bytes) -> bytes:
    return content.replace(b"grid-3", b"center")


def resealed_of_another(content: bytes) -> bytes:
    record = json.loads(content)
    del record["digest"]
    return sealed({**record, "identity": "another run", "fewest_views": "center"})


@pytest.mark.parametrize(
    "change",
    [
        edited,
        resealed_of_another,
        lambda content: content[:-9],
        lambda content: b"",
        lambda content: b"[]",
        lambda content: b"\xff",
        lambda content: b"[" * 100_000,
        lambda content: sealed({"identity": "no more"}),
    ],
)
def test_views_are_measured_anew_where_the_record_is_not_as_it_was_written(
    run: Path, always: list[int], change: Any
) -> None:
    opened(run)
    path = run / "views.json"
    written = path.read_bytes()
    path.write_bytes(change(written))
    assert opened(run).views == "grid-3"
    assert len(always) == 2
    assert path.read_bytes() == written
    opened(run)
    assert len(always) == 2


def test_views_of_a_run_without_its_pictures_cannot_be_measured(
    run: Path, picture_data: Path, capsys: Capture, tmp_path: Path
) -> None:
    described = read_run(run)
    assert described.source is not None
    moved = replace(described.source, path=str(tmp_path / "gone.csv"))
    replace(described, source=moved).write(run)
    picture, out = picture_data.with_name("00.png"), tmp_path / "x.csv"
    words = ["score", picture, "--model", run, "--views", "auto", "-o", out]
    assert refused(capsys, 1, *words).startswith("expected ")
    assert not (run / "views.json").exists()
    assert Scorer.from_pretrained(run, device="cpu").score([picture])[0].status == "ok"


def test_many_pictures_are_thinned_out_evenly(tmp_path: Path, always: list[int]) -> None:
    pictures = [stripes(1)] * 256
    assert fewest_of_run(tmp_path, "identity", Mean(), lambda: pictures) == "grid-3"
    assert always == [64]


def test_views_that_were_found_score_as_those_that_are_named(
    run: Path, always: list[int], picture_data: Path
) -> None:
    paths = [picture_data.with_name(f"{i:02}.png") for i in range(3)]
    named = Scorer.from_pretrained(run, device="cpu", views="grid-3")
    assert opened(run).score(paths) == named.score(paths)
    assert always == [4]


# Of an export


def test_views_of_an_export_are_stored_in_its_record_and_said(made: Made, run: Path) -> None:
    record = read_export(made.folder).record
    assert [row["views"] for row in record["views_compared"]] == KINDS
    said = made.said.splitlines()[-6:]
    assert [line.split(":")[0] for line in said[:-1]] == [f"views {name}" for name in KINDS]
    assert said[-1] == f"--views auto is {record['fewest_views']}, within 0.02"
    opened(run)
    measured = json.loads((run / "views.json").read_text())
    assert measured["fewest_views"] == record["fewest_views"]
    for ours, theirs in zip(measured["views_compared"], record["views_compared"], strict=True):
        assert ours["most"] == pytest.approx(theirs["most"], abs=1e-5)


def test_views_of_an_export_are_those_of_its_record(made: Made, tmp_path: Path) -> None:
    folder = made.copied(tmp_path / "copy")
    record = json.loads((folder / "export.json").read_text())
    del record["digest"]
    (folder / "export.json").write_bytes(sealed({**record, "fewest_views": "grid-4"}))
    assert Scorer.from_pretrained(folder, engine="onnx", views="auto").views == "grid-4"
    assert Scorer.from_pretrained(folder, engine="onnx").views == record["views"]
    assert not (folder / "views.json").exists()


def test_run_that_is_opened_for_its_views_keeps_its_weights(run: Path) -> None:
    before = (run / MODEL).read_bytes()
    opened(run)
    assert (run / MODEL).read_bytes() == before
    assert torch.is_grad_enabled()
