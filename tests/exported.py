"""The short run as ``dcmpl export`` makes it, once for all tests; loaded as a plugin.

PYTEST_DONT_REWRITE: tests import it as well.
"""

import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pytest


@dataclass(frozen=True)
class Made:
    """An export: its folder, and what the command printed and said."""

    folder: Path
    printed: str
    said: str

    @staticmethod
    def by(*words: object) -> "Made":
        """``dcmpl export``, which must succeed; ``-o`` is the last of the words."""
        from dcmpl.cli import main

        out, err = StringIO(), StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main(["export", *(str(word) for word in words)])
        assert code == 0, err.getvalue()
        return Made(Path(str(words[-1])), out.getvalue(), err.getvalue())

    def copied(self, place: Path) -> Path:
        """A copy of the folder, to be changed."""
        return Path(shutil.copytree(self.folder, place))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, trained_run: Path, picture_data: Path) -> Made:
    """The whole export, with all variants; copy it before changing it.

    Ranks of 4 pictures that a run of three epochs hardly tells apart are no reason to leave out
    8 bits here, as they would be on one processor and not on another.
    """
    from dcmpl import export

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "INT8_SRCC", -1.0)
        return Made.by(trained_run, "-o", tmp_path_factory.mktemp("exports") / "all")


@pytest.fixture(scope="session")
def many_windows() -> np.ndarray:
    """Windows of 32 pixels of all kinds of noise, (33, 32, 32, 3)."""
    rng = np.random.default_rng(5)
    strength = rng.uniform(2, 120, (33, 1, 1, 3))
    noise = rng.normal(size=(33, 32, 32, 3))
    pixels: np.ndarray = 128 + strength * noise
    return pixels.clip(0, 255).astype(np.uint8)
