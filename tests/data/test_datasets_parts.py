"""AIGIQA-20K and PKU-AIGIQA-4K, which come in parts, as their authors ship them and as copied."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dcmpl.data.datasets import load_table
from dcmpl.data.leaks import ImageFacts
from dcmpl.data.report import check_table
from dcmpl.data.table import MosScale
from strange_tables import image, real, sheet, told

# AIGIQA-20K

TWENTY = ["name", "prompt", "mos"]
PARTS: dict[str, list[list[Any]]] = {
    "train": [["DALLE2_0000.png", "a cat, 8k", 3.25], ["LCM_SD1.5_0001.png", "a \\'dog\\'", 0.5]],
    "val": [["DALLE2_0002.png", "a  cat, 8K", 4.75], ["IF_0001.png", "x", 5]],
    "test": [["SDXL_Turbo_0003.png", "NA", 1], ["MJ_0000.png", "y, z", 0]],
}


def aigiqa_20k(folder: Path, ending: str, columns: list[str], unjudged: bool = False) -> Path:
    """The official parts; in the challenge only the first had opinions."""
    for part, rows in PARTS.items():
        width = 2 if unjudged and part != "train" else 3
        cells = [row[:width] for row in rows]
        sheet(folder / f"info_{part}{ending}", columns[:width], cells)
    return folder


@pytest.mark.parametrize("ending", [".csv", ".xlsx"])
@pytest.mark.parametrize("columns", [TWENTY, []])
def test_official_parts_of_aigiqa_20k_give_the_one_table(
    tmp_path: Path, columns: list[str], ending: str
) -> None:
    table = load_table(aigiqa_20k(tmp_path, ending, columns))
    assert (table.name, table.scale, table.judged) == ("AIGIQA-20K", MosScale(0, 5), ("quality",))
    rows = table.frame[["name", "prompt", "generator", "part", "group", "mos_quality"]]
    assert rows.values.tolist() == [
        ["DALLE2_0000.png", "a cat, 8k", "DALLE2", "train", "a cat, 8k", 3.25],
        ["LCM_SD1.5_0001.png", "a \\'dog\\'", "LCM_SD1.5", "train", "a \\'dog\\'", 0.5],
        ["DALLE2_0002.png", "a  cat, 8K", "DALLE2", "val", "a cat, 8k", 4.75],
        ["IF_0001.png", "x", "IF", "val", "x", 5.0],
        ["SDXL_Turbo_0003.png", "NA", "SDXL_Turbo", "test", "na", 1.0],
        ["MJ_0000.png", "y, z", "MJ", "test", "y, z", 0.0],
    ]
    assert table.notes == ("its one MOS mixes quality and alignment; it is read as quality",)


@pytest.mark.parametrize("ending", [".csv", ".xlsx"])
@pytest.mark.parametrize("columns", [TWENTY, []])
def test_parts_without_opinions_have_missing_ones(
    tmp_path: Path, columns: list[str], ending: str
) -> None:
    table = load_table(aigiqa_20k(tmp_path, ending, columns, unjudged=True))
    assert table.frame["mos_quality"].isna().tolist() == [False] * 2 + [True] * 4
    assert table.notes[1:] == ("4 images of the official split have no MOS",)


def test_part_without_a_final_newline_keeps_its_last_row(tmp_path: Path) -> None:
    file = aigiqa_20k(tmp_path, ".csv", []) / "info_train.csv"
    file.write_text(file.read_text().rstrip("\n"))
    assert load_table(tmp_path).frame["mos_quality"].tolist() == [3.25, 0.5, 4.75, 5.0, 1.0, 0.0]


@pytest.mark.parametrize("ending", [".csv", ".xlsx"])
def test_part_of_one_row_without_header_is_read(tmp_path: Path, ending: str) -> None:
    sheet(aigiqa_20k(tmp_path, ending, []) / f"info_val{ending}", [], PARTS["val"][:1])
    assert load_table(tmp_path).frame["mos_quality"].tolist() == [3.25, 0.5, 4.75, 1.0, 0.0]


def test_mirror_of_aigiqa_20k_in_one_file_is_read(tmp_path: Path) -> None:
    sheet(tmp_path / "data.csv", TWENTY, [row for rows in PARTS.values() for row in rows])
    table = load_table(tmp_path)
    assert table.name == "AIGIQA-20K"
    assert table.frame["part"].unique().tolist() == [""]
    assert table.frame["mos_quality"].tolist() == [3.25, 0.5, 4.75, 5.0, 1.0, 0.0]


@pytest.mark.parametrize("places", [["train", "val", "test"], ["images"] * 3, [""] * 3])
def test_images_of_aigiqa_20k_are_found_in(tmp_path: Path, places: list[str]) -> None:
    names = [row[0] for rows in PARTS.values() for row in rows]
    by_part = [place for place in places for _ in range(2)]
    files = [image(tmp_path / p / n) for p, n in zip(by_part, names, strict=True)]
    frame = load_table(aigiqa_20k(tmp_path, ".csv", TWENTY)).frame
    assert frame["image"].tolist() == [str(file) for file in files]


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_renamed_opinions_of_a_part_are_told(tmp_path: Path, part: str) -> None:
    aigiqa_20k(tmp_path, ".csv", TWENTY)
    file = sheet(tmp_path / f"info_{part}.csv", ["name", "prompt", "MOS"], PARTS[part])
    assert told(tmp_path) == (
        f"expected the columns name, prompt, mos in {file}, got name, prompt, MOS: mos is not there"
    )


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_bad_opinion_names_the_file_of_its_part(tmp_path: Path, part: str) -> None:
    aigiqa_20k(tmp_path, ".csv", TWENTY)
    file = sheet(tmp_path / f"info_{part}.csv", TWENTY, [["MJ_0009.png", "x", 7]])
    assert told(tmp_path).startswith(
        f"expected mos_quality between 0 and 5 in {file}, got '7' in line 2 (1 such)"
    )


def test_image_in_two_parts_is_refused(tmp_path: Path) -> None:
    aigiqa_20k(tmp_path, ".csv", TWENTY)
    sheet(tmp_path / "info_val.csv", TWENTY, PARTS["train"])
    assert "got DALLE2_0000.png, LCM_SD1.5_0001.png more than once" in told(tmp_path)


def test_real_aigiqa_20k_has_its_parts_and_the_prompts_they_share() -> None:
    table = load_table(real("aigiqa-20k-labels"))
    frame = table.frame
    assert check_table(table, dict.fromkeys(frame["image"], ImageFacts())).faults == []
    assert frame["part"].value_counts().to_dict() == {"train": 14000, "test": 4000, "val": 2000}
    assert frame["mos_quality"].notna().sum() == 14000
    known = set(frame["prompt"][frame["part"] == "train"])
    shared = frame["prompt"].isin(known).groupby(frame["part"]).sum()
    assert (shared["val"], shared["test"]) == (83, 220)
    prompts = frame["prompt"][frame["part"] == "train"]
    kept = [prompts.str.contains(text, regex=False).sum() for text in ("  ", "\\'")]
    assert kept == [202, 14]  # double blanks, and backslashes before apostrophes


# PKU-AIGIQA-4K

PKU = ["Image_prompt", "Text_prompt", "Generated_image", "MOS_q", "MOS_a", "MOS_c", "MOS"]
PKU_ROWS: list[list[Any]] = [
    ["0.jpg", "a corgi", "SD_0_00.jpg", 1.0, 2.0, 3.0, 6.0],
    ["0.jpg", "a dog", "MJ_0_00.jpg", 1.5, 2.5, 3.5, 7.5],
    ["1.jpg", "a corgi", "MJ_1_01.jpg", 0.5, 0.25, 0, 0.75],
    [None, "a corgi", "SD_1000_00.jpg", 2.0, 2.25, 2.5, 6.75],
    [None, "A  corgi", "DALLE_1000_11.jpg", 4.0, 4.25, 4.5, 12.75],
]


@pytest.mark.parametrize("name", ["annotation.xlsx", "annotation.csv"])
def test_both_parts_of_pku_give_the_one_table(tmp_path: Path, name: str) -> None:
    sheet(tmp_path / name, PKU, PKU_ROWS)
    table = load_table(tmp_path)
    assert (table.name, table.scale) == ("PKU-AIGIQA-4K", MosScale(0, 5))
    assert table.frame.drop(columns=["image", "name", "prompt"]).to_dict("list") == {
        "generator": ["SD", "MJ", "MJ", "SD", "DALLE"],
        "part": ["train", "train", "train", "test", "train"],
        "group": ["image 0.jpg", "image 0.jpg", "image 1.jpg", "a corgi", "a corgi"],
        "mos_quality": [1.0, 1.5, 0.5, 2.0, 4.0],
        "mos_alignment": [3.0, 3.5, 0.0, 2.5, 4.5],
        "mos_authenticity": [2.0, 2.5, 0.25, 2.25, 4.25],
        **{f"std_{t}": pytest.approx([np.nan] * 5, nan_ok=True) for t in table.judged},
    }


PKU_PLACES: dict[str, Callable[[str], str]] = {
    "All": lambda name: f"All/{name}",
    "by part": lambda name: ("T2I" if "_10" in name else "I2I") + f"/Generated_image/All/{name}",
    "by generator": lambda name: (
        ("T2I" if "_10" in name else "I2I") + f"/Generated_image/{name.split('_')[0]}/{name}"
    ),
    "generators in T2I": lambda name: f"T2I/{name.split('_')[0]}/{name}",
    "root": lambda name: name,
}


@pytest.mark.parametrize("layout", PKU_PLACES)
def test_images_of_pku_are_found_in(tmp_path: Path, layout: str) -> None:
    sheet(tmp_path / "annotation.csv", PKU, PKU_ROWS)
    files = [image(tmp_path / PKU_PLACES[layout](row[2])) for row in PKU_ROWS]
    assert load_table(tmp_path).frame["image"].tolist() == [str(file) for file in files]


def test_renamed_column_of_pku_is_told(tmp_path: Path) -> None:
    file = sheet(tmp_path / "annotation.xlsx", [*PKU[:5], "MOS_t", "MOS"], PKU_ROWS)
    assert told(tmp_path) == (
        f"expected the columns Generated_image, Text_prompt, MOS_q, MOS_a, MOS_c in {file}, got "
        f"{', '.join([*PKU[:5], 'MOS_t', 'MOS'])}: MOS_c is not there"
    )


def test_real_pku_part_has_each_target_within_its_known_ends() -> None:
    frame = load_table(real("pku-aigiqa-4k-labels")).frame
    ends = {
        t: (frame[f"mos_{t}"].min().round(2), frame[f"mos_{t}"].max().round(2))
        for t in ("quality", "authenticity", "alignment")
    }
    assert ends == {
        **{"quality": (0.97, 4.17), "authenticity": (0.56, 4.18), "alignment": (1.24, 4.40)}
    }
    assert (len(frame), frame["group"].nunique(), (frame["part"] == "test").sum()) == (
        2400,
        199,
        600,
    )
