"""Scoring on Ray: a row for every image, once, the same as on one machine, whatever is killed."""

import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from conftest import Capture, refused
from dcmpl.cli.main import main, parse
from dcmpl.data.shards import Prompts, chunks_of, tasks_of, write_sources
from dcmpl.data.sources import Source
from dcmpl.errors import RunError, UsageError
from dcmpl.files import added
from dcmpl.integrations import ray as on_ray
from dcmpl.integrations.ray import Actors, RayJob, connected, score
from dcmpl.scoring.files import read_scores
from dcmpl.scoring.judge import CHUNK
from dcmpl.scoring.partitions import (
    JOB,
    MANIFEST,
    ChunkId,
    Done,
    Part,
    Scored,
    read_partitions,
    write_part,
)
from dcmpl.scoring.scorer import Scorer

pytest_plugins = ("calibrated", "stores")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

SIDE, ROWS = 256, 640
"""Images that fill the object store several times over."""


@pytest.fixture(scope="module")
def cluster(bucket: str) -> Iterator[str]:
    """Ray on this machine with four logical cores, a small object store and nothing spilled.

    Its processes know the server of ``bucket``, which it gives.
    """
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(on_ray.__file__).parents[2])]))
        ray.init(
            num_cpus=4,
            num_gpus=1,  # as Ray counts; what computes is the processor
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=100 * 2**20,
            _system_config={"automatic_object_spilling_enabled": False},
        )
        yield bucket
        ray.shutdown()


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Everything that can be named: a folder, lists, shards, and damage in each."""
    place = tmp_path_factory.mktemp("named")
    rng = np.random.default_rng(0)
    folder = place / "folder"
    folder.mkdir()
    for i in range(70):
        Image.fromarray(rng.integers(0, 256, (40, 44, 3), np.uint8)).save(folder / f"{i:02}.png")
    (folder / "broken.png").write_bytes(b"no image")
    names = sorted(folder.glob("*.png"))
    lines = [f"folder/{path.name},a fox {path.stem}" for path in names[:5]]
    (place / "list.csv").write_text("\n".join(["image,prompt", *lines, "gone.png,x", ",y"]) + "\n")
    with tarfile.open(place / "shard.tar", "w") as tar, zipfile.ZipFile(place / "s.zip", "w") as z:
        for path in [*names[:66], folder / "broken.png"]:
            tar.add(path, path.name)
            z.write(path, path.name)
    whole = (place / "shard.tar").read_bytes()
    (place / "torn.tar").write_bytes(whole[: len(whole) // 3])
    with tarfile.open(place / "empty.tar", "w"):
        pass
    (place / "none.zip").write_bytes(b"PK nothing")
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in names[:20]]
    cells[3]["bytes"] = None  # type: ignore[typeddict-item]
    table = pa.table({"image": cells, "text": [f"a cat {i}" for i in range(20)]})
    pq.write_table(table, place / "inside.parquet", row_group_size=7)
    order = ["folder", "shard.tar", "list.csv", "torn.tar", "s.zip", "inside.parquet", "empty.tar"]
    return [str(place / name) for name in [*order, "none.zip"]]


@pytest.fixture(scope="module")
def words(calibrated_run: Path) -> list[str]:
    return ["--model", str(calibrated_run), "--engine", "torch"]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A list of more pixels than the object store has room for."""
    place = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(1)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(place / f"{i}.jpg")
    rows = [f"{i % 6}.jpg,a fox {i}" for i in range(ROWS)]  # the sixth is missing
    (place / "list.csv").write_text("\n".join(["image,prompt", *rows]) + "\n")
    return str(place / "list.csv")


