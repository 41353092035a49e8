"""Several processes train as one does: equal shares of every batch, the first alone writes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dcmpl.runs import LAST, read_run

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
        "OMP_NUM_THREADS": "1",
        "ONEDNN_MAX_CPU_ISA": "AVX2",  # or products are rounded where a processor can
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


def gradient_of(last: Path) -> Tensor:
    means = {name: t for name, t in load_file(last).items() if name.endswith("exp_avg")}
    return torch.cat([means[name].flatten() for name in sorted(means)])


def test_two_processes_train_what_one_does_and_the_first_alone_writes(
    train_words: list[str], tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    words = [*train_words, "--device", "cpu", "--epochs", "1", "--batch-size", "36"]
    first, second = trained_by(2, [*words, "--out", str(two)])
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert first[1].startswith(f"run: {two}\n")
    assert second[1] == ""
    assert trained_by(1, [*words, "--out", str(one)])[0][0] == 0
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    found, wanted = read_run(two), read_run(one)
    assert found.finished
    # One step of all images: shares of its loss are summed in another order.
    assert found.history[0]["loss"] == pytest.approx(wanted.history[0]["loss"], rel=1e-5)
    # After one step Adam's mean is a tenth of the gradient, of which each process saw a share.
    ours, theirs = (gradient_of(folder / LAST) for folder in (two, one))
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()


@pytest.mark.parametrize("wrong", [{"RANK": "x"}, {"MASTER_PORT": "x"}, {"WORLD_SIZE": "x"}])
def test_variables_that_do_not_fit_are_one_sentence(
    train_words: list[str], tmp_path: Path, wrong: dict[str, str]
) -> None:
    right = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    words = [*train_words, "--device", "cpu", "--out", str(tmp_path / "run")]
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words],
        env={**os.environ, **right, "MASTER_PORT": "0", **wrong},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 2, found.stderr
    assert "expected RANK, LOCAL_RANK" in found.stderr
    assert "Traceback" not in found.stderr
    assert not (tmp_path / "run").exists()
