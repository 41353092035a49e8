"""Robustness: scores of the same images in other coats."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dcmpl.data.datasets import load_table
from dcmpl.data.table import ImageTable, MosScale
from dcmpl.evaluation import robust
from dcmpl.evaluation.robust import robust_table, robustness
from dcmpl.images.coats import COATS
from dcmpl.images.decode import read_image
from dcmpl.metrics import srcc
from dcmpl.model.dcmpl import DCMPL
from dcmpl.progress import Console
from dcmpl.scoring.engines import all_scores
from dcmpl.scoring.torch_engine import TorchEngine, predict_table

TASKS = ("quality", "alignment")


@pytest.fixture(scope="module")
def table(image_data: Path) -> ImageTable:
    whole = load_table(image_data, MosScale(1, 5))
    return replace(whole, frame=whole.frame[:12])


@pytest.fixture(scope="module")
def engine(build: Callable[..., DCMPL]) -> TorchEngine:
    return TorchEngine(build("dcmpl"), TASKS)


@pytest.fixture(scope="module")
def plain(engine: TorchEngine, table: ImageTable) -> np.ndarray:
    return predict_table(engine, table, "center", "scoring")[0]


def test_numbers_are_those_of_the_coated_images(
    engine: TorchEngine, table: ImageTable, plain: np.ndarray
) -> None:
    found = robustness(engine, table, "center", plain)
    assert found.keys() == COATS.keys()
    for name, coat in COATS.items():
        images = [coat(read_image(path)) for path in table.frame["image"]]
        coated = all_scores(engine, images, "center")
        for column, task in enumerate(TASKS):
            entry, moves = found[name][task], np.abs(coated - plain)[:, column]
            opinion = table.targets([task])[:, 0]
            merit = srcc(coated[:, column], opinion)
            assert entry["srcc"] == pytest.approx(merit)
            assert entry["srcc_drop"] == pytest.approx(srcc(plain[:, column], opinion) - merit)
            assert entry["mean_move"] == pytest.approx(moves.mean(), abs=1e-6)
            assert entry["moved_far"] == (moves > 0.05).mean()


def test_a_coat_that_changes_nothing_moves_nothing(
    engine: TorchEngine, table: ImageTable, plain: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robust, "COATS", {"as it is": lambda image: image})
    entry = robustness(engine, table, "center", plain)["as it is"]["quality"]
    assert entry["srcc_drop"] == entry["mean_move"] == entry["moved_far"] == 0


def test_the_engine_keeps_its_own_coat(engine: TorchEngine, table: ImageTable) -> None:
    path = table.frame["image"][0]
    before = next(engine.windows_of(path, "center")).copy()
    engine.in_coat(lambda image: 255 - image)
    assert np.array_equal(next(engine.windows_of(path, "center")), before)


def test_images_without_opinions_have_moves_alone(
    engine: TorchEngine, table: ImageTable, plain: np.ndarray
) -> None:
    blank = replace(table, frame=table.frame.assign(mos_alignment=np.nan))
    entry = robustness(engine, blank, "center", plain)["JPEG 75"]["alignment"]
    assert np.isnan(entry["srcc"])
    assert entry["mean_move"] > 0


def test_table_has_a_row_for_each_coat_and_target(capsys: pytest.CaptureFixture[str]) -> None:
    entry = {"srcc": 0.8123, "srcc_drop": 0.0149, "mean_move": 0.0213, "moved_far": 0.125}
    Console().print(robust_table({"JPEG 75": {"quality": entry}}, "Coats"))
    out = capsys.readouterr().out
    (row,) = [line for line in out.splitlines() if "JPEG 75" in line]
    for shown in ("quality", "0.812", "+0.015", "0.021", "12.5%"):
        assert shown in row
