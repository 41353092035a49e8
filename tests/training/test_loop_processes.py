"""Several processes train as one does, are counted as one, and end together."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from dcmpl.data.datasets import load_table
from dcmpl.data.splits import Split
from dcmpl.data.table import MosScale
from dcmpl.files import as_json
from dcmpl.runs import LAST, read_run

SCRIPT = """
import json, os, signal, sys
from dcmpl.cli.main import main
from dcmpl.training import loop

runs, ends = json.loads(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
real = loop.train_step
def train_step(*given):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), getattr(signal, ends["by"]))
    return real(*given)
for words in runs:
    left = ends["after"] if ends and ends["rank"] == os.environ["RANK"] else -1
    loop.train_step = train_step if words is runs[-1] else real
    code = main(words)
sys.exit(code)
"""
"""Trains these runs, in the last of which a process gets a signal at a step of its own."""

ENDED = (
    "dcmpl: expected 2 processes to train together until all are done, got one that ended before: "
    "see why in its own lines, then start all with --resume, which goes on from the last whole "
    "epoch"
)
BOUND = 30
"""Seconds within which the others end where one was killed: they take less than one."""


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def variables(**more: str) -> dict[str, str]:
    """Environment in which equal products are rounded alike, whatever the processor has."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2", **more}


def program(runs: list[list[str]], rank: int = 0, after: int = 0, by: str = "") -> list[str]:
    ends = {"rank": str(rank), "after": after, "by": by} if by else None
    return [sys.executable, "-c", SCRIPT, json.dumps([runs, ends])]


