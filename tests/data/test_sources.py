"""Files, folders, globs and lists become entries: each image once, each fault a row."""

import os
import tarfile
import threading
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dcmpl.cli.main import main
from dcmpl.data.sidecars import MAX_SIDECAR_BYTES
from dcmpl.data.sources import Source, find_sources, with_content, with_prompts
from dcmpl.errors import DataError, UsageError
from dcmpl.images.decode import is_image
from dcmpl.scoring.files import read_scores


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder of images and others, two deep."""
    for name in ("b.png", "a.JPG", "notes.txt", "sub/c.webp", "sub/deep/d.gif", "sub/._c.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def found_in(*paths: Path | str, sidecar: bool = False) -> list[Source]:
    return find_sources([str(path) for path in paths], sidecar)


def names(root: Path, found: Sequence[Source]) -> list[str]:
    return [str(Path(entry.name).relative_to(root)) for entry in found]


def prompts(found: Sequence[Source]) -> list[str]:
    return [entry.prompt for entry in found]


def test_files_stay_in_the_order_they_are_named(tree: Path) -> None:
    assert names(tree, found_in(tree / "b.png", tree / "a.JPG")) == ["b.png", "a.JPG"]


def test_file_is_named_as_it_was_asked_for(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert found_in("./b.png") == [Source("./b.png", "./b.png")]


def test_named_file_needs_no_image_suffix(tree: Path) -> None:
    assert names(tree, found_in(tree / "notes.txt")) == ["notes.txt"]


def test_folder_gives_all_images_below_it(tree: Path) -> None:
    assert names(tree, found_in(tree)) == ["a.JPG", "b.png", "sub/c.webp", "sub/deep/d.gif"]


@pytest.mark.parametrize(
    "suffix",
    ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif", "heic", "HEIF"],
)
def test_image_is_known_by_its_suffix(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").touch()
    assert is_image(tmp_path / f"a.{suffix}")
    assert names(tmp_path, found_in(tmp_path)) == [f"a.{suffix}"]


@pytest.mark.parametrize("name", ["a.txt", "png", ".png", "a.png.part", "._a.png", "none.png"])
def test_other_files_are_no_images(tmp_path: Path, name: str) -> None:
    if name != "none.png":
        (tmp_path / name).touch()
    assert not is_image(tmp_path / name)


def test_glob_gives_its_files(tree: Path) -> None:
    assert names(tree, found_in(tree / "*.png")) == ["b.png"]


def test_recursive_glob_goes_below(tree: Path) -> None:
    assert names(tree, found_in(tree / "**" / "*.gif")) == ["sub/deep/d.gif"]


def test_file_whose_name_looks_like_a_glob_is_a_file(tree: Path) -> None:
    (tree / "x[1].png").touch()
    assert names(tree, found_in(tree / "x[1].png")) == ["x[1].png"]


def test_image_named_twice_is_listed_once(tree: Path) -> None:
    found = names(tree, found_in(tree / "b.png", tree, tree / "b.png"))
    assert found == ["b.png", "a.JPG", "sub/c.webp", "sub/deep/d.gif"]


def test_one_image_under_two_spellings_is_listed_once(tmp_path: Path) -> None:
    found = found_in(tmp_path / "a.png", f"{tmp_path}/./a.png", tmp_path / "b.png")
    assert names(tmp_path, found) == ["a.png", "b.png"]


def test_missing_file_stays_in_the_list_and_fails_when_read(tree: Path) -> None:
    path = str(tree / "missing.png")
    (entry,) = found_in(path)
    assert entry == Source(path, path)
    (request,) = with_content([entry])
    with pytest.raises(DataError) as caught:
        request.read()
    assert str(caught.value) == f"expected an image at {path}, got no file"


def test_folder_without_images_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        found_in(tmp_path)
    assert str(caught.value) == (
        f"expected images in {tmp_path}, got none: name a folder with some"
    )


def test_glob_without_a_match_is_a_usage_error(tree: Path) -> None:
    with pytest.raises(UsageError, match=r"expected images in .*\*\.bmp, got none"):
        found_in(tree / "*.bmp")


def test_nothing_named_gives_nothing() -> None:
    assert find_sources([]) == []


# Prompts beside images.


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """Two images, one with a prompt beside it."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("a red fox\n", encoding="utf-8-sig")
    return tmp_path


def test_prompt_beside_an_image_is_taken_where_asked_for(pair: Path) -> None:
    assert prompts(found_in(pair, sidecar=True)) == ["a red fox", ""]
    assert prompts(found_in(pair / "a.png", pair / "*b.png", sidecar=True)) == ["a red fox", ""]
    assert prompts(found_in(pair)) == ["", ""]


def test_folder_beside_an_image_is_no_prompt(pair: Path) -> None:
    (pair / "b.txt").mkdir()
    assert prompts(found_in(pair, sidecar=True)) == ["a red fox", ""]


def test_prompt_of_other_bytes_is_read_with_a_note(pair: Path) -> None:
    (pair / "a.txt").write_bytes(b"caf\xe9")
    (found,) = found_in(pair / "a.png", sidecar=True)
    assert found.prompt == "café"
    assert found.note == f"{pair / 'a.txt'} is no UTF-8 and was read as Windows-1252"


