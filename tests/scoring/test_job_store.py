"""Jobs in chunks of one archive each, and jobs to a URL: what a local ``-o`` has, to the byte."""

import os
import shutil
import zipfile
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conftest import Capture, refused
from dcmpl import storage
from dcmpl.cli.main import main
from dcmpl.data.sources import Source
from dcmpl.errors import DataError
from dcmpl.model.dcmpl import DCMPL
from dcmpl.scoring import job as scoring
from dcmpl.scoring import partitions
from dcmpl.scoring import scorer as predict
from dcmpl.scoring.files import manifest_of, read_manifest, read_scores
from dcmpl.scoring.job import Job, Plan, plan_of
from dcmpl.scoring.scorer import Scorer, ScoringOptions
from dcmpl.scoring.torch_engine import TorchEngine

pytest_plugins = ("stores",)
pytestmark = pytest.mark.usefixtures("loaded_once")

COUNT = 6
"""Images, of which the last cannot be read; three chunks and one of a single image."""

KINDS = (".csv", ".jsonl", ".parquet")
KEPT = "the chunks scored so far are kept beside it, --resume goes on with them"

Patch = pytest.MonkeyPatch
Words = list[str]


def of_shards(*shards: tuple[str, int]) -> list[Source]:
    """So many images of each archive, or of none."""
    return [
        Source(f"{archive}/{place}-{i}.png", shard=archive)
        for place, (archive, count) in enumerate(shards)
        for i in range(count)
    ]


# Plans


def test_chunks_end_at_the_edge_of_an_archive() -> None:
    plan = plan_of(of_shards(("a.zip", 130), ("", 3), ("b.zip", 64), ("c.zip", 1)))
    assert [*plan.starts] == [0, 64, 128, 130, 133, 197, 198]
    assert [*plan.shards] == [0, 130, 133, 197]
    assert plan.images == 198
    chunks = [plan.chunk(first) for first in plan.starts[:-1]]
    assert chunks == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (3, 0)]


def test_keys_say_the_shard_and_the_place_in_there() -> None:
    plan = plan_of(of_shards(("a.zip", 66), ("", 1), ("b.zip", 2)))
    keys = [*plan.keys(0, 69)]
    assert keys[65:] == [
        "00000000-0000000065",
        "00000001-0000000000",
        "00000002-0000000000",
        "00000002-0000000001",
    ]
    assert keys == sorted(set(keys))
    for first in (0, 1, 65, 66, 67):
        assert [*plan.keys(first, first + 2)] == keys[first : first + 2]
    assert [*plan.keys(69, 69)] == []


def test_digest_of_a_plan_knows_names_prompts_and_order() -> None:
    found = [Source("a", prompt="x"), Source("b", prompt="y")]
    others = [
        found[::-1],
        found[:1],
        [Source("a", prompt="y"), Source("b", prompt="x")],
        [Source("a", prompt="x"), Source("b", prompt="y", shard="z.zip")],
        [Source("a", prompt="x"), Source("b", prompt="y", fault=DataError("x"))],
    ]
    digests = [plan_of(sources).digest for sources in (found, *others)]
    assert len({*digests}) == len(digests)
    assert plan_of(iter(found)).digest == digests[0]


def test_plan_of_nothing_has_no_chunk() -> None:
    assert plan_of([]) == Plan(array("q", [0]), array("q"), "0" * 64)


@pytest.mark.parametrize("total", [1, 2, 3, 5, 9])
def test_shards_of_a_job_are_whole_chunks_and_all_of_it(total: int, scorer: Scorer) -> None:
    sources = of_shards(("a.zip", 130), ("", 3), ("b.zip", 64))
    jobs = [Job(scorer, sources, plan_of(sources), (i, total)) for i in range(1, total + 1)]
    assert [source for job in jobs for source in job.own()] == sources
    assert {job.start for job in jobs} <= {*jobs[0].plan.starts}
    assert sum(job.count for job in jobs) == len(sources)


@pytest.fixture(scope="module")
def scorer(trained_run: Path) -> Scorer:
    return Scorer.from_pretrained(trained_run, workers=1)


# Jobs


@pytest.fixture
def folder(image_data: Path, tmp_path: Path) -> Path:
    found = tmp_path / "in"
    found.mkdir()
    for i in range(COUNT - 1):
        shutil.copy(image_data.parent / f"{i:02}.png", found)
    (found / "bad.png").write_text("no image")
    return found


@pytest.fixture
def words(folder: Path, trained_run: Path) -> Words:
    words = ["score", str(folder), "--model", str(trained_run), "--workers", "1"]
    return [*words, "--prompt", "a fox, \u72d0\nand an ox", "-o"]


