"""Images, archives, tables and texts of strangers: a row or a sentence, and text stays text.

All hostile images are scored in one job, so none may harm the row of another.
"""

import csv
import html
import io
import json
import os
import re
import shutil
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from conftest import Capture
from dcmpl.cli.main import main
from dcmpl.errors import DcmplError
from dcmpl.files import sealed
from dcmpl.images.archives import Archives
from dcmpl.scoring.files import read_scores, write_scores
from pngs import chunk

ESCAPE, BELL, NEW_LINE = "\x1b]0;owned\x07\x1b[2J", "\x07", "\ndcmpl: all is well"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2066]")
"""What a terminal would act on; a line may end, and a tab is a blank."""


@dataclass(frozen=True)
class Hostile:
    """A file in a folder that is scored, what makes it, its status, and its reason or note."""

    name: str
    make: Callable[[Path], object]
    status: str
    says: str


def pixels() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def encoded(kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    pixels().save(file, kind, **options)
    return file.getvalue()


def png_with(*chunks: bytes, size: tuple[int, int] | None = None) -> Callable[[Path], object]:
    """A PNG with these chunks behind its header; ``size`` is what the header claims."""
    content = encoded()
    head, rest = content[:33], content[33:]
    if size is not None:
        head = content[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    return lambda path: path.write_bytes(head + b"".join(chunks) + rest)


def packed(kind: bytes, size: int) -> bytes:
    return chunk(kind, b"parameters\0\0" + zlib.compress(bytes(size), 9))


def gif_of(frames: int) -> Callable[[Path], object]:
    """A GIF of many frames of one pixel, and a first one that is whole."""
    content = encoded("GIF")
    frame = b"\x2c\0\0\0\0\1\0\1\0\0\2\2D\1\0"
    return lambda path: path.write_bytes(content[:-1] + frame * frames + b";")


def tiff_loop(path: Path) -> None:
    """A TIFF whose directory names itself as the next."""
    content = bytearray(encoded("TIFF"))
    (place,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, place)
    struct.pack_into("<I", content, place + 2 + 12 * count, place)
    path.write_bytes(content)


def exif_of(orientation: object = 1, comment: bytes = b"") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "prompt: " + "{" * 5000
    exif.get_ifd(0x8769)[0x9286] = comment
    return exif.tobytes()


def with_texts(**texts: str) -> Callable[[Path], object]:
    info = PngImagePlugin.PngInfo()
    for name, content in texts.items():
        info.add_text(name, content)
    return lambda path: path.write_bytes(encoded(pnginfo=info))


IMAGES = [
    Hostile("good.png", lambda p: p.write_bytes(encoded()), "ok", "^$"),
    Hostile("size.png", png_with(size=(2**31 - 1, 2**31 - 1)), "error", "exceeds limit of "),
    Hostile("zero.png", png_with(size=(0, 40)), "error", "^expected an image"),
    Hostile("long.png", png_with(size=(65_536, 1)), "error", "sides of at most 65535"),
    Hostile("text-bomb.png", png_with(packed(b"zTXt", 2**26)), "ok", "too large to read"),
    Hostile("profile-bomb.png", png_with(packed(b"iCCP", 2**26)), "ok", "too large to read"),
    Hostile("texts.png", png_with(packed(b"zTXt", 2**20) * 80), "ok", "too large to read"),
    Hostile(
        "profile.png",
        lambda p: p.write_bytes(encoded(icc_profile=bytes(128) + b"\xff" * 4000)),
        *("ok", "its colour profile cannot be read"),
    ),
    Hostile(
        "exif.jpg",
        lambda p: p.write_bytes(encoded("JPEG", exif=b"Exif\0\0MM\0*\xff\xff")),
        "ok",
        "",
    ),
    Hostile("exif-texts.jpg", lambda p: p.write_bytes(encoded("JPEG", exif=exif_of())), "ok", "^$"),
    Hostile(
        "orientation.jpg",
        lambda p: p.write_bytes(encoded("JPEG", exif=exif_of(60_000, b"UNICODE\0\xd8" * 99))),
        *("ok", "^$"),
    ),
    Hostile("frames.gif", gif_of(2000), "ok", "the first of "),
    Hostile("loop.tiff", tiff_loop, "ok", ""),
    Hostile("script.png", lambda p: p.write_bytes(b"%!PS\n(it-ran) (w) file\n"), "error", "cannot"),
    Hostile(
        "page.png", lambda p: p.write_text("<svg onload=alert(1)>"), "error", "cannot identify"
    ),
    Hostile("pickle.png", lambda p: p.write_bytes(b"\x80\x04cos\nsystem\n."), "error", "cannot"),
    Hostile("graph.png", with_texts(prompt='{"1":' * 4000), "ok", ""),
    Hostile("loop.png", with_texts(prompt='{"1":{"inputs":{"positive":["1",0]}}}'), "ok", ""),
    Hostile("fifo.png", os.mkfifo, "error", "expected a file at"),
    Hostile("device.png", lambda p: p.symlink_to("/dev/zero"), "error", "expected a file at"),
    Hostile("round.png", lambda p: p.symlink_to(p.name), "error", "^expected "),
    Hostile(f"a{ESCAPE}.png", lambda p: p.write_text("x"), "error", "^expected an image"),
    Hostile(f"b{NEW_LINE}.png", lambda p: p.write_text("x"), "error", "^expected an image"),
    Hostile("<img src=x onerror=alert(1)>.png", lambda p: p.write_bytes(encoded()), "ok", "^$"),
    Hostile("=1+1.png", lambda p: p.write_bytes(encoded()), "ok", "^$"),
]


@dataclass(frozen=True)
class Job:
    """What scoring all of them gave: the code, the rows by name, and what was said."""

    code: int
    rows: dict[str, dict[str, object]]
    said: str


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, trained_run: Path) -> Job:
    return hostile_job(tmp_path_factory.mktemp("hostile"), trained_run)


def hostile_job(folder: Path, run: Path) -> Job:
    (folder / "in").mkdir()
    for hostile in IMAGES:
        hostile.make(folder / "in" / hostile.name)
    out, said = folder / "scores.csv", io.StringIO()
    words = ["score", str(folder / "in"), "--model", str(run), "-o", str(out)]
    with redirect_stderr(said), redirect_stdout(said):
        code = main([*words, "--prompt-from", "metadata"])
    rows = {str(row["image"]): dict(row) for row in read_scores(out)}
    prefix = f"{folder / 'in'}/"
    named = {name.removeprefix(prefix): row for name, row in rows.items()}
    return Job(code, named, said.getvalue())


def test_job_of_hostile_images_ends_with_the_code_for_lost_ones(job: Job) -> None:
    assert job.code == 3
    assert len(job.rows) == len(IMAGES)


@pytest.mark.parametrize("hostile", IMAGES, ids=lambda hostile: ascii(hostile.name))
def test_hostile_image_is_a_row_with_a_score_or_a_reason(job: Job, hostile: Hostile) -> None:
    row = job.rows[hostile.name]
    assert row["status"] == hostile.status, row
    said = str(row["reason"] if hostile.status == "error" else row["note"])
    said = said if "^$" not in hostile.says else re.sub("no prompt read[^;]*", "", said)
    assert re.search(hostile.says, said), row
    assert (row["quality"] is None) == (hostile.status == "error")


def zip_of(path: Path, name: str, content: bytes, compress: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr(name, content)
    return path


def bomb(size: int, kind: str) -> Callable[[Path], Path]:
    """An archive of one member of zeros."""

    def make(folder: Path) -> Path:
        if kind.startswith("tar"):
            path = folder / f"a.{kind}"
            mode: Any = f"w:{kind.partition('.')[2]}"
            with tarfile.open(path, mode) as archive:
                info = tarfile.TarInfo("a.png")
                info.size = size
                archive.addfile(info, io.BytesIO(bytes(size)))
            return path
        compress = {"deflate": 8, "bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}[kind]
        return zip_of(folder / "a.zip", "a.png", bytes(size), compress)

    return make


BOMBS = ["deflate", "bzip2", "lzma", "tar.gz", "tar.bz2", "tar.xz"]


@pytest.mark.parametrize("kind", BOMBS)
def test_member_that_unpacks_to_much_takes_no_more_than_the_limit(
    tmp_path: Path, kind: str
) -> None:
    path, limit = bomb(2**26, kind)(tmp_path), 2**20
    assert path.stat().st_size < 2**18
    tracemalloc.start()
    try:
        with (
            Archives() as archives,
            pytest.raises(
                DcmplError, match=r"^expected (at most 1048576|a stored or deflated member)"
            ),
        ):
            archives.read(str(path), "a.png", limit)
        assert tracemalloc.get_traced_memory()[1] < 24 * limit  # xz has a window of 8 MB
    finally:
        tracemalloc.stop()


def encrypted(path: Path) -> Path:
    content = bytearray(zip_of(path, "a.png", encoded()).read_bytes())
    for mark, place in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        content[content.index(mark) + place] |= 1
    path.write_bytes(content)
    return path


def tar_of(path: Path, *members: tuple[str, bytes, str]) -> Path:
    """A tar of members: name, kind, and where a link leads."""
    with tarfile.open(path, "w") as archive:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return path


def chained(path: Path) -> Path:
    """Ten thousand headers that each say they name the next."""
    info = tarfile.TarInfo("a")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 512
    path.write_bytes((info.tobuf() + b"a.png".ljust(512, b"\0")) * 10_000 + bytes(1024))
    return path


def large_header(path: Path) -> Path:
    info = tarfile.TarInfo("a")
    info.type, info.size = tarfile.XHDTYPE, 2**33
    path.write_bytes(info.tobuf() + bytes(1024))
    return path


def sparse_member(path: Path) -> Path:
    """A member of a thousand billion bytes of which none is there."""
    pax = {"GNU.sparse.size": str(10**12), "GNU.sparse.numblocks": "0", "GNU.sparse.map": "0,0"}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.png")
        info.pax_headers = pax
        archive.addfile(info)
    return path


def not_packed(path: Path) -> Path:
    path.write_bytes(b"\x80\x04cos\nsystem\n.")
    return path


LINK, HARD, DEVICE = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE

ARCHIVES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "encrypted.zip": (encrypted, "is encrypted, password required"),
    "absolute.zip": (lambda p: zip_of(p, "/../../it-ran.png", b"x"), "^expected an image"),
    "above.zip": (lambda p: zip_of(p, "../it-ran.png", b"x"), "^expected an image"),
    "link.tar": (lambda p: tar_of(p, ("a.png", LINK, "/etc/hostname")), "^expected a whole file"),
    "hard.tar": (lambda p: tar_of(p, ("a.png", HARD, "/etc/hostname")), "^expected a whole file"),
    "round.tar": (
        lambda p: tar_of(p, ("a.png", LINK, "b.png"), ("b.png", LINK, "a.png")),
        "^expected a file at .*round.tar/[ab].png, got a link that leads to itself",
    ),
    "device.tar": (lambda p: tar_of(p, ("a.png", DEVICE, "")), "^expected images in "),
    "chain.tar": (chained, "^expected (a whole file|images in)"),
    "header.tar": (large_header, "^expected a whole file"),
    "sparse.tar": (sparse_member, "^expected (at most 536870912 bytes|a whole file|an image)"),
    "pickle.zip": (
        lambda p: (p.write_bytes(b"\x80\x04cos\n.") and p) or p,
        "^expected a whole file",
    ),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_hostile_archive_is_rows_with_reasons_and_leaves_nothing(
    tmp_path: Path, trained_run: Path, name: str
) -> None:
    (tmp_path / "in").mkdir()
    make, says = ARCHIVES[name]
    path, out = make(tmp_path / "in" / name), tmp_path / "scores.csv"
    assert main(["score", str(path), "--model", str(trained_run), "-o", str(out)]) == 3
    rows = list(read_scores(out))
    assert rows
    for row in rows:
        assert row["status"] == "error"
        assert re.search(says, row["reason"]), row["reason"]
    assert list(tmp_path.rglob("it-ran*")) == []
    assert os.listdir(tmp_path / "in") == [name]


def table(content: bytes | str, name: str = "a.csv") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        file = folder / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return make


HEAD = "image,prompt,mos_quality\n"
TABLES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a column twice": (table("image,image\na,b\n"), "^expected each column once"),
    "a cell without end": (table(HEAD + '"' + "x" * 200_000 + "\n"), "^expected a UTF-8 CSV table"),
    "no text": (table(b"\xff\xd8\xff\xe0"), "^expected a UTF-8 CSV table"),
    "a pickle": (table(b"\x80\x04cos\nsystem\n.", "a.parquet"), "^expected a Parquet table"),
    "a zip of nothing": (table(b"PK\5\6" + bytes(18), "a.xlsx"), "^expected a XLSX table"),
    "numbers of JSON without end": (table('[{"image": 1e999}]', "a.json"), "^expected "),
    "a name that is no name": (table('[{"image": ["a"]}]', "a.json"), "a list in row 1$"),
    "digits without end": (table('[{"image": ' + "9" * 9000 + "}]", "a.json"), "^expected "),
    "an opinion of two": (table(HEAD + "a.png,a,3 4\n"), "'3 4' in line 2"),
    "an escape for an opinion": (table(HEAD + f"a.png,a,{ESCAPE}\n"), "in line 2"),
    "a name of escapes twice": (table(HEAD + f"{ESCAPE},a,3\n" * 2), "^expected each image once"),
    "a column of escapes": (table(f"image,{ESCAPE}\na,b\n"), "^expected the columns image"),
}


@pytest.mark.parametrize("name", TABLES)
def test_hostile_table_is_one_sentence_without_controls(
    tmp_path: Path, capsys: Capture, name: str
) -> None:
    make, says = TABLES[name]
    words = ["data", "check", str(make(tmp_path)), "--mos-scale", "1", "5"]
    assert main(words) == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert re.search(says, line.removeprefix("dcmpl: ")), line
    assert not CONTROL.search(line + captured.out.replace("\n", ""))


FORMULAS = ["=1+1", "+1", "-1+cmd|' /C calc'!A0", "@SUM(1)", "\t=1", "\r=1", "=HYPERLINK(1)", "'=1"]
LINES = ["a\nb", "\n=1", ESCAPE, '",=1+1,"', ";=1", "|=1"]


@pytest.mark.parametrize("cell", FORMULAS + LINES)
@pytest.mark.parametrize("column", ["image", "prompt", "reason", "note"])
def test_cell_that_a_spreadsheet_would_run_is_written_as_text_and_read_back(
    tmp_path: Path, cell: str, column: str
) -> None:
    row = {
        **{"image": "a.png", "prompt": "", "quality": 0.5, "alignment": None},
        **{"authenticity": None, "status": "ok", "reason": "", "note": ""},
        column: cell,
    }
    out = tmp_path / "scores.csv"
    write_scores(out, [row], {}, {})
    assert list(read_scores(out)) == [row]
    with out.open(newline="", encoding="utf-8") as file:
        written = next(csv.DictReader(file))[column]
    assert written[:1] not in ("=", "+", "-", "@", "\t", "\r")


TAGS = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</title><script>"]


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("where", ["prompt", "generator", "name"])
def test_page_shows_tags_as_text(tmp_path: Path, capsys: Capture, tag: str, where: str) -> None:
    name = tag.replace("/", "") if where == "name" else "a"
    (tmp_path / f"{name}.png").write_bytes(encoded())
    (tmp_path / "b.png").write_bytes(encoded())
    rows = [["image", "prompt", "generator", "mos_quality"], [f"{name}.png", "a", "g", "2"]]
    if where != "name":
        rows[1][rows[0].index(where)] = tag
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        csv.writer(file).writerows([*rows, ["b.png", "b", "g", "3"]])
    page = tmp_path / "page.html"
    words = ["data", "show", str(tmp_path / "mine.csv"), "--mos-scale", "1", "5", "-o", str(page)]
    assert main(words) == 0
    made, shown = page.read_text(), name if where == "name" else tag
    assert shown not in made
    assert html.escape(shown)[:40] in made


def shown(*words: object) -> str:
    """All that a command prints; it ends with a sentence where it fails."""
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(said):
        code = main([str(word) for word in words])
    if code == 2 or said.getvalue().startswith("dcmpl: "):
        assert said.getvalue().count("\n") == 1
        assert said.getvalue().startswith("dcmpl: expected ")
    return said.getvalue()


def shown_record(folder: Path, run: Path) -> str:
    """What ``info`` shows of a record that a stranger sealed."""
    copy = Path(shutil.copytree(run, folder / "run"))
    record = json.loads((copy / "run.json").read_text())
    del record["digest"]
    (copy / "run.json").write_bytes(sealed({**record, "preset": f"[red]{ESCAPE}"}))
    said = shown("info", copy)
    assert "[red]" in said
    return said


def shown_rows(folder: Path, run: Path) -> str:
    """Rows on standard output, of an image with a name of escapes."""
    (folder / f"a{ESCAPE}.png").write_bytes(encoded())
    return shown("score", folder, "--model", run, "--prompt", ESCAPE, "-o", "-")


def shown_chosen(folder: Path, run: Path) -> str:
    """What ``select`` prints of a file of scores with a name of escapes."""
    row = {
        **{"image": ESCAPE, "prompt": "", "quality": 0.5, "alignment": None},
        **{"authenticity": None, "status": "ok", "reason": "", "note": ""},
    }
    write_scores(folder / "scores.csv", [row], {}, {})
    return shown("select", folder / "scores.csv", "--copy", folder / "copies")


def shown_data(folder: Path, run: Path) -> str:
    """What ``data check`` prints of a table with columns and generators of escapes."""
    file = folder / "mine.csv"
    names = f"image,prompt,generator,mos_quality,mos_{ESCAPE}\n"
    file.write_text(f"{names}a.png,{ESCAPE},{ESCAPE},3,\n{ESCAPE}.png,b,c,2,\n")
    return shown("data", "check", file, "--mos-scale", 1, 5)


SHOWN: dict[str, Callable[[Path, Path], str]] = {
    "rows on standard output": shown_rows,
    "a record": shown_record,
    "chosen images": shown_chosen,
    "a data set": shown_data,
    "a file": lambda f, run: shown("select", f / f"{ESCAPE}.csv"),
    "a flag": lambda f, run: shown("score", f"--{ESCAPE}"),
    "a command": lambda f, run: shown(ESCAPE),
    "a model": lambda f, run: shown("info", f / ESCAPE),
    "a name of two lines": lambda f, run: shown("info", f / f"a{NEW_LINE}"),
    "a setting": lambda f, run: shown(
        "train", "--data", f, "--out", f / "r", "--set", f"{ESCAPE}=1"
    ),
    "a text from right to left": lambda f, run: shown("info", f / "a\u202e"),
    "a control of eight bits": lambda f, run: shown("info", f / "a\x9b2J"),
    "hostile images": lambda f, run: hostile_job(f, run).said,
}


@pytest.mark.parametrize("name", SHOWN)
def test_terminal_is_given_no_controls(tmp_path: Path, trained_run: Path, name: str) -> None:
    said = SHOWN[name](tmp_path, trained_run)
    assert not CONTROL.search(said.replace("\n", ""))
    assert "\ndcmpl: all is well" not in said


def test_name_with_a_nul_is_told_as_no_image(tmp_path: Path, capsys: Capture) -> None:
    path = table(HEAD + "a\0.png,a,3\n")(tmp_path)
    assert main(["data", "check", str(path), "--mos-scale", "1", "5"]) == 1
    told = capsys.readouterr().out
    assert "a\\x00.png: embedded null byte" in told
    assert not CONTROL.search(told.replace("\n", ""))
