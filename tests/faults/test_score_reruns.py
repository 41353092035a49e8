"""Scoring that is stopped or started again loses nothing; sources that cannot be read are rows."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import weakref
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from conftest import Capture, refused
from dcmpl.cli import select as choosing
from dcmpl.cli.main import main
from dcmpl.data import sources as sources_of
from dcmpl.data.sources import Source
from dcmpl.images.decode import DecodedImage
from dcmpl.scoring import job as scoring
from dcmpl.scoring import scorer as predict
from dcmpl.scoring.files import manifest_of, read_manifest, read_scores
from dcmpl.scoring.journal import journal_of
from dcmpl.scoring.scorer import Scorer
from dcmpl.scoring.torch_engine import TorchEngine

COUNT = 6
Patch = pytest.MonkeyPatch
Words = list[str]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "scores.csv"


@pytest.fixture
def folder(image_data: Path, tmp_path: Path) -> Path:
    found = tmp_path / "in"
    found.mkdir()
    for i in range(COUNT):
        shutil.copy(image_data.parent / f"{i:02}.png", found)
    return found


@pytest.fixture
def words(folder: Path, trained_run: Path, out: Path) -> Words:
    return ["score", str(folder), "--model", str(trained_run), "-o", str(out), "--workers", "1"]


@pytest.fixture
def small_chunks(monkeypatch: Patch) -> None:
    for module in (predict, scoring):
        monkeypatch.setattr(module, "CHUNK", 2)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def written(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.parent.glob("scores.csv*")}


def no_scoring(patch: Patch) -> None:
    def rows(*words: object) -> None:
        raise AssertionError("it is scored already")

    patch.setattr(Scorer, "rows", rows)


def fail_at(patch: Patch, where: Any, name: str, count: int, error: BaseException) -> None:
    """Raise ``error`` at the call of that number."""
    real, calls = getattr(where, name), iter(range(1, 1000))

    def failing(*words: Any) -> Any:
        if next(calls) == count:
            raise error
        return real(*words)

    patch.setattr(where, name, failing)


def selected(out: Path, *words: object) -> int:
    return main(["select", str(out), *(str(word) for word in words)])


@pytest.mark.parametrize("flag", ["--move", "--copy"])
def test_moving_and_copying_go_on_where_they_were_interrupted(
    monkeypatch: Patch, words: Words, out: Path, flag: str
) -> None:
    place, before = out.parent / "place", contents(Path(words[1]))
    assert main(words) == 0
    there = written(out)
    function = {"--move": (choosing.os, "rename"), "--copy": (choosing, "write_whole")}[flag]
    with monkeypatch.context() as patch:
        fail_at(patch, *function, 3, KeyboardInterrupt())
        assert selected(out, flag, place) == 130
    assert len(contents(place)) == 2
    assert selected(out, flag, place) == 0
    assert contents(place) == before
    assert contents(Path(words[1])) == ({} if flag == "--move" else before)
    assert written(out) == there


def test_copies_of_one_name_are_made_once(folder: Path, words: Words, out: Path) -> None:
    for i, path in enumerate([*folder.iterdir()]):
        (folder / f"{i}").mkdir()
        os.rename(path, folder / f"{i}" / "x.png")
    assert main(words) == 0
    assert selected(out, "--top", 2, "--copy", out.parent / "best") == 0
    before = contents(out.parent / "best")
    assert sorted(before) == ["x-2.png", "x.png"]
    assert selected(out, "--top", 2, "--copy", out.parent / "best") == 0
    assert contents(out.parent / "best") == before


def test_copy_that_fails_leaves_nothing_of_it(
    monkeypatch: Patch, words: Words, out: Path, capsys: Capture
) -> None:
    place, write = out.parent / "best", Path.write_bytes

    def half(path: Path, content: bytes) -> int:
        if path.parent != place:
            return write(path, content)
        write(path, content[:99])
        raise OSError(28, "No space left on device")

    assert main(words) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        assert selected(out, "--top", 1, "--copy", place) == 3
    assert contents(place) == {}
    told = capsys.readouterr().err
    assert told.startswith(f"0 copied to {place}\nexpected to copy ")
    assert told.endswith(", got: No space left on device\n")
    assert selected(out, "--top", 1, "--copy", place) == 0
    assert len(contents(place)) == 1


def test_copies_out_of_an_archive_that_are_gone_are_made_again(
    folder: Path, words: Words, out: Path
) -> None:
    words[1] = str(out.parent / "in.zip")
    with zipfile.ZipFile(words[1], "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    assert main(words) == 0
    for _ in range(2):
        assert selected(out, "--top", 2, "--copy", out.parent / "best") == 0
        assert len(contents(out.parent / "best")) == 2
        shutil.rmtree(out.parent / "best")


def test_finished_scores_count_for_their_words_and_as_they_were_written(
    words: Words, out: Path, capsys: Capture
) -> None:
    assert main(words) == 0
    assert main([*words, "--views", "resize", "--resume"]) == 0
    assert read_manifest(out)["views"] == "resize"
    assert "is finished" not in capsys.readouterr().err
    out.write_text(out.read_text().replace("ok", "so"))
    assert refused(capsys, 1, *words, "--resume") == (
        f"expected {out} as dcmpl score wrote it, got one that was changed since"
    )


def test_folder_in_place_of_the_manifest_costs_no_rows(
    words: Words, out: Path, capsys: Capture
) -> None:
    manifest_of(out).mkdir()
    assert main(words) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"dcmpl: expected to write {out}, got: {manifest_of(out)} is a folder: the rows scored so "
        f"far are in {journal_of(out)}, --resume goes on with them"
    )
    assert not out.exists()
    manifest_of(out).rmdir()
    assert main([*words, "--resume"]) == 0
    assert f"{COUNT} of {COUNT} images were scored before" in capsys.readouterr().err
    assert read_manifest(out)["count"] == len(rows_of(out)) == COUNT


@pytest.mark.usefixtures("small_chunks")
def test_rows_from_a_zeroed_one_on_are_scored_again(
    monkeypatch: Patch, words: Words, out: Path, capsys: Capture
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, scoring, "write_scores", 1, KeyboardInterrupt())
        assert main(words) == 130
    lines = journal_of(out).read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + COUNT
    assert main([*words, "--resume"]) == 0
    whole = written(out)
    for path in (out, manifest_of(out)):
        path.unlink()
    lines[4] = bytes(len(lines[4]) - 1) + b"\n"  # the fourth row, of the second chunk
    journal_of(out).write_bytes(b"".join(lines))
    capsys.readouterr()
    assert main([*words, "--resume"]) == 0
    assert f"2 of {COUNT} images were scored before" in capsys.readouterr().err
    assert written(out) == whole


@pytest.mark.usefixtures("small_chunks")
def test_engine_that_fails_in_the_middle_is_told_with_where_the_rows_are(
    monkeypatch: Patch, words: Words, out: Path, capsys: Capture
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, TorchEngine, "__call__", 2, RuntimeError("out of\nmemory"))
        assert main(words) == 1
    assert capsys.readouterr().err == (
        "dcmpl: expected to score all images, got RuntimeError: out of memory: the rows scored "
        f"so far are in {journal_of(out)}, --resume goes on with them\n"
    )
    assert main([*words, "--resume"]) == 0
    assert f"2 of {COUNT} images were scored before" in capsys.readouterr().err
    assert [row["status"] for row in rows_of(out)] == ["ok"] * COUNT


def test_reader_that_has_enough_ends_the_scoring(words: Words) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    words[words.index("-o") + 1] = "-"
    code = "import sys; from dcmpl.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *words]
    found = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert found.returncode == 0
    (line,) = found.stderr.splitlines()  # of what is known before the first row
    assert line.startswith("note: scores without MOS units and labels: ")


def test_empty_path_is_wrong_usage(words: Words, capsys: Capture) -> None:
    words[1] = ""
    assert refused(capsys, 2, *words) == "expected the path of images, got an empty one"


GRAPH = json.dumps(
    {"1": {"inputs": {"text": "a fox \ud83d"}}, "2": {"inputs": {"positive": ["1", 0]}}}
)  # half of an emoji


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("place", ["metadata", "sidecar"])
def test_prompts_beside_and_within_images_reach_every_format(
    image_data: Path, words: Words, out: Path, place: str, suffix: str
) -> None:
    content, info = io.BytesIO(), PngInfo()
    info.add_text("prompt", GRAPH)
    with Image.open(image_data.parent / "00.png") as image:
        image.save(content, "PNG", pnginfo=info)
    words[1], out = str(out.parent / "in.zip"), out.with_suffix(suffix)
    with zipfile.ZipFile(words[1], "w") as archive:
        archive.writestr("a.png", content.getvalue())
        archive.writestr("a.json", json.dumps({"caption": "a dog \udc80"}))
    assert main([*words, "-o", str(out), "--prompt-from", place]) == 0
    (row,) = read_scores(out)
    assert row["prompt"] == f"a {'fox' if place == 'metadata' else 'dog'} \N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_links_of_a_tar_and_whole_images_of_a_truncated_one_are_scored(
    folder: Path, words: Words, out: Path, kind: bytes
) -> None:
    words[1], link = str(out.parent / "in.tar"), tarfile.TarInfo("link.png")
    link.type, link.linkname = kind, "00.png"
    with tarfile.open(words[1], "w") as archive:
        archive.add(folder / "00.png", "00.png")
        archive.addfile(link)
        archive.add(folder / "01.png", "01.png")
        end = archive.offset
    assert main(words) == 0
    rows = rows_of(out)
    assert rows[1]["quality"] == rows[0]["quality"] != rows[2]["quality"] != ""
    os.truncate(words[1], end - 1000)
    assert main(words) == 3
    rows = rows_of(out)
    assert [rows[i]["status"] for i in (0, -2, -1)] == ["ok", "error", "error"]
    assert [row["image"] for row in rows[-2:]] == [f"{words[1]}/01.png", words[1]]
    assert rows[-1]["reason"].startswith(f"expected a whole file at {words[1]}, got: ")


def test_closed_folder_and_dangling_link_are_rows(
    monkeypatch: Patch, folder: Path, words: Words, out: Path
) -> None:
    scan, closed = os.scandir, folder / "closed"
    closed.mkdir()
    (folder / "z.png").symlink_to("nowhere.png")

    def scandir(path: str) -> Any:
        if path == str(closed):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert main(words) == 3
    rows = rows_of(out)
    assert [row["status"] for row in rows] == ["ok"] * COUNT + ["error"] * 2
    assert [row["image"] for row in rows[COUNT:]] == [str(folder / "z.png"), str(closed)]
    assert rows[-1]["reason"].endswith("got: Permission denied")


@pytest.mark.parametrize("listed", [False, True])
def test_pipe_is_a_row_and_nobody_waits_for_it(words: Words, out: Path, listed: bool) -> None:
    pipe, words[1] = out.parent / "x.png", str(out.parent / ("list.csv" if listed else "x.png"))
    os.mkfifo(pipe)
    (out.parent / "list.csv").write_text("image\nx.png\n")
    done = threading.Event()

    def let_go() -> None:  # whoever waits for a first byte, who then has another reason
        while not done.wait(10):
            os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))

    threading.Thread(target=let_go, daemon=True).start()
    assert main(words) == 3
    done.set()
    assert rows_of(out)[0]["reason"] == f"expected a file at {pipe}, got something else"


def test_nothing_is_kept_of_images_that_were_read(trained_run: Path, monkeypatch: Patch) -> None:
    alive: list[weakref.ref[Any]] = []

    def read_input(given: np.ndarray) -> DecodedImage:
        image = DecodedImage(given + 1)
        alive.append(weakref.ref(image.pixels))
        return image

    def source() -> Source:
        given = np.zeros((40, 44, 3), np.uint8)
        alive.append(weakref.ref(given))
        return Source("x", given=given)

    monkeypatch.setattr(sources_of, "read_input", read_input)
    scorer, most = Scorer.from_pretrained(trained_run, workers=1), 0

    def sources() -> Iterator[Source]:
        nonlocal most
        for _ in range(100):
            most = max(most, sum(ref() is not None for ref in alive))
            yield source()

    assert len([*scorer.rows(sources())]) == 100
    assert len(alive) == 200
    assert most < 10  # while 64 of them wait for their batch


def test_finished_job_is_not_scored_again(
    words: Words, out: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    assert main(words) == 0
    before = written(out)
    no_scoring(monkeypatch)
    assert main([*words, "--resume"]) == 0
    assert f"{out} is finished" in capsys.readouterr().err
    assert written(out) == before


def test_images_that_came_later_are_not_passed_over(
    folder: Path, words: Words, out: Path, image_data: Path
) -> None:
    assert main(words) == 0
    shutil.copy(image_data.parent / "40.png", folder)
    assert main([*words, "--resume"]) == 0
    assert len(rows_of(out)) == COUNT + 1
