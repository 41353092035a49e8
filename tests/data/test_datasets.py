"""Data sets are read as they lie on disk, and faults are named."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcmpl.data.datasets import load_table
from dcmpl.data.leaks import check_images
from dcmpl.data.table import ImageTable, MosScale
from dcmpl.errors import DataError
from strange_tables import OneTable, fault

pytest_plugins = ("strange_tables",)

REAL = Path(__file__).parents[3] / "shared" / "data" / "agiqa-3k-dev"

HEADER = "name,prompt,adj1,adj2,style,mos_quality,std_quality,mos_align,std_align"
ROWS = [
    "AttnGAN_normal_002.jpg,man lost in space,,,,0.5,0.9,1.5,0.7",
    "sd1.5_lowstep_003.jpg,A  Cosmic universe,,,,5,0.2,0,0.4",
]


def agiqa_3k(folder: Path, images: str, end: str = "\r\n") -> Path:
    place = folder / images
    place.mkdir(exist_ok=True)
    (folder / "data.csv").write_bytes(end.join([HEADER, *ROWS, ""]).encode())
    for row in ROWS:
        Image.new("L", (4, 4)).save(place / row.split(",")[0])
    return folder


@pytest.mark.parametrize("images", ["img", "image", "images", "file", "all", ""])
def test_agiqa_3k_images_are_found_in(tmp_path: Path, images: str) -> None:
    table = load_table(agiqa_3k(tmp_path, images))
    assert table.name == "AGIQA-3K"
    assert all(Path(path).is_file() for path in table.frame["image"])


def test_agiqa_3k_scale_is_0_to_5(tmp_path: Path) -> None:
    assert load_table(agiqa_3k(tmp_path, "img")).scale == MosScale(0, 5)


def test_agiqa_3k_opinions_survive_crlf(tmp_path: Path) -> None:
    frame = load_table(agiqa_3k(tmp_path, "img")).frame
    assert frame["mos_quality"].tolist() == [0.5, 5.0]
    assert frame["mos_alignment"].tolist() == [1.5, 0.0]


def test_agiqa_3k_generator_is_the_name_without_its_number(tmp_path: Path) -> None:
    frame = load_table(agiqa_3k(tmp_path, "img")).frame
    assert frame["generator"].tolist() == ["AttnGAN_normal", "sd1.5_lowstep"]


def test_agiqa_3k_targets_are_scaled(tmp_path: Path) -> None:
    targets = load_table(agiqa_3k(tmp_path, "img")).targets()
    assert targets.dtype == np.float32
    assert targets[:, :2] == pytest.approx(np.array([[0.1, 0.3], [1.0, 0.0]]), abs=1e-7)  # float32
    assert np.isnan(targets[:, 2]).all()  # nobody was asked of authenticity


def test_real_agiqa_3k_has_its_rows_groups_and_generators() -> None:
    if not REAL.is_dir():
        pytest.skip("shared/data/agiqa-3k-dev is not beside this repository")
    table = load_table(REAL)
    counts = len(table), table.frame["group"].nunique(), table.frame["generator"].nunique()
    assert counts == (2384, 240, 10)


def test_real_agiqa_3k_has_all_its_images() -> None:
    if not REAL.is_dir():
        pytest.skip("shared/data/agiqa-3k-dev is not beside this repository")
    assert all(Path(path).is_file() for path in load_table(REAL).frame["image"])


def test_own_table_is_read_with_its_scale(one_table: OneTable) -> None:
    header = "image,prompt,mos_authenticity,mos_quality,mos_alignment"
    file = one_table(header, "a.png,a fox,4,1,5", "b.png,an ox,2,3,2")
    targets = load_table(file, MosScale(1, 5)).targets()
    assert targets.tolist() == [[0.0, 1.0, 0.75], [0.5, 0.25, 0.25]]


def test_own_table_is_named_after_its_file(one_table: OneTable) -> None:
    file = one_table("image,prompt,mos_quality", "a.png,a fox,1")
    assert load_table(file, MosScale(1, 5)).name == "mine"


def test_own_images_lie_beside_the_table(one_table: OneTable, tmp_path: Path) -> None:
    file = one_table("image,prompt,mos_quality", "sub/a.png,a fox,1")
    assert load_table(file, MosScale(1, 5)).frame["image"].tolist() == [
        str(tmp_path / "sub" / "a.png")
    ]


def test_folder_with_an_own_data_csv_is_read(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("image,prompt,mos_quality\na.png,a fox,3\n")
    assert load_table(tmp_path, MosScale(1, 5)).targets()[0, 0] == 0.5


def test_columns_are_mapped(one_table: OneTable) -> None:
    file = one_table("file,text,score", "a.png,a fox,3")
    columns = {"image": "file", "prompt": "text", "mos_quality": "score"}
    frame = load_table(file, MosScale(1, 5), columns).frame
    assert frame[["name", "prompt", "mos_quality"]].values.tolist() == [["a.png", "a fox", 3.0]]


def test_byte_order_mark_is_no_part_of_the_header(one_table: OneTable) -> None:
    file = one_table("image,prompt,mos_quality", "a.png,a fox,3", encoding="utf-8-sig")
    assert len(load_table(file, MosScale(1, 5))) == 1


def test_quoted_commas_and_other_alphabets_stay_in_the_prompt(one_table: OneTable) -> None:
    file = one_table("image,prompt,mos_quality", 'a.png,"ein Füchslein, 狐",3')
    assert load_table(file, MosScale(1, 5)).frame["prompt"].tolist() == ["ein Füchslein, 狐"]


@pytest.mark.parametrize("word", ["NA", "null", "None", "nan"])
def test_prompts_that_look_like_missing_values_are_prompts(one_table: OneTable, word: str) -> None:
    file = one_table("image,prompt,mos_quality", f"a.png,{word},3")
    assert load_table(file, MosScale(1, 5)).frame["prompt"].tolist() == [word]


def test_alignment_alone_is_enough(one_table: OneTable) -> None:
    file = one_table("image,prompt,mos_alignment", "a.png,a fox,3")
    assert load_table(file, MosScale(1, 5)).targets()[0, 1] == 0.5


def test_short_row_has_missing_opinions(one_table: OneTable) -> None:
    file = one_table("image,prompt,mos_quality,mos_alignment", "a.png,a fox,3", "b.png,an ox,3,3")
    assert np.isnan(load_table(file, MosScale(1, 5)).targets()[0, 1])


def test_missing_column_says_how_to_map_it(one_table: OneTable) -> None:
    file = one_table("file,prompt,mos_quality", "a.png,a fox,3")
    assert fault(file, MosScale(1, 5)) == (
        f"expected the columns image, prompt and mos_quality in {file}, got file, prompt, "
        "mos_quality: rename them or map them, as in --columns image=THEIR_NAME"
    )


def test_missing_opinion_column_is_named(one_table: OneTable) -> None:
    file = one_table("image,prompt,score", "a.png,a fox,3")
    assert fault(file, MosScale(1, 5)).endswith("as in --columns mos_quality=THEIR_NAME")


@pytest.mark.parametrize("mapping", [{"image": "painting"}, {"mos": "mos_quality"}])
def test_wrong_mapping_is_named(one_table: OneTable, mapping: dict[str, str]) -> None:
    file = one_table("image,prompt,mos_quality", "a.png,a fox,3")
    wrong = "painting" if "image" in mapping else "mos"
    assert fault(file, MosScale(1, 5), **mapping) == (
        "expected --columns to map image, prompt, generator, group, part, mos_quality, "
        "mos_alignment, mos_authenticity, std_quality, std_alignment, std_authenticity to "
        f"columns of {file} (image, prompt, mos_quality), got {wrong}"
    )


def test_mapped_column_stands_in_for_one_of_that_name(one_table: OneTable) -> None:
    file = one_table("image,prompt,mos_quality,score", "a.png,a fox,3,4")
    frame = load_table(file, MosScale(1, 5), {"mos_quality": "score"}).frame
    assert frame["mos_quality"].tolist() == [4.0]


def test_columns_may_change_places(one_table: OneTable) -> None:
    file = one_table("image,prompt,mos_quality,mos_alignment", "a.png,a fox,3,4")
    columns = {"mos_quality": "mos_alignment", "mos_alignment": "mos_quality"}
    frame = load_table(file, MosScale(1, 5), columns).frame
    assert frame[["mos_quality", "mos_alignment"]].values.tolist() == [[4.0, 3.0]]


def test_missing_scale_says_what_to_add(one_table: OneTable) -> None:
    file = one_table("image,prompt,mos_quality", "a.png,a fox,3")
    assert fault(file) == (
        f"expected the ends of the MOS scale of {file}, got none: add --mos-scale LOW HIGH, "
        "for example --mos-scale 1 5"
    )


def test_header_without_rows_is_refused(one_table: OneTable) -> None:
    file = one_table("image,prompt,mos_quality")
    assert fault(file, MosScale(1, 5)) == f"expected at least one row in {file}, got none"


def test_empty_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.touch()
    assert fault(file, MosScale(1, 5)).startswith(f"expected a UTF-8 CSV table at {file}, got: ")


def test_file_in_another_encoding_is_refused(one_table: OneTable) -> None:
    file = one_table("image,prompt,mos_quality", "a.png,Füchslein,3", encoding="latin-1")
    assert fault(file, MosScale(1, 5)).startswith(f"expected a UTF-8 CSV table at {file}, got: ")


def test_image_as_table_is_refused(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.png")
    assert str(tmp_path / "a.png") in fault(tmp_path / "a.png", MosScale(1, 5))


def test_row_that_is_too_long_is_refused(one_table: OneTable) -> None:
    file = one_table("image,prompt,mos_quality", "a.png,x,3", "b.png,one, two,3")
    assert str(file) in fault(file, MosScale(1, 5))


def test_rows_that_are_all_too_long_are_refused(one_table: OneTable) -> None:
    file = one_table("image,prompt,mos_quality", "a.png,a,x,3", "b.png,one, two,3")
    assert str(file) in fault(file, MosScale(1, 5))


def test_folder_without_a_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert fault(tmp_path) == (
        f"expected {tmp_path} to be a table, or a folder with data.csv or with one of AGIQA-3K, "
        "AIGCIQA2023, AGIQA-1K, AIGIQA-20K, PKU-AIGIQA-4K as its authors ship it, got 1 entries "
        "and none of their tables"
    )


def test_missing_path_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "nowhere"
    assert fault(path) == f"expected a data set at {path}, got nothing there"


def with_images(table: ImageTable, folder: Path, bad: list[str]) -> ImageTable:
    """The same table, its images in ``folder``, some of them spoilt."""
    for name in table.frame["name"]:
        Image.new("L", (4, 4)).save(folder / name)
    for name in bad:
        (folder / name).write_bytes(b"no image")
    frame = table.frame.assign(image=[str(folder / name) for name in table.frame["name"]])
    return ImageTable(table.name, table.scale, frame)


def test_readable_images_pass_the_check(image_data: Path) -> None:
    table = load_table(image_data, MosScale(1, 5))
    facts = check_images(table)
    assert list(facts) == table.frame["image"].tolist()
    assert {fact.fault for fact in facts.values()} == {None}


def test_check_names_every_image_that_cannot_be_read(image_data: Path, tmp_path: Path) -> None:
    bad = ["03.png", "17.png", "40.png"]
    table = with_images(load_table(image_data, MosScale(1, 5)), tmp_path, bad)
    (tmp_path / "41.png").unlink()
    with pytest.raises(DataError) as caught:
        check_images(table)
    first, *others = str(caught.value).splitlines()
    advice = "mend them or take their rows out:"
    assert first == f"expected 48 readable images, got 4 that are not: {advice}"
    named = [name for name in table.frame["name"] if any(name in line for line in others)]
    assert named == [*bad, "41.png"]
    assert len(others) == 4
