"""What the tests of hostile input share: where an attack is laid, and how its row is judged.

PYTEST_DONT_REWRITE: tests import it as well.
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import Capture
from dcmpl.cli.main import main

Words = list[object]


@dataclass(frozen=True)
class Ground:
    """Where an attack is laid: an empty folder, good files to copy, the trace it would leave."""

    folder: Path
    backbone: Path
    run: Path
    data: Path

    @property
    def trace(self) -> Path:
        return self.folder / "it-ran"

    @property
    def out(self) -> Path:
        return self.folder / "out.csv"

    def copy_of(self, source: Path) -> Path:
        return Path(shutil.copytree(source, self.folder / "copy"))

    def train(self, *words: object) -> Words:
        return [
            *("train", "--data", self.data, "--mos-scale", 1, 5, "--out", self.folder / "run"),
            *words,
        ]

    def score(self, model: Path, *words: object) -> Words:
        image = self.data.parent / "00.png"
        return ["score", image, "--model", model, "-o", self.out, *words]


@dataclass(frozen=True)
class Attack:
    """A name, what makes the files and returns the command, its exit code, and what it says."""

    name: str
    make: Callable[[Ground], Words]
    code: int
    says: str


@pytest.fixture
def ground(tmp_path: Path, small_backbone: Path, trained_run: Path, image_data: Path) -> Ground:
    return Ground(tmp_path, small_backbone, trained_run, image_data)


def judge(attack: Attack, ground: Ground, capsys: Capture) -> None:
    """The command ends as the row says, in one sentence of the house, and nothing ran."""
    words = [str(word) for word in attack.make(ground)]
    capsys.readouterr()
    code = main(words)
    captured = capsys.readouterr()
    assert not ground.trace.exists()
    last = (captured.err.splitlines() or [""])[-1]
    assert code == attack.code, last
    assert "Traceback" not in captured.err
    if code in (1, 2):
        assert last.startswith("dcmpl: expected ")
        assert len(last) < 3000
        told = last.removeprefix("dcmpl: ")
    else:
        told = captured.err + captured.out
        told += ground.out.read_text() if ground.out.is_file() else ""
    assert re.search(attack.says, told), told
