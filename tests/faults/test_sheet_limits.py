"""No file of a stranger makes the machine run out of memory, or run anything.

Limits are lowered here, so that a file of some kilobytes stands for one that would fill the
memory; what such a file unpacks to is then a small multiple of the limit.
"""

import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.io import savemat

from dcmpl.data import sheets
from dcmpl.data.sheets import SHEETS, read_mat, read_numbers, read_sheet
from strange_tables import refusal as told

MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
KIND = "application/vnd.openxmlformats-officedocument.spreadsheetml"
XML = '<?xml version="1.0"?>'


def xlsx(file: Path, rows: Iterable[str], head: str = XML, shared: str = "", dim: str = "") -> Path:
    """A workbook of just what is needed, its sheet as it is given."""
    part = "".join(
        f'<Override PartName="/xl/{name}.xml" ContentType="{KIND}.{kind}+xml"/>'
        for name, kind in (
            ("workbook", "sheet.main"),
            ("worksheets/sheet1", "worksheet"),
            ("sharedStrings", "sharedStrings"),
        )
    )
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types">{part}</Types>',
        "_rels/.rels": f'<Relationships xmlns="{PACKAGE}/relationships"><Relationship Id="r1" '
        f'Type="{OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook {MAIN} xmlns:r="{OFFICE}"><sheets>'
        '<sheet name="a" sheetId="1" r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{PACKAGE}/relationships">'
        f'<Relationship Id="r1" Type="{OFFICE}/worksheet" Target="worksheets/sheet1.xml"/>'
        "</Relationships>",
        "xl/sharedStrings.xml": f"<sst {MAIN}><si><t>{shared}</t></si></sst>",
        "xl/worksheets/sheet1.xml": f"{head}<worksheet {MAIN}>{dim}<sheetData>"
        f"{''.join(rows)}</sheetData></worksheet>",
    }
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(name, text)
    return file


def row(*cells: str) -> str:
    return f"<row>{''.join(cells)}</row>"


def rewrite(file: Path, part: str, content: str) -> None:
    """The same workbook with other content in one part."""
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, old in parts.items():
            archive.writestr(name, content if name == part else old)


def parquet(file: Path, texts: list[str]) -> Path:
    """One column of texts, each in full."""
    pq.write_table(
        pa.table({"a": texts}),
        file,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
        store_schema=False,
    )
    return file


def text(cell: str) -> str:
    return f'<c t="inlineStr"><is><t>{escape(cell)}</t></is></c>'


def small(monkeypatch: pytest.MonkeyPatch, cells: int, size: int) -> None:
    monkeypatch.setattr(sheets, "MAX_CELLS", cells)
    monkeypatch.setattr(sheets, "MAX_BYTES", size)


@pytest.mark.parametrize("kind", [".json", ".jsonl"])
@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
def test_deeply_nested_json_is_refused(tmp_path: Path, kind: str, opening: str) -> None:
    file = tmp_path / f"a{kind}"
    file.write_text(opening * 200_000)
    message = told(lambda: read_sheet(file))
    assert message.startswith(f"expected a {sheets.KINDS[kind]} table at {file}, got: ")


def test_objects_of_ever_new_keys_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, 1000, 10**6)
    file = tmp_path / "a.jsonl"
    file.write_text("".join(f'{{"{i}": 1}}\n' for i in range(40)))
    assert told(lambda: read_sheet(file)) == f"expected at most 1000 cells in {file}, got more"


@pytest.mark.parametrize("kind", SHEETS)
def test_file_that_is_too_big_is_refused_before_it_is_read(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"a{kind}"
    with file.open("wb") as handle:
        handle.truncate(257 * 2**20)  # takes no room on the disk
    message = told(lambda: read_sheet(file))
    assert message == f"expected a table of at most 268435456 bytes, got {file}"


@pytest.mark.parametrize("kind", [".json", ".jsonl"])
def test_json_of_half_that_size_is_refused_since_it_unpacks_fiftyfold(
    tmp_path: Path, kind: str
) -> None:
    file = tmp_path / f"a{kind}"
    with file.open("wb") as handle:
        handle.truncate(128 * 2**20)  # as {},{},{}, this many bytes take 6 GB
    assert " of at most " in told(lambda: read_sheet(file))


@pytest.mark.parametrize("head", ["x" * 2**21, '"\n' + "x" * 2**21 + '"'])
def test_giant_header_is_refused(tmp_path: Path, head: str) -> None:
    file = tmp_path / "a.csv"
    file.write_text(f"{head},b\n1,2\n")
    message = told(lambda: read_sheet(file))
    assert message.startswith("expected ")
    assert str(file) in message


def test_csv_of_too_many_columns_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"  # 500,000 columns fit into the header's bytes, and take minutes
    file.write_text("," * 20_000 + "\n" + "," * 20_000 + "\n")
    assert "columns" in told(lambda: read_sheet(file))


def test_csv_of_too_many_cells_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch, 100, 10**6)
    file = tmp_path / "a.csv"
    file.write_text("a,b,c,d\n" + ",,,\n" * 100)
    message = f"expected at most 100 cells and 4096 columns in {file}, got more"
    assert told(lambda: read_sheet(file)) == message