def test_prompt_is_read_so_far_and_no_further(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("sources", "sidecars"):
        monkeypatch.setattr(f"dcmpl.data.{place}.MAX_SIDECAR_BYTES", 5)
    found = found_in(pair / "b.png", pair / "a.png", sidecar=True)
    assert prompts(found) == ["", ""]
    assert [bool(source.note) for source in found] == [False, True]


# Lists.


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_list_gives_its_rows_with_their_prompts(tmp_path: Path, suffix: str) -> None:
    rows = pd.DataFrame({"file_name": ["a.png", "sub/b.png"], "text": ["a red fox", ""]})
    path = tmp_path / f"list{suffix}"
    write = {".csv": rows.to_csv, ".parquet": rows.to_parquet}.get(suffix)
    if write:
        write(path)
    else:
        rows.to_json(path, orient="records", lines=True)
    assert found_in(path) == [
        Source(str(tmp_path / "a.png"), str(tmp_path / "a.png"), prompt="a red fox"),
        Source(str(tmp_path / "sub/b.png"), str(tmp_path / "sub/b.png")),
    ]


def test_rows_of_a_list_are_taken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("image,prompt\na.png,a fox\na.png,an ox\n")
    assert prompts(found_in(path)) == ["a fox", "an ox"]


def test_empty_cell_of_a_list_is_a_row_with_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("image,prompt\n,a fox\nb.png,an ox\n")
    first, second = found_in(path)
    assert (first.name, first.prompt) == (str(path), "a fox")
    assert str(first.fault) == f"expected an image in every row of {path}, got an empty cell"
    assert (second.name, second.fault) == (str(tmp_path / "b.png"), None)
    with pytest.raises(DataError, match="got an empty cell"):
        next(with_content([first])).read()


def test_list_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("url\na.png\n")
    with pytest.raises(DataError, match="expected a column of images in "):
        found_in(tmp_path / "list.csv")


def test_list_in_a_folder_is_not_taken(pair: Path) -> None:
    (pair / "list.csv").write_text("image\nc.png\n")
    assert names(pair, found_in(pair)) == ["a.png", "b.png"]


def test_prompts_of_a_table_go_to_entries_by_name() -> None:
    entries = [Source("a", "a"), Source("b", "b", prompt="own"), Source("z/c", "z", "c")]
    found = with_prompts(entries, {"a": "a fox", "z/c": "an ox", "nobody": "x"})
    assert prompts(found) == ["a fox", "own", "an ox"]
    assert [entry.name for entry in found] == ["a", "b", "z/c"]


# What is read.


def test_requests_read_the_images_they_name(pair: Path) -> None:
    Image.new("RGB", (4, 4), "red").save(pair / "b.png")
    found = list(with_content(found_in(pair, sidecar=True)))
    assert [request.prompt for request in found] == ["a red fox", ""]
    assert [request.read().pixels[0, 0].tolist() for request in found] == [[0, 0, 0], [255, 0, 0]]


def test_requests_may_be_read_in_other_threads(pair: Path) -> None:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda r=request: found.append(r.read().pixels.size))
        for request in with_content(found_in(pair))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [48, 48]


def test_prompt_is_found_in_the_image_where_asked_for(pair: Path) -> None:
    info = PngInfo()
    info.add_text("parameters", "a red fox\nSteps: 20, Seed: 1")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(pair / "a.png", pnginfo=info)
    entries = found_in(pair)
    for metadata, wanted in ((False, ["", ""]), (True, ["a red fox", ""])):
        found = list(with_content(entries, metadata))
        assert [source.prompt_of(source.read())[0] for source in found] == wanted


def test_content_of_an_entry_is_that_of_the_file(pair: Path) -> None:
    (entry,) = found_in(pair / "a.png")
    assert entry.file_content() == (pair / "a.png").read_bytes()


def test_content_of_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected a whole file at .*no\.png, got: "):
        Source("no.png", str(tmp_path / "no.png")).file_content()


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_name_that_is_no_utf_8_is_listed(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(name, "wb"):
        pass
    assert [os.fsencode(entry.path) for entry in found_in(tmp_path)] == [name]


def test_sidecar_that_is_too_long_is_no_prompt_and_the_row_says_so(tmp_path: Path) -> None:
    for name, size in (("long", MAX_SIDECAR_BYTES + 1), ("fits", MAX_SIDECAR_BYTES)):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("x" * size)
    with tarfile.open(tmp_path / "both.tar", "w") as archive:
        for file in sorted(tmp_path.glob("*.[pt][nx][gt]")):
            archive.add(file, file.name)
    for path in (str(tmp_path), str(tmp_path / "both.tar")):
        entries = {Path(e.name).stem: e for e in find_sources([path], sidecar=True)}
        assert len(entries["fits"].prompt) == MAX_SIDECAR_BYTES
        assert entries["fits"].note == ""
        assert entries["long"].prompt == ""
        assert "long.txt has more than 65536 bytes" in entries["long"].note


def test_note_of_a_long_sidecar_reaches_the_row(tmp_path: Path, trained_run: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("x" * 100_000)
    out = tmp_path / "s.csv"
    words = ["score", str(tmp_path / "a.png"), "--prompt-from", "sidecar", "-o", str(out)]
    assert main([*words, "--model", str(trained_run)]) == 0
    (row,) = read_scores(out)
    assert "a.txt has more than" in row["note"]


def test_kind_of_a_path_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dcmpl.data import sources

    for i in range(5):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    asked: list[str] = []
    kind = sources._kind
    monkeypatch.setattr(sources, "_kind", lambda path: asked.append(path) or kind(path))
    assert len(find_sources([str(tmp_path)])) == 5
    assert asked == [str(tmp_path)]


def test_bytes_of_an_image_are_those_of_its_file(tmp_path: Path) -> None:
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    (entry,) = find_sources([str(tmp_path / "a.png")])
    assert entry.file_content() == buffer.getvalue()
