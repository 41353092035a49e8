"""Tables that name images and prompts, as people bring them."""

import csv
import os
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import refused
from dcmpl.data import lists
from dcmpl.data.lists import LISTS, MOST_ROW, read_rows
from dcmpl.data.matching import read_prompts
from dcmpl.data.sources import read_list
from dcmpl.errors import DataError
from list_writers import WRITERS

ROWS = [
    {"image": "a.png", "prompt": "a red fox"},
    {"image": "sub/b.png", "prompt": "狐, 'quoted'"},
    {"image": "/x/c.png", "prompt": ""},
]


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


# Streams of strangers

HUGE = 100 * 2**20
FLAT = 48 * 2**20
"""Bytes that may be in use while a list with a row of 100 MB is read: a row's letters, thrice."""


POOLS: list[pa.MemoryPool] = []
"""Pools of buffers that may still be in use."""


class Peak:
    """Most bytes in use within the block, of Python and of Arrow."""

    def __enter__(self) -> "Peak":
        pa.default_memory_pool().release_unused()
        self._pool = pa.proxy_memory_pool(pa.default_memory_pool())
        POOLS.append(self._pool)
        self._before = pa.default_memory_pool()
        pa.set_memory_pool(self._pool)
        tracemalloc.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.size = tracemalloc.get_traced_memory()[1] + (self._pool.max_memory() or 0)
        tracemalloc.stop()
        pa.set_memory_pool(self._before)


def refusal(path: Path, most: int = FLAT) -> str:
    """The sentence a list is refused with, in bounded memory."""
    with Peak() as peak, pytest.raises(DataError) as caught:
        for _ in read_rows(str(path)):
            pass
    assert peak.size < most, f"{peak.size:,}"
    message = str(caught.value)
    assert message.startswith("expected ")
    assert "\n" not in message
    assert str(path) in message
    assert len(message) < 1000
    return message


