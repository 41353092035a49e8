"""Tables of strangers: every kind gives the same cells, and none harms the machine."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.io import savemat

from dcmpl.data import sheets
from dcmpl.data.datasets import load_table
from dcmpl.data.sheets import SHEETS, first_file, need, read_mat, read_numbers, read_sheet
from dcmpl.data.table import MosScale
from strange_tables import refusal as told

NAMES = ["image", "prompt", "mos_quality"]
ROWS = [["ä.png", "a fox, «red»", "3.5"], ["b.png", "NA", ""], ["c.png", "1984", "0"]]


def write(file: Path, names: list[str], rows: list[list[Any]]) -> Path:
    """A table of the kind that the ending says, missing cells as that kind has them."""
    kind = file.suffix
    frame = pd.DataFrame(rows, columns=names, dtype=object)
    records = [dict(zip(names, row, strict=True)) for row in rows]
    if kind in (".csv", ".tsv"):
        frame.to_csv(file, index=False, sep=",\t"[kind == ".tsv"])
    elif kind == ".parquet":
        columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in names]
        pq.write_table(pa.table(columns, names=names), file)
    elif kind == ".xlsx":
        frame.to_excel(file, index=False)
    elif kind == ".json":
        file.write_text(json.dumps(records))
    else:
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


@pytest.mark.parametrize("kind", SHEETS)
def test_every_kind_gives_the_same_texts(tmp_path: Path, kind: str) -> None:
    empty = "" if kind in (".csv", ".tsv") else None
    rows: list[list[Any]] = [[cell or empty for cell in row] for row in ROWS]
    frame = read_sheet(write(tmp_path / f"a{kind}", NAMES, rows))
    assert (frame.columns.tolist(), frame.values.tolist()) == (NAMES, ROWS)


@pytest.mark.parametrize("kind", SHEETS)
def test_own_data_of_every_kind_give_the_one_table(tmp_path: Path, kind: str) -> None:
    empty = "" if kind in (".csv", ".tsv") else None
    names = ["image", "prompt", "generator", "group", "mos_authenticity", "std_authenticity"]
    rows = [["a.png", "A  fox", "x", "", 1.5, 0.25], ["s/b.png", "an ox", "", "own", empty, empty]]
    file = write(tmp_path / f"data{kind}", names, rows)
    for path in (file, tmp_path):
        table = load_table(path, MosScale(1, 5))
        shown = table.frame[["name", *names[1:4]]].values.tolist()
        assert shown == [["a.png", "A  fox", "x", "a fox"], ["s/b.png", "an ox", "", "own"]]
        assert table.frame["image"].tolist() == [str(tmp_path / row[0]) for row in rows]
        nan = float("nan")
        assert table.targets().tolist() == pytest.approx(
            np.array([[nan, nan, 0.125], [nan, nan, nan]]), nan_ok=True
        )
        assert table.frame["std_authenticity"].tolist() == pytest.approx([0.25, nan], nan_ok=True)
        assert table.judged == ("authenticity",)


def test_names_of_one_image_that_are_spelt_differently_are_doubled(tmp_path: Path) -> None:
    rows = [["a.png", "x", 3], ["./a.png", "y", 4]]
    file = write(tmp_path / "a.csv", ["image", "prompt", "mos_quality"], rows)
    assert "more than once" in told(lambda: load_table(file, MosScale(1, 5)))


@pytest.mark.parametrize("names", [["", ""], ["a\nb.png", "a\nb.png"]])
def test_names_that_are_no_names_are_told_in_one_sentence(tmp_path: Path, names: list[str]) -> None:
    rows = [[name, "x", 3] for name in names]
    file = write(tmp_path / "a.csv", ["image", "prompt", "mos_quality"], rows)
    message = told(lambda: load_table(file, MosScale(1, 5)))
    wanted = "each image once in" if names[0] else "the name of an image in every row of"
    assert message.startswith(f"expected {wanted} {file}, got ")


def test_opinion_of_a_thousand_letters_does_not_fill_the_sentence(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", ["image", "prompt", "mos_quality"], [["a", "b", "x" * 9000]])
    message = told(lambda: load_table(file, MosScale(1, 5)))
    assert message.startswith(f"expected mos_quality between 1 and 5 in {file}, got 'xxx")


@pytest.mark.parametrize("kind", [".json", ".jsonl", ".parquet", ".xlsx"])
def test_typed_numbers_become_texts(tmp_path: Path, kind: str) -> None:
    frame = read_sheet(write(tmp_path / f"a{kind}", ["a", "b"], [[3, 0.25], [-1, float("nan")]]))
    assert frame.values.tolist() == [["3", "0.25"], ["-1", ""]]


@pytest.mark.parametrize("kind", SHEETS)
def test_blanks_around_a_column_name_are_dropped(tmp_path: Path, kind: str) -> None:
    frame = read_sheet(write(tmp_path / f"a{kind}", [" image ", "mos\t"], [["a.png", "1"]]))
    assert frame.columns.tolist() == ["image", "mos"]


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".xlsx"])
def test_without_header_columns_are_numbered(tmp_path: Path, kind: str) -> None:
    frame = read_sheet(write(tmp_path / f"a{kind}", ["a.png", "x"], [["b.png", "y"]]), header=False)
    assert frame.columns.tolist() == ["0", "1"]
    assert frame.values.tolist() == [["a.png", "x"], ["b.png", "y"]]


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".parquet", ".xlsx"])
def test_column_that_stands_twice_is_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"a{kind}"
    if kind == ".jsonl":
        file.write_text('{"image": "a.png", "mos": 1, "mos": 2}\n')
    else:
        write(file, ["image", "mos", "mos"], [["a.png", 1, 2]])
    assert told(lambda: read_sheet(file)) == (
        f"expected each column once in {file}, got 'mos' twice"
    )


def test_keys_that_some_objects_lack_are_empty_cells(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n\n{"b": "x"}\n')
    assert read_sheet(file).to_dict("list") == {"a": ["1", ""], "b": ["", "x"]}


@pytest.mark.parametrize("kind", SHEETS)
def test_renamed_columns_are_told_in_one_sentence(tmp_path: Path, kind: str) -> None:
    file = write(tmp_path / f"a{kind}", ["Image", "Score\n(0-5)"], [["a.png", "3"]])
    message = told(lambda: need(read_sheet(file), ["Image", "MOS"], file))
    assert message.startswith(f"expected the columns Image, MOS in {file}, got Image, Score")
    assert message.endswith(": MOS is not there")


def test_sentence_on_a_sheet_of_many_columns_stays_short(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", [f"column {i}" for i in range(2000)], [["1"] * 2000])
    message = told(lambda: need(read_sheet(file), ["Image", "MOS"], file))
    assert message.startswith(f"expected the columns Image, MOS in {file}, got ")


@pytest.mark.parametrize("kind", SHEETS)
def test_damaged_file_is_told_with_its_kind(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"a{kind}"
    file.write_bytes(b"\x89PNG\xff\xfe\x00\n\x81" * 50)
    message = told(lambda: read_sheet(file))
    assert message.startswith("expected a ")
    assert f"{sheets.KINDS[kind]} table at {file}, got: " in message


@pytest.mark.parametrize("kind", [".csv", ".tsv"])
def test_other_encoding_is_told_with_the_one_expected(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"a{kind}"
    file.write_bytes("image,prompt\na.png,狐\n".encode("gb18030"))
    wanted = f"{kind[1:].upper()} table at {file}, got: "
    assert told(lambda: read_sheet(file)).startswith(f"expected a UTF-8 {wanted}")
    assert read_sheet(file, encoding="gb18030").values.ravel()[-1].endswith("狐")
    file.write_bytes(b"a,b\n1,\xff\xff\n")
    message = told(lambda: read_sheet(file, encoding="gb18030"))
    assert message.startswith(f"expected a GB18030 {wanted}")


@pytest.mark.parametrize("kind", SHEETS)
def test_table_without_rows_is_refused(tmp_path: Path, kind: str) -> None:
    file = write(tmp_path / f"a{kind}", NAMES, [])
    assert told(lambda: read_sheet(file)) == f"expected at least one row in {file}, got none"


def test_other_endings_are_told_which_there_are(tmp_path: Path) -> None:
    assert told(lambda: read_sheet(tmp_path / "a.xls")) == (
        "expected a table that ends in .csv, .tsv, .json, .jsonl, .parquet, .xlsx, "
        f"got {tmp_path / 'a.xls'}"
    )


@pytest.mark.parametrize("kind", [".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize("cell", [[1], {"bytes": "x"}])
def test_cell_that_is_no_text_or_number_names_the_file(
    tmp_path: Path, kind: str, cell: object
) -> None:
    file = write(tmp_path / f"a{kind}", ["image", "b"], [["a.png", cell], ["b.png", cell]])
    frame = read_sheet(file)
    assert need(frame, ["image"], file)["image"].tolist() == ["a.png", "b.png"]
    assert told(lambda: need(frame, ["image", "b"], file)) == (
        f"expected text or numbers in b of {file}, got a {type(cell).__name__} in row 1"
    )


@pytest.mark.parametrize("kind", [".xlsx", ".parquet"])
def test_date_costs_a_table_only_where_its_column_is_needed(tmp_path: Path, kind: str) -> None:
    file = write(tmp_path / f"a{kind}", ["image", "day"], [["a.png", datetime.date(2024, 1, 2)]])
    frame = read_sheet(file)
    assert need(frame, ["image"], file)["image"].tolist() == ["a.png"]
    assert "in day of" in told(lambda: need(frame, ["day"], file))


@pytest.mark.parametrize("kind", [".csv", ".tsv"])
def test_cells_that_a_short_row_lacks_are_empty(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"a{kind}"
    file.write_text("image,mos\na.png,1\nb.png\n".replace(",", ",\t"[kind == ".tsv"]))
    assert read_sheet(file).values.tolist() == [["a.png", "1"], ["b.png", ""]]


@pytest.mark.parametrize("rows", ["a.png,1,2\n", "a.png,1\nb.png,1,2\n"])
def test_row_that_is_too_long_names_the_file(tmp_path: Path, rows: str) -> None:
    file = tmp_path / "a.csv"
    file.write_text("image,mos\n" + rows)
    assert str(file) in told(lambda: read_sheet(file))


def test_json_that_is_no_list_of_objects_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"image": "a.png"}')
    assert told(lambda: read_sheet(file)) == f"expected a list of objects in {file}, got dict"
    file.write_text('[{"image": "a.png"}, "b.png"]')
    assert told(lambda: read_sheet(file)) == (
        f"expected an object per row in {file}, got something else"
    )


def test_first_file_takes_names_in_their_order_and_no_folders(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    for name in ("b.csv", "c.csv"):
        (tmp_path / name).touch()
    assert first_file(tmp_path, ["a.csv", "c.csv", "b.csv"]) == tmp_path / "c.csv"
    assert first_file(tmp_path, ["a.csv"]) is None


@pytest.mark.parametrize(("form", "packed"), [("4", False), ("5", False), ("5", True)])
@pytest.mark.parametrize("shape", [(30, 1), (1, 30)])
def test_mat_gives_its_numbers_whichever_way_they_lie(
    tmp_path: Path, shape: tuple[int, int], form: str, packed: bool
) -> None:
    values, file = np.linspace(1, 2, 30), tmp_path / "a.mat"
    what = {"SD": np.zeros((2, 2)), "MOSz": values.reshape(shape)}
    savemat(file, what, format=form, do_compression=packed)
    assert read_mat(file, "MOSz", 30).tolist() == values.tolist()


OTHER_MATS = [
    ({"SD": np.ones((4, 1)), "x": np.ones((1, 1))}, "SD, x"),
    ({"MOSz": np.ones((3, 1))}, "double of 3 x 1"),
    ({"MOSz": np.ones((2, 2))}, "double of 2 x 2"),
    ({"MOSz": np.ones((4, 1), np.int16)}, "int16 of 4 x 1"),
    ({"MOSz": np.array([[1], ["a"], [2], [3]], object)}, "cell of 4 x 1"),
    ({"MOSz": "word"}, "char of 1"),
    ({"MOSz": {"a": 1.0}}, "struct of 1 x 1"),
]


@pytest.mark.parametrize(("what", "got"), OTHER_MATS)
def test_mat_of_something_else_says_what_it_holds(
    tmp_path: Path, what: dict[str, Any], got: str
) -> None:
    file = tmp_path / "a.mat"
    savemat(file, what)
    assert told(lambda: read_mat(file, "MOSz", 4)) == (
        f"expected a MATLAB file with the variable MOSz, 4 x 1 numbers, at {file}, got {got}"
    )


def test_complex_numbers_in_a_mat_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.mat"
    savemat(file, {"MOSz": np.array([[1 + 2j], [3]])})
    message = told(lambda: read_mat(file, "MOSz", 2))
    assert message.startswith("expected a MATLAB file with the variable MOSz, 2 x 1 numbers")


def hdf(whole: bytes) -> bytes:
    """How MATLAB 7.3 begins."""
    return b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n" * 99


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda whole: whole[: len(whole) // 2],
    "cut in its header": lambda whole: whole[:100],
    "empty": lambda whole: b"",
    "text": lambda whole: b"0.5\n" * 400,
    "another version": hdf,
    "spoilt": lambda whole: whole[:128] + bytes(255 - byte for byte in whole[128:]),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_mat_is_told_with_what_it_should_hold(
    tmp_path: Path, damage: str, packed: bool
) -> None:
    file = tmp_path / "a.mat"
    savemat(file, {"MOSz": np.random.default_rng(0).random((400, 1))}, do_compression=packed)
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    wanted = f"a MATLAB file with the variable MOSz, 400 x 1 numbers, at {file}, got"
    assert told(lambda: read_mat(file, "MOSz", 400)).startswith(f"expected {wanted}")


def test_numbers_are_the_last_words_of_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "moz1.txt"
    file.write_text("\ufeff0.png 3.5\n\n1.png,4\n 5.25 \n", encoding="utf-8")
    assert read_numbers(file, 3).tolist() == [3.5, 4.0, 5.25]


@pytest.mark.parametrize("line", ["five", ",", "狐", "x" * 5000, ""])
def test_line_without_a_number_is_told_with_what_is_expected(tmp_path: Path, line: str) -> None:
    file = tmp_path / "moz1.txt"
    file.write_bytes(f"1\n{line}\n".encode("gb18030"))
    message = told(lambda: read_numbers(file, 2))
    assert message.startswith(f"expected 2 lines that end in a number at {file}, got")


def test_absent_numbers_are_told(tmp_path: Path) -> None:
    assert told(lambda: read_numbers(tmp_path / "moz1.txt", 2)).startswith(
        f"expected 2 lines that end in a number at {tmp_path / 'moz1.txt'}, got: "
    )
