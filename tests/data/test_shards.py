"""Shards: tables of sources, tasks and chunks that come to the same images whoever reads them."""

import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dcmpl import storage
from dcmpl.data import shards
from dcmpl.data.shards import (
    GROUP,
    Chunk,
    Prompts,
    Task,
    chunks_of,
    decoded,
    packed,
    stamp,
    tasks_of,
    unpacked,
    write_sources,
)
from dcmpl.data.sources import Source, find_sources, iterate_sources, keyed
from dcmpl.errors import DataError
from dcmpl.files import added
from dcmpl.images.decode import DecodedImage, read_image

SIZE = 4

Patch = pytest.MonkeyPatch


def table_of(path: Path, *sources: Source) -> list[tuple[str, int]]:
    with storage.writing(str(path)) as file:
        return [*write_sources(file, sources)]


def named(count: int, start: int = 0) -> list[Source]:
    return [Source(f"{i}.png", f"/x/{i}.png", prompt=f"p{i}") for i in range(start, start + count)]


def all_of(tasks: list[Task], size: int = SIZE) -> list[Chunk]:
    return [chunk for task in tasks for chunk in chunks_of(task, size, Prompts())]


def zipped(path: Path, folder: Path, count: int) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(count):
            archive.write(folder / f"{i:02}.png", f"in/{i:02}.png")
    return str(path)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "list.parquet"


def test_source_comes_out_of_the_table_as_it_went_in(table: Path) -> None:
    sources = [
        Source("a.png", "/x/a.png", prompt="a fox\n\u72d0, \U0001f98a"),
        Source("z.zip/b.png", "z.zip", "b.png", prompt=""),
        Source("caf\udce9.png", "/x/caf\udce9.png", note="no prompt read: x"),
        Source("", "", fault=DataError("an image", "none", "look", "gone")),
        Source("list.parquet/3", "list.parquet", "3"),
    ]
    assert table_of(table, *sources) == [("", 5)]
    (chunk,) = all_of([*tasks_of(str(table), [("", 5)], 8, 8)], 8)
    for found, source in zip(chunk.sources, sources, strict=True):
        assert str(found.fault) == str(source.fault)
        assert replace(found, fault=None) == replace(source, fault=None)