def test_minimal_workbook_is_read(tmp_path: Path) -> None:
    rows = [row(text("image"), text("mos")), row('<c t="s"><v>0</v></c>', "<c><v>2</v></c>")]
    frame = read_sheet(xlsx(tmp_path / "a.xlsx", rows, shared="a.png"))
    assert frame.to_dict("list") == {"image": ["a.png"], "mos": ["2"]}


def test_formulas_are_not_run_and_what_they_gave_is_read(tmp_path: Path) -> None:
    rows = [
        row(text("a"), text("b"), text("c")),
        row(
            "<c><f>1+1</f><v>7</v></c>",
            "<c><f>cmd|'/C calc'!A0</f></c>",
            text('=HYPERLINK("http://x")'),
        ),
    ]
    frame = read_sheet(xlsx(tmp_path / "a.xlsx", rows))
    assert frame.values.tolist() == [["7", "", '=HYPERLINK("http://x")']]


def test_workbook_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, 10**6, 10**5)
    file = xlsx(tmp_path / "a.xlsx", [row(text("a")), " " * 10**5, row(text("b"))])
    assert file.stat().st_size < 10**4
    assert told(lambda: read_sheet(file)) == (
        f"expected a sheet that unpacks to at most 100000 bytes, got more in {file}"
    )


def test_workbook_that_lies_on_what_it_unpacks_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, 10**6, 10**5)
    file = xlsx(tmp_path / "a.xlsx", [row(text("a")), row(text("x" * 10**5))])
    with zipfile.ZipFile(file) as archive:
        size = archive.infolist()[-1].file_size
    packed = file.read_bytes()
    assert packed.count(struct.pack("<I", size)) == 2  # beside the part, and in the directory
    file.write_bytes(packed.replace(struct.pack("<I", size), struct.pack("<I", 500)))
    assert told(lambda: read_sheet(file)).startswith(f"expected a XLSX table at {file}, got: ")


@pytest.mark.parametrize("claim", ["A1:XFD1048576", "A1:A1"])
def test_size_that_a_sheet_claims_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claim: str
) -> None:
    small(monkeypatch, 100, 10**5)
    rows = [row(text("a"), text("b")), row(text("c"), text("d"))]
    file = xlsx(tmp_path / "a.xlsx", rows, dim=f'<dimension ref="{claim}"/>')
    assert read_sheet(file).to_dict("list") == {"a": ["c"], "b": ["d"]}


def test_row_that_claims_to_be_the_billionth_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, 1000, 10**5)
    file = xlsx(tmp_path / "a.xlsx", [row(text("a")), f'<row r="1000000000">{text("b")}</row>'])
    assert told(lambda: read_sheet(file)) == f"expected at most 1000 cells in {file}, got more"


def test_one_wide_row_does_not_widen_a_thousand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cell in the last column, 16,384, and 300,000 rows of one cell: 20 KB that take 40 GB."""
    small(monkeypatch, 20_000, 10**6)
    wide = '<row r="1"><c r="XFD1"><v>1</v></c></row>'
    file = xlsx(tmp_path / "a.xlsx", [wide, *[row("<c><v>1</v></c>")] * 1000])
    assert told(lambda: read_sheet(file)) == f"expected at most 20000 cells in {file}, got more"


def test_shared_text_that_a_thousand_cells_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 MB of text and 50,000 cells that name it: 20 KB that take 500 GB."""
    small(monkeypatch, 10**6, 10**5)
    rows = [row(text("a")), *[row('<c t="s"><v>0</v></c>')] * 1000]
    file = xlsx(tmp_path / "a.xlsx", rows, shared="x" * 10**4)
    assert " at most 100000 bytes" in told(lambda: read_sheet(file))


