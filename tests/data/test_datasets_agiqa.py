"""AGIQA-3K and AGIQA-1K, as their authors ship them and as copied."""

from pathlib import Path
from typing import Any

import pytest

from dcmpl.data.datasets import load_table
from dcmpl.data.table import MosScale
from dcmpl.errors import DataError
from strange_tables import image, real, sheet, told

FOLDERS = ("img", "image", "images", "file", "all", "AGIQA-3K", "ACGIQA-3K", "")


# AGIQA-3K

THREE = "name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align"
THREE_ROWS = [
    'AttnGAN_normal_002.jpg,"man lost in space, blurry detail",blurry detail,,,0.5,0.9,1.5,0.7',
    "sd1.5_lowstep_003.jpg,A  Cosmic universe,,,,5,0.2,0,0.4",
]


def agiqa_3k(folder: Path, header: str = THREE, end: str = "\r\n") -> Path:
    (folder / "data.csv").write_bytes(end.join([header, *THREE_ROWS, ""]).encode())
    return folder


@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_agiqa_3k_gives_the_one_table(tmp_path: Path, end: str) -> None:
    table = load_table(agiqa_3k(tmp_path, end=end))
    assert (table.name, table.scale, table.notes) == ("AGIQA-3K", MosScale(0, 5), ())
    rows = table.frame.drop(columns=["image", "mos_authenticity", "std_authenticity"])
    assert rows.to_dict("list") == {
        "name": ["AttnGAN_normal_002.jpg", "sd1.5_lowstep_003.jpg"],
        "prompt": ["man lost in space, blurry detail", "A  Cosmic universe"],
        "generator": ["AttnGAN_normal", "sd1.5_lowstep"],
        "part": ["", ""],
        "group": ["man lost in space, blurry detail", "a cosmic universe"],
        **{"mos_quality": [0.5, 5.0], "std_quality": [0.9, 0.2]},
        **{"mos_alignment": [1.5, 0.0], "std_alignment": [0.7, 0.4]},
    }
    assert table.frame[["mos_authenticity", "std_authenticity"]].isna().all(axis=None)
    assert table.judged == ("quality", "alignment")


@pytest.mark.parametrize("place", FOLDERS)
def test_images_of_agiqa_3k_are_found_in(tmp_path: Path, place: str) -> None:
    file = image(tmp_path / place / "sd1.5_lowstep_003.jpg")
    assert load_table(agiqa_3k(tmp_path)).frame["image"].iloc[1] == str(file)


def test_renamed_column_of_agiqa_3k_is_told(tmp_path: Path) -> None:
    renamed = THREE.replace("mos_quality", "quality")
    message = told(agiqa_3k(tmp_path, renamed))
    assert message.startswith("expected the columns name, prompt, mos_quality, ")
    assert message.endswith(
        f"mos_align in {tmp_path / 'data.csv'}, got {renamed.replace(',', ', ')}: "
        "mos_quality is not there"
    )


