"""``dcmpl score`` writes a row for every image, and says what it could not read."""

import csv
import json
import os
import re
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from conftest import Capture, refused
from dcmpl import weights
from dcmpl.cli.main import main


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "scores.csv"


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def score(*words: object) -> int:
    return main(["score", *(str(word) for word in words)])


def test_scoring_a_folder_writes_a_row_for_each(
    image_data: Path, trained_run: Path, out: Path
) -> None:
    assert score(image_data.parent, "--model", trained_run, "-o", out) == 0
    rows = rows_of(out)
    assert [Path(row["image"]).name for row in rows] == [f"{i:02}.png" for i in range(48)]
    assert {row["status"] for row in rows} == {"ok"}


def test_score_file_has_its_columns(image_data: Path, trained_run: Path, out: Path) -> None:
    score(image_data.parent / "00.png", "--model", trained_run, "-o", out)
    columns = "image prompt quality alignment authenticity status reason note"
    assert list(rows_of(out)[0]) == columns.split()


def test_bad_file_gives_exit_code_3_and_a_row_with_its_reason(
    capsys: Capture, image_data: Path, trained_run: Path, out: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    good = image_data.parent / "00.png"
    assert score(good, bad, "--model", trained_run, "-o", out) == 3
    first, second = rows_of(out)
    assert (first["status"], first["reason"]) == ("ok", "")
    assert (second["status"], second["quality"]) == ("error", "")
    assert second["reason"].startswith(f"expected an image that can be decoded, got {bad}: ")
    captured = capsys.readouterr()
    assert captured.out == f"1 of 2 images scored: {out} and its manifest\n"
    rate, fault, note = captured.err.splitlines()
    assert note.startswith("note: scores without MOS units and labels: it was not calibrated")
    assert re.fullmatch(r"\d+\.\d s, \d+\.\d images/s", rate)
    assert fault == f"not scored: {second['reason']}"


def test_many_bad_files_are_told_in_eleven_lines_behind_the_rate(
    capsys: Capture, trained_run: Path, out: Path, tmp_path: Path
) -> None:
    assert (
        score(*(tmp_path / f"{i}.png" for i in range(12)), "--model", trained_run, "-o", out) == 3
    )
    rate, *lines, _ = capsys.readouterr().err.splitlines()  # the run is not calibrated
    assert rate.endswith(" images/s")
    assert len(lines) == 11
    assert lines[-1] == "and 2 more, each with its reason in the file"


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_other_formats_hold_the_same_scores(
    image_data: Path, trained_run: Path, out: Path, suffix: str
) -> None:
    for file in (out, out.with_suffix(suffix)):
        assert score(image_data.parent / "00.png", "--model", trained_run, "-o", file) == 0
    other = out.with_suffix(suffix)
    found = (
        json.loads(other.read_text())["quality"]
        if suffix == ".jsonl"
        else pd.read_parquet(other)["quality"][0]
    )
    assert float(rows_of(out)[0]["quality"]) == found


def test_prompt_is_carried_into_every_row(image_data: Path, trained_run: Path, out: Path) -> None:
    names = [image_data.parent / name for name in ("00.png", "01.png")]
    assert score(*names, "--model", trained_run, "-o", out, "--prompt", "a fox") == 0
    assert [row["prompt"] for row in rows_of(out)] == ["a fox", "a fox"]


def test_prompts_of_a_table_go_to_their_images(
    capsys: Capture, image_data: Path, trained_run: Path, out: Path
) -> None:
    name = image_data.parent / "03.png"
    assert score(name, "--model", trained_run, "-o", out, "--prompts", image_data) == 0
    assert rows_of(out)[0]["prompt"] == "prompt 3"
    assert f"47 rows of {image_data} name none of the images" in capsys.readouterr().err


def test_missing_prompts_are_wrong_usage(capsys: Capture, trained_run: Path, out: Path) -> None:
    words = ["score", "a.png", "--model", trained_run, "-o", out, "--prompts", "none.csv"]
    assert refused(capsys, 2, *words) == "expected a table at --prompts none.csv, got no file"


def test_unknown_format_is_wrong_usage(capsys: Capture, trained_run: Path) -> None:
    assert refused(capsys, 2, "score", "a.png", "--model", trained_run, "-o", "x.txt") == (
        "expected -o to end in .csv, .jsonl, .parquet, got x.txt"
    )


def test_folder_without_images_is_wrong_usage(
    capsys: Capture, trained_run: Path, out: Path, tmp_path: Path
) -> None:
    (tmp_path / "nothing").mkdir()
    words = ["score", tmp_path / "nothing", "--model", trained_run, "-o", out]
    assert refused(capsys, 2, *words).startswith(f"expected images in {tmp_path / 'nothing'}")


def test_missing_run_is_wrong_usage(capsys: Capture, out: Path) -> None:
    assert refused(capsys, 2, "score", "a.png", "--model", "nowhere", "-o", out) == (
        "expected a run folder or an exported model at --model, got none at nowhere"
    )


@pytest.mark.parametrize("command", ["score", "evaluate"])
def test_folder_that_is_no_run_fails(
    capsys: Capture, tmp_path: Path, out: Path, command: str
) -> None:
    words = ["a.png", "--model", tmp_path, "-o", out] if command == "score" else [tmp_path]
    assert refused(capsys, 1, command, *words) == (
        f"expected a run folder made by dcmpl train at {tmp_path}, got no run.json in it"
    )


def test_place_that_cannot_be_written_fails(
    capsys: Capture, image_data: Path, trained_run: Path
) -> None:
    inside = image_data / "scores.csv"  # a place inside a file
    words = ["score", image_data.parent / "00.png", "--model", trained_run, "-o", inside]
    assert refused(capsys, 1, *words).startswith(f"expected to write {inside}, got: ")


def test_note_says_what_was_done_to_read_an_image(
    trained_run: Path, out: Path, tmp_path: Path
) -> None:
    Image.new("RGBA", (40, 40), (9, 9, 9, 100)).save(tmp_path / "a.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "b.png")
    assert score(tmp_path / "a.png", tmp_path / "b.png", "--model", trained_run, "-o", out) == 0
    assert [row["note"] for row in rows_of(out)] == ["transparent parts laid on white", ""]


def test_manifest_stands_beside_the_scores(image_data: Path, trained_run: Path, out: Path) -> None:
    assert score(image_data.parent / "00.png", "--model", trained_run, "-o", out) == 0
    assert sorted(os.listdir(out.parent)) == ["scores.csv", "scores.csv.manifest.json"]


def test_archive_gives_a_row_for_each_image(
    image_data: Path, trained_run: Path, out: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("00.png", "01.png"):
            file.write(image_data.parent / name, name)
    assert score(archive, "--model", trained_run, "-o", out) == 0
    names = [row["image"] for row in rows_of(out)]
    assert names == [f"{archive}/00.png", f"{archive}/01.png"]


def test_list_brings_its_prompts(
    image_data: Path, trained_run: Path, out: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "list.csv"
    rows.write_text(f"file_name,caption\n{image_data.parent / '00.png'},a fox\n,an ox\n")
    assert score(rows, "--model", trained_run, "-o", out) == 3
    assert [(row["prompt"], row["status"]) for row in rows_of(out)] == [
        ("a fox", "ok"),
        ("an ox", "error"),
    ]


def test_archive_gives_a_row_for_each_image_with_its_prompt(
    image_data: Path, trained_run: Path, out: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("00", "01"):
            file.write(image_data.parent / f"{name}.png", f"{name}.png")
        file.writestr("01.txt", "a red fox")
    words = [archive, "--model", trained_run, "-o", out, "--prompt-from", "sidecar"]
    assert score(*words) == 0
    assert [(row["image"], row["prompt"]) for row in rows_of(out)] == [
        (f"{archive}/00.png", ""),
        (f"{archive}/01.png", "a red fox"),
    ]


def test_prompt_in_the_image_is_written_to_its_row(
    trained_run: Path, out: Path, tmp_path: Path
) -> None:
    info = PngInfo()
    info.add_text("parameters", "a red fox\nSteps: 20, Seed: 1")
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png", pnginfo=info)
    words = [tmp_path / "a.png", "--model", trained_run, "-o", out, "--prompt-from", "metadata"]
    assert score(*words) == 0
    assert rows_of(out)[0]["prompt"] == "a red fox"


@pytest.mark.parametrize("name", ["model.safetensors", "run.json", "calibration.json"])
def test_damaged_model_of_the_package_is_to_be_installed_again(
    capsys: Capture,
    image_data: Path,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    damaged = tmp_path / "default"
    damaged.mkdir()
    for file in weights.DEFAULT.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    content = bytearray((damaged / name).read_bytes())
    content[-20] ^= 1
    (damaged / name).write_bytes(content)
    monkeypatch.setattr(weights, "DEFAULT", damaged)
    line = refused(capsys, 1, "score", image_data.parent / "00.png", "-o", out)
    assert line.startswith(f"expected {damaged / name} as dcmpl wrote it, got ")
    assert line.endswith(": install dcmpl again: a file of its own is damaged")
