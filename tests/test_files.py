"""Lists of pictures, prompts and score files: what goes in and what comes out."""

import csv
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest

from dcmpl.errors import DataError, RunError, UsageError
from dcmpl.files import FORMATS, find_pictures, read_prompts, score_file

COLUMNS = ("image", "prompt", "quality", "alignment", "status", "reason")
GOOD = dict(zip(COLUMNS, ("a, 狐.png", 'a "fox"\nruns', 0.25, 0.5, "ok", ""), strict=True))
BAD = dict(zip(COLUMNS, ("b.png", "", None, None, "error", "no picture"), strict=True))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder of pictures and others, two deep."""
    for name in ("b.png", "a.JPG", "notes.txt", "sub/c.webp", "sub/deep/d.gif", "sub/._c.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def names(root: Path, found: Sequence[str]) -> list[str]:
    return [str(Path(path).relative_to(root)) for path in found]


def test_files_stay_in_the_order_they_are_named(tree: Path) -> None:
    wanted = [str(tree / "b.png"), str(tree / "a.JPG")]
    assert find_pictures(wanted) == wanted


def test_named_file_needs_no_picture_suffix(tree: Path) -> None:
    assert find_pictures([str(tree / "notes.txt")]) == [str(tree / "notes.txt")]


def test_folder_gives_all_pictures_below_it(tree: Path) -> None:
    assert names(tree, find_pictures([str(tree)])) == [
        "a.JPG",
        "b.png",
        "sub/c.webp",
        "sub/deep/d.gif",
    ]


def test_glob_gives_its_files(tree: Path) -> None:
    assert names(tree, find_pictures([str(tree / "*.png")])) == ["b.png"]


def test_recursive_glob_goes_below(tree: Path) -> None:
    found = names(tree, find_pictures([str(tree / "**" / "*.gif")]))
    assert found == ["sub/deep/d.gif"]


def test_file_whose_name_looks_like_a_glob_is_a_file(tree: Path) -> None:
    (tree / "x[1].png").touch()
    assert names(tree, find_pictures([str(tree / "x[1].png")])) == ["x[1].png"]


def test_picture_named_twice_is_listed_once(tree: Path) -> None:
    path = str(tree / "b.png")
    assert find_pictures([path, str(tree), path]).count(path) == 1


def test_missing_file_stays_in_the_list(tree: Path) -> None:
    path = str(tree / "missing.png")
    assert find_pictures([path]) == [path]


def test_folder_without_pictures_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        find_pictures([str(tmp_path)])
    assert str(caught.value) == (
        f"expected pictures in {tmp_path}, found none: name a folder with some"
    )


def test_glob_without_a_match_is_a_usage_error(tree: Path) -> None:
    with pytest.raises(UsageError, match=r"expected pictures in .*\*\.bmp, found none"):
        find_pictures([str(tree / "*.bmp")])


@pytest.fixture
def prompts(tmp_path: Path) -> Callable[..., Path]:
    """Write a CSV of prompts from its lines."""

    def write(*lines: str, encoding: str = "utf-8") -> Path:
        file = tmp_path / "prompts.csv"
        file.write_bytes("\n".join(lines).encode(encoding) + b"\n")
        return file

    return write


Prompts = Callable[..., Path]


def test_prompt_is_found_by_the_full_path(prompts: Prompts) -> None:
    file = prompts("image,prompt", "/x/a.png,a fox")
    assert read_prompts(file, ["/x/a.png"]) == ({"/x/a.png": "a fox"}, [])


def test_prompt_is_found_by_the_path_from_here(
    prompts: Prompts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    file = prompts("image,prompt", "sub/a.png,a fox")
    pictures = ["./sub/a.png", "other/a.png"]
    assert read_prompts(file, pictures) == ({"./sub/a.png": "a fox"}, [])


def test_prompt_is_found_beside_the_table(prompts: Prompts, tmp_path: Path) -> None:
    picture = str(tmp_path / "sub" / "a.png")
    file = prompts("image,prompt", "sub/a.png,a fox")
    assert read_prompts(file, [picture, "/x/a.png"]) == ({picture: "a fox"}, [])


def test_prompt_is_found_by_the_file_name(prompts: Prompts) -> None:
    file = prompts("image,prompt", "elsewhere/a.png,a fox")
    assert read_prompts(file, ["/x/a.png"]) == ({"/x/a.png": "a fox"}, [])


def test_one_picture_under_two_spellings_is_scored_once(tmp_path: Path) -> None:
    names = [str(tmp_path / "a.png"), f"{tmp_path}/./a.png", str(tmp_path / "b.png")]
    assert find_pictures(names) == [names[0], names[2]]


def test_name_of_two_pictures_is_refused(prompts: Prompts) -> None:
    file = prompts("image,prompt", "a.png,a fox")
    with pytest.raises(DataError) as caught:
        read_prompts(file, ["/x/a.png", "/y/a.png"])
    assert str(caught.value) == (
        f"expected a.png in {file} to name one picture, it fits /x/a.png and /y/a.png: "
        "write its path"
    )


def test_prompts_of_many_bytes_are_refused_unread(
    prompts: Prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcmpl.files.MAX_PROMPTS_BYTES", 20)
    with pytest.raises(DataError, match="expected prompts of at most 20 bytes"):
        read_prompts(prompts("image,prompt", "a.png,a fox"), ["a.png"])


def test_row_of_no_picture_is_handed_back(prompts: Prompts) -> None:
    file = prompts("image,prompt", "a.png,a fox", "z.png,an ox")
    assert read_prompts(file, ["/x/a.png"]) == ({"/x/a.png": "a fox"}, ["z.png"])


def test_picture_without_a_row_has_no_prompt(prompts: Prompts) -> None:
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
    with pytest.raises(DataError, match="got nothing"):
        read_prompts(tmp_path / "prompts.csv", [])


def test_prompt_file_in_another_encoding_is_refused(prompts: Prompts) -> None:
    file = prompts("image,prompt", "a.png,Füchslein", encoding="latin-1")
    with pytest.raises(DataError, match="expected a UTF-8 CSV with prompts at "):
        read_prompts(file, ["a.png"])


def test_missing_prompt_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv"):
        read_prompts(tmp_path / "none.csv", ["a.png"])


def test_short_row_has_an_empty_prompt(prompts: Prompts) -> None:
    file = prompts("image,prompt", "a.png")
    assert read_prompts(file, ["/x/a.png"])[0] == {"/x/a.png": ""}


def read_back(path: Path) -> list[dict[str, object]]:
    """Rows of a score file of any format."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))  # type: ignore[arg-type]
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    frame = pd.read_parquet(path)
    return frame.astype(object).where(frame.notna(), None).to_dict("records")  # type: ignore[return-value]


