"""``dcmpl export``: what the command prints, and the words that make no export."""

from pathlib import Path

import pytest

from conftest import Capture, refused
from dcmpl.scoring import export
from exported import VARIANTS, Made

pytest_plugins = ("exported",)


def test_command_prints_the_folder_and_what_to_do_next(made: Made) -> None:
    told = ", ".join(f"{engine} {precision}" for engine, precision, _ in VARIANTS)
    assert made.printed == (
        f"exported: {made.folder} ({told})\n"
        f"next: dcmpl score PATH --model {made.folder} -o scores.csv\n"
    )


def test_missing_packages_are_named_with_the_command_that_installs_them(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, trained_run: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    assert refused(capsys, 2, "export", trained_run, "-o", tmp_path / "x") == (
        "expected onnx, onnxscript, onnxruntime to export, got none: "
        "pip install 'dcmpl-agiqa[onnx]'"
    )


def test_words_that_make_no_export_are_told_at_once(
    capsys: Capture, trained_run: Path, tmp_path: Path
) -> None:
    full = refused(capsys, 2, "export", trained_run, "-o", trained_run)
    assert full == f"expected a new folder at -o {trained_run}, got something there"
    words = ["export", trained_run, "-o", tmp_path / "x", "--targets", "authenticity"]
    assert "the run learned" in refused(capsys, 2, *words)
    assert refused(capsys, 2, "export", tmp_path / "none", "-o", tmp_path / "x") == (
        f"expected a run folder made by dcmpl train, got none at {tmp_path / 'none'}"
    )