@pytest.mark.parametrize("group", [4, 8])
def test_chunks_are_those_of_a_job_on_one_machine(
    table: Path, group: int, image_data: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(shards, "GROUP", group)
    archives = [zipped(tmp_path / f"{n}.zip", image_data.parent, n) for n in (9, 8)]
    files = [str(image_data.parent / f"{i:02}.png") for i in range(21)]
    paths = [*files[:9], archives[0], archives[1], *files[9:17], files[20]]
    found = table_of(table, *iterate_sources(paths, closed=True))
    assert found == [("", 9), (archives[0], 1), (archives[1], 1), ("", 9)]
    tasks = [*tasks_of(str(table), found, SIZE, 4)]
    pairs = [
        pair
        for c in all_of(tasks)
        for pair in zip(c.keys, (s.name for s in c.sources), strict=True)
    ]
    assert pairs == [(key, source.name) for key, source in keyed(find_sources(paths))]
    own = [(c.shard, c.number, c.first, len(c.sources), c.is_last) for c in all_of(tasks)]
    assert own == [
        *[(0, 0, 0, 4, False), (0, 1, 4, 4, False), (0, 2, 8, 1, False)],
        *[(1, 0, 0, 4, False), (1, 1, 4, 4, False), (1, 2, 8, 1, True)],
        *[(2, 0, 0, 4, False), (2, 1, 4, 4, True)],
        *[(3, 0, 0, 4, False), (3, 1, 4, 4, False), (3, 2, 8, 1, False)],
    ]


@pytest.mark.parametrize("count", [1, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP + 65])
@pytest.mark.parametrize("share", [0, 1, 64, 100, 1000, 10**9])
def test_tasks_cover_every_row_once_in_whole_chunks(count: int, share: int) -> None:
    tasks = [*tasks_of("t", [("a.zip", 1), ("", count), ("", 3)], 64, share)]
    assert tasks[0] == Task("a.zip", 0)
    assert tasks[0].is_archive
    rows = [task.first + i for task in tasks[1:-1] for i in range(task.rows[1] - task.rows[0])]
    assert rows == [*range(count)]
    for task in tasks[1:-1]:
        assert task.first % 64 == 0
        assert task.first == task.group * GROUP + task.rows[0]
        assert task.rows[1] - task.rows[0] <= max(64, share)
        assert task.shard == 1
    groups = -(-count // GROUP)
    assert tasks[-1] == Task("t", 2, 0, groups, (0, 3))


def test_long_table_is_read_by_groups(table: Path) -> None:
    sources = named(GROUP + 5)
    found = table_of(table, *sources)
    assert found == [("", GROUP + 5)]
    chunks = all_of([*tasks_of(str(table), found, 64, 1024)], 64)
    assert [s for c in chunks for s in c.sources] == sources
    assert {len(c.sources) for c in chunks} == {64, 5}


def test_table_of_nothing_has_no_shard(table: Path) -> None:
    assert table_of(table) == []
    assert table_of(table, Source("a.zip", "a.zip", shard="a.zip")) == [("a.zip", 1)]
    assert [*tasks_of(str(table), [], 64, 64)] == []


def test_chunks_that_are_done_are_not_made_again(
    table: Path, image_data: Path, tmp_path: Path
) -> None:
    files = [str(image_data.parent / f"{i:02}.png") for i in range(9)]
    archive = zipped(tmp_path / "a.zip", image_data.parent, 9)
    found = table_of(table, *iterate_sources([*files, archive], closed=True))
    for task in tasks_of(str(table), found, SIZE, 100):
        left = [*decoded(replace(task, done=(0, 2)), SIZE, Prompts())]
        assert [(chunk.number, chunk.first) for chunk in left] == [(1, 4)]
        assert [*decoded(replace(task, done=(0, 1, 2)), SIZE, Prompts())] == []


@pytest.mark.parametrize("is_archive", [False, True])
def test_images_are_decoded_with_the_file_they_are_of(
    table: Path, image_data: Path, tmp_path: Path, is_archive: bool
) -> None:
    if is_archive:
        paths = [zipped(tmp_path / "a.zip", image_data.parent, 3)]
    else:
        paths = [str(image_data.parent / f"{i:02}.png") for i in range(3)]
    found = table_of(table, *iterate_sources(paths, closed=True))
    (task,) = tasks_of(str(table), found, SIZE, SIZE)
    (chunk,) = decoded(task, SIZE, Prompts("a fox"))
    chunk = unpacked(packed(chunk))
    plain = find_sources(paths)
    prompts = ["a fox"] * 3 if is_archive else [""] * 3
    assert [source.prompt for source in chunk.sources] == prompts
    for place, source in enumerate(chunk.sources):
        image = source.read()
        assert (source.content, source.is_job) == (None, True)
        assert np.array_equal(image.pixels, read_image(image_data.parent / f"{place:02}.png"))
        assert source.file() == plain[place].file() != ""
    keys = keyed(replace(s, prompt=p) for s, p in zip(plain, prompts, strict=True))
    assert chunk.digest == added(source.digest(key) for key, source in keys)


def test_chunk_is_sent_with_so_many_pixels_and_no_more(
    image_data: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    task = Task(zipped(tmp_path / "a.zip", image_data.parent, 4), 0)
    (whole,) = decoded(task, SIZE, Prompts())
    monkeypatch.setattr(shards, "MOST_DECODED", 2 * 40 * 44 * 3)
    (chunk,) = decoded(task, SIZE, Prompts())
    are_here = [isinstance(source.given, DecodedImage) for source in chunk.sources]
    assert are_here == [True, True, False, False]
    assert [source.content for source in chunk.sources] == [None] * 4
    assert chunk.digest == whole.digest
    assert [s.file() for s in chunk.sources] == [s.file() for s in whole.sources]
    assert [s.file_content()[:4] for s in chunk.sources] == [b"\x89PNG"] * 4


def test_what_cannot_be_read_keeps_its_place_with_its_fault(
    table: Path, image_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_text("no image")
    paths = [
        str(tmp_path / "gone.png"),
        str(image_data.parent / "00.png"),
        str(tmp_path / "bad.png"),
    ]
    found = table_of(table, *iterate_sources(paths, closed=True))
    (task,) = tasks_of(str(table), found, SIZE, SIZE)
    (chunk,) = decoded(task, SIZE, Prompts())
    faults = [str(source.fault or "") for source in unpacked(packed(chunk)).sources]
    assert faults[0] == f"expected an image at {paths[0]}, got no file"
    assert faults[1] == ""
    assert faults[2].startswith(f"expected an image that can be decoded, got {paths[2]}")
    clean = keyed(find_sources(paths))
    assert chunk.digest == added(source.digest(key) for key, source in clean)


def test_damaged_and_empty_archives_are_one_row_each(tmp_path: Path) -> None:
    (tmp_path / "bad.zip").write_text("no archive")
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    for name in ("bad.zip", "empty.zip", "gone.tar"):
        (chunk,) = decoded(Task(str(tmp_path / name), 3), SIZE, Prompts())
        (source,) = chunk.sources
        assert name in str(source.fault)
        assert (chunk.is_last, chunk.keys) == (True, ["00000003-0000000000"])


@pytest.mark.parametrize(
    ("prompts", "found"),
    [
        (Prompts(), ["", ""]),
        (Prompts("an ox"), ["an ox", "an ox"]),
        (Prompts(of="sidecar"), ["a fox", ""]),
    ],
)
def test_prompts_of_archives_come_from_where_they_are_named(
    tmp_path: Path, image_data: Path, prompts: Prompts, found: list[str]
) -> None:
    (tmp_path / "0.txt").write_text("a fox")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i in range(2):
            archive.add(image_data.parent / f"{i:02}.png", f"{i}.png")
        archive.add(tmp_path / "0.txt", "0.txt")
    (chunk,) = decoded(Task(str(tmp_path / "a.tar"), 0), SIZE, prompts)
    assert [source.prompt for source in chunk.sources] == found
    assert not any(source.in_metadata for source in chunk.sources)
    (chunk,) = decoded(Task(str(tmp_path / "a.tar"), 0), SIZE, Prompts(of="metadata"))
    assert all(source.in_metadata for source in chunk.sources)


def test_changed_archive_has_another_stamp(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"1")
    before = stamp(str(path))
    path.write_bytes(b"12")
    assert stamp(str(path)) != before != ""
    assert stamp(str(tmp_path / "gone.zip")) == ""