def all_of(programs: list[list[str]], killed: int | None = None) -> list[Ended]:
    """How the processes ended that train together, one for each program."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(len(programs)),
    }
    processes = [
        subprocess.Popen(
            words,
            env=variables(**shared, RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, words in enumerate(programs)
    ]
    try:
        if killed is not None:
            processes[killed].wait()
        bound = None if killed is None else BOUND
        ended = [process.communicate(timeout=bound) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Ended(p.returncode, *texts) for p, texts in zip(processes, ended, strict=True)]


def own_lines(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("dcmpl: ")]


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of many colours, so that scores differ well; not all images have all opinions."""
    folder, rng = tmp_path_factory.mktemp("table"), np.random.default_rng(0)
    columns = "image", "prompt", "mos_quality", "mos_alignment"
    rows = []
    for i in range(48):
        colour, noise = rng.integers(256, size=3), rng.normal(0, 40, (40, 44, 3))
        pixels = (colour + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
        rows.append((f"{i:02}.png", f"prompt {i % 12}", *(1 + 4 * colour[:2] / 255)))
    frame = pd.DataFrame(rows, columns=columns)
    frame.loc[::3, "mos_alignment"] = np.nan
    frame.loc[1::5, "mos_quality"] = np.nan
    frame.to_csv(folder / "scores.csv", index=False)
    return folder / "scores.csv"


@pytest.fixture(scope="module")
def splits(scores: Path) -> tuple[Path, Path]:
    """Two splits, the second with most images in validation."""
    frame = load_table(scores, MosScale(1, 5)).frame
    names = [tuple(of_prompt["name"]) for _, of_prompt in frame.groupby("group")]
    few, many, test = sum(names[:3], ()), sum(names[3:11], ()), names[11]
    paths = scores.with_name("usual.json"), scores.with_name("turned.json")
    for path, (train, val) in zip(paths, ((many, few), (few, many)), strict=True):
        path.write_bytes(as_json(Split("clean", 0, train, val, test).to_json()))
    return paths


@pytest.fixture(scope="module")
def words_of(
    small_backbone: Path, scores: Path, splits: tuple[Path, Path]
) -> Callable[..., list[str]]:
    """Words of a training of two steps an epoch, of many images and of one.

    The recipe is that of the embedded backbone, but for the learning rate.
    """
    recipe = "windows=drawn draws=4 coats=true schedule=cosine alignment_weight=0.5 patience=none"
    recipe += " adapter_dropout=0.5 views=tiles precision=bf16"
    flags = f"--data {scores} --mos-scale 1 5 --backbone {small_backbone} --device cpu"
    settings = [f"train.{setting}" for setting in recipe.split()]

    def words(out: Path, preset: str = "dcmpl", split: int = 0) -> list[str]:
        own = f"train {flags} --batch-size 31 --epochs 10 --preset {preset} --split {splits[split]}"
        return [*own.split(), "--out", str(out), "--set", *settings]

    return words


@pytest.fixture(scope="module")
def folders(
    words_of: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Runs of one process and of two; one that was stopped goes on with two."""
    place = tmp_path_factory.mktemp("runs")
    one, two = place / "one", place / "two"
    wholes, again = (
        [
            words_of(folder / "dcmpl"),
            words_of(folder / "dcmpl-prompted", "dcmpl-prompted"),
            words_of(folder / "nothing-learned", "clip-iqa", split=1),
        ]
        for folder in (one, two)
    )
    stopped = words_of(place / "stopped")
    (alone,) = all_of([program([*wholes, stopped], after=6, by="SIGINT")])
    assert alone.code == 130, alone.err
    assert len(read_run(place / "stopped").history) == 2
    first, second = all_of([program([*again, [*stopped, "--resume"]])] * 2)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert first.out.startswith(f"run: {two / 'dcmpl'}\n")
    assert "2 processes share every batch" in first.err
    assert (second.out, second.err) == ("", "")
    return one, two


def gradient_of(last: Path) -> Tensor:
    means = {name: t for name, t in load_file(last).items() if name.endswith("exp_avg")}
    return torch.cat([means[name].flatten() for name in sorted(means)])


@pytest.mark.parametrize("name", ["dcmpl", "dcmpl-prompted"])
def test_two_processes_have_the_losses_of_one(folders: tuple[Path, Path], name: str) -> None:
    wanted, found = (read_run(folder / name) for folder in folders)
    losses = [[entry["loss"] for entry in run.history] for run in (found, wanted)]
    assert len(losses[0]) == 10  # of two steps each
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    ours, theirs = (gradient_of(folder / name / LAST) for folder in folders)
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()


def test_two_processes_validate_as_one(folders: tuple[Path, Path]) -> None:
    wanted, found = (read_run(folder / "nothing-learned").history[0] for folder in folders)
    assert found.keys() == wanted.keys()
    assert list(found.values()) == pytest.approx(list(wanted.values()), abs=1e-6)


def test_first_of_two_processes_alone_writes(folders: tuple[Path, Path]) -> None:
    one, two = ({path.name for path in (folder / "dcmpl").iterdir()} for folder in folders)
    assert one == two
    assert read_run(folders[1] / "dcmpl").finished


def test_run_of_one_process_goes_on_with_two(folders: tuple[Path, Path]) -> None:
    assert_same(folders[0].parent / "stopped", folders[0] / "dcmpl")


def assert_same(found: Path, wanted: Path) -> None:
    """Check that a run ended with the numbers of another."""
    ours, theirs = read_run(found), read_run(wanted)
    assert ours.finished
    for entry, other in zip(ours.history, theirs.history, strict=True):
        assert entry == pytest.approx(other, abs=1e-5)


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_process_ends_the_other_and_one_goes_on(
    words_of: Callable[..., list[str]], folders: tuple[Path, Path], tmp_path: Path, rank: int
) -> None:
    words = words_of(tmp_path / "run")
    ended = all_of([program([words], rank, 6, "SIGKILL")] * 2, killed=rank)
    assert ended[rank].code == -signal.SIGKILL, ended[rank].err
    other = ended[1 - rank]
    assert other.code == 1
    assert own_lines(other.err) == [ENDED]
    assert "Traceback" not in other.err
    if rank:
        assert all_of([program([[*words, "--resume"]])])[0].code == 0
        assert_same(tmp_path / "run", folders[0] / "dcmpl")


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_launcher_of_a_killed_process_lets_the_other_say_why(
    words_of: Callable[..., list[str]], tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    (*_, runs) = program([words_of(tmp_path / "run")], 1, 4, "SIGKILL")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    found = subprocess.run(
        [*torchrun, "--standalone", str(script), runs],
        env=variables(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert own_lines(found.stderr) == [ENDED]


def test_data_that_one_process_cannot_read_end_all(
    words_of: Callable[..., list[str]], tmp_path: Path
) -> None:
    words = words_of(tmp_path / "run")
    lost = [
        str(tmp_path / "nothing.csv") if word.endswith("scores.csv") else word for word in words
    ]
    first, second = all_of([program([words]), program([lost])])
    assert (first.code, second.code) == (1, 2)
    assert own_lines(first.err) == [ENDED]
    assert (
        second.err == f"dcmpl: expected a data set at {tmp_path}/nothing.csv, got nothing there\n"
    )


@pytest.mark.parametrize("wrong", [{"RANK": "x"}, {"MASTER_PORT": "x"}, {"WORLD_SIZE": "x"}])
def test_variables_that_do_not_fit_are_one_sentence(
    train_words: list[str], tmp_path: Path, wrong: dict[str, str]
) -> None:
    right = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    words = [*train_words, "--device", "cpu", "--out", str(tmp_path / "run")]
    found = subprocess.run(
        program([words]),
        env={**os.environ, **right, "MASTER_PORT": "0", **wrong},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2, found.stderr
    assert "expected RANK, LOCAL_RANK" in found.stderr
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "run").exists()
