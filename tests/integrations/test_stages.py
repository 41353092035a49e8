"""The stages of a job, one after the other in this process: rows, and errors as values."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dcmpl.data.shards import Prompts, Task, packed, unpacked
from dcmpl.errors import DataError, RunError
from dcmpl.integrations import stages
from dcmpl.integrations.batch import BatchScorer
from dcmpl.integrations.stages import Decode, Score, Write, identity_of
from dcmpl.scoring.files import columns_of
from dcmpl.scoring.partitions import Part, Scored
from dcmpl.scoring.scorer import Scorer

pytest_plugins = ("calibrated",)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """An archive of 70 images, the last of which is none."""
    import zipfile

    Image.new("RGB", (40, 44), "teal").save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "shard.zip", "w") as file:
        for i in range(69):
            file.write(tmp_path / "a.png", f"{i:02}.png")
        file.writestr("z.png", b"no image")
    return tmp_path / "shard.zip"


@pytest.fixture
def own(calibrated_run: Path) -> BatchScorer:
    return BatchScorer(calibrated_run)


def chunks_of(task: Task, place: str = "") -> list[Any]:
    batches = Decode(Prompts("a fox"), place)({"task": [packed(task)]})
    return [chunk for batch in batches for chunk in batch["chunk"]]


def scored(own: BatchScorer, chunks: list[Any], **identity: Any) -> list[Any]:
    known = {**identity_of(own), **identity}
    return Score(own, known, False, "")({"chunk": chunks})["scored"]


def parts(folder: Path, own: BatchScorer, rows: list[Any]) -> list[Any]:
    columns = columns_of(own.scorer.columns)
    return [unpacked(part) for part in Write(str(folder), "job", columns)({"scored": rows})["part"]]


def test_task_becomes_chunks_rows_and_a_part(shard: Path, own: BatchScorer, tmp_path: Path) -> None:
    chunks = chunks_of(Task(str(shard), 3))
    assert [len(unpacked(chunk).sources) for chunk in chunks] == [64, 6]
    rows = scored(own, chunks)
    found = [row for each in map(unpacked, rows) for row in each.rows]
    wanted = Scorer.from_pretrained(own.model).score([tmp_path / "a.png"], "a fox")[0]
    assert {row["quality"] for row in found[:-1]} == {wanted.quality}
    assert found[-1]["status"] == "error"
    (part,) = parts(tmp_path / "out", own, rows)
    assert (part.ok, part.error, part.sizes) == (69, 1, (64, 6))
    again = parts(tmp_path / "out", own, rows[::-1])
    assert again == [part]
    assert [path.name for path in (tmp_path / "out").iterdir()] == [part.name]


def test_finished_chunks_are_not_decoded_again(shard: Path) -> None:
    (chunk,) = map(unpacked, chunks_of(Task(str(shard), 0, done=(0,))))
    assert (chunk.number, chunk.is_last) == (1, True)


def test_scorer_of_another_kind_gives_its_error_for_every_chunk(
    shard: Path, own: BatchScorer, tmp_path: Path
) -> None:
    rows = scored(own, chunks_of(Task(str(shard), 0)), dcmpl="0.0")
    errors = [*map(unpacked, rows)]
    assert [type(error) for error in errors] == [RunError, RunError]
    assert str(errors[0]).startswith("expected the same dcmpl on every machine (0.0), got ")
    assert [str(error) for error in parts(tmp_path / "out", own, rows)] == [*map(str, errors)]
    assert not (tmp_path / "out").exists()


def test_whatever_an_engine_raises_is_a_value(
    shard: Path, own: BatchScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("an\nodd error")

    monkeypatch.setattr(Scorer, "rows", broken)
    (error, _) = map(unpacked, scored(own, chunks_of(Task(str(shard), 0))))
    assert str(error) == (
        "expected to score all images, got ZeroDivisionError: an odd error: "
        "the finished partitions are kept, --resume goes on with them"
    )


def test_good_chunks_beside_an_error_are_written(
    shard: Path, own: BatchScorer, tmp_path: Path
) -> None:
    rows = scored(own, chunks_of(Task(str(shard), 0)))
    found = parts(tmp_path / "out", own, [rows[0], packed(RunError("a", "b"))])
    assert [type(one) for one in found] == [Part, RunError]
    assert found[0].sizes == (64,)


def test_disk_that_takes_nothing_is_a_value(shard: Path, own: BatchScorer, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    (error,) = parts(tmp_path / "out", own, scored(own, chunks_of(Task(str(shard), 0)))[:1])
    assert str(error).startswith(f"expected to write {tmp_path / 'out'}, got: ")


def test_paths_are_those_of_the_driver_s_folder(
    shard: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir("/")
    chunks = chunks_of(Task("shard.zip", 0), str(tmp_path))
    assert len(chunks) == 2
    assert unpacked(chunks[0]).sources[0].name == "shard.zip/00.png"
    (error,) = map(unpacked, chunks_of(Task("shard.zip", 0), str(tmp_path / "gone")))
    assert str(error) == (
        f"expected the folder {tmp_path / 'gone'} on every machine, got: No such file or "
        "directory: name images by URLs, or by paths that all machines have"
    )


def test_scorer_that_cannot_be_opened_has_an_error_for_an_identity(tmp_path: Path) -> None:
    found = identity_of(BatchScorer(tmp_path))
    assert isinstance(found, RunError)


def test_errors_of_decoding_come_back_whole() -> None:
    error = DataError("a", "b", "c", "d")
    assert str(unpacked(stages._attempt(lambda: (_ for _ in ()).throw(error)))) == str(error)
    assert isinstance(unpacked(packed(Scored)), type)