@pytest.mark.parametrize("where", ["sheet", "texts"])
def test_entities_of_a_workbook_are_refused(tmp_path: Path, where: str) -> None:
    """A hundredfold: 60 KB that take 6 GB. No program that makes workbooks writes any."""
    head = f'{XML}<!DOCTYPE a [<!ENTITY e "{"x" * 290}">]>'
    many = "<c t='inlineStr'><is><t>" + "&e;" * 100 + "</t></is></c>"
    file = xlsx(tmp_path / "a.xlsx", [row(text("a")), row(many)], head=head)
    if where == "texts":
        file = xlsx(tmp_path / "a.xlsx", [row(text("a")), row('<c t="s"><v>0</v></c>')])
        rewrite(file, "xl/sharedStrings.xml", f"{head}<sst {MAIN}><si><t>&e;</t></si></sst>")
    assert str(file) in told(lambda: read_sheet(file))


def test_workbook_reads_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("of state")
    head = f'{XML}<!DOCTYPE a [<!ENTITY e SYSTEM "{(tmp_path / "secret.txt").as_uri()}">]>'
    rows = [row(text("a")), row("<c t='inlineStr'><is><t>&e;</t></is></c>")]
    file = xlsx(tmp_path / "a.xlsx", rows, head=head)
    message = told(lambda: read_sheet(file))
    assert str(file) in message
    assert "of state" not in message


def test_parquet_of_too_many_rows_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": pa.nulls(20_000_001, pa.int8())}), file)
    assert file.stat().st_size < 10**5
    assert told(lambda: read_sheet(file)) == (
        "expected a table that unpacks to at most 268435456 bytes and 20000000 cells, got more "
        f"in {file}"
    )


def test_parquet_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, 100, 10**5)
    file = parquet(tmp_path / "a.parquet", ["x" * 10**5 + str(i) for i in range(3)])
    assert file.stat().st_size < 10**4
    assert " unpacks to at most 100000 bytes " in told(lambda: read_sheet(file))


def test_parquet_whose_rows_share_one_long_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text of 1 MB that stands once and two million rows that name it: 110 KB that take 2 TB."""
    small(monkeypatch, 10**5, 10**5)
    file = tmp_path / "a.parquet"
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), ["x" * 10**4])
    pq.write_table(pa.table({"a": shared}), file, store_schema=False)
    assert " unpacks to at most 100000 bytes " in told(lambda: read_sheet(file))


def test_parquet_that_lies_on_what_it_unpacks_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch, 100, 10**6)
    file = parquet(tmp_path / "a.parquet", ["x" * 10**6 + str(i) for i in range(30)])
    size, number = pq.ParquetFile(file).metadata.row_group(0).total_byte_size * 2, b""
    while size:
        number += bytes([size & 127 | (128 if size > 127 else 0)])
        size >>= 7
    claim = b"\xe4" + b"\x80" * (len(number) - 2) + b"\x00"  # fifty
    packed = file.read_bytes()
    assert packed.count(number) == 2  # of the group, and of its column
    file.write_bytes(packed.replace(number, claim))
    assert pq.ParquetFile(file).metadata.row_group(0).total_byte_size == 50
    assert str(file) in told(lambda: read_sheet(file))


def test_mat_that_unpacks_to_other_numbers_is_refused_by_its_header(tmp_path: Path) -> None:
    file = tmp_path / "a.mat"
    savemat(file, {"MOSz": np.zeros((10**7, 1))}, do_compression=True)
    assert file.stat().st_size < sheets.MAX_MAT_BYTES
    assert told(lambda: read_mat(file, "MOSz", 2400)).endswith("got double of 10000000 x 1")


def test_mat_that_is_too_big_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.mat"
    file.write_bytes(bytes(2**18 + 1))
    assert told(lambda: read_mat(file, "MOSz", 2400)).endswith("got more than 262144 bytes")


def test_numbers_of_the_authors_fit_into_the_limit_of_a_mat(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"MOSz": np.random.default_rng(0).random((2400, 1))})
    assert len(read_mat(tmp_path / "a.mat", "MOSz", 2400)) == 2400


def test_numbers_file_that_is_too_big_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """As lines of one digit, 128 MiB would take 3 GB; a number takes some twenty bytes."""
    file = tmp_path / "moz1.txt"
    with file.open("wb") as handle:
        handle.truncate(128 * 2**20)
    message = told(lambda: read_numbers(file, 2400))
    assert message.startswith(f"expected 2400 lines that end in a number at {file}, got more than ")