@pytest.mark.parametrize("suffix", FORMATS)
def test_rows_come_back_from_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"scores{suffix}"
    with score_file(path, COLUMNS) as write:
        write(GOOD)
        write(BAD)
    if suffix == ".csv":
        text = [{k: "" if v is None else str(v) for k, v in row.items()} for row in (GOOD, BAD)]
        assert read_back(path) == text
    else:
        assert read_back(path) == [GOOD, BAD]


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_rows_make_a_file_that_can_be_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scores{suffix}"
    with score_file(path, COLUMNS):
        pass
    assert read_back(path) == []


@pytest.mark.parametrize("suffix", FORMATS)
def test_file_is_a_part_until_all_is_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scores{suffix}"
    with score_file(path, COLUMNS) as write:
        write(GOOD)
        assert os.listdir(tmp_path) == [f"scores{suffix}.part"]
    assert os.listdir(tmp_path) == [f"scores{suffix}"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_row_is_on_disk_as_soon_as_it_is_known(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scores{suffix}"
    with score_file(path, COLUMNS) as write:
        write(BAD)
        assert "no picture" in path.with_name(path.name + ".part").read_text()


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_rows_before_an_interruption_are_kept_in_the_part(
    tmp_path: Path, suffix: str, error: type[BaseException]
) -> None:
    path = tmp_path / f"scores{suffix}"

    def interrupted() -> None:
        with score_file(path, COLUMNS) as write:
            write(BAD)
            raise error

    with pytest.raises(error):
        interrupted()
    assert not path.exists()
    part = path.with_name(path.name + ".part")
    part.rename(path)
    assert [row["image"] for row in read_back(path)] == ["b.png"]


def test_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("old")
    with score_file(path, COLUMNS) as write:
        write(GOOD)
        assert path.read_text() == "old"
    assert path.read_text() != "old"


def test_more_rows_than_a_parquet_batch_all_come_back(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    with score_file(path, COLUMNS) as write:
        for i in range(2001):
            write({**GOOD, "quality": i / 4})
    assert pd.read_parquet(path)["quality"].tolist() == [i / 4 for i in range(2001)]


@pytest.mark.parametrize("suffix", FORMATS)
def test_place_inside_a_file_is_a_run_error(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / f"scores{suffix}"
    with pytest.raises(RunError) as caught, score_file(path, COLUMNS):
        pass
    assert str(caught.value).startswith(f"expected to write {path}, got: ")


@pytest.mark.parametrize("suffix", FORMATS)
def test_full_disk_at_the_end_is_a_run_error(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dcmpl.files.os.replace", full)
    path = tmp_path / f"scores{suffix}"
    with pytest.raises(RunError) as caught, score_file(path, COLUMNS) as write:
        write(GOOD)
    assert str(caught.value) == (
        f"expected to write {path}, got: No space left on device; "
        f"the rows scored so far are in {path}.part"
    )


@pytest.mark.parametrize("suffix", FORMATS)
def test_folder_in_the_place_of_the_file_is_refused_before_any_row(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"scores{suffix}"
    path.mkdir()
    rows = []

    def work() -> None:
        with score_file(path, COLUMNS) as write:
            write(GOOD)
            rows.append(GOOD)

    with pytest.raises((RunError, UsageError)):
        work()
    assert rows == []


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
@pytest.mark.parametrize("suffix", FORMATS)
def test_name_that_is_no_utf_8_is_written(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scores{suffix}"
    with score_file(path, COLUMNS) as write:
        write({**BAD, "image": os.fsdecode(b"caf\xe9.png")})
    assert path.stat().st_size > 0
