"""Prompt-grouped splits into training, validation and test.

All pictures of one prompt are in one part, so that a test prompt was never seen. The
three parts are three types: a function that wants one cannot be given another, and only
``evaluate`` takes the test part.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dcmpl.datasets import ImageTable
from dcmpl.errors import DataError, RunError

__all__ = ["PARTS", "Split", "TestPart", "TrainPart", "ValidationPart", "make_split"]

PARTS = ("train", "val", "test")
SHARES = (0.7, 0.1, 0.2)


@dataclass(frozen=True)
class TrainPart:
    """Rows that weights are fitted on."""

    table: ImageTable


@dataclass(frozen=True)
class ValidationPart:
    """Rows that an epoch is chosen by."""

    table: ImageTable


@dataclass(frozen=True)
class TestPart:
    """Rows that are looked at once, when all is decided."""

    table: ImageTable


@dataclass(frozen=True)
class Split:
    """The groups (prompts) of each part, and the seed that drew them."""

    seed: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the groups and their parts: equal digests are equal splits."""
        text = json.dumps([sorted(getattr(self, part)) for part in PARTS])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def groups(self) -> set[str]:
        """The groups of all three parts."""
        return {*self.train, *self.val, *self.test}

    def rows(self, table: ImageTable, part: str) -> ImageTable:
        """The rows of ``table`` in one part; raises :class:`DataError` on foreign groups."""
        groups = table.frame["group"]
        strange = set(groups) - self.groups
        if strange:
            raise DataError(
                f"expected only prompts of the split, got {len(strange)} others such as "
                f"{min(strange)!r}: the data changed since the split was made"
            )
        chosen = table.select(groups.isin(getattr(self, part)))
        if not len(chosen):
            raise DataError(f"expected rows in the {part} part of {table.name}, found none")
        return chosen

    def train_part(self, table: ImageTable) -> TrainPart:
        return TrainPart(self.rows(table, "train"))

    def validation_part(self, table: ImageTable) -> ValidationPart:
        return ValidationPart(self.rows(table, "val"))

    def test_part(self, table: ImageTable) -> TestPart:
        return TestPart(self.rows(table, "test"))

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` reads."""
        return {
            "protocol": "clean",
            "seed": self.seed,
            "sha256": self.digest,
            **{part: list(getattr(self, part)) for part in PARTS},
        }

    @staticmethod
    def from_json(text: str, path: Path) -> "Split":
        """Read what :meth:`to_json` wrote; raises :class:`RunError` where it was changed."""
        try:
            record = json.loads(text)
            split = Split(int(record["seed"]), *(tuple(map(str, record[p])) for p in PARTS))
            same = split.digest == record["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"expected a split at {path}, got unreadable content") from error
        if not same:
            raise RunError(f"expected the split its digest names at {path}, got a changed one")
        return split


def make_split(table: ImageTable, seed: int) -> Split:
    """70 / 10 / 20 % of the prompts, drawn from ``seed``.

    Raises :class:`DataError` where there are too few prompts for three parts.
    """
    groups = sorted(set(table.frame["group"]))
    if len(groups) < 5:
        raise DataError(
            f"expected at least 5 different prompts in {table.name} to split into training, "
            f"validation and test, got {len(groups)}"
        )
    order = np.random.default_rng([seed, 0x5B117]).permutation(len(groups))
    shuffled = [groups[i] for i in order]
    n_test = max(1, round(SHARES[2] * len(groups)))
    n_val = max(1, round(SHARES[1] * len(groups)))
    return Split(
        seed=seed,
        train=tuple(sorted(shuffled[n_test + n_val :])),
        val=tuple(sorted(shuffled[n_test : n_test + n_val])),
        test=tuple(sorted(shuffled[:n_test])),
    )