@pytest.fixture(scope="module")
def many_here(many: str, words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their scores by this process alone."""
    out = tmp_path_factory.mktemp("here") / "many.parquet"
    assert main(["score", many, *words, "--views", "center", "-o", str(out)]) == 3
    return out


def assert_same(folder: object, local: Path) -> None:
    """Partitions, put in order, are the local file and its manifest, byte for byte."""
    merged = local.with_name(f"merged{local.suffix}")
    assert main(["merge", str(folder), "-o", str(merged)]) == 3
    assert merged.read_bytes() == local.read_bytes()
    here, there = (Path(f"{path}.manifest.json").read_bytes() for path in (local, merged))
    assert here == there


@pytest.fixture(scope="module")
def partitions(
    cluster: str, named: list[str], words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Scores of everything, by one actor."""
    out = tmp_path_factory.mktemp("partitions") / "out"
    given = [*named, *words, "--prompt", "a red fox", *ONE]
    assert main(["score", *given, "-o", str(out)]) == 3
    return out


def test_rows_are_those_of_one_machine_byte_for_byte(
    partitions: Path, named: list[str], words: list[str], tmp_path: Path
) -> None:
    local = tmp_path / "local.csv"
    assert main(["score", *named, *words, "--prompt", "a red fox", "-o", str(local)]) == 3
    rows = [dict(row) for row in read_scores(local)]
    assert len(rows) == 71 + 67 + 7 + 24 + 67 + 20 + 1 + 1
    assert {row["status"] for row in rows} == {"ok", "error"}
    assert_same(partitions, local)


def test_partitions_are_a_data_set_of_keys_columns_and_files(partitions: Path) -> None:
    frame = pq.read_table(partitions).to_pandas()
    assert frame["key"].is_unique
    assert len(frame) == 258
    columns = next(iter(read_partitions(str(partitions))))
    assert list(frame.columns) == ["key", *columns, "file"]
    others = {path.name for path in partitions.iterdir() if not path.name.startswith("part-")}
    assert others == {JOB, MANIFEST}


def test_finished_job_is_not_scored_again(
    partitions: Path, named: list[str], words: list[str], capsys: Capture
) -> None:
    given = [*named, *words, "--prompt", "a red fox", "--on", "ray", "-o", str(partitions)]
    before = {path: path.stat().st_mtime_ns for path in partitions.iterdir()}
    assert main(["score", *given, "--resume"]) == 3
    assert f"{partitions} is finished" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in partitions.iterdir()} == before


@pytest.mark.parametrize("is_finished", [True, False])
def test_partitions_of_another_job_are_refused(
    partitions: Path,
    named: list[str],
    words: list[str],
    capsys: Capture,
    tmp_path: Path,
    is_finished: bool,
) -> None:
    place = Path(shutil.copytree(partitions, tmp_path / "out"))
    if not is_finished:  # it may be at work
        (place / MANIFEST).unlink()
        on_ray.claim(str(place))
        (place / on_ray.list_of("1")).write_bytes(b"its images")
    out = ["--prompt", "a red fox", "--on", "ray", "-o", str(place), "--resume"]
    before = {path: path.stat().st_mtime_ns for path in place.iterdir()}
    for more, name in ((["--targets", "quality"], "targets"), (["--views", "center"], "views")):
        assert main(["score", *named, *words, *more, *out]) == 1
        assert f"got those of one that differs in {name}" in capsys.readouterr().err
    assert main(["score", named[0], *words, *out]) == 1
    assert "got those of one that differs in inputs_sha256" in capsys.readouterr().err
    assert main(["score", *named, *words, *out[:-1]]) == 2
    assert "got the partitions of a job: add --resume" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in place.iterdir()} == before


ONE = ["--on", "ray", "--actors", "1"]
"""An actor, since each begins with importing torch."""


def scored_on_ray(many: str, words: list[str], out: Path, *more: str) -> int:
    return main(["score", many, *words, "--views", "center", *ONE, "-o", str(out), *more])


SCORING = (b"ray::MapWorker",)
ALL = (*SCORING, b"ray::MapBatches", b"ray::IDLE")
"""Titles of the actors that score, and of all workers: those that decode, write or wait as well."""


def processes(titles_of: tuple[bytes, ...]) -> list[int]:
    """Workers of this process's Ray with such titles."""
    parents, titles = dict[int, int](), dict[int, bytes]()
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdigit():
                about = (place / "stat").read_text().rpartition(")")[2].split()
                parents[int(place.name)] = int(about[1])
                titles[int(place.name)] = (place / "cmdline").read_bytes()
        except OSError:
            continue  # it has just ended
    ours = [process for process, parent in parents.items() if parent == os.getpid()]
    return [p for p in titles if parents[p] in ours and titles[p].startswith(titles_of)]


