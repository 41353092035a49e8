"""Training, validation and test as three types, and the file that says who is in which.

A function that wants one part cannot be given another, and only what measures takes the test
part. How pictures are dealt out is said in ``dcmpl.protocols``.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcmpl.errors import DataError, RunError
from dcmpl.table import ImageTable

__all__ = ["PARTS", "Split", "TestPart", "TrainPart", "ValidationPart"]

PARTS = ("train", "val", "test")
MAX_SPLIT_BYTES = 256 * 2**20


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
    """The pictures of each part, by name; ``left_out`` are in none of them.

    Drawn by ``protocol`` for its ``repeat`` (from 0). Where ``val`` is ``test``, the epoch is
    chosen on the test part, as some published tables did.
    """

    protocol: str
    repeat: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of the pictures and their parts: equal digests are equal splits."""
        text = json.dumps([sorted(getattr(self, part)) for part in PARTS])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def selects_on_test(self) -> bool:
        """Whether the epoch is chosen by the very pictures that are reported."""
        return set(self.val) == set(self.test)

    def rows(self, table: ImageTable, part: str) -> ImageTable:
        """The rows of ``table`` in one part.

        Raises :class:`DataError` where the table's pictures are not those of the split.
        """
        known = {*self.train, *self.val, *self.test, *self.left_out}
        names = table.frame["name"]
        strange, absent = sorted(set(names) - known), sorted(known - set(names))
        if strange or absent:
            raise DataError(
                f"expected just the {len(known)} pictures of the split in {table.name}, got "
                f"{len(strange)} others and {len(absent)} fewer, "
                f"{(strange or absent)[0]} among them: the data changed since the split was made"
            )
        chosen = table.select(names.isin(getattr(self, part)))
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
        """What :meth:`read` reads."""
        return {
            "protocol": self.protocol,
            "repeat": self.repeat,
            "sha256": self.digest,
            **{part: list(getattr(self, part)) for part in (*PARTS, "left_out")},
        }

    @staticmethod
    def read(path: Path) -> "Split":
        """Read what :meth:`to_json` gives; raises :class:`RunError` where it was changed."""
        try:
            if path.stat().st_size > MAX_SPLIT_BYTES:
                raise ValueError(f"more than {MAX_SPLIT_BYTES} bytes")
            record = json.loads(path.read_text(encoding="utf-8"))
            parts = [tuple(map(str, record[part])) for part in (*PARTS, "left_out")]
            split = Split(str(record["protocol"]), int(record["repeat"]), *parts)
            same = split.digest == record["sha256"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            told = " ".join(str(error).split())
            raise RunError(f"expected a split at {path}, got: {told}") from error
        if not same:
            raise RunError(f"expected the split its digest names at {path}, got a changed one")
        return split