def huge(path: Path, start: bytes, repeated: bytes = b"x") -> Path:
    with path.open("wb") as file:
        file.write(start)
        block = repeated * (2**20 // len(repeated))
        for _ in range(HUGE // 2**20):
            file.write(block)
    return path


@pytest.mark.parametrize(
    ("name", "start", "repeated"),
    [
        ("header.csv", b"", b"x"),
        ("cell.csv", b"image,prompt\na.png,", b"x"),
        ("quoted.csv", b'image,prompt\na.png,"', b"x" * 1023 + b"\n"),
        ("nulls.tsv", b"image\n", b"\0"),
        ("line.jsonl", b'{"image": "', b"x"),
        ("deep.jsonl", b'{"image": ', b"["),
    ],
)
def test_row_without_an_end_is_refused_in_little_memory(
    tmp_path: Path, name: str, start: bytes, repeated: bytes
) -> None:
    path = huge(tmp_path / name, start, repeated)
    assert refusal(path) == f"expected at most {MOST_ROW} letters in a row of {path}, got more"


def test_row_of_many_lines_is_counted_as_one(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text('image,prompt\na.png,"x\ny"\n' + 'b.png,"1\n\n2"\n' * 3)
    rows = [*read_rows(str(tmp_path / "list.csv"))]
    assert [(row.image, row.prompt, row.number) for row in rows] == [
        ("a.png", "x\ny", 0),
        *[("b.png", "1\n\n2", number) for number in (1, 2, 3)],
    ]


def test_limit_of_other_readers_of_csv_is_as_it_was(tmp_path: Path) -> None:
    path = huge(tmp_path / "list.csv", b"image\n")
    before = csv.field_size_limit()
    refusal(path)
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", "[" * 50_000, "got: "),
        ("a.jsonl", '{"image": ' + "[" * 50_000, "got: "),
        ("a.jsonl", '{"image": "a", "image": "b"}', "'image' twice"),
        ("a.jsonl", "[1]", "an object per row"),
        ("a.jsonl", '{"image": {"path": "a"}}', "got a dict in row 1"),
        ("a.jsonl", '{"image": ["a"]}', "got a list in row 1"),
        ("a.jsonl", '{"image": "a"}\n{"image": 1' + "0" * 5000 + "}", "got: "),
        ("a.csv", "image,image\na,b\n", "got 'image' twice"),
        ("a.csv", "image\na,b\n", "got more in line 2"),
        ("a.csv", 'image\n"a"b\n', "got: "),
        ("a.csv", "\n\n", "an empty file"),
        ("a.csv", "image\n", "at least one row"),
        ("a.jsonl", "\n\n", "at least one row"),
        ("a.csv", ",".join(["image", *map(str, range(5000))]) + "\n", "at most 4096 columns"),
    ],
)
def test_row_of_another_form_is_one_sentence(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content)
    assert words in refusal(tmp_path / name)


@pytest.mark.parametrize("end", ["", ', "1": 0'])
def test_object_of_very_many_entries_is_read_in_one_go(tmp_path: Path, end: str) -> None:
    """Each entry looked for among all others would take hours."""
    entries = ", ".join(f'"{i}": 0' for i in range(250_000))
    (tmp_path / "a.jsonl").write_text(f"{{{entries}{end}}}\n")
    with pytest.raises(DataError, match=r"at most 4096 columns|'1' twice"):
        next(read_rows(str(tmp_path / "a.jsonl")))


def parquet(path: Path, table: pa.Table, **options: Any) -> Path:
    pq.write_table(table, path, **options)
    return path


SHARED = 2 * 2**20
"""Letters of a text that all rows share: written once, and 512 MB where each row has its own."""


def shared(kind: pa.DataType, count: int = 256) -> pa.Array:
    text = b"x" * SHARED if pa.types.is_binary(kind) else "x" * SHARED
    indices = pa.array([0] * count, pa.int32())
    return pa.DictionaryArray.from_arrays(indices, pa.array([text], kind))


@pytest.mark.parametrize("column", ["image", "prompt"])
@pytest.mark.parametrize(
    "kind", ["string", "large_string", "dictionary", "binary", "struct", "list"]
)
def test_long_text_that_all_rows_share_is_refused_in_little_memory(
    tmp_path: Path, kind: str, column: str
) -> None:
    types = {"large_string": pa.large_string(), "binary": pa.binary()}
    cells: Any = shared(types.get(kind, pa.string()))
    if kind != "dictionary":
        cells = cells.cast(cells.type.value_type)
    if kind == "struct":
        inner = pa.array([b"x"] * len(cells), pa.binary())
        cells = pa.StructArray.from_arrays([inner, cells], ["bytes", "path"])
    if kind == "list":
        cells = pa.ListArray.from_arrays(pa.array(range(len(cells) + 1), pa.int32()), cells)
    other = {"image": "prompt", "prompt": "image"}[column]
    table = pa.table({column: cells, other: [f"{i}.png" for i in range(len(cells))]})
    path = parquet(tmp_path / "a.parquet", table)
    del table, cells
    assert path.stat().st_size < 8 * 2**20
    if (kind, column) == ("binary", "image"):  # the image itself, which is not read here
        assert len([*read_rows(str(path))]) == 256
    else:
        refusal(path)


def test_row_group_that_unpacks_to_more_than_allowed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [f"{i:0>999}" for i in range(2000)]
    table = pa.table({"image": ["a.png"] * 2000, "prompt": prompts, "pixels": prompts})
    path = parquet(tmp_path / "a.parquet", table, compression="zstd")
    monkeypatch.setattr(lists, "MOST_GROUP", 2 * 10**6 - 10**5)
    message = refusal(path)
    assert "row groups whose names and prompts unpack to at most 1900000 bytes" in message
    assert message.endswith("write it with smaller row groups")
    monkeypatch.setattr(lists, "MOST_GROUP", 3 * 10**6)  # columns that are not read do not count
    assert len([*read_rows(str(path))]) == 2000


def test_numbers_in_columns_are_texts(tmp_path: Path) -> None:
    table = pa.table({"image": [7, None, 8], "prompt": [0.5, float("nan"), None]})
    rows = [*read_rows(str(parquet(tmp_path / "a.parquet", table)))]
    assert [(row.image, row.prompt) for row in rows] == [("7", "0.5"), ("", ""), ("8", "")]


def test_nested_columns_that_are_not_read_are_no_fault(tmp_path: Path) -> None:
    nested = pa.array([{"a": [{"b": "x"}], "image": "no"}] * 3)
    table = pa.table({"meta": nested, "image": ["a.png", "b.png", None], "tags": [["x"]] * 3})
    rows = [*read_rows(str(parquet(tmp_path / "a.parquet", table)))]
    assert [row.image for row in rows] == ["a.png", "b.png", ""]


@pytest.mark.parametrize(
    "cells",
    [
        pa.array([["a"]]),
        pa.array([{"x": 1}]),
        pa.array([{"bytes": b"x"}]),
        pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        pa.array([b"abc"], pa.binary(3)),
        pa.array([0], pa.timestamp("us")),
    ],
    ids=lambda cells: str(cells.type),
)
def test_images_of_another_kind_are_refused(tmp_path: Path, cells: pa.Array) -> None:
    path = parquet(tmp_path / "a.parquet", pa.table({"image": cells}))
    assert f"expected text or numbers in image of {path}, got " in refusal(path)


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"image": ["a"]}).append_column("image", pa.array(["b"])),
        pa.table({"url": ["a"]}),
        pa.table({"image": pa.array([], pa.string())}),
        pa.table({f"c{i}": [0] for i in range(5000)}),
    ],
    ids=["twice", "none", "empty", "many"],
)
def test_parquet_of_another_form_is_one_sentence(tmp_path: Path, table: pa.Table) -> None:
    refusal(parquet(tmp_path / "a.parquet", table), 100 * 2**20)


