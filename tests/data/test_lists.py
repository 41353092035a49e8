"""Tables that name images and prompts, as people bring them."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from dcmpl.data.lists import LISTS
from dcmpl.data.matching import read_prompts
from dcmpl.data.sources import read_list
from dcmpl.errors import DataError

ROWS = [
    {"image": "a.png", "prompt": "a red fox"},
    {"image": "sub/b.png", "prompt": "狐, 'quoted'"},
    {"image": "/x/c.png", "prompt": ""},
]

WRITERS: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    ".csv": lambda frame, path: frame.to_csv(path, index=False),
    ".tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    ".json": lambda frame, path: path.write_text(json.dumps(frame.to_dict("records"))),
    ".jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    ".parquet": lambda frame, path: frame.to_parquet(path),
    ".xlsx": lambda frame, path: frame.to_excel(path, index=False),
}


def written(folder: Path, suffix: str, rows: list[dict[str, object]]) -> Path:
    path = folder / f"list{suffix}"
    WRITERS[suffix](pd.DataFrame(rows), path)
    return path


def test_every_kind_of_table_is_tried() -> None:
    assert set(WRITERS) == set(LISTS)


@pytest.mark.parametrize("suffix", LISTS)
def test_rows_of_any_kind_of_table_are_taken(tmp_path: Path, suffix: str) -> None:
    assert list(read_list(written(tmp_path, suffix, ROWS))) == [
        (str(tmp_path / "a.png"), "a red fox"),
        (str(tmp_path / "sub" / "b.png"), "狐, 'quoted'"),
        ("/x/c.png", ""),
    ]


def test_paths_are_relative_to_the_table_not_to_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    written(tmp_path / "sub", ".csv", ROWS[:1])
    monkeypatch.chdir(tmp_path)
    assert list(read_list(Path("sub/list.csv"))) == [(os.path.join("sub", "a.png"), "a red fox")]


@pytest.mark.parametrize(
    "name", ["image", "image_path", "filepath", "file_name", "filename", "file", "path", "name"]
)
def test_column_of_images_may_have_several_names(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, ".csv", [{"seed": "7", name: "a.png"}])
    assert list(read_list(path)) == [(str(tmp_path / "a.png"), "")]


@pytest.mark.parametrize("name", ["prompt", "text", "caption", "title"])
def test_column_of_prompts_may_have_several_names(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, ".csv", [{"image": "a.png", name: "a red fox"}])
    assert list(read_list(path)) == [(str(tmp_path / "a.png"), "a red fox")]


def test_first_of_several_known_columns_counts(tmp_path: Path) -> None:
    row = {"name": "n.png", "title": "no", "image": "a.png", "prompt": "a red fox"}
    assert list(read_list(written(tmp_path, ".csv", [row]))) == [
        (str(tmp_path / "a.png"), "a red fox")
    ]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".xlsx"])
def test_empty_cells_are_empty_texts(tmp_path: Path, suffix: str) -> None:
    rows: list[dict[str, object]] = [{"image": None, "prompt": "an ox"}, *ROWS[:1]]
    rows.append({"image": "b.png", "prompt": None})
    assert list(read_list(written(tmp_path, suffix, rows))) == [
        ("", "an ox"),
        (str(tmp_path / "a.png"), "a red fox"),
        (str(tmp_path / "b.png"), ""),
    ]


def test_table_without_a_column_of_images_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, ".csv", [{"url": "a.png", "prompt": "a red fox"}])
    with pytest.raises(DataError) as caught:
        list(read_list(path))
    assert str(caught.value) == (
        f"expected a column of images in {path} (image, image_path, filepath, file_name, "
        "filename, file, path, name), got url, prompt"
    )


@pytest.mark.parametrize("suffix", LISTS)
def test_damaged_table_is_one_sentence_that_names_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"list{suffix}"
    path.write_bytes(b'image\n"\xff\xfe\0[{')
    with pytest.raises(DataError) as caught:
        list(read_list(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def prompts(tmp_path: Path) -> Callable[..., Path]:
    """Write a CSV of prompts from its lines."""

    def write(*lines: str, encoding: str = "utf-8") -> Path:
        file = tmp_path / "prompts.csv"
        file.write_bytes("\n".join(lines).encode(encoding) + b"\n")
        return file

    return write


Prompts = Callable[..., Path]


@pytest.mark.parametrize("suffix", LISTS)
def test_prompts_are_read_from_any_kind_of_table(tmp_path: Path, suffix: str) -> None:
    file = written(tmp_path, suffix, ROWS[:2])
    found = read_prompts(file, ["/x/a.png", "/x/sub/b.png"])
    assert found == ({"/x/a.png": "a red fox", "/x/sub/b.png": "狐, 'quoted'"}, [])


def test_prompt_is_found_by_the_full_path(prompts: Prompts) -> None:
    file = prompts("image,prompt", "/x/a.png,a fox")
    assert read_prompts(file, ["/x/a.png"]) == ({"/x/a.png": "a fox"}, [])


def test_prompt_is_found_by_the_path_from_here(
    prompts: Prompts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    file = prompts("image,prompt", "sub/a.png,a fox")
    images = ["./sub/a.png", "other/a.png"]
    assert read_prompts(file, images) == ({"./sub/a.png": "a fox"}, [])


def test_prompt_is_found_beside_the_table(prompts: Prompts, tmp_path: Path) -> None:
    image = str(tmp_path / "sub" / "a.png")
    file = prompts("image,prompt", "sub/a.png,a fox")
    assert read_prompts(file, [image, "/x/a.png"]) == ({image: "a fox"}, [])


def test_prompt_is_found_by_the_file_name(prompts: Prompts) -> None:
    file = prompts("image,prompt", "a.png,a fox")
    assert read_prompts(file, ["/x/a.png"]) == ({"/x/a.png": "a fox"}, [])


def test_file_name_of_an_image_in_an_archive_is_enough(prompts: Prompts) -> None:
    file = prompts("image,prompt", "a.png,a fox")
    assert read_prompts(file, ["x.zip/sub/a.png"]) == ({"x.zip/sub/a.png": "a fox"}, [])


def test_name_of_two_images_is_refused(prompts: Prompts) -> None:
    file = prompts("image,prompt", "a.png,a fox")
    with pytest.raises(DataError) as caught:
        read_prompts(file, ["/x/a.png", "/y/a.png"])
    assert str(caught.value) == (
        f"expected a.png in {file} to name one image, got /x/a.png and /y/a.png: write its path"
    )


def test_row_of_no_image_is_handed_back(prompts: Prompts) -> None:
    file = prompts("image,prompt", "a.png,a fox", "z.png,an ox")
    assert read_prompts(file, ["/x/a.png"]) == ({"/x/a.png": "a fox"}, ["z.png"])


def test_image_without_a_row_has_no_prompt(prompts: Prompts) -> None:
    file = prompts("image,prompt", "a.png,a fox")
    assert "/x/b.png" not in read_prompts(file, ["/x/a.png", "/x/b.png"])[0]


def test_further_columns_and_a_byte_order_mark_are_allowed(prompts: Prompts) -> None:
    file = prompts("image,seed,prompt", 'a.png,7,"a fox, red"', encoding="utf-8-sig")
    assert read_prompts(file, ["/x/a.png"])[0] == {"/x/a.png": "a fox, red"}


def test_same_prompt_twice_is_allowed(prompts: Prompts) -> None:
    file = prompts("image,prompt", "a.png,a fox", "/x/a.png,a fox")
    assert read_prompts(file, ["/x/a.png"])[0] == {"/x/a.png": "a fox"}


def test_two_different_prompts_are_refused(prompts: Prompts) -> None:
    file = prompts("image,prompt", "a.png,a fox", "a.png,an ox")
    with pytest.raises(DataError) as caught:
        read_prompts(file, ["/x/a.png"])
    assert str(caught.value) == f"expected one prompt for a.png in {file}, got two different ones"


def test_missing_columns_are_refused(prompts: Prompts) -> None:
    file = prompts("image,text", "a.png,a fox")
    with pytest.raises(DataError) as caught:
        read_prompts(file, [])
    assert str(caught.value) == (
        f"expected the columns image and prompt in {file}, got image, text"
    )


def test_empty_prompt_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").touch()
    with pytest.raises(DataError, match="got: an empty file"):
        read_prompts(tmp_path / "prompts.csv", [])


def test_prompt_file_in_another_encoding_is_refused(prompts: Prompts) -> None:
    file = prompts("image,prompt", "a.png,Füchslein", encoding="latin-1")
    with pytest.raises(DataError, match="expected a UTF-8 CSV table at "):
        read_prompts(file, ["a.png"])


def test_missing_prompt_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv"):
        read_prompts(tmp_path / "none.csv", ["a.png"])


def test_short_row_has_an_empty_prompt(prompts: Prompts) -> None:
    file = prompts("image,prompt", "a.png")
    assert read_prompts(file, ["/x/a.png"])[0] == {"/x/a.png": ""}


@pytest.mark.parametrize("suffix", [".txt", ".zip", ""])
def test_prompts_in_another_kind_of_file_are_refused(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"prompts{suffix}"
    file.write_text("image,prompt\na.png,a fox\n")
    with pytest.raises(DataError, match=r"expected a table that ends in \.csv"):
        read_prompts(file, ["a.png"])


def test_rows_of_a_list_in_the_current_folder_are_named_as_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.csv").write_text("image,prompt\nin/a.png,a fox\n")
    monkeypatch.chdir(tmp_path)
    assert list(read_list(Path("list.csv"))) == [("in/a.png", "a fox")]
