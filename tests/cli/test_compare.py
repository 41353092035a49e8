"""``dcmpl compare``: runs beside published results, and beside one another."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarked import folder_of
from dcmpl.cli.main import main

pytest_plugins = ("benchmarked",)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_compare_sets_like_beside_like(
    protocols: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(protocols), "--out", str(tmp_path)]) == 0
    frame = pd.read_csv(tmp_path / "comparison.csv")
    ours = frame[frame["ours"] & frame["method"].str.startswith("dcmpl on")]
    assert set(ours["protocol"]) == {
        "prompt-grouped",
        "prompt-grouped, best epoch on test",
        "image-level",
    }
    theirs = frame[~frame["ours"]]
    assert set(theirs["dataset"]) == {"AGIQA-3K"}
    fu = theirs[(theirs["method"] == "CLIP-AGIQA (Fu)") & (theirs["task"] == "quality")].iloc[0]
    assert (fu["srcc"], fu["plcc"]) == (0.8747, 0.9190)
    assert fu["protocol"] == "prompt-grouped, best epoch on test"
    assert (tmp_path / "comparison.png").stat().st_size > 1000
    assert "8 images each" in (tmp_path / "comparison.md").read_text()


def test_two_runs_on_the_same_images_are_compared(
    protocols: Path, words: list[str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    preset = ["--preset", "linear-probe", "--out", str(other)]
    assert main(["train", *words, *preset]) == 0
    assert main(["evaluate", str(other)]) == 0
    first = folder_of(protocols, "clean", 0)
    assert main(["compare", str(first), str(other), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "comparison.md").read_text()
    assert "## Run against run" in text
    table = [
        line
        for line in text.splitlines()
        if [cell.strip() for cell in line.split("|")][1:3] == [str(first), str(other)]
    ]
    assert [line.split("|")[3].strip() for line in table] == ["quality", "alignment"]


def test_compare_refuses_a_folder_without_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(tmp_path)]) == 1
    assert "got neither metrics.json (dcmpl evaluate RUN) nor summary.json" in said(capsys)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rows": 3}', "[" * 100_000])
def test_compare_refuses_results_that_are_none(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "summary.json").write_text(content)
    assert main(["compare", str(tmp_path)]) == 1
    assert said(capsys).startswith("dcmpl: expected results ")
