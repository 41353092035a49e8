"""Several processes train as one does: equal shares of every batch, the first alone writes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dcmpl.runs import read_run

SCRIPT = "import sys; from dcmpl.cli.main import main; sys.exit(main(sys.argv[1:]))"


def trained_by(count: int, words: list[str]) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each process of ``dcmpl train``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *words],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    ended = [process.communicate() for process in processes]
    return [(p.returncode, *texts) for p, texts in zip(processes, ended, strict=True)]


def test_two_processes_train_what_one_does_and_the_first_alone_writes(
    train_words: list[str], trained_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first, second = trained_by(2, [*train_words, "--device", "cpu", "--out", str(out)])
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert first[1].startswith(f"run: {out}\n")
    assert second[1] == ""
    assert {path.name for path in out.iterdir()} == {path.name for path in trained_run.iterdir()}
    found, wanted = read_run(out), read_run(trained_run)
    assert found.finished
    assert found.best_epoch == wanted.best_epoch
    losses = [[entry["loss"] for entry in run.history] for run in (found, wanted)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)  # sums of shares, in another order
