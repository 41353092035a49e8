"""A scoring that is killed, interrupted or out of room goes on, and ends with the same bytes."""

import csv
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from conftest import Capture, refused
from dcmpl.cli.main import main
from dcmpl.scoring.files import Row
from dcmpl.scoring.journal import Journal, journal_of, open_journal

COUNT, LONG, KILLS = 200, 600, 6  # three chunks and a part of one; nine, which take some seconds
CHUNK = 64

Words = list[str]
Factory = pytest.TempPathFactory


def _run(words: Words, told: str, gate: str) -> None:
    """Score, but write the last rows only once there is a file ``gate``."""
    # A shell's jobs in the background begin with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    write = Journal.write

    def write_or_wait(self: Journal, row: Row) -> None:
        while len(self) == LONG - CHUNK and not os.path.exists(gate):
            time.sleep(0.002)
        write(self, row)

    Journal.write = write_or_wait  # type: ignore[method-assign]  # in a process of its own
    with Path(told).open("w") as sys.stdout, Path(told).open("a") as sys.stderr:
        code = main(words)
    os._exit(code)


Start = Callable[..., ForkServerProcess]


@pytest.fixture(scope="module")
def start() -> Start:
    """Start ``dcmpl`` in a process of its own, which need not import torch once more.

    It does not end before there is a file ``gate`` beside what it told.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["dcmpl.scoring.job", "dcmpl.scoring.torch_engine", "test_score_resume"]
    )

    def start(words: Words, told: Path) -> ForkServerProcess:
        process = context.Process(
            target=_run, args=(words, str(told), str(told.with_name("gate"))), daemon=True
        )
        process.start()
        return process

    return start


Job = tuple[Words, dict[str, bytes]]
"""Words, all but ``-o``, and by name what they write; ``part`` stands there before the end."""


def made_job(folder: Path, data: Path, run: Path, count: int, *words: str) -> Job:
    """A list of ``count`` images with prompts, of which every 97th is missing, scored."""
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "prompt"])
        for i in range(count):
            name = "gone.png" if i % 97 == 96 else data.parent / f"{i % 48:02}.png"
            writer.writerow([name, f'"{i}", a\nfox'])
    words = ("score", str(folder / "list.csv"), "--model", str(run), *words)
    unlink = Path.unlink
    with pytest.MonkeyPatch.context() as patched:

        def keep(path: Path, missing_ok: bool = False) -> None:
            if path.suffix == ".part":
                shutil.copy(path, folder / "part")
            unlink(path, missing_ok)

        patched.setattr(Path, "unlink", keep)
        assert main([*words, "-o", str(folder / "scores.csv")]) == 3
    names = ["part", "scores.csv", "scores.csv.manifest.json"]
    return [*words], {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def job(image_data: Path, trained_run: Path, tmp_path_factory: Factory) -> Job:
    return made_job(tmp_path_factory.mktemp("job"), image_data, trained_run, COUNT)


@pytest.fixture(scope="module")
def long_job(image_data: Path, trained_run: Path, tmp_path_factory: Factory) -> Job:
    words = ["--views", "windows", "--workers", "2"]
    return made_job(tmp_path_factory.mktemp("long"), image_data, trained_run, LONG, *words)


@pytest.fixture
def words(job: Job) -> Words:
    return job[0]


@pytest.fixture
def whole(job: Job) -> dict[str, bytes]:
    return job[1]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "scores.csv"


def written(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.parent.glob("scores.csv*")}


def finished(whole: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in whole.items() if name != "part"}


def rows_in(out: Path) -> int:
    try:
        return max(0, journal_of(out).read_bytes().count(b"\n") - 1)
    except FileNotFoundError:
        return 0


def wait_for_rows(out: Path, count: int, process: ForkServerProcess) -> None:
    while rows_in(out) < count and process.is_alive():
        time.sleep(0.002)


def test_job_that_is_killed_six_times_ends_with_the_same_bytes(
    start: Start, long_job: Job, out: Path, tmp_path: Path
) -> None:
    rng = random.Random(11)
    words, whole = [*long_job[0], "-o", str(out)], long_job[1]
    for moment in sorted(rng.sample(range(LONG - 2 * CHUNK), KILLS)):
        process = start([*words, "--resume"], tmp_path / "told")
        wait_for_rows(out, moment, process)
        time.sleep(rng.random() * 0.02)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (tmp_path / "told").read_text()
        assert not out.exists()
        there = journal_of(out).read_bytes() if journal_of(out).exists() else b""
        assert whole["part"].startswith(there)
        assert there.count(b"\n") > moment
    assert main([*words, "--resume"]) == 3
    assert written(out) == finished(whole)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_other_formats_end_with_the_same_bytes_as_well(
    words: Words, out: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    other, out = out.with_name(f"whole{suffix}"), out.with_suffix(suffix)
    assert main([*words, "-o", str(other)]) == 3
    write = Journal.write

    def write_and_stop(self: Journal, row: Row) -> None:
        write(self, row)
        if len(self) == 150:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "write", write_and_stop)
        assert main([*words, "-o", str(out)]) == 130
    assert main([*words, "-o", str(out), "--resume"]) == 3
    assert out.read_bytes() == other.read_bytes()
    manifests = (Path(f"{path}.manifest.json").read_bytes() for path in (out, other))
    assert next(manifests) == next(manifests)


def cut(content: bytes, rows: int, more: int) -> bytes:
    """The head, so many rows, and some bytes of the next; a negative count cuts the head."""
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    return content[: ends[rows] + more] if rows >= 0 else content[:more]


CUTS = {
    "nothing yet": (-1, 0),
    "half a head": (-1, 40),
    "the head alone": (0, 0),
    "half of the first row": (0, 9),
    "a whole row of the first chunk": (1, 0),
    "a torn row behind a chunk": (CHUNK, 30),
    "a row that lacks its line end": (2 * CHUNK - 1, -1),
    "half a chunk": (2 * CHUNK + 32, 0),
    "all but a torn last row": (COUNT - 1, 50),
    "all rows": (COUNT, 0),
}


@pytest.mark.parametrize("kind", CUTS)
def test_job_goes_on_from_whatever_a_kill_left(
    words: Words, whole: dict[str, bytes], out: Path, capsys: Capture, kind: str
) -> None:
    rows, more = CUTS[kind]
    journal_of(out).write_bytes(cut(whole["part"], rows, more))
    assert main([*words, "-o", str(out), "--resume"]) == 3
    assert written(out) == finished(whole)
    kept = rows if rows == COUNT else (rows - (more < 0)) // CHUNK * CHUNK
    told = f"{kept} of {COUNT} images were scored before"
    assert (told in capsys.readouterr().err) == (kept > 0)


def test_finished_job_ends_with_the_same_bytes_once_more(
    words: Words, whole: dict[str, bytes], out: Path
) -> None:
    for name, content in finished(whole).items():
        out.with_name(name).write_bytes(content)
    assert main([*words, "-o", str(out), "--resume"]) == 3
    assert written(out) == finished(whole)


@pytest.fixture
def half(whole: dict[str, bytes], out: Path) -> bytes:
    """What stands there of a job that was broken off."""
    journal_of(out).write_bytes(cut(whole["part"], 150, 12))
    return journal_of(out).read_bytes()


def test_rows_of_a_job_that_was_broken_off_are_kept_without_resume(
    words: Words, out: Path, half: bytes, capsys: Capture
) -> None:
    assert refused(capsys, 1, *words, "-o", out) == (
        f"expected no {journal_of(out)}, got the rows of a scoring that was broken off: "
        "add --resume to go on with it, or delete it"
    )
    assert written(out) == {journal_of(out).name: half}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--views", "resize"], "views"),
        (["--targets", "quality"], "targets"),
        (["--precision", "bf16"], "precision"),
        (["--prompt", "a dog"], "list_sha256"),
        (["--rank"], "columns, rank"),
        (["--shard", "1/1"], "shard"),
    ],
)
def test_another_job_does_not_go_on_with_these_rows(
    words: Words, out: Path, half: bytes, capsys: Capture, flags: Words, told: str
) -> None:
    assert main([*words, "-o", str(out), "--resume", *flags]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"dcmpl: expected the rows of this job in {journal_of(out)}, got those of one that "
        f"differs in {told}: score as it was started, or delete it"
    )
    assert written(out) == {journal_of(out).name: half}


@pytest.mark.usefixtures("half")
def test_job_goes_on_with_a_run_that_was_renamed(
    words: Words, whole: dict[str, bytes], out: Path, capsys: Capture
) -> None:
    renamed = str(shutil.copytree(words[3], out.parent / "renamed"))
    assert main([*words, "-o", str(out), "--resume", "--model", renamed]) == 3
    assert f"{2 * CHUNK} of {COUNT} images were scored before" in capsys.readouterr().err
    assert not journal_of(out).exists()
    assert out.read_bytes() == whole["scores.csv"]


@pytest.mark.parametrize("content", [b"mine\n", b"mine", b'{"job": {}}\n', b"\0\xff"])
def test_file_that_is_no_job_is_left_as_it_is(
    words: Words, out: Path, capsys: Capture, content: bytes
) -> None:
    journal_of(out).write_bytes(content)
    told = refused(capsys, 1, *words, "-o", out, "--resume")
    assert told.startswith(f"expected the rows of this job in {journal_of(out)}, got those of one ")
    assert written(out) == {journal_of(out).name: content}


def test_interrupt_ends_in_one_sentence_that_says_where_the_rows_are(
    start: Start, long_job: Job, out: Path, tmp_path: Path
) -> None:
    words, whole = [*long_job[0], "-o", str(out)], long_job[1]
    process = start(words, tmp_path / "told")
    wait_for_rows(out, 200, process)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    assert (tmp_path / "told").read_text() == (
        f"dcmpl: interrupted; the rows scored so far are in {journal_of(out)}, "
        "--resume goes on with them\n"
    )
    assert rows_in(out) >= 200
    assert main([*words, "--resume"]) == 3
    assert written(out) == finished(whole)


def test_second_process_is_refused_and_the_first_goes_on(
    start: Start, long_job: Job, out: Path, tmp_path: Path, capsys: Capture
) -> None:
    words, whole = [*long_job[0], "-o", str(out)], long_job[1]
    process = start(words, tmp_path / "told")
    wait_for_rows(out, 100, process)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        for flag in ([], ["--resume"]):
            assert refused(capsys, 1, *words, *flag) == (
                f"expected to be the only one that writes {out}, got another dcmpl that does: "
                "wait for it, or choose another -o"
            )
    finally:
        os.kill(process.pid, signal.SIGCONT)
    (tmp_path / "gate").touch()
    process.join()
    assert process.exitcode == 3
    assert written(out) == finished(whole)


def test_rows_are_in_the_file_as_they_come(out: Path) -> None:
    row = dict.fromkeys(["image", "prompt", "quality", "alignment", "authenticity"], "x")
    row |= dict.fromkeys(["status", "reason", "note", "file"], "y")
    with open_journal(out, {"count": 2}, False, [0, 2], lambda file: True) as part:
        for count in (1, 2):
            part.write(row)
            assert rows_in(out) == count
            assert json.loads(journal_of(out).read_bytes().splitlines()[-1]) == row
    assert written(out) == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("room", ["for some rows", "for all rows, not for the scores"])
def test_full_disk_ends_in_one_sentence_and_loses_no_row(
    small_disk: Path, words: Words, whole: dict[str, bytes], capsys: Capture, room: str
) -> None:
    out = small_disk / "scores.csv"

    def make_room(size: int) -> None:
        options = f"remount,size={size}"
        subprocess.run(["mount", "-o", options, str(small_disk)], check=True)

    if room != "for some rows":
        make_room(len(whole["part"]) + 8192)
    assert main([*words, "-o", str(out)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"dcmpl: expected to write {out}, got: No space left on device: the rows scored so far "
        f"are in {journal_of(out)}, --resume goes on with them"
    )
    assert (rows_in(out) == COUNT) == (room != "for some rows")
    assert list(written(out)) == [journal_of(out).name]
    make_room(2**20)
    assert main([*words, "-o", str(out), "--resume"]) == 3
    assert written(out) == finished(whole)