@pytest.fixture(autouse=True)
def _small_chunks(request: pytest.FixtureRequest, monkeypatch: Patch) -> None:
    if "words" in request.fixturenames or "folder" in request.fixturenames:
        for module in (predict, scoring):
            monkeypatch.setattr(module, "CHUNK", 2)


@pytest.fixture
def place(bucket: str, tmp_path: Path) -> str:
    """URL of a folder of this test."""
    return f"{bucket}/{tmp_path.name}"


def read(path: str) -> bytes:
    with storage.open_file(path) as file:
        return bytes(file.read())


def both(out: Path | str) -> tuple[bytes, bytes]:
    """Scores and their manifest."""
    return read(str(out)), read(str(manifest_of(str(out))))


def names(place: str) -> list[str]:
    return [file.path[len(place) + 1 :] for file in storage.list_files(place)]


def fail_at(patch: Patch, number: int, error: BaseException) -> None:
    """Raise ``error`` where the chunk of that number, from 1, is to be written."""
    real, calls = scoring.write_part, iter(range(1, 1000))

    def failing(*given: Any) -> Any:
        if next(calls) == number:
            raise error
        return real(*given)

    patch.setattr(scoring, "write_part", failing)


@pytest.fixture
def seen(monkeypatch: Patch) -> list[str]:
    """Names of the images that are scored, as they are."""
    real, found = Scorer.rows, list[str]()

    def rows(scorer: Scorer, sources: Any, start: int = 0) -> Iterator[Any]:
        def noted() -> Iterator[Source]:
            for source in sources:
                found.append(Path(source.name).name)
                yield source

        return real(scorer, noted(), start)

    monkeypatch.setattr(Scorer, "rows", rows)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_scores_at_a_url_are_those_of_a_file_to_the_byte(
    words: Words, place: str, tmp_path: Path, kind: str, capsys: Capture
) -> None:
    here, there = tmp_path / f"scores{kind}", f"{place}/scores{kind}"
    assert main([*words, str(here)]) == 3
    capsys.readouterr()
    assert main([*words, there]) == 3
    assert both(there) == both(here)
    assert names(place) == [f"scores{kind}", f"scores{kind}.manifest.json"]
    said = capsys.readouterr()
    assert said.out == f"{COUNT - 1} of {COUNT} images scored: {there} and its manifest\n"
    assert "not scored: expected an image that can be decoded" in said.err


def test_scores_of_many_chunks_stand_in_order(
    words: Words, place: str, tmp_path: Path, folder: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(partitions, "OPEN", 2)  # partitions that are open at a time
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted(folder.iterdir())[::-1]:
            archive.write(file, file.name)
    words[1:2] = [str(tmp_path / "a.zip"), str(folder), str(folder / "01.png")]
    assert main([*words, str(tmp_path / "scores.csv")]) == 3
    assert main([*words, f"{place}/scores.csv"]) == 3
    assert both(f"{place}/scores.csv") == both(tmp_path / "scores.csv")


def test_images_of_an_archive_have_the_bits_they_have_alone(
    words: Words, tmp_path: Path, folder: Path
) -> None:
    alone = list[Any]()
    archives = [tmp_path / "a.zip", tmp_path / "b.zip"]
    for place, archive in enumerate(archives):
        with zipfile.ZipFile(archive, "w") as opened:
            for file in sorted(folder.glob("0*.png"))[place : place + 3]:
                opened.write(file, file.name)
        words[1] = str(archive)
        assert main([*words, str(tmp_path / "one.jsonl")]) == 0
        alone += read_scores(tmp_path / "one.jsonl")
    words[1:2] = map(str, archives)
    assert main([*words, str(tmp_path / "two.jsonl")]) == 0
    assert [*read_scores(tmp_path / "two.jsonl")] == alone


@pytest.mark.parametrize("broken", [1, 2, 3])
def test_job_that_is_broken_off_goes_on_and_ends_with_the_same_bytes(
    words: Words,
    place: str,
    tmp_path: Path,
    monkeypatch: Patch,
    capsys: Capture,
    seen: list[str],
    broken: int,
) -> None:
    assert main([*words, str(tmp_path / "scores.csv")]) == 3
    capsys.readouterr()
    out = f"{place}/scores.csv"
    with monkeypatch.context() as patch:
        fail_at(patch, broken, OSError("the store is full"))
        assert main([*words, out]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"dcmpl: expected to write {out}, got: the store is full: {KEPT}"
    )
    assert storage.about(out) is None
    seen.clear()
    assert main([*words, out, "--resume"]) == 3
    assert seen == ["00.png", "01.png", "02.png", "03.png", "04.png", "bad.png"][2 * broken - 2 :]
    was = f"{2 * broken - 2} of {COUNT} images were scored before"
    assert (was in capsys.readouterr().err) is (broken > 1)
    assert both(out) == both(tmp_path / "scores.csv")
    assert names(place) == ["scores.csv", "scores.csv.manifest.json"]


def test_hole_between_finished_chunks_is_filled(
    words: Words, place: str, tmp_path: Path, monkeypatch: Patch, seen: list[str]
) -> None:
    assert main([*words, str(tmp_path / "scores.jsonl")]) == 3
    out = f"{place}/scores.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "write_scores", _full)
        assert main([*words, out]) == 1
    parts = [name for name in names(place) if "/part-" in name]
    assert len(parts) == 3
    whole = {name: read(f"{place}/{name}") for name in parts}
    first, torn = parts[:2]
    storage.remove(f"{place}/{first}")
    storage.write(f"{place}/{torn}", whole[torn][:-9])
    seen.clear()
    assert main([*words, out, "--resume"]) == 3
    assert len(seen) == 4
    assert both(out) == both(tmp_path / "scores.jsonl")


def _full(*_: object) -> None:
    raise OSError("the store is full")


def test_image_that_was_changed_in_between_is_scored_anew(
    words: Words,
    place: str,
    tmp_path: Path,
    folder: Path,
    monkeypatch: Patch,
    seen: list[str],
    capsys: Capture,
) -> None:
    out = f"{place}/scores.csv"
    with monkeypatch.context() as patch:
        fail_at(patch, 3, OSError("the store is full"))
        assert main([*words, out]) == 1
    shutil.copy(folder / "04.png", folder / "01.png")
    seen.clear()
    assert main([*words, out, "--resume"]) == 3
    assert seen == ["00.png", "01.png", "04.png", "bad.png"]
    assert "were changed: scoring them anew" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "scores.csv")]) == 3
    assert both(out) == both(tmp_path / "scores.csv")


