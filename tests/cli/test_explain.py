"""``dcmpl explain``: what is refused, in one sentence."""

from pathlib import Path

import pytest

from conftest import Capture, refused
from dcmpl.cli.main import main

pytest_plugins = ("calibrated",)


@pytest.fixture
def image(image_data: Path) -> Path:
    return image_data.with_name("00.png")


def test_what_is_no_run_is_refused(capsys: Capture, image: Path, tmp_path: Path) -> None:
    rest = ["-o", tmp_path / "why.png", "--model"]
    told = refused(capsys, 2, "explain", image, *rest, tmp_path / "x")
    assert told.startswith("expected a run folder made by dcmpl train, got none at")
    export = tmp_path / "export"
    export.mkdir()
    (export / "export.json").write_text("{}")
    told = refused(capsys, 1, "explain", image, *rest, export)
    assert told.startswith(f"expected a run folder made by dcmpl train at {export}")


@pytest.mark.parametrize("name", ["why.jpg", "why", "folder.png", "why.png.csv"])
def test_out_that_is_no_png_is_wrong_usage(
    capsys: Capture, image: Path, calibrated_run: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    rest = ["--model", calibrated_run, "-o", tmp_path / name]
    told = refused(capsys, 2, "explain", image, *rest)
    assert told == f"expected -o to be a file that ends in .png, got {tmp_path / name}"


def test_out_that_cannot_be_written_is_one_sentence(
    capsys: Capture, image: Path, uncalibrated_run: Path
) -> None:
    out = image / "why.png"
    words = ["explain", image, "--model", uncalibrated_run, "-o", out]
    assert main([str(word) for word in words]) == 1
    told = capsys.readouterr()
    *notes, last = told.err.splitlines()
    assert told.out == ""
    assert last.startswith(f"dcmpl: expected to write {out}, got: ")
    assert all(line.startswith("note: ") for line in notes)


def test_out_that_is_the_image_itself_is_refused(
    capsys: Capture, image: Path, uncalibrated_run: Path
) -> None:
    refused(capsys, 2, "explain", image, "--model", uncalibrated_run, "-o", image)
