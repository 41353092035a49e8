"""Images whose bytes stand in a column of Parquet, scored as the files they were."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import refused
from dcmpl import storage
from dcmpl.cli.main import main
from dcmpl.errors import DataError
from dcmpl.images.archives import Archives
from dcmpl.images.columns import BATCH, IMAGE_COLUMNS, ParquetImages
from dcmpl.scoring.files import read_scores

pytest_plugins = ("stores",)
pytestmark = pytest.mark.usefixtures("loaded_once")

COUNT = 3 * BATCH + 5
HUB = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
KINDS = ("hub", "binary", "large", "reversed")
MOST = 2**20


def cells_of(kind: str, contents: list[bytes | None]) -> pa.Array:
    """A column of images in one of the layouts in use."""
    if kind in ("binary", "large"):
        return pa.array(contents, pa.binary() if kind == "binary" else pa.large_binary())
    cells = [
        None if content is None else {"bytes": content, "path": f"{place}.png"}
        for place, content in enumerate(contents)
    ]
    fields = [HUB.field(i) for i in range(HUB.num_fields)]
    return pa.array(cells, pa.struct(fields[::-1] if kind == "reversed" else fields))


def written(path: Path, column: Any, group: int = 10, name: str = "image", **more: Any) -> str:
    pq.write_table(pa.table({"id": range(len(column)), name: column, **more}), path, group)
    return str(path)


@pytest.fixture
def contents() -> list[bytes | None]:
    return [f"image {i}".encode() * (1 + i % 3) for i in range(COUNT)]


def test_column_is_known_by_its_name_as_in_lists(
    tmp_path: Path, contents: list[bytes | None]
) -> None:
    for kind in ("hub", "binary"):
        path = written(tmp_path / f"{kind}.parquet", cells_of(kind, contents), name=" file  name ")
        with pytest.raises(DataError, match="got none"):
            ParquetImages(path)
        path = written(tmp_path / f"{kind}.parquet", cells_of(kind, contents), name=" image ")
        with ParquetImages(path) as images:
            assert images.read(7, MOST) == contents[7]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", [1, 10, COUNT])
def test_rows_are_read_in_any_order(
    tmp_path: Path, contents: list[bytes | None], kind: str, group: int
) -> None:
    path = written(tmp_path / "a.parquet", cells_of(kind, contents), group)
    with ParquetImages(path) as images:
        for row in (*range(COUNT), COUNT - 1, 0, 10, 9, 11, 12, 5):
            assert images.read(row, MOST) == contents[row]


def test_each_row_is_read_once_in_order(
    tmp_path: Path, contents: list[bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, sought = written(tmp_path / "a.parquet", cells_of("hub", contents)), list[int]()
    real = ParquetImages._seek
    monkeypatch.setattr(
        ParquetImages, "_seek", lambda self, row: sought.append(row) or real(self, row)
    )
    with ParquetImages(path) as images:
        assert [images.read(row, MOST) for row in range(COUNT)] == contents
    assert sought == [0]


@pytest.mark.parametrize("name", IMAGE_COLUMNS)
def test_column_of_bytes_may_have_several_names(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "a.parquet", cells_of("hub", [b"x"]), name=name)
    with ParquetImages(path) as images:
        assert images.read(0, MOST) == b"x"


@pytest.mark.parametrize("kind", KINDS)
def test_row_without_an_image_is_an_error_and_the_next_is_read(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path / "a.parquet", cells_of(kind, [b"a", None, b"c"]))
    with ParquetImages(path) as images:
        assert images.read(0, MOST) == b"a"
        with pytest.raises(DataError, match=r"expected an image in row 2 of .*, got none"):
            images.read(1, MOST)
        assert images.read(2, MOST) == b"c"


def test_image_may_have_so_many_bytes_and_no_more(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", cells_of("hub", [b"12345", b"1234"]))
    with ParquetImages(path) as images:
        with pytest.raises(DataError, match=r"expected at most 4 bytes in row 1 of .*, got more"):
            images.read(0, 4)
        assert images.read(1, 4) == b"1234"


@pytest.mark.parametrize("row", [-1, 2, 10**12])
def test_row_that_is_not_there_is_an_error(tmp_path: Path, row: int) -> None:
    path = written(tmp_path / "a.parquet", cells_of("hub", [b"a", b"b"]))
    with ParquetImages(path) as images:
        for before in (None, 1):  # behind the last row as well
            if before is not None:
                images.read(before, MOST)
            with pytest.raises(DataError, match=f"expected row {row + 1} in"):
                images.read(row, MOST)


def test_file_without_a_column_of_bytes_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", pa.array(["a.png"]))
    with pytest.raises(
        DataError, match=r"expected a column with the bytes of images in .*, got none"
    ):
        ParquetImages(path)


def test_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(50) + b"PAR1")
    for name in ("a.parquet", "gone.parquet"):
        with Archives() as archives, pytest.raises(DataError) as caught:
            archives.read(str(tmp_path / name), "0")
        assert str(caught.value).startswith(f"expected a whole file at {tmp_path}/{name}/0, got: ")
        assert "\n" not in str(caught.value)


def test_archives_take_a_row_for_a_member(tmp_path: Path, contents: list[bytes | None]) -> None:
    path = written(tmp_path / "a.parquet", cells_of("hub", contents))
    with Archives() as archives:
        assert [archives.read(path, str(row)) for row in range(COUNT)] == contents
        with pytest.raises(DataError):
            archives.read(path, "x")


# Scores


@pytest.fixture(scope="module")
def files(image_data: Path) -> list[Path]:
    """More than a chunk of them, some of them twice."""
    return [image_data.parent / f"{i % 48:02}.png" for i in range(70)]


@pytest.fixture(scope="module")
def plain(
    files: list[Path], trained_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """Rows of the files on disk, from a list with their prompts."""
    folder = tmp_path_factory.mktemp("plain")
    lines = [f"{file},a fox {i}\n" for i, file in enumerate(files)]
    (folder / "list.csv").write_text("image,prompt\n" + "".join(lines))
    return scored(folder / "list.csv", trained_run, folder / "out.jsonl")


def scored(path: object, run: Path, out: Path, code: int = 0) -> list[dict[str, Any]]:
    words = ["score", str(path), "--model", str(run), "--workers", "1", "-o", str(out)]
    assert main(words) == code
    return [dict(row) for row in read_scores(out)]


def without_names(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in row if name != "image"} for row in rows]


@pytest.fixture(params=["disk", "store"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "disk":
        yield str(tmp_path)
    else:
        yield f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


@pytest.mark.parametrize("kind", ["hub", "binary"])
def test_bytes_in_a_column_have_the_scores_of_the_files(
    files: list[Path],
    plain: list[dict[str, Any]],
    trained_run: Path,
    tmp_path: Path,
    place: str,
    kind: str,
) -> None:
    column = cells_of(kind, [file.read_bytes() for file in files])
    prompts = [f"a fox {i}" for i in range(len(files))]
    table = pa.table({"prompt": prompts, "image": column, "seed": [[1, 2]] * len(files)})
    content = io.BytesIO()
    pq.write_table(table, content, row_group_size=9)
    path = storage.join(place, "list.parquet")
    storage.write(path, content.getvalue())
    rows = scored(path, trained_run, tmp_path / "out.jsonl")
    assert without_names(rows) == without_names(plain)
    names = [f"{i}.png" if kind == "hub" else str(i) for i in range(len(files))]
    assert [row["image"] for row in rows] == [f"{path}/{name}" for name in names]


def test_rows_that_hold_no_image_are_errors(
    files: list[Path], trained_run: Path, tmp_path: Path
) -> None:
    good = files[0].read_bytes()
    cells = [
        {"bytes": good, "path": "../a.png"},
        {"bytes": None, "path": "b.png"},
        {"bytes": b"no image", "path": None},
        {"bytes": good[:500], "path": ""},
        None,
        {"bytes": good, "path": None},
    ]
    path = written(tmp_path / "list.parquet", pa.array(cells, HUB))
    rows = scored(path, trained_run, tmp_path / "out.jsonl", 3)
    assert [row["status"] for row in rows] == ["ok", *["error"] * 4, "ok"]
    assert [row["image"].removeprefix(f"{path}/") for row in rows] == [
        *["../a.png", "b.png", "2", "3", "4", "5"]
    ]
    assert rows[0]["quality"] == rows[-1]["quality"]
    assert rows[1]["reason"].endswith("got none")


def test_list_of_bytes_in_another_layout_is_refused(
    tmp_path: Path, trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "list.parquet", pa.array([[1, 2], [3]]))
    words = ["score", path, "--model", trained_run, "-o", tmp_path / "out.csv"]
    assert refused(capsys, 1, *words) == (
        f"expected text or numbers in image of {path}, got list<element: int64>"
    )
