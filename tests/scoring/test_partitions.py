"""Partitions: written under their own names, found again, never counted twice, read in order."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dcmpl import storage
from dcmpl.data.sources import key_of
from dcmpl.errors import RunError, UsageError
from dcmpl.files import added, digest_of_text, sealed
from dcmpl.scoring import partitions
from dcmpl.scoring.files import COLUMNS
from dcmpl.scoring.journal import FILE
from dcmpl.scoring.partitions import (
    ABOUT,
    JOB,
    KEY,
    MANIFEST,
    OWNER,
    ChunkId,
    Part,
    Scored,
    begin,
    check_chunks,
    check_new,
    check_owner,
    claim,
    commit,
    described,
    discard,
    fault_reasons,
    finished,
    list_of,
    read_partitions,
    rows_of,
    write_part,
)

pytest_plugins = ("stores",)

SIZE = 3
NAMES = (*COLUMNS[:-3], "tokens_dropped", *COLUMNS[-3:])
RECORD: dict[str, Any] = {"model": "m", "columns": list(NAMES), "targets": ["quality"]}
MADE = {"model": "m"}


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "out")
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}/out"


@pytest.fixture
def here(tmp_path: Path) -> str:
    return str(tmp_path / "out")


def scored(shard: int, number: int, size: int = SIZE, is_last: bool = False) -> Scored:
    """A chunk, every third of whose images has no score."""
    rows = list[dict[str, Any]]()
    for place in range(number * SIZE, number * SIZE + size):
        key, is_ok = key_of(shard, place), place % 3 != 2
        row: dict[str, Any] = dict.fromkeys(NAMES)
        row |= {"image": f"{shard}/{place}.png", "prompt": "\u72d0\n" * place, "note": ""}
        row |= {"status": "ok"} if is_ok else {"status": "error", "reason": f"no {key}"}
        row |= {"quality": place / 7, "tokens_dropped": place} if is_ok else {}
        rows.append({KEY: key, **row, FILE: f"{place} 5 content{shard}" if is_ok else ""})
    images = added(digest_of_text(row[KEY], row["image"]) for row in rows)
    return Scored(ChunkId(shard, number, is_last), rows, images)


def plain(*chunks: Scored) -> list[dict[str, Any]]:
    """Rows as files of scores have them."""
    rows = [row for chunk in chunks for row in chunk.rows]
    return [{name: row[name] for name in NAMES} for row in rows]


CHUNKS = [scored(0, 0), scored(0, 1), scored(1, 0, 1, is_last=True)]


def begun(folder: str) -> str:
    return begin(folder, RECORD, resume=True)[0]


def written(folder: str, *chunks: Sequence[Scored]) -> list[Part]:
    mark = begun(folder)
    return [write_part(folder, mark, NAMES, [*each]) for each in chunks]


def names(folder: str) -> set[str]:
    return {storage.base_of(file.path) for file in storage.list_files(folder)}


def test_job_is_begun_written_found_again_and_committed(folder: str) -> None:
    check_new(folder, resume=False)
    parts = written(folder, CHUNKS[2:], CHUNKS[1::-1])
    assert set(begin(folder, RECORD, resume=True)[1].parts) == {*parts}
    assert finished(folder) is None
    claim(folder)
    assert commit(folder, RECORD, parts, MADE) == {"ok": 5, "error": 2}
    assert names(folder) == {JOB, MANIFEST, *(part.name for part in parts)}
    assert [*read_partitions(folder)] == plain(*CHUNKS)
    job, made = described(folder)
    assert (job["images"], job["count"], job["shard"]) == (7, 7, None)
    assert job["list_sha256"] == added(chunk.images for chunk in CHUNKS)
    files = [(row[KEY], row[FILE].rpartition(" ")) for chunk in CHUNKS for row in chunk.rows]
    assert job["images_sha256"] == added(digest_of_text(key, found[2]) for key, found in files)
    assert made["files_sha256"] == added(digest_of_text(key, found[0]) for key, found in files)
    assert sorted(fault_reasons(folder)) == [f"no {key_of(0, place)}" for place in (2, 5)]


def test_part_says_what_it_holds(here: str) -> None:
    (part,) = written(here, CHUNKS[::-1])
    assert part.chunks == tuple(chunk.chunk for chunk in CHUNKS)
    assert (part.sizes, part.ok, part.error) == ((3, 3, 1), 5, 2)
    table = pq.read_table(f"{here}/{part.name}")
    assert table.column_names == [KEY, *NAMES, FILE]
    assert table[KEY].to_pylist() == sorted(table[KEY].to_pylist())
    assert pq.ParquetFile(f"{here}/{part.name}").num_row_groups == 3


def test_name_of_a_part_follows_from_its_chunks(here: str) -> None:
    first, again, other = written(here, CHUNKS[:2], CHUNKS[1::-1], CHUNKS[:1])
    assert first.name == again.name != other.name
    assert len(storage.list_files(here)) == 3


def test_chunk_without_rows_is_a_part(here: str) -> None:
    chunks = [scored(0, 0, 0, is_last=True)]
    parts = written(here, chunks)
    assert commit(here, RECORD, parts, MADE) == {"ok": 0, "error": 0}
    assert [*read_partitions(here)] == []


def test_many_parts_are_read_in_order_with_few_open(
    here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "OPEN", 2)
    chunks = [scored(shard, number) for shard in (0, 1) for number in range(6)]
    parts = written(here, *(chunks[i::5] for i in range(5)))
    opened, real = list[str](), partitions.open_file
    monkeypatch.setattr(partitions, "open_file", lambda path: opened.append(path) or real(path))
    assert [*rows_of(here, parts[::-1])] == plain(*chunks)
    assert len(opened) >= 10


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-9],
        lambda content: b"",
        lambda content: content.replace(b"content", b"CONTENT")[:200],
        lambda content: b"PAR1" + bytes(100) + b"PAR1",
    ],
)
def test_torn_part_does_not_stand(here: str, damage: Callable[[bytes], bytes]) -> None:
    kept, torn = written(here, CHUNKS[:1], CHUNKS[1:])
    path = Path(here, torn.name)
    path.write_bytes(damage(path.read_bytes()))
    assert begin(here, RECORD, resume=True)[1].parts == (kept,)


def test_part_of_another_job_or_under_another_name_does_not_stand(here: str) -> None:
    (kept,) = written(here, CHUNKS[:1])
    write_part(here, "0" * 64, NAMES, CHUNKS[1:2])
    Path(here, "part-other.parquet").write_bytes(Path(here, kept.name).read_bytes())
    assert begin(here, RECORD, resume=True)[1].parts == (kept,)


def test_footer_that_says_another_thing_than_the_file_does_not_stand(here: str) -> None:
    (part,) = written(here, CHUNKS[:2])
    path = f"{here}/{part.name}"
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[ABOUT])
    for entry, value in {"sizes": [6, 0], "chunks": [[0, 0, False]], "ok": None}.items():
        said = {ABOUT: json.dumps({**about, entry: value}).encode()}
        pq.write_table(table.replace_schema_metadata(said), path, row_group_size=SIZE)
        assert begin(here, RECORD, resume=True)[1].parts == ()


def test_chunk_is_not_counted_in_two_parts(here: str) -> None:
    parts = written(here, CHUNKS[:2], CHUNKS[1:])
    (standing,) = begin(here, RECORD, resume=True)[1].parts
    assert standing in parts
    with pytest.raises(RunError, match="expected every chunk of the job once, got chunk 1"):
        commit(here, RECORD, parts, MADE)
    assert finished(here) is None
    assert names(here) >= {part.name for part in parts}


def parts_of(*chunks: tuple[int, int]) -> list[Part]:
    own = [Part("", "", (ChunkId(*chunk, False),), (1,), 1, 0, "0", "0", "0") for chunk in chunks]
    return own[::-1]


@pytest.mark.parametrize(
    "chunks",
    [[(0, 1)], [(0, 0), (0, 2)], [(0, 0), (1, 1)], [(0, 0), (0, 0)], [(0, 1), (1, 0)]],
)
def test_chunk_that_is_missing_or_there_twice_is_refused(chunks: list[tuple[int, int]]) -> None:
    with pytest.raises(RunError, match="this is a fault of dcmpl, the partitions are kept"):
        check_chunks(parts_of(*chunks))


def test_chunks_of_all_shards_once_are_right() -> None:
    check_chunks([])
    check_chunks(parts_of((0, 0), (0, 1), (1, 0), (3, 0)))
    check_chunks(parts_of((0, 3), (2, 1)), whole=False)
    with pytest.raises(RunError):
        check_chunks(parts_of((0, 3), (0, 3)), whole=False)


def test_job_of_other_fields_is_refused(here: str) -> None:
    written(here, CHUNKS[:1])
    with pytest.raises(RunError, match="one that differs in model: score as it was started"):
        begin(here, {**RECORD, "model": "n"}, resume=True)
    assert begin(here, {**RECORD, "columns": NAMES}, resume=True)[
        1
    ].parts  # a tuple as good as a list


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff", sealed({"job": 1}), b'{"job": {}}']
)
@pytest.mark.parametrize("name", [JOB, MANIFEST])
def test_record_of_others_is_one_sentence(here: str, content: bytes, name: str) -> None:
    written(here, CHUNKS[:1])
    Path(here, name).write_bytes(content)
    with pytest.raises(RunError) as caught:
        _ = begin(here, RECORD, resume=True) if name == JOB else finished(here)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_folder_of_others_and_of_a_job_are_refused(here: str) -> None:
    written(here, CHUNKS[:1])
    check_new(here, resume=True)
    with pytest.raises(UsageError, match="got the partitions of a job: add --resume"):
        check_new(here, resume=False)
    Path(here, JOB).unlink()
    with pytest.raises(UsageError, match="got one with other files"):
        check_new(here, resume=True)


def test_folder_with_a_list_alone_is_new(here: str) -> None:
    for name in (list_of("1"), OWNER):
        storage.write(f"{here}/{name}", b"")
    storage.write(f"{here}/.{JOB}.0123abcd.tmp", b"")  # killed while it began
    check_new(here, resume=False)
    storage.write(f"{here}/part-0.parquet", b"")  # as other programs call theirs
    with pytest.raises(UsageError, match="got one with other files"):
        check_new(here, resume=False)


def test_job_in_a_folder_below_is_left_alone(folder: str) -> None:
    below = storage.join(folder, "below")
    parts = written(below, CHUNKS)
    commit(below, RECORD, parts, MADE)
    with pytest.raises(UsageError, match="got one with other files"):
        check_new(folder, resume=True)
    (part,) = written(folder, CHUNKS[:2])
    assert begin(folder, RECORD, resume=True)[1].parts == (part,)
    check_new(folder, resume=True)
    discard(folder)
    assert [*read_partitions(below)] == plain(*CHUNKS)


def test_job_that_began_since_one_looked_is_left_alone(folder: str) -> None:
    begun(folder)
    with pytest.raises(RunError, match=r"expected a new folder at .*, got a job that began since"):
        begin(folder, RECORD, resume=False)


def test_other_job_replaces_no_partition_and_none_of_its_is_read(here: str) -> None:
    (part,) = written(here, CHUNKS)
    commit(here, RECORD, [part], MADE)
    other = write_part(here, "0" * 64, NAMES, CHUNKS)
    assert other.name != part.name
    assert [*read_partitions(here)] == plain(*CHUNKS)
    Path(here, other.name).replace(Path(here, part.name))
    with pytest.raises(RunError, match="expected a whole partition of its job at"):
        read_partitions(here)


def test_folder_that_is_taken_over_is_no_longer_ours(folder: str) -> None:
    mine = claim(folder)
    check_owner(folder, mine)
    theirs = claim(folder)
    assert theirs != mine
    check_owner(folder, theirs)
    with pytest.raises(RunError, match="got another dcmpl that took it over"):
        check_owner(folder, mine)
    storage.remove(storage.join(folder, OWNER))
    with pytest.raises(RunError, match=r"expected to write .*, got: No such file"):
        check_owner(folder, theirs)


def test_discarding_leaves_the_files_of_others(here: str) -> None:
    (part,) = written(here, CHUNKS)
    for name in (list_of("1"), OWNER, MANIFEST, ".part-1.parquet.0123abcd.tmp", "mine.txt"):
        storage.write(f"{here}/{name}", b"")
    discard(here, {MANIFEST, part.name})
    assert names(here) == {MANIFEST, part.name, "mine.txt"}
    discard(here)
    assert names(here) == {"mine.txt"}


def test_folder_without_a_finished_job_is_one_sentence(here: str) -> None:
    written(here, CHUNKS)
    for read in (described, lambda folder: [*read_partitions(folder)]):
        with pytest.raises(RunError, match="got no manifest: score it with --resume first"):
            read(here)
    assert [*fault_reasons(here)] == []


def test_part_that_is_gone_or_another_is_not_read(here: str) -> None:
    parts = written(here, *([chunk] for chunk in CHUNKS))
    commit(here, RECORD, parts, MADE)
    path = Path(here, parts[1].name)
    content = path.read_bytes()
    path.write_bytes(Path(here, parts[0].name).read_bytes())
    with pytest.raises(
        RunError, match=f"expected a whole partition of its job at .*{parts[1].name}"
    ):
        read_partitions(here)
    path.unlink()
    with pytest.raises(
        RunError, match=f"expected a whole partition of its job at .*{parts[1].name}"
    ):
        read_partitions(here)
    path.write_bytes(content)
    chunk = scored(0, 1)
    for row in chunk.rows:
        row[FILE] += "changed"
    for other in (chunk, scored(0, 1)._replace(images=added(["1"]))):
        write_part(here, parts[1].job, NAMES, [other])
        with pytest.raises(RunError, match=r"the partitions that the manifest of .* names"):
            read_partitions(here)


def test_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" / "out")
    for use in (claim, begun):
        with pytest.raises(RunError, match=f"expected to write {folder}, got: Not a directory"):
            use(folder)
