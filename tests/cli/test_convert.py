"""``dcmpl import``: CLIP-AGIQA's checkpoints as a run that is scored and measured."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcmpl.cli.main import main
from dcmpl.model.dcmpl import DCMPL
from dcmpl.scoring.scorer import Scorer
from dcmpl.scoring.torch_engine import TorchEngine

pytest_plugins = ("clip_agiqa_files",)


Randomise = Callable[[nn.Module, int], None]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def words_of(files: tuple[Path, Path | None], small_backbone: Path, out: Path) -> list[str]:
    words = ["import", "--aux", str(files[0]), "--backbone", str(small_backbone)]
    return [*words, *(["--main", str(files[1])] if files[1] else []), "--out", str(out)]


@pytest.fixture
def imported(files: tuple[Path, Path], small_backbone: Path, tmp_path: Path) -> Path:
    assert main(words_of(files, small_backbone, tmp_path / "run")) == 0
    return tmp_path / "run"


@pytest.fixture
def alone(files: tuple[Path, Path], small_backbone: Path, tmp_path: Path) -> Path:
    """A run of the auxiliary file."""
    assert main(words_of((files[0], None), small_backbone, tmp_path / "alone")) == 0
    return tmp_path / "alone"


def test_the_import_says_what_the_run_predicts(
    files: tuple[Path, Path],
    small_backbone: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(words_of(files, small_backbone, tmp_path / "run")) == 0
    told = capsys.readouterr()
    assert "predicts quality and alignment\n" in told.out
    assert told.err == ""
    assert main(words_of((files[0], None), small_backbone, tmp_path / "alone")) == 0
    told = capsys.readouterr()
    assert "predicts alignment\n" in told.out
    assert "quality is not there" in told.err


def test_an_imported_run_scores_as_the_model_does(
    imported: Path, learned: DCMPL, image_data: Path
) -> None:
    assert sorted(file.name for file in imported.iterdir()) == ["model.safetensors", "run.json"]
    images = sorted(image_data.parent.glob("*.png"))[:3]
    scorer = Scorer.from_pretrained(imported)
    assert scorer.views == "paper-windows"  # as its script tests
    found = scorer.score(images)
    engine = TorchEngine(learned, ("quality", "alignment"))
    expected = Scorer(engine, scorer.views).score(images)
    assert [(s.quality, s.alignment) for s in found] == [(s.quality, s.alignment) for s in expected]


def metrics_of(run: Path, image_data: Path, out: Path) -> dict[str, Any]:
    words = ["evaluate", str(run), "--data", str(image_data), "--mos-scale", "1", "5"]
    assert main([*words, "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return found


def test_an_imported_run_is_measured_on_given_data(
    imported: Path, image_data: Path, tmp_path: Path
) -> None:
    metrics = metrics_of(imported, image_data, tmp_path / "results")
    assert {"quality", "alignment"} <= metrics.keys()


def test_an_imported_run_has_no_data_of_its_own(
    imported: Path, image_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(imported)]
    assert main(words) == 2
    assert "expected --data PATH" in capsys.readouterr().err
    data = ["--data", str(image_data), "--mos-scale", "1", "5"]
    assert main([*words, *data, "--split", "test"]) == 2
    assert "expected --split all for an imported run" in capsys.readouterr().err


def test_an_imported_run_cannot_be_resumed(
    imported: Path, train_words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file.name: file.read_bytes() for file in imported.iterdir()}
    assert main([*train_words, "--out", str(imported), "--resume"]) == 1
    assert capsys.readouterr().err.startswith("dcmpl: expected ")
    assert {file.name: file.read_bytes() for file in imported.iterdir()} == before


def test_a_run_of_the_auxiliary_file_leaves_quality_empty(
    alone: Path, image_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = image_data.parent / "00.png"
    assert main(["score", str(image), "--model", str(alone), "-o", str(tmp_path / "s.csv")]) == 0
    assert "does not predict quality" in capsys.readouterr().err
    with (tmp_path / "s.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["quality"], row["status"], row["reason"]) == ("", "ok", "")
    assert 0 < float(row["alignment"]) < 1


def test_a_run_of_the_auxiliary_file_is_measured_for_alignment(
    alone: Path, image_data: Path, tmp_path: Path
) -> None:
    metrics = metrics_of(alone, image_data, tmp_path / "results")
    assert "alignment" in metrics
    assert "quality" not in metrics


def test_a_folder_in_use_is_left_as_it_is(
    files: tuple[Path, Path], small_backbone: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert main(words_of(files, small_backbone, tmp_path / "run")) == 2
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["notes.txt"]
    (tmp_path / "run" / "notes.txt").unlink()
    assert main(words_of(files, small_backbone, tmp_path / "run")) == 0