def test_image_that_was_only_touched_is_not_scored_anew(
    words: Words, place: str, folder: Path, monkeypatch: Patch, seen: list[str]
) -> None:
    out = f"{place}/scores.csv"
    with monkeypatch.context() as patch:
        fail_at(patch, 2, OSError("the store is full"))
        assert main([*words, out]) == 1
    content = (folder / "01.png").read_bytes()
    (folder / "01.png").unlink()
    (folder / "01.png").write_bytes(content)
    seen.clear()
    assert main([*words, out, "--resume"]) == 3
    assert seen[0] == "02.png"


def test_finished_job_is_not_scored_again(
    words: Words, place: str, seen: list[str], capsys: Capture, folder: Path
) -> None:
    out = f"{place}/scores.parquet"
    assert main([*words, out]) == 3
    before = both(out)
    seen.clear()
    assert main([*words, out, "--resume"]) == 3
    assert (seen, both(out)) == ([], before)
    assert f"{out} is finished" in capsys.readouterr().err
    shutil.copy(folder / "04.png", folder / "01.png")
    assert main([*words, out, "--resume"]) == 3
    assert len(seen) == COUNT
    assert both(out) != before


def test_second_job_at_the_same_url_is_refused(
    words: Words, place: str, monkeypatch: Patch, capsys: Capture
) -> None:
    out = f"{place}/scores.csv"
    with monkeypatch.context() as patch:
        fail_at(patch, 2, OSError("the store is full"))
        assert main([*words, out]) == 1
    before = names(place)
    capsys.readouterr()
    assert main([*words, out]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"dcmpl: expected a new folder at -o {out}.part, got the partitions of a job: add "
        "--resume to go on with it, or choose another -o"
    )
    words[words.index("--prompt") + 1] = "an ox"
    assert main([*words, out, "--resume"]) == 1
    assert "differs in list_sha256: score as it was started" in capsys.readouterr().err
    assert names(place) == before


def test_folder_of_others_beside_the_scores_is_left_alone(
    words: Words, place: str, capsys: Capture
) -> None:
    storage.write(f"{place}/scores.csv.part/mine.txt", b"mine")
    assert main([*words, f"{place}/scores.csv"]) == 2
    assert "got one with other files" in capsys.readouterr().err
    assert names(place) == ["scores.csv.part/mine.txt"]


def test_scores_of_others_are_not_replaced(words: Words, place: str, capsys: Capture) -> None:
    storage.write(f"{place}/scores.csv", b"mine")
    assert "got one that dcmpl score did not write" in refused(
        capsys, 2, *words, f"{place}/scores.csv"
    )
    assert read(f"{place}/scores.csv") == b"mine"


