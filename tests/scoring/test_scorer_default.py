"""The model that comes with the package: scores where no model is named."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import Capture, refused
from dcmpl import weights
from dcmpl.cli.main import main
from dcmpl.scoring.scorer import Scorer
from dcmpl.weights import DEFAULT, model_folder


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slopes and a little noise, 520 x 600."""
    place = tmp_path_factory.mktemp("images") / "a.png"
    y, x = np.mgrid[:520, :600]
    noise = np.random.default_rng(0).integers(0, 20, (520, 600, 3))
    pixels = np.stack([x // 3, y // 3, (x + y) // 6], axis=-1) + noise
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place)
    return place


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model of the package, in a folder where it may be changed."""
    folder = tmp_path / "default"
    shutil.copytree(DEFAULT, folder)
    monkeypatch.setattr(weights, "DEFAULT", folder)
    return folder


def test_no_name_and_default_are_the_folder_of_the_package() -> None:
    assert model_folder(None) == model_folder("default") == DEFAULT
    assert model_folder("runs/a") == Path("runs/a")


def test_a_folder_called_default_is_meant_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "default").mkdir()
    assert model_folder("default") == Path("default")
    assert model_folder(None) == DEFAULT


def test_scorer_without_a_name_scores_both_targets_in_mos(image: Path) -> None:
    scorer = Scorer.from_pretrained()
    assert scorer.about["backbone"] == "small"
    (score,) = scorer.score([image], prompts="a slope of many colours")
    assert 0 < score.quality < 1
    assert 0 < score.alignment < 1
    assert score.quality_low < score.quality_mos < score.quality_high


def test_score_without_a_model_writes_a_row_and_says_what_it_knows(
    image: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "scores.csv"
    assert main(["score", str(image), "-o", str(out), "--prompt", "a slope"]) == 0
    assert "six generators of 2021 to 2023" in capsys.readouterr().err
    assert pd.read_csv(out)["status"].tolist() == ["ok"]


@pytest.mark.parametrize("name", ["model.safetensors", "run.json"])
def test_damaged_files_of_the_package_are_one_sentence(
    copied: Path, name: str, image: Path, tmp_path: Path, capsys: Capture
) -> None:
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[: len(content) // 2])
    told = refused(capsys, 1, "score", image, "-o", tmp_path / "scores.csv")
    assert str(copied) in told


def test_results_of_the_model_of_the_package_need_a_place(capsys: Capture) -> None:
    assert refused(capsys, 2, "evaluate", "default") == (
        "expected --out DIR for the model of the package, got none"
    )