def test_damaged_row_group_is_one_sentence(tmp_path: Path) -> None:
    table = pa.table({"image": [f"{i}.png" for i in range(1000)]})
    path = parquet(tmp_path / "a.parquet", table, compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[60:160] = bytes(100)
    path.write_bytes(content)
    assert f"table at {path}, got: " in refusal(path)


def test_empty_rows_beside_bytes_of_images_take_no_memory(tmp_path: Path) -> None:
    count = 10**6
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int8()), pa.array([b"x"]))
    path = parquet(tmp_path / "a.parquet", pa.table({"image": cells.cast(pa.binary())}))
    with Peak() as peak:
        rows = read_rows(str(path))
        assert next(rows) == ("", "", 0, True)
    assert peak.size < 2**20


@pytest.mark.parametrize(
    ("suffix", "count"), [(".csv", 100_000), (".jsonl", 30_000), (".parquet", 100_000)]
)
def test_many_rows_take_no_more_memory_than_few(tmp_path: Path, suffix: str, count: int) -> None:
    sizes = list[int]()
    for rows in (1000, count):
        names = [f"images/of/some/folder/{i:012}.png" for i in range(rows)]
        frame = pd.DataFrame({"image": names, "prompt": [f"a fox, {name}" for name in names]})
        path = tmp_path / f"{rows}{suffix}"
        WRITERS[suffix](frame, path)
        if suffix == ".parquet":
            parquet(path, pa.Table.from_pandas(frame), row_group_size=1000)
        del frame, names
        blocks = list[int]()  # of Python's memory, of which every row would take some
        for row in read_rows(str(path)):
            if row.number % 1000 == 999:
                blocks.append(sys.getallocatedblocks())
        assert len(blocks) == rows // 1000
        sizes.append(max(blocks) - blocks[0])
    assert sizes[1] < count / 10, sizes


@pytest.mark.parametrize("name", ["row.csv", "row.jsonl", "row.parquet"])
def test_hostile_list_ends_the_command_with_one_sentence(
    tmp_path: Path, name: str, trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if path.suffix == ".parquet":
        parquet(path, pa.table({"image": shared(pa.string())}))
    else:
        huge(path, b"image\n" if path.suffix == ".csv" else b'{"image": "')
    words = ["score", path, "--model", trained_run, "-o", tmp_path / "out.csv"]
    assert refused(capsys, 1, *words).startswith("expected at most ")
    assert not (tmp_path / "out.csv").exists()