def test_job_that_another_took_over_does_not_write_the_scores(
    words: Words, place: str, monkeypatch: Patch, capsys: Capture
) -> None:
    out = f"{place}/scores.csv"
    real = scoring.write_part

    def taken(*given: Any) -> Any:
        partitions.claim(f"{out}.part")
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "write_part", taken)
        assert main([*words, out]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"dcmpl: expected to be the only one that writes {out}.part, got another dcmpl that took "
        "it over: wait for it, or choose another -o"
    )
    assert storage.about(out) is None
    assert main([*words, out, "--resume"]) == 3


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (
            RuntimeError("out of\nmemory"),
            1,
            f"expected to score all images, got RuntimeError: out of memory: {KEPT}",
        ),
        (KeyboardInterrupt(), 130, f"interrupted; {KEPT}"),
    ],
)
def test_engine_that_fails_in_the_middle_leaves_a_job_to_resume(
    words: Words,
    place: str,
    monkeypatch: Patch,
    capsys: Capture,
    error: BaseException,
    code: int,
    sentence: str,
) -> None:
    real, calls = TorchEngine.__call__, iter(range(1, 100))

    def failing(*given: Any) -> Any:
        if next(calls) == 2:
            raise error
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "__call__", failing)
        assert main([*words, f"{place}/scores.csv"]) == code
    assert capsys.readouterr().err.splitlines()[-1] == f"dcmpl: {sentence}"
    assert main([*words, f"{place}/scores.csv", "--resume"]) == 3


def test_shards_at_urls_are_merged_to_the_whole(
    words: Words, place: str, tmp_path: Path, capsys: Capture
) -> None:
    assert main([*words, str(tmp_path / "scores.csv")]) == 3
    shards = [f"{place}/{i}.jsonl" for i in (1, 2)]
    for place_of, shard in enumerate(shards, 1):
        assert main([*words, shard, "--shard", f"{place_of}/2"]) in (0, 3)
    assert main(["merge", *shards[::-1], "-o", f"{place}/whole.csv"]) == 3
    assert both(f"{place}/whole.csv") == both(tmp_path / "scores.csv")
    capsys.readouterr()
    assert refused(capsys, 2, "merge", *shards, "-o", shards[0]) == (
        f"expected a new file at -o, got {shards[0]}, which is to be read"
    )


def test_whole_numbers_stay_whole(
    build: Callable[..., DCMPL], folder: Path, place: str, tmp_path: Path
) -> None:
    model = build("dcmpl-prompted")
    judge = Scorer(TorchEngine(model, model.config.tasks), "center", ScoringOptions(workers=1))
    sources = [
        Source(str(path), str(path), prompt="a fox " * 30) for path in sorted(folder.iterdir())
    ]
    job = Job(judge, sources, plan_of(sources))
    for out in (tmp_path / "scores.csv", f"{place}/scores.csv"):
        job.write(out, resume=False)
    assert both(f"{place}/scores.csv") == both(tmp_path / "scores.csv")
    dropped = [row["tokens_dropped"] for row in read_scores(tmp_path / "scores.csv")]
    assert {type(number) for number in dropped} == {int, type(None)}


def test_no_credential_is_in_what_is_written(words: Words, place: str, capsys: Capture) -> None:
    assert main([*words, f"{place}/scores.csv"]) == 3
    said = capsys.readouterr()
    texts = (*both(f"{place}/scores.csv"), said.out.encode(), said.err.encode())
    assert not any(secret in text for text in texts for secret in (b"not-a-secret", b"testing"))
    assert read_manifest(f"{place}/scores.csv")["count"] == COUNT


def test_ranks_are_written_here_only(words: Words, place: str, capsys: Capture) -> None:
    assert refused(capsys, 2, *words, f"{place}/scores.csv", "--rank") == (
        f"expected a file of this machine at -o with --rank or --new, got {place}/scores.csv"
    )


def test_bucket_that_is_not_there_is_one_sentence(
    words: Words, bucket: str, capsys: Capture
) -> None:
    assert main([*words, "s3://none/scores.csv"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("dcmpl: expected to write s3://none/scores.csv.part, got: ")


def test_names_that_are_no_texts_come_through(
    place: str, trained_run: Path, tmp_path: Path
) -> None:
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    Image.new("RGB", (40, 44), "teal").save(odd)
    for suffix in (".csv", ".jsonl"):
        local, there = tmp_path / f"odd{suffix}", f"{place}/odd{suffix}"
        for out in (str(local), there):
            assert main(["score", odd, "--model", str(trained_run), "-o", out]) == 0
        with storage.open_file(there) as file:
            assert file.read() == local.read_bytes()


def test_nothing_is_left_beside_the_scores(words: Words, place: str) -> None:
    from pyarrow import fs

    assert main([*words, f"{place}/left.csv"]) == 3
    store, folder = storage._opened(place)
    infos = store.get_file_info(fs.FileSelector(folder, recursive=True))
    names = {info.base_name for info in infos if "left.csv" in info.path}
    assert names == {"left.csv", "left.csv.manifest.json"}
