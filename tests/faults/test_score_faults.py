"""Whatever an image is, it ends as one row: a score, or the reason why there is none."""

import csv
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import Capture
from dcmpl.cli.main import main
from dcmpl.config import TARGETS
from dcmpl.scoring.scorer import Scorer
from dcmpl.scoring.torch_engine import TorchEngine

TOLERANCE = 1e-6
"""Batches of other sizes add up in another order: a few float32 roundings of a value < 1."""

Row = dict[str, str]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "scores.csv"


@pytest.fixture
def good(image_data: Path) -> list[Path]:
    return [image_data.parent / f"{i:02}.png" for i in range(3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "in"
    found.mkdir()
    return found


def rows_of(file: Path) -> list[Row]:
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as handle:
        return list(csv.DictReader(handle))


def score(*words: object) -> int:
    return main(["score", *(str(word) for word in words)])


def png_of_declared_size(path: Path, width: int, height: int) -> None:
    """A PNG whose header says so, with next to nothing behind it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 64)), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def _truncated(path: Path, source: Path) -> None:
    path.write_bytes(source.read_bytes()[:2000])


def _text_in_the_middle(path: Path, source: Path) -> None:
    content = bytearray(source.read_bytes())
    content[500:1500] = b"not what was there  " * 50
    path.write_bytes(bytes(content))


BAD: dict[str, Callable[[Path, Path], object]] = {
    "truncated": _truncated,
    "damaged in the middle": _text_in_the_middle,
    "empty": lambda path, source: path.touch(),
    "text": lambda path, source: path.write_text("no image"),
    "another kind of file": lambda path, source: path.write_bytes(b"PK\3\4" + bytes(range(256))),
    "never there": lambda path, source: None,
    "a dangling link": lambda path, source: path.symlink_to("nowhere.png"),
    "a link to itself": lambda path, source: path.symlink_to(path.name),
    "a read error": lambda path, source: path.symlink_to("/proc/self/mem"),
    "a decompression bomb": lambda path, source: png_of_declared_size(path, 60_000, 60_000),
    "a side too long": lambda path, source: png_of_declared_size(path, 70_000, 1),
}


def assert_one_bad_among_good(rows: list[Row], names: list[Path], alone: list[Row]) -> str:
    """The middle one has a reason, which is returned; the others score as they do alone."""
    assert [row["image"] for row in rows] == [str(name) for name in names]
    assert [row["status"] for row in rows] == ["ok", "error", "ok"]
    assert [rows[1][target] for target in TARGETS] == ["", "", ""]
    for row, expected in zip((rows[0], rows[2]), alone, strict=True):
        assert float(row["quality"]) == pytest.approx(float(expected["quality"]), abs=TOLERANCE)
        assert row["reason"] == ""
    return rows[1]["reason"]


@pytest.fixture(scope="module")
def alone(
    image_data: Path, trained_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[Row]:
    """Rows of the first two images with nothing between them."""
    file = tmp_path_factory.mktemp("alone") / "scores.csv"
    names = [image_data.parent / name for name in ("00.png", "01.png")]
    assert score(*names, "--model", trained_run, "-o", file) == 0
    return rows_of(file)


@pytest.mark.parametrize("kind", BAD)
def test_bad_file_among_good_ones_is_one_row_with_a_reason(
    trained_run: Path, out: Path, good: list[Path], alone: list[Row], folder: Path, kind: str
) -> None:
    bad = folder / "x.png"
    BAD[kind](bad, good[2])
    names = [good[0], bad, good[1]]
    assert score(*names, "--model", trained_run, "-o", out) == 3
    reason = assert_one_bad_among_good(rows_of(out), names, alone)
    assert reason.startswith("expected ")
    assert str(bad) in reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_one_row_with_a_reason(
    trained_run: Path, out: Path, good: list[Path], folder: Path
) -> None:
    bad = folder / "x.png"
    shutil.copy(good[2], bad)
    bad.chmod(0)
    assert score(bad, "--model", trained_run, "-o", out) == 3
    assert "Permission denied" in rows_of(out)[0]["reason"]


def test_file_that_vanishes_once_it_is_listed_is_one_row_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
    trained_run: Path,
    out: Path,
    good: list[Path],
    alone: list[Row],
    folder: Path,
) -> None:
    names = [folder / name for name in ("a.png", "b.png", "c.png")]
    for source, name in zip((good[0], good[2], good[1]), names, strict=True):
        shutil.copy(source, name)
    load = Scorer.from_pretrained.__func__  # type: ignore[attr-defined]

    def load_and_lose(cls: type[Scorer], *words: object, **more: object) -> Scorer:
        names[1].unlink()
        found: Scorer = load(cls, *words, **more)
        return found

    monkeypatch.setattr(Scorer, "from_pretrained", classmethod(load_and_lose))
    assert score(folder, "--model", trained_run, "-o", out) == 3
    reason = assert_one_bad_among_good(rows_of(out), names, alone)
    assert reason == f"expected an image at {names[1]}, got no file"


def test_directory_called_as_an_image_is_one_row_of_a_list(
    trained_run: Path, out: Path, good: list[Path], folder: Path
) -> None:
    (folder / "x.png").mkdir()
    names = [good[0], folder / "x.png", good[1]]
    (folder / "list.csv").write_text("image\n" + "".join(f"{name}\n" for name in names))
    assert score(folder / "list.csv", "--model", trained_run, "-o", out) == 3
    rows = rows_of(out)
    assert [row["status"] for row in rows] == ["ok", "error", "ok"]
    assert rows[1]["reason"] == f"expected a file at {names[1]}, got something else"


def test_directory_called_as_an_image_is_a_folder_within_a_folder(
    trained_run: Path, out: Path, good: list[Path], folder: Path
) -> None:
    (folder / "x.png").mkdir()
    inside = [folder / "a.png", folder / "x.png" / "b.png"]
    for source, place in zip(good, inside, strict=False):
        shutil.copy(source, place)
    assert score(folder, "--model", trained_run, "-o", out) == 0
    assert [row["image"] for row in rows_of(out)] == [str(place) for place in inside]


def test_jpeg_called_png_scores_as_the_jpeg_it_is(
    trained_run: Path, out: Path, good: list[Path], folder: Path
) -> None:
    with Image.open(good[0]) as image:
        image.save(folder / "a.jpg", quality=60)
    shutil.copy(folder / "a.jpg", folder / "a.png")
    assert score(folder / "a.jpg", folder / "a.png", "--model", trained_run, "-o", out) == 0
    first, second = rows_of(out)
    assert first["quality"] == second["quality"] != ""


@pytest.mark.parametrize("views", ["center", "windows", "grid-3", "resize"])
def test_image_of_any_size_has_a_score(
    trained_run: Path, out: Path, folder: Path, views: str
) -> None:
    sizes = (1, 1), (1, 50), (31, 33), (30_000, 20)
    for size in sizes:
        Image.new("RGB", size, (90, 120, 40)).save(folder / f"{size[0]}x{size[1]}.png")
    assert score(folder, "--model", trained_run, "-o", out, "--views", views) == 0
    rows = rows_of(out)
    assert [row["status"] for row in rows] == ["ok"] * len(sizes)
    assert all(0 <= float(row["quality"]) <= 1 for row in rows)


NAMES = {
    "a newline": "a\nb.png",
    "a carriage return": "a\rb.png",
    "an emoji": "\N{FOX FACE} \N{SPARKLES}.png",
    "quotes and commas": "\"a\", 'b'; c.png",
    "brackets of a glob": "a[1]*?.png",
    "no UTF-8": os.fsdecode(b"caf\xe9 \xff.png"),
    "300 characters": "/".join(["d" * 99] * 3) + "/a.png",
    "255 bytes": "a" * 251 + ".png",
    "words of a parser": "null",
    "a leading space": " a.png ",
}


@pytest.fixture
def named(good: list[Path], folder: Path) -> list[Path]:
    """A copy of one image under each of those names."""
    places = [folder / name for name in NAMES.values()]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(good[0], place)
    return places


def test_files_of_any_name_are_rows_of_those_names(
    trained_run: Path, out: Path, named: list[Path]
) -> None:
    assert score(*named, "--model", trained_run, "-o", out) == 0
    assert [row["image"] for row in rows_of(out)] == [str(place) for place in named]


def test_json_lines_hold_any_name(trained_run: Path, out: Path, named: list[Path]) -> None:
    out = out.with_suffix(".jsonl")
    assert score(*named, "--model", trained_run, "-o", out) == 0
    found = [json.loads(line)["image"] for line in out.read_text().splitlines()]
    assert found == [str(place) for place in named]


def test_parquet_holds_any_name_as_text(trained_run: Path, out: Path, named: list[Path]) -> None:
    out = out.with_suffix(".parquet")
    assert score(*named, "--model", trained_run, "-o", out) == 0
    texts = [os.fsencode(place).decode("utf-8", "replace") for place in named]
    assert list(pd.read_parquet(out)["image"]) == texts


def test_name_that_no_disk_takes_is_one_row(
    trained_run: Path, out: Path, good: list[Path], alone: list[Row], folder: Path
) -> None:
    names = [good[0], folder / ("a" * 300 + ".png"), good[1]]
    assert score(*names, "--model", trained_run, "-o", out) == 3
    assert "File name too long" in assert_one_bad_among_good(rows_of(out), names, alone)


def test_name_that_no_disk_takes_is_one_row_of_a_list(
    trained_run: Path, out: Path, good: list[Path], folder: Path
) -> None:
    names = [str(good[0]), str(folder / ("a" * 300 + ".png")), "a\0.png", str(good[1])]
    lines = [json.dumps({"image": name}) for name in names]
    (folder / "list.jsonl").write_text("\n".join(lines))
    assert score(folder / "list.jsonl", "--model", trained_run, "-o", out) == 3
    rows = rows_of(out)
    assert [row["status"] for row in rows] == ["ok", "error", "error", "ok"]
    assert "File name too long" in rows[1]["reason"]
    assert "embedded null byte" in rows[2]["reason"]


def test_rows_keep_the_order_of_the_images_whatever_fails(
    trained_run: Path, out: Path, good: list[Path], folder: Path
) -> None:
    rng = np.random.default_rng(5)
    fails = rng.random(150) < 0.4
    names = [folder / f"{i}.png" for i in rng.permutation(150)]
    for name, bad in zip(names, fails, strict=True):
        if bad:
            BAD["truncated"](name, good[0])
        else:
            shutil.copy(good[0], name)
    assert score(*names, "--model", trained_run, "-o", out, "--workers", 3) == 3
    rows = rows_of(out)
    assert [row["image"] for row in rows] == [str(name) for name in names]
    assert [row["status"] == "error" for row in rows] == fails.tolist()
    assert [row["quality"] == "" for row in rows] == fails.tolist()


def test_list_gives_a_row_for_each_of_its_rows(
    trained_run: Path, out: Path, good: list[Path], folder: Path
) -> None:
    shutil.copy(good[0], folder / "a, b.png")
    (folder / "list.csv").write_text(
        'image,prompt\n"a, b.png","a ""red"" fox,\nand a dog"\n"a, b.png",twice\n'
        f"{good[1]}\ngone.png,extra\n,nameless\n"
    )
    assert score(folder / "list.csv", "--model", trained_run, "-o", out) == 3
    first = str(folder / "a, b.png")
    found = [(row["image"], row["prompt"], row["status"]) for row in rows_of(out)]
    assert found == [
        (first, 'a "red" fox,\nand a dog', "ok"),
        (first, "twice", "ok"),
        (str(good[1]), "", "ok"),
        (str(folder / "gone.png"), "extra", "error"),
        (str(folder / "list.csv"), "nameless", "error"),
    ]
    assert rows_of(out)[-1]["reason"].endswith("got an empty cell")


def test_prompts_of_a_table_may_lack_rows_and_have_more(
    capsys: Capture, trained_run: Path, out: Path, good: list[Path], folder: Path
) -> None:
    table = folder / "prompts.csv"
    table.write_text(
        f'image,prompt\n00.png,"a ""red"" fox,\nand a dog"\nother.png,extra\n{good[0]},'
        '"a ""red"" fox,\nand a dog"\n'
    )
    words = [*good[:2], "--model", trained_run, "-o", out, "--prompts", table]
    assert score(*words) == 0
    assert [row["prompt"] for row in rows_of(out)] == ['a "red" fox,\nand a dog', ""]
    # Behind them the rate, and that the run is not calibrated.
    assert capsys.readouterr().err.splitlines()[:-2] == [
        f"1 rows of {table} name none of the images, 'other.png' among them",
        f"1 of 2 images have no row in {table}, {str(good[1])!r} among them: they get no prompt",
        "note: this model judges alignment from the image alone; prompts are carried along",
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_score_that_is_no_number_is_an_error(
    monkeypatch: pytest.MonkeyPatch, trained_run: Path, out: Path, good: list[Path], value: float
) -> None:
    compute = TorchEngine.__call__

    def broken(self: TorchEngine, windows: np.ndarray, texts: Any = ()) -> np.ndarray:
        found = compute(self, windows, texts)
        found[1, 0] = value
        return found

    monkeypatch.setattr(TorchEngine, "__call__", broken)
    assert score(*good, "--model", trained_run, "-o", out) == 3
    rows = rows_of(out)
    assert [row["status"] for row in rows] == ["ok", "error", "ok"]
    assert [rows[1][target] for target in TARGETS] == ["", "", ""]
    wanted = f"expected finite scores of {good[1]} in [0, 1], got others from the model"
    assert rows[1]["reason"] == wanted
