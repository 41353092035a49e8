"""Which row of a table means which image."""

import os
import unicodedata
from pathlib import Path

import pytest

from dcmpl.data.matching import match_prompts
from dcmpl.errors import DataError

TABLE = Path("/data/captions.csv")


def matched(*rows: tuple[str, str], images: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    return match_prompts(rows, images, TABLE)


def test_row_with_a_folder_means_no_image_of_another_folder() -> None:
    rows = [("train/1.png", "a cat")]
    assert matched(*rows, images=("/x/val/1.png",)) == ({}, ["train/1.png"])
    assert matched(*rows, images=("/x/train/1.png",)) == ({"/x/train/1.png": "a cat"}, [])


def test_master_table_serves_several_folders() -> None:
    rows = [("a/1.png", "a cat"), ("b/1.png", "a dog"), ("c/1.png", "a fox")]
    images = ("/x/a/1.png", "/x/b/1.png")
    found = {"/x/a/1.png": "a cat", "/x/b/1.png": "a dog"}
    assert matched(*rows, images=images) == (found, ["c/1.png"])


def test_longest_path_counts_before_a_bare_name() -> None:
    rows = [("1.png", "any"), ("b/1.png", "a dog")]
    for order in (rows, rows[::-1]):
        assert matched(*order, images=("/x/b/1.png",))[0] == {"/x/b/1.png": "a dog"}


def test_bare_name_of_two_images_is_refused_with_both() -> None:
    with pytest.raises(DataError) as caught:
        matched(("1.png", "a cat"), images=("/x/a/1.png", "/x/b/1.png"))
    assert caught.value.got == "/x/a/1.png and /x/b/1.png"
    assert caught.value.hint == "write its path"


def test_two_prompts_for_an_image_are_refused() -> None:
    with pytest.raises(DataError, match="got two different ones"):
        matched(("a/1.png", "a cat"), ("./a/1.png", "a dog"), images=("/x/a/1.png",))


def test_absolute_path_means_its_own_file_alone() -> None:
    assert matched(("/old/a/1.png", "a cat"), images=("/new/a/1.png",)) == ({}, ["/old/a/1.png"])


def test_row_that_names_a_file_beside_the_table_means_no_other(tmp_path: Path) -> None:
    (tmp_path / "1.png").touch()
    file, image = tmp_path / "captions.csv", str(tmp_path / "val" / "1.png")
    assert match_prompts([("1.png", "a cat")], [image], file) == ({}, ["1.png"])


def test_letters_may_be_written_in_either_form() -> None:
    composed, parts = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    assert composed != parts
    for row, name in ((composed, parts), (parts, composed)):
        assert matched((row, "a cat"), images=(f"/x/{name}",)) == ({f"/x/{name}": "a cat"}, [])


def test_images_whose_names_differ_in_the_form_alone_are_told() -> None:
    images = tuple(f"/x/{unicodedata.normalize(form, 'é.png')}" for form in ("NFC", "NFD"))
    with pytest.raises(DataError, match="to name one image"):
        matched(("é.png", "a cat"), images=images)


@pytest.mark.skipif(os.sep != "/", reason="where \\ is no letter of a name")
def test_path_may_be_one_of_windows() -> None:
    assert matched(("a\\1.png", "a cat"), images=("/x/a/1.png",))[0] == {"/x/a/1.png": "a cat"}


@pytest.mark.parametrize("row", ["", "/", "//", "..", "a/.."])
def test_row_that_names_no_file_means_none(row: str) -> None:
    assert matched((row, "a cat"), images=("/x/a/1.png",)) == ({}, [row])
