"""Situations of people who score and train on their own files."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from dcmpl.cli.main import main
from dcmpl.cli.select import move
from dcmpl.data.datasets import load_table
from dcmpl.data.leaks import survey, tied_units
from dcmpl.data.splits import draw_split
from dcmpl.data.table import MosScale
from dcmpl.errors import DataError
from dcmpl.scoring.files import read_manifest, read_scores


def noise(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_changed_image_is_scored_anew_and_changes_the_hash_of_the_images(
    tmp_path: Path, trained_run: Path
) -> None:
    (tmp_path / "job").mkdir()
    first, second = (noise(tmp_path / "job" / f"{i}.png", i) for i in (1, 2))
    words = ["score", str(tmp_path / "job"), "--model", str(trained_run), "-o"]
    out = tmp_path / "job.csv"
    assert main([*words, str(out)]) == 0
    before, images = list(read_scores(out)), read_manifest(out)["images_sha256"]
    noise(first, 9)
    assert main([*words, str(out), "--resume"]) == 0
    after = list(read_scores(out))
    assert after[0]["quality"] != before[0]["quality"]
    assert after[1]["quality"] == pytest.approx(before[1]["quality"], abs=1e-6)
    assert read_manifest(out)["images_sha256"] != images
    os.utime(second, (1, 1))  # another time, the same content
    content = out.read_bytes()
    assert main([*words, str(out), "--resume"]) == 0
    assert out.read_bytes() == content


def test_file_that_score_did_not_write_is_not_replaced(tmp_path: Path, trained_run: Path) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("my,own\n")
    image = noise(tmp_path / "a.png", 0)
    assert main(["score", str(image), "--model", str(trained_run), "-o", str(mine)]) == 2
    assert mine.read_text() == "my,own\n"


@pytest.mark.parametrize("command", ["explain", "data show"])
def test_plot_or_page_that_dcmpl_did_not_make_is_not_replaced(
    tmp_path: Path, trained_run: Path, image_data: Path, command: str
) -> None:
    out = tmp_path / ("mine.png" if command == "explain" else "mine.html")
    out.write_text("mine")
    image = str(noise(tmp_path / "a.png", 0))
    words = {
        "explain": ["explain", image, "--model", str(trained_run)],
        "data show": ["data", "show", str(image_data), "--mos-scale", "1", "5"],
    }
    assert main([*words[command], "-o", str(out)]) == 2
    assert out.read_text() == "mine"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("evaluate", "predictions.csv"),
        ("evaluate", "quality.png"),
        ("evaluate", "metrics.json"),
        ("compare", "comparison.csv"),
        ("benchmark", "summary.md"),
        ("benchmark", "trials.csv"),
        ("data split", "clean-1.json"),
        ("train", "split.json"),
        ("train", "calibration.json"),
    ],
)
def test_results_of_others_are_not_replaced(
    tmp_path: Path,
    trained_run: Path,
    image_data: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    name: str,
) -> None:
    mine = tmp_path / name
    mine.write_text("mine")
    data = ["--data", str(image_data), "--mos-scale", "1", "5"]
    words = {
        "evaluate": ["evaluate", str(trained_run)],
        "compare": ["compare", str(trained_run)],
        "benchmark": ["benchmark", *data, "--presets", "linear-probe"],
        "data split": ["data", "split", *data[1:], "--repeats", "2"],
        "train": ["train", *data, "--epochs", "1"],
    }
    assert main([*words[command], "--out", str(tmp_path)]) != 0
    assert mine.read_text() == "mine"
    assert name in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_plot_of_ours_does_not_give_away_a_table_of_others(
    tmp_path: Path, trained_run: Path
) -> None:
    from dcmpl.pages import MADE_BY

    (tmp_path / "quality.png").write_text(MADE_BY)
    (tmp_path / "predictions.csv").write_text("mine")
    assert main(["evaluate", str(trained_run), "--out", str(tmp_path)]) == 2
    assert (tmp_path / "predictions.csv").read_text() == "mine"


def test_results_are_replaced_by_later_ones(tmp_path: Path, image_data: Path) -> None:
    words = ["data", "split", str(image_data), "--mos-scale", "1", "5", "--out", str(tmp_path)]
    assert main(words) == main(words) == 0


def test_relative_link_still_leads_to_its_file_after_a_move(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snap").mkdir()
    blob, link = noise(tmp_path / "blobs" / "1.png", 1), tmp_path / "snap" / "1.png"
    link.symlink_to("../blobs/1.png")
    assert move([str(link)], tmp_path / "sorted" / "away") == (1, [])
    moved = tmp_path / "sorted" / "away" / "1.png"
    assert moved.read_bytes() == blob.read_bytes()
    assert not os.path.isabs(os.readlink(moved))


def test_one_column_may_serve_for_two_targets(tmp_path: Path) -> None:
    rows = [(noise(tmp_path / f"{i}.png", i).name, f"prompt {i}", i) for i in (1, 2, 3)]
    pd.DataFrame(rows, columns=["image", "prompt", "score"]).to_csv(tmp_path / "d.csv", index=False)
    columns = {"mos_quality": "score", "mos_alignment": "score", "group": "prompt"}
    table = load_table(tmp_path / "d.csv", MosScale(1, 5), {**columns, "prompt": "prompt"})
    assert table.judged == ("quality", "alignment")
    assert table.frame["mos_quality"].tolist() == table.frame["mos_alignment"].tolist() == [1, 2, 3]


def test_copies_of_smooth_images_are_one_unit(tmp_path: Path) -> None:
    y, x = np.mgrid[0:512, 0:512] / 512
    slope = np.stack([x * 200, y * 180, (x + y) * 100], -1).astype(np.uint8)
    sky, disc = Image.fromarray(slope), Image.new("RGB", (512, 512), "white")
    ImageDraw.Draw(disc).ellipse((150, 150, 360, 360), fill=(220, 60, 40))
    sky.save(tmp_path / "sky.png")
    sky.save(tmp_path / "sky.jpg", quality=95)
    sky.resize((256, 256)).save(tmp_path / "half.png")
    disc.save(tmp_path / "disc.png")
    disc.save(tmp_path / "disc.jpg", quality=40)
    names = ["sky.png", "sky.jpg", "half.png", "disc.png", "disc.jpg"]
    rows = [(name, f"prompt {i}", 3) for i, name in enumerate(names)]
    frame = pd.DataFrame(rows, columns=["image", "prompt", "mos_quality"])
    frame.to_csv(tmp_path / "d.csv", index=False)
    table = load_table(tmp_path / "d.csv", MosScale(1, 5))
    units = tied_units(table, survey(table.frame["image"])).tolist()
    assert units[0] == units[1] == units[2] != units[3] == units[4]


@pytest.mark.parametrize("protocol", ["clean", "clean-folds"])
def test_prompt_of_nearly_all_images_leaves_no_parts_to_choose_and_test_on(
    tmp_path: Path, protocol: str
) -> None:
    image = noise(tmp_path / "0.png", 0)
    rows = [(f"{i}.png", "a portrait" if i < 55 else f"prompt {i}", 1 + i % 5) for i in range(60)]
    for name, _, _ in rows[1:]:
        os.link(image, tmp_path / name)
    frame = pd.DataFrame(rows, columns=["image", "prompt", "mos_quality"])
    frame.to_csv(tmp_path / "d.csv", index=False)
    table = load_table(tmp_path / "d.csv", MosScale(1, 5))
    units = np.array([0] * 55 + [1, 2, 3, 4, 5])
    for repeat in range(5):
        with pytest.raises(DataError) as caught:
            draw_split(protocol, table, units, repeat)
        assert "since one prompt" in caught.value.got
        assert "--protocol image-level" in caught.value.hint