def kill(titles: tuple[bytes, ...]) -> int:
    found = processes(titles)
    for process in found:
        os.kill(process, signal.SIGKILL)
    return len(found)


@pytest.fixture(scope="module")
def survived(
    cluster: str, many: str, words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[int]]:
    """Partitions of a job whose processes were killed twice, and how many were.

    The actors at the first partition, all workers at the third.
    """
    killed, run = list[int](), RayJob._run

    def watched(self: RayJob, *given: Any) -> Iterator[Part]:
        for number, part in enumerate(run(self, *given)):
            if number in (0, 2):
                killed.append(kill(ALL if number else SCORING))
            yield part

    out = tmp_path_factory.mktemp("survived") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RayJob, "_run", watched)
        assert scored_on_ray(many, words, out, "--actors", "2") == 3
    return out, killed


def test_killed_processes_cost_no_row_and_double_none(
    survived: tuple[Path, list[int]], many_here: Path
) -> None:
    out, killed = survived
    assert len(killed) == 2
    assert min(killed) >= 2
    assert_same(out, many_here)


SCRIPT = "import sys; from dcmpl.cli.main import main; sys.exit(main(sys.argv[1:]))"


def test_killed_driver_goes_on_where_it_was(
    cluster: str, many: str, many_here: Path, words: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = ["score", many, *words, "--views", "center", *ONE, "-o", str(out)]
    alone = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    driver = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *given],
        env=alone,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while driver.poll() is None and not list(out.glob("part-*")):
        sleep(0.02)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    standing = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.glob("part-*")}
    assert standing
    assert not (out / MANIFEST).exists()
    assert scored_on_ray(many, words, out, "--resume") == 3
    for path, (content, changed) in standing.items():
        assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, changed)
    assert_same(out, many_here)


def test_lost_partitions_alone_are_made_again(
    survived: tuple[Path, list[int]],
    many: str,
    many_here: Path,
    words: list[str],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    shutil.copytree(survived[0], out)  # finished, its manifest says
    first, second, *others = sorted(out.glob("part-*"))
    kept = {path: path.stat().st_mtime_ns for path in others}
    first.unlink()
    second.write_bytes(second.read_bytes()[:-9])  # torn
    shutil.copy(others[0], out / "part-copy.parquet")  # another name for what stands
    assert scored_on_ray(many, words, out, "--resume") == 3
    assert {path: path.stat().st_mtime_ns for path in others} == kept
    assert not (out / "part-copy.parquet").exists()
    assert_same(out, many_here)


def test_partitions_of_changed_images_are_not_kept(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i:03}.png" for i in range(2 * CHUNK + 2)]
    for path in paths[1:]:  # the first is missing
        path.write_text(path.name)
    table, folder = tmp_path / "list.parquet", str(tmp_path / "out")
    with table.open("wb") as file:
        shards = list(write_sources(file, (Source(str(path), str(path)) for path in paths)))
    tasks = list(tasks_of(str(table), shards, CHUNK, len(paths)))
    parts = []
    for chunk in (chunk for task in tasks for chunk in chunks_of(task, CHUNK, Prompts())):
        pairs = zip(chunk.keys, chunk.sources, strict=True)
        rows = [{"key": key, "status": "ok", "file": source.file()} for key, source in pairs]
        found = Scored(ChunkId(chunk.shard, chunk.number, False), rows, added([]))
        parts.append(write_part(folder, "job", ["status"], [found]))
    everything = Done(tuple(parts))
    assert len(parts) == 3
    assert on_ray._unchanged(folder, everything, tasks) == everything
    os.utime(paths[1], (1, 1))
    assert on_ray._unchanged(folder, everything, tasks) == everything
    paths[CHUNK].write_text("another")
    assert on_ray._unchanged(folder, everything, tasks).parts == (parts[0], parts[2])
    paths[0].write_text("there now")
    paths[-1].unlink()
    assert on_ray._unchanged(folder, everything, tasks) == Done()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_full_disk_ends_in_one_sentence_and_loses_nothing(
    cluster: str, many: str, many_here: Path, words: list[str], small_disk: Path, capsys: Capture
) -> None:
    out = small_disk / "out"
    assert scored_on_ray(many, words, out) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"dcmpl: expected to write {out}, got: No space left on device: "
        "the finished partitions are kept, --resume goes on with them"
    )
    assert not (out / MANIFEST).exists()
    standing = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert scored_on_ray(many, words, out, "--resume") == 3
    assert {path: path.stat().st_mtime_ns for path in standing} == standing
    assert_same(out, many_here)


