"""Data sets checked, shown and split from the command line; planted leaks stop training."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from conftest import refused
from dcmpl.cli.main import main
from dcmpl.data.splits import Split
from dcmpl.runs import RECORD, as_json

SCALE = ["--mos-scale", "1", "5"]


@pytest.fixture
def data(tmp_path: Path, image_data: Path) -> Path:
    """A copy of the small images that a test may spoil."""
    shutil.copytree(image_data.parent, tmp_path / "data")
    return tmp_path / "data" / image_data.name


def change(data: Path, row: int, **cells: object) -> None:
    frame = pd.read_csv(data)
    for column, value in cells.items():
        frame[column] = frame[column].astype(object)
        frame.loc[row, column] = value
    frame.to_csv(data, index=False)


def split_file(data: Path, test: Sequence[int], val: Sequence[int] = (), name: str = "own") -> Path:
    """A split by hand: rows of test and validation; the rest is training."""
    names = pd.read_csv(data)["image"].tolist()
    parts = [tuple(names[i] for i in rows) for rows in (val, test)]
    train = tuple(n for i, n in enumerate(names) if i not in {*val, *test})
    file = data.parent / "split.json"
    file.write_bytes(as_json(Split(name, 0, train, *parts).to_json()))
    return file


def train(data: Path, split: Path, backbone: Path, out: Path) -> int:
    words = ["train", "--data", str(data), *SCALE, "--backbone", str(backbone)]
    words += [
        "--split",
        str(split),
        "--out",
        str(out),
        "--epochs",
        "1",
        "--set",
        "train.views=center",
    ]
    return main(words)


# Prompt i is that of rows i, i + 12, i + 24 and i + 36.
TEST, VAL = (0, 12, 24, 36, 1, 13, 25, 37), (2, 14, 26, 38, 3, 15, 27, 39)


def test_split_by_hand_without_a_leak_is_trained_on(
    data: Path, small_backbone: Path, tmp_path: Path
) -> None:
    split = split_file(data, TEST, VAL)
    assert train(data, split, small_backbone, tmp_path / "run") == 0
    record = json.loads((tmp_path / "run" / RECORD).read_text())
    assert record["split_sha256"] == Split.read(split).digest


def test_one_shared_prompt_stops_training(
    data: Path, small_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = split_file(data, (*TEST, 5), VAL)
    assert train(data, split, small_backbone, tmp_path / "run") == 1
    told = capsys.readouterr().err
    assert "1 of 9 test images share a prompt with one of train (05.png and 17.png)" in told
    assert not (tmp_path / "run").exists()


def test_one_copied_file_stops_training(
    data: Path, small_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(data.parent / "05.png", data.parent / "00.png")
    assert train(data, split_file(data, TEST, VAL), small_backbone, tmp_path / "run") == 1
    told = capsys.readouterr().err
    assert "1 of 8 test images are the same file with one of train (00.png and 05.png)" in told
    assert not (tmp_path / "run").exists()


def test_one_reencoded_copy_stops_training(
    data: Path, small_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Image.linear_gradient("L").convert("RGB").resize((48, 44))
    image.paste((200, 30, 30), (8, 8, 24, 30))
    image.save(data.parent / "05.png")
    image.save(data.parent / "again.jpg", quality=60)
    change(data, 0, image="again.jpg")
    assert train(data, split_file(data, TEST, VAL), small_backbone, tmp_path / "run") == 1
    told = capsys.readouterr().err
    assert "1 of 8 test images look the same with one of train (again.jpg and 05.png)" in told
    assert not (tmp_path / "run").exists()


def test_clean_keeps_copies_together(data: Path, tmp_path: Path) -> None:
    shutil.copy(data.parent / "05.png", data.parent / "00.png")
    words = ["data", "split", str(data), *SCALE, "--repeats", "8", "--out", str(tmp_path / "s")]
    assert main(words) == 0
    for repeat in range(8):
        split = Split.read(tmp_path / "s" / f"clean-{repeat}.json")
        where = {n: part for part in ("train", "val", "test") for n in getattr(split, part)}
        assert where["00.png"] == where["05.png"] == where["12.png"] == where["17.png"]


def test_written_split_is_the_one_that_training_draws(
    data: Path, small_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "split", str(data), *SCALE, "--repeats", "2", "--out", str(tmp_path / "s")]
    assert main(words) == 0
    drawn = Split.read(tmp_path / "s" / "clean-1.json")
    assert f"sha256 {drawn.digest[:12]}" in capsys.readouterr().out
    common = ["train", "--data", str(data), *SCALE, "--backbone", str(small_backbone)]
    common += [
        "--epochs",
        "1",
        "--set",
        "train.views=center",
        "--seed",
        "1",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(common) == 0
    assert Split.read(tmp_path / "run" / "split.json") == drawn


def test_changed_split_file_is_refused(
    data: Path, small_backbone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split = split_file(data, TEST, VAL)
    record = json.loads(split.read_text())
    record["train"].append(record["test"].pop())
    split.write_text(json.dumps(record))
    assert train(data, split, small_backbone, tmp_path / "run") == 1
    assert "expected the split its digest names" in capsys.readouterr().err


def test_check_of_a_whole_table_says_so(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(data), *SCALE]) == 0
    told = capsys.readouterr().out
    assert "scores: 48 images, 12 prompts, 2 generators, MOS 1 to 5" in told
    assert "48 of 48 images decode; 0 things are wrong" in told


def test_check_lists_what_is_missing_damaged_and_doubled(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data.parent / "03.png").unlink()
    (data.parent / "04.png").write_bytes((data.parent / "04.png").read_bytes()[:60])
    shutil.copy(data.parent / "06.png", data.parent / "07.png")
    Image.new("RGB", (40, 40), "grey").save(data.parent / "08.png")
    shutil.copy(data.parent / "09.png", data.parent / "extra.png")
    assert main(["data", "check", str(data), *SCALE]) == 1
    lines = capsys.readouterr().out.splitlines()
    wrong = [line for line in lines if line.startswith("  wrong: ")]
    assert len(wrong) == 3
    assert "03.png, got no file" in wrong[0]
    assert "04.png" in wrong[1]
    assert wrong[2] == "  wrong: doubled: 06.png and 07.png are the same file"
    assert "  note: flat, nothing is to be seen in them: 08.png" in lines
    assert "  note: 1 images have no row: extra.png" in lines
    assert lines[-1] == "46 of 48 images decode; 3 things are wrong"


def test_check_of_a_copy_without_images_says_how_many_more(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcmpl.cli.data.MOST_LINES", 5)
    for image in data.parent.glob("*.png"):
        image.unlink()
    assert main(["data", "check", str(data), *SCALE]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum("got no file" in line for line in lines) == 5
    assert lines[-2:] == [
        "  wrong: and 43 more",
        "0 of 48 images decode; 48 things are wrong",
    ]


def test_check_of_an_opinion_out_of_scale_is_one_sentence(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(data, 7, mos_quality=5.5)
    assert main(["data", "check", str(data), *SCALE]) == 1
    told = capsys.readouterr().err
    assert "expected mos_quality between 1 and 5" in told
    assert "'5.5' in line 9" in told
    assert told.count("\n") == 1


def test_page_escapes_what_the_table_says(data: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(data)
    frame["prompt"] = "<script>alert(1)</script>" + frame["prompt"]
    frame["generator"] = '"><img src=x>' + frame["generator"]
    frame.to_csv(data, index=False)
    page = tmp_path / "report.html"
    assert main(["data", "show", str(data), *SCALE, "-o", str(page)]) == 0
    text = page.read_text()
    assert "<script" not in text
    assert "<img src=x>" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert text.count("<figure>") == 48  # 24 for each of the two targets
    assert "data:image/png;base64," in text


def test_page_is_drawn_although_an_image_is_broken(data: Path, tmp_path: Path) -> None:
    (data.parent / "03.png").write_bytes(b"no image")
    page = tmp_path / "report.html"
    assert main(["data", "show", str(data), *SCALE, "-o", str(page)]) == 0
    assert "What is wrong with this copy" in page.read_text()


def test_page_does_not_write_over_the_table_it_shows(
    image_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "own.csv"
    table.write_bytes(image_data.read_bytes())
    told = refused(capsys, 2, "data", "show", table, "--mos-scale", 1, 5, "-o", table)
    assert told == f"expected a new file at -o, got {table}, which is to be read"
    assert table.read_bytes() == image_data.read_bytes()
