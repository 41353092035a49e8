"""The table of images: opinions on a scale, prompt groups, equal digests, doubled images."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from dcmpl.data.datasets import load_table
from dcmpl.data.table import MosScale
from dcmpl.errors import DataError
from strange_tables import OneTable, fault

pytest_plugins = ("strange_tables",)


def test_prompts_that_differ_in_case_and_space_are_one_group(one_table: OneTable) -> None:
    file = one_table("image,prompt,mos_quality", "a.png,A  red fox ,3", "b.png,a Red fox,3")
    assert load_table(file, MosScale(1, 5)).frame["group"].tolist() == ["a red fox"] * 2


def test_missing_opinions_are_nan(one_table: OneTable) -> None:
    file = one_table(
        "image,prompt,mos_quality,mos_alignment", "a.png,a fox,,2", "b.png,an ox,  ,", "c.png,c,3,3"
    )
    missing = np.isnan(load_table(file, MosScale(1, 5)).targets())
    assert missing.tolist() == [[True, False, True], [True, True, True], [False, False, True]]


def test_column_that_nobody_filled_is_nan(one_table: OneTable) -> None:
    file = one_table("image,prompt,mos_quality", "a.png,a fox,3")
    assert np.isnan(load_table(file, MosScale(1, 5)).targets()).tolist() == [[False, True, True]]


def test_table_without_any_opinion_is_refused(one_table: OneTable) -> None:
    file = one_table("image,prompt,mos_quality", "a.png,a fox,")
    with pytest.raises(DataError, match=r"expected opinions in .*, got none"):
        load_table(file, MosScale(1, 5))


def test_digest_is_that_of_opinions_and_scale_wherever_they_lie(
    one_table: OneTable, tmp_path: Path
) -> None:
    file = one_table("image,prompt,mos_quality", "a.png,a fox,3")
    moved = Path(shutil.copy(file, tmp_path / "moved.csv"))
    digest = load_table(file, MosScale(1, 5)).digest
    assert load_table(moved, MosScale(1, 5)).digest == digest
    assert load_table(file, MosScale(1, 6)).digest != digest
    moved.write_text(moved.read_text().replace("fox,3", "fox,4"))
    assert load_table(moved, MosScale(1, 5)).digest != digest


@pytest.mark.parametrize("cell", ["7", "0.99", "five", "nan", "inf", "-1", "1,5"])
def test_opinion_outside_the_scale_names_line_and_cell(one_table: OneTable, cell: str) -> None:
    file = one_table("image,prompt,mos_quality", "a.png,a fox,3", f'b.png,an ox,"{cell}"')
    assert fault(file, MosScale(1, 5)) == (
        f"expected mos_quality between 1 and 5 in {file}, got '{cell}' in line 3 (1 such): "
        "mend the cell or declare the scale with --mos-scale LOW HIGH"
    )


def test_doubled_images_are_named(one_table: OneTable) -> None:
    file = one_table("image,prompt,mos_quality", "a.png,x,3", "b.png,y,3", "a.png,z,3")
    assert fault(file, MosScale(1, 5)) == (
        f"expected each image once in {file}, got a.png more than once"
    )


def test_many_doubled_images_are_counted(one_table: OneTable) -> None:
    rows = [f"{i:02}.png,x,3" for i in range(12)] * 2
    assert "09.png and 2 more more than once" in fault(
        one_table("image,prompt,mos_quality", *rows), MosScale(1, 5)
    )


@pytest.mark.parametrize("ends", [(5, 1), (2, 2), (float("nan"), 5)])
def test_scale_must_rise(ends: tuple[float, float]) -> None:
    with pytest.raises(DataError, match="low end is below its high end"):
        MosScale(*ends)


def test_selected_rows_keep_their_order(image_data: Path) -> None:
    table = load_table(image_data, MosScale(1, 5))
    chosen = table.select(table.frame["generator"] == "b")
    assert chosen.frame["name"].tolist() == [f"{i:02}.png" for i in range(1, 48, 2)]
    assert chosen.frame.index.tolist() == list(range(24))


def test_equal_scales_are_written_alike() -> None:
    assert repr(MosScale(1, 5)) == repr(MosScale(1.0, 5.0))