def test_shards_and_partitions_may_lie_in_an_object_store(
    cluster: str, named: list[str], words: list[str], tmp_path: Path
) -> None:
    from dcmpl.storage import upload

    urls = []
    for path in map(Path, named[1:]):
        if path.is_file():
            upload(path, f"{cluster}/in/{path.name}")
            urls.append(f"{cluster}/in/{path.name}")
    local = tmp_path / "local.parquet"
    assert main(["score", *urls, *words, "-o", str(local)]) == 3
    given = [*urls, *words, "--on", "ray", "--gpus", "0.5", "-o", f"{cluster}/out"]
    assert main(["score", *given]) == 3
    assert_same(f"{cluster}/out", local)


def test_shard_that_vanishes_is_a_row(
    cluster: str, named: list[str], words: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    """Between the listing of what is named and its turn."""
    shard = str(shutil.copy(named[1], tmp_path / "gone.tar"))
    begin = on_ray.begin

    def remove_and_begin(*given: Any) -> Any:
        Path(shard).unlink()
        return begin(*given)

    monkeypatch.setattr(on_ray, "begin", remove_and_begin)
    out = tmp_path / "out"
    assert main(["score", shard, named[1], *words, *ONE, "-o", str(out)]) == 3
    rows = list(read_partitions(str(out)))
    assert len(rows) == 1 + 67
    assert rows[0]["reason"] == f"expected a whole file at {shard}, got: No such file or directory"


def test_data_set_of_ones_own_gets_the_columns(
    cluster: str, named: list[str], words: list[str]
) -> None:
    import ray

    paths = sorted(map(str, Path(named[0]).glob("*.png")))[:10]
    rows = [{"image": path, "prompt": "a fox", "mine": i} for i, path in enumerate(paths)]
    found = score(ray.data.from_items(rows), words[1], actors=Actors(1), engine="torch")
    by_mine = sorted(found.take_all(), key=lambda row: row["mine"])
    wanted = Scorer.from_pretrained(words[1]).score(paths, "a fox")
    assert [row["quality"] for row in by_mine] == [one.quality for one in wanted]
    assert [row["image"] for row in by_mine] == paths


# Refusals


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            ["--actors", "9"],
            "expected a cluster for 9 actors of 1 cores and 0 GPUs.*, got one of 4",
        ),
        (["--workers", "4"], "expected a cluster for 1 actors of 4 cores"),
        (
            ["--gpus", "2"],
            "expected a cluster for 1 actors of 1 cores and 2 GPUs.* and 1 GPUs",
        ),
        (["--actors", "0"], "expected at least one actor"),
        (["--gpus", "-1"], "expected at least one actor"),
    ],
)
def test_more_than_the_cluster_has_is_refused_before_anything_is_written(
    cluster: str,
    named: list[str],
    words: list[str],
    tmp_path: Path,
    capsys: Capture,
    more: Any,
    sentence: str,
) -> None:
    out = tmp_path / "out"
    assert main(["score", named[0], *words, "--on", "ray", "-o", str(out), *more]) == 2
    assert re.search(sentence, capsys.readouterr().err.splitlines()[-1])
    assert not out.exists()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--on", "dask"], "expected --on ray, or ray://ADDRESS of a cluster, got dask"),
        (["--on", "ray", "--shard", "1/2"], "expected --on or --shard, got both: leave one out"),
        (["--on", "ray", "--rank"], "expected --on or --rank, got both: leave one out"),
        (["--on", "ray", "--new"], "expected --on or --new, got both: leave one out"),
        (["--actors", "2"], "expected --actors with --on, got it alone: add --on ray"),
        (["--gpus", "1"], "expected --gpus with --on, got it alone: add --on ray"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(
    named: list[str], words: list[str], tmp_path: Path, capsys: Capture, given: Any, sentence: str
) -> None:
    out = tmp_path / "out.csv"
    assert refused(capsys, 2, "score", named[0], *words, "-o", out, *given) == sentence


@pytest.mark.parametrize("name", ["out.csv", "out.xlsx", ""])
def test_what_is_no_folder_is_refused(
    named: list[str], words: list[str], tmp_path: Path, capsys: Capture, name: str
) -> None:
    out = tmp_path / name if name else ""
    assert refused(capsys, 2, "score", named[0], *words, "--on", "ray", "-o", out) == (
        f"expected a folder at -o with --on, got {out or 'none'}: "
        "dcmpl merge makes one file of its partitions"
    )


def test_folder_with_other_files_is_left_alone(
    cluster: str, named: list[str], words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    assert main(["score", named[0], *words, "--on", "ray", "-o", str(tmp_path)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"dcmpl: expected a new folder at -o {tmp_path}, got one with other files: "
        "choose another -o"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_job_that_another_took_over_ends_without_a_manifest(
    partitions: Path,
    named: list[str],
    words: list[str],
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between its last partition and its end."""
    out = tmp_path / "out"
    shutil.copytree(partitions, out)
    (out / MANIFEST).unlink()
    claim = on_ray.claim
    monkeypatch.setattr(on_ray, "claim", lambda folder: (claim(folder), claim(folder))[0])
    given = [*named, *words, "--prompt", "a red fox", *ONE, "-o", str(out), "--resume"]
    assert main(["score", *given]) == 1
    assert "got another dcmpl that took it over" in capsys.readouterr().err
    assert not (out / MANIFEST).exists()


@pytest.mark.parametrize(
    ("raised", "found", "sentence"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, "the finished partitions are kept, --resume"),
        (TypeError("a\n\nlast line"), RunError, "on Ray, got TypeError: last line: the finished"),
    ],
)
def test_what_ends_a_job_says_what_is_left(
    raised: BaseException, found: type[BaseException], sentence: str
) -> None:
    with pytest.raises(found, match=re.escape(sentence)), on_ray._faults():
        raise raised


def test_cluster_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    told = "expected a Ray cluster at 127.0.0.1:1, got none"
    with pytest.raises(RunError, match=told), connected("127.0.0.1:1"):
        pass


def test_ray_that_is_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    told = re.escape("expected ray[data], got none: pip install 'dcmpl-agiqa[ray]'")
    with pytest.raises(UsageError, match=told), connected():
        pass


# What the docs say


ROOT = Path(__file__).parents[2]


def test_commands_of_the_page_run(
    cluster: str, named: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the model of the package, from one of its lines to the next."""
    (tmp_path / "images").mkdir()
    for path in sorted(Path(named[0]).glob("0*.png"))[:3]:
        shutil.copy(path, tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Actors, "fitted", lambda _: 1)  # each opens the model of the package
    page = (ROOT / "docs" / "scale.md").read_text()
    (block,) = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    for line in block.splitlines():
        assert main(shlex.split(line)[1:]) == 0, line
    assert len(list(read_scores(tmp_path / "scores.csv"))) == 3


def test_example_scores_a_data_set(
    cluster: str, named: list[str], words: list[str], tmp_path: Path
) -> None:
    spec = importlib.util.spec_from_file_location("batch_ray", ROOT / "examples" / "batch_ray.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(named[0], str(tmp_path / "out"), words[1])
    frame = pq.read_table(tmp_path / "out").to_pandas()
    assert len(frame) == 71
    assert (frame["status"] == "error").sum() == 1
    assert frame["image"].str.endswith(".png").all()


def test_cluster_of_the_examples_has_the_form_that_ray_asks_for() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    cluster = yaml.safe_load((ROOT / "examples" / "ray-cluster.yaml").read_text())
    validate_config(prepare_config(cluster))


def test_job_for_kuberay_has_its_fields_and_runs_a_command_that_there_is() -> None:
    job = yaml.safe_load((ROOT / "examples" / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    _, found = parse(shlex.split(job["spec"]["entrypoint"])[1:])
    assert (found.on, found.resume) == ("ray://auto", True)
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert set(container["resources"]["limits"]) == {"cpu", "memory"}
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    pins = (ROOT / "constraints.txt").read_text()
    assert f"ray=={cluster['rayVersion']} " in pins