def test_agiqa_3k_in_a_wrong_encoding_is_told(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(f"{THREE}\r\n{THREE_ROWS[0]}\r\n".encode() + b"\xff")
    assert told(tmp_path).startswith(f"expected a UTF-8 CSV table at {tmp_path / 'data.csv'}, got")


def test_opinion_out_of_scale_is_told_without_advice_that_cannot_be_followed(
    tmp_path: Path,
) -> None:
    file = agiqa_3k(tmp_path) / "data.csv"
    file.write_bytes(file.read_bytes().replace(b",0.5,0.9,", b",50,0.9,"))
    message = told(tmp_path)
    assert message.startswith(
        f"expected mos_quality between 0 and 5 in {file}, got '50' in line 2 (1 such)"
    )
    assert "--mos-scale" not in message  # an official data set refuses it


def test_other_scale_for_an_official_set_is_refused(tmp_path: Path) -> None:
    assert len(load_table(agiqa_3k(tmp_path), MosScale(0, 5))) == 2
    assert told(tmp_path, MosScale(1, 5)) == (
        f"expected no MOS scale for AGIQA-3K at {tmp_path}, whose own is 0 to 5, got 1 to 5: "
        "leave --mos-scale out"
    )


# AGIQA-1K

ONE = ["Image", "Prompt", "MOS"]
ONE_ROWS: list[list[Any]] = [
    ["deepai_0_0_0_0.jpg", "bird, driving aircraft, city, anime style", 2.5],
    ["deepai_0_0_0_1.jpg", "bird, driving aircraft, city, realistic style", 0],
    ["dreamStudio_8_9_1_0.jpg", "alien, wearing t-shirt, wild, anime style", 0.608],
    ["dreamStudio_8_9_1_1.jpg", "alien, wearing t-shirt, wild, realistic style", 0.4414],
    ["dreamStudio_8_9_1_1.jpg", "alien, wearing t-shirt, wild, realistic style", 2.0841],
]
TWICE = (
    "dreamStudio_8_9_1_1.jpg stands twice in AIGC_MOS_Zscore.xlsx, with MOS 0.441 and 2.084: "
    "both rows are left out"
)


def agiqa_1k(folder: Path, rows: list[list[Any]] = ONE_ROWS) -> Path:
    sheet(folder / "AIGC_MOS_Zscore.xlsx", ONE, rows)
    return folder


def test_agiqa_1k_groups_prompts_without_their_style(tmp_path: Path) -> None:
    table = load_table(agiqa_1k(tmp_path))
    rows = table.frame[["name", "generator", "group", "part", "mos_quality"]]
    assert (table.name, table.scale, table.judged) == ("AGIQA-1K", MosScale(0, 5), ("quality",))
    assert rows.values.tolist() == [
        ["deepai_0_0_0_0.jpg", "deepai", "bird driving aircraft city", "", 2.5],
        ["deepai_0_0_0_1.jpg", "deepai", "bird driving aircraft city", "", 0.0],
        ["dreamStudio_8_9_1_0.jpg", "dreamStudio", "alien wearing tshirt wild", "", 0.608],
    ]


def test_doubled_name_of_agiqa_1k_is_left_out_and_told(tmp_path: Path) -> None:
    table = load_table(agiqa_1k(tmp_path))
    assert "dreamStudio_8_9_1_1.jpg" not in set(table.frame["name"])
    assert table.notes == (TWICE,)


def test_missing_name_of_agiqa_1k_is_told(tmp_path: Path) -> None:
    names = ["dreamStudio_8_5_0_0.jpg", "dreamStudio_8_9_1_.jpg", *(row[0] for row in ONE_ROWS[:4])]
    sheet(tmp_path / "AIGC_all.csv", ["Image", "Score"], [[name, 1.5] for name in names])
    assert load_table(agiqa_1k(tmp_path)).notes == (
        TWICE,
        "dreamStudio_8_5_0_0.jpg of AIGC_all.csv has no row in AIGC_MOS_Zscore.xlsx",
    )


def test_agiqa_1k_without_irregular_rows_has_no_notes(tmp_path: Path) -> None:
    assert load_table(agiqa_1k(tmp_path, ONE_ROWS[:4])).notes == ()


@pytest.mark.parametrize("cell", [None, "n/a"])
def test_doubled_name_without_an_opinion_is_no_crash(tmp_path: Path, cell: str | None) -> None:
    agiqa_1k(tmp_path, [*ONE_ROWS[:4], [*ONE_ROWS[4][:2], cell]])
    try:
        told = " ".join(load_table(tmp_path).notes)
    except DataError as error:
        told = str(error)
    assert "dreamStudio_8_9_1_1.jpg" in told or repr(cell) in told


def test_every_doubled_name_is_told_with_its_own_opinions(tmp_path: Path) -> None:
    notes = " ".join(load_table(agiqa_1k(tmp_path, [ONE_ROWS[0], *ONE_ROWS])).notes)
    assert TWICE in notes
    assert (
        "deepai_0_0_0_0.jpg stands twice in AIGC_MOS_Zscore.xlsx, with MOS 2.500 and 2.5" in notes
    )


@pytest.mark.parametrize("place", ["file", "img", "images", ""])
def test_images_of_agiqa_1k_are_found_in(tmp_path: Path, place: str) -> None:
    file = image(tmp_path / place / "deepai_0_0_0_1.jpg")
    assert load_table(agiqa_1k(tmp_path)).frame["image"].iloc[1] == str(file)


def test_renamed_column_of_agiqa_1k_is_told(tmp_path: Path) -> None:
    file = sheet(tmp_path / "AIGC_MOS_Zscore.xlsx", ["Image", "Prompt", "Score"], ONE_ROWS)
    assert told(tmp_path) == (
        f"expected the columns Image, Prompt, MOS in {file}, got Image, Prompt, Score: "
        "MOS is not there"
    )


def test_sheet_that_is_no_workbook_is_told(tmp_path: Path) -> None:
    (tmp_path / "AIGC_MOS_Zscore.xlsx").write_bytes(b"\xd0\xcf\x11\xe0" * 200)  # an old .xls
    assert "XLSX table at" in told(tmp_path)


def test_real_agiqa_1k_is_whole_but_for_the_names_that_are_told() -> None:
    table = load_table(real("agiqa-1k-labels"))
    assert table.notes == (
        TWICE,
        "dreamStudio_8_5_0_0.jpg of AIGC_all.csv has no row in AIGC_MOS_Zscore.xlsx",
    )
    assert dict(table.frame["generator"].value_counts()) == {"deepai": 720, "dreamStudio": 358}
    assert (table.frame["prompt"].nunique(), table.frame["group"].nunique()) == (720, 360)
    means = table.frame.groupby("generator")["mos_quality"].mean()
    assert means.round(2).to_dict() == {"deepai": 2.93, "dreamStudio": 1.64}
