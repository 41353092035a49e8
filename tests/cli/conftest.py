"""What tests of commands share."""

from pathlib import Path

import pytest


@pytest.fixture
def train(train_words: list[str], tmp_path: Path) -> list[str]:
    """The words of a training that works."""
    return [*train_words, "--out", str(tmp_path / "run")]
