"""Training, validation and test parts as three types; splits and the file that stores them.

A function that wants one part cannot be given another, and only what measures takes the test
part. How images are dealt out is said in ``dcmpl.data.splits``.
"""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dcmpl.data.table import ImageTable
from dcmpl.errors import DataError, RunError, UsageError
from dcmpl.files import MADE_BY, read_plain
from dcmpl.progress import say

__all__ = [
    "PARTS",
    "PROTOCOLS",
    "Protocol",
    "Split",
    "TestPart",
    "TrainPart",
    "ValidationPart",
    "draw_split",
]


PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class TrainPart:
    """Training part: rows that weights are fitted on."""

    table: ImageTable


@dataclass(frozen=True)
class ValidationPart:
    """Validation part: rows that choose the epoch."""

    table: ImageTable


@dataclass(frozen=True)
class TestPart:
    """Test part: rows that are predicted once, after every choice."""

    table: ImageTable


@dataclass(frozen=True)
class Split:
    """Image names of each part; ``left_out`` are in none.

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
        """SHA-256 of the images and their parts: equal digests are equal splits."""
        text = json.dumps([sorted(getattr(self, part)) for part in PARTS])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def selects_on_test(self) -> bool:
        """Whether the reported images also choose the epoch."""
        return set(self.val) == set(self.test)

    def rows(self, table: ImageTable, part: str) -> ImageTable:
        """The rows of ``table`` in one part.

        Raises :class:`DataError` where the table's images are not those of the split.
        """
        known = {*self.train, *self.val, *self.test, *self.left_out}
        names = table.frame["name"]
        strange, absent = sorted(set(names) - known), sorted(known - set(names))
        if strange or absent:
            raise DataError(
                f"just the {len(known)} images of the split in {table.name}",
                f"{len(strange)} others and {len(absent)} fewer, {(strange or absent)[0]} among "
                "them",
                "the data changed since the split was made",
            )
        chosen = table.select(names.isin(getattr(self, part)))
        if not len(chosen):
            raise DataError(f"rows in the {part} part of {table.name}", "none")
        return chosen

    def train_part(self, table: ImageTable) -> TrainPart:
        return TrainPart(self.rows(table, "train"))

    def validation_part(self, table: ImageTable) -> ValidationPart:
        return ValidationPart(self.rows(table, "val"))

    def test_part(self, table: ImageTable) -> TestPart:
        return TestPart(self.rows(table, "test"))

    def to_json(self) -> dict[str, Any]:
        """JSON of the split, as :meth:`read` takes it."""
        return {
            "made_by": MADE_BY,
            "protocol": self.protocol,
            "repeat": self.repeat,
            "sha256": self.digest,
            **{part: list(getattr(self, part)) for part in (*PARTS, "left_out")},
        }

    @staticmethod
    def read(path: Path) -> "Split":
        """Split of a file by :meth:`to_json`; raises :class:`RunError` for a changed one."""

        def build(record: dict[str, Any]) -> tuple[Split, bool]:
            parts = [tuple(map(str, record[part])) for part in (*PARTS, "left_out")]
            split = Split(str(record["protocol"]), int(record["repeat"]), *parts)
            return split, split.digest == record["sha256"]

        split, same = read_plain(path, "a split", build)
        if not same:
            raise RunError(f"the split its digest names at {path}", "a changed one")
        return split


Draw = Callable[[ImageTable, np.ndarray, int], dict[str, np.ndarray]]
"""Table, the unit of each row, repeat -> rows of each part, as masks or numbers."""

VAL, TEST = 0.1, 0.2
FOLDS = 5


@dataclass(frozen=True)
class Protocol:
    """One way to split; ``leaks`` are the kinds of leak it commits by design."""

    about: str
    draw: Draw
    leaks: frozenset[str] = frozenset()


def _shuffled(count: int, *seed: int) -> np.ndarray:
    return np.random.default_rng([*seed, 0x5B117]).permutation(count)


def _dealt(units: np.ndarray, val: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    in_val, in_test = np.isin(units, val), np.isin(units, test)
    return {"train": ~(in_val | in_test), "val": in_val, "test": in_test}


def _enough(count: int, table: ImageTable) -> int:
    if count < FOLDS:
        raise DataError(
            f"at least {FOLDS} different prompts in {table.name} to split into training, "
            "validation and test",
            count,
        )
    return count


def _counted(units: np.ndarray, table: ImageTable) -> int:
    return _enough(int(units.max()) + 1 if len(units) else 0, table)


def _clean(table: ImageTable, units: np.ndarray, repeat: int) -> dict[str, np.ndarray]:
    count = _counted(units, table)
    order = _shuffled(count, repeat)
    n_test, n_val = max(1, round(TEST * count)), max(1, round(VAL * count))
    masks = _dealt(units, order[n_test : n_test + n_val], order[:n_test])
    return masks if _is_near(masks) or len(units) < FEW else _by_images(table, units, order)


FEW = 30
"""Images of a table below which shares of them mean little."""

LARGE = 0.1
"""Share of all images from which on a unit belongs to training, where units differ much."""


def _is_near(masks: dict[str, np.ndarray], factor: float = 2.5) -> bool:
    """Whether validation and test have about their shares of the images."""
    size = len(masks["test"])
    wanted = {"val": VAL * size, "test": TEST * size}
    return all(
        int(share / factor) <= masks[part].sum() <= share * factor + 1
        for part, share in wanted.items()
    )


def _by_images(table: ImageTable, units: np.ndarray, order: np.ndarray) -> dict[str, np.ndarray]:
    """Parts of about 70, 10 and 20 % of the images: large units are training's."""
    sizes, size = np.bincount(units), len(units)
    small = [unit for unit in order if sizes[unit] <= LARGE * size]
    left = sizes[small].sum()
    test_size, val_size = min(TEST * size, left * 2 / 3), min(VAL * size, left / 3)
    before = np.cumsum([0, *sizes[small]])[:-1]
    test = [unit for unit, count in zip(small, before, strict=True) if count < test_size - 0.5]
    rest = small[len(test) :]
    after = np.cumsum([0, *sizes[rest]])[:-1]
    val = [unit for unit, count in zip(rest, after, strict=True) if count < val_size - 0.5]
    masks = _dealt(units, np.array(val, int), np.array(test, int))
    _check_near(masks, table, units)
    say(f"note: {_largest(units)}; such go to training: {_shares(masks)}")
    return masks


def _shares(masks: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{part} {masks[part].sum()}" for part in PARTS)


def _largest(units: np.ndarray) -> str:
    most = np.bincount(units).max()
    return f"one prompt, or what hangs together by images, has {most} of {len(units)} images"


def _check_near(masks: dict[str, np.ndarray], table: ImageTable, units: np.ndarray) -> None:
    """Check that no part is much too small or too large; raises :class:`DataError`."""
    if not _is_near(masks, factor=3):
        raise DataError(
            f"parts of about 70, 10 and 20 % of the images of {table.name}",
            f"{_shares(masks)}, since {_largest(units)}",
            "take more prompts, a split of your own with --split, or --protocol image-level",
        )


def _folds(table: ImageTable, units: np.ndarray, repeat: int) -> dict[str, np.ndarray]:
    count = _counted(units, table)
    folds = np.array_split(_shuffled(count, repeat // FOLDS), FOLDS)
    test = folds[repeat % FOLDS]
    rest = np.concatenate([fold for fold in folds if fold is not test])
    chosen = _shuffled(len(rest), repeat)[: max(1, round(VAL * count))]
    masks = _dealt(units, rest[chosen], test)
    if len(units) >= FEW:  # each is tested once, a large one too: there is no other way to deal
        _check_near(masks, table, units)
    return masks


def _image_level(table: ImageTable, units: np.ndarray, repeat: int) -> dict[str, np.ndarray]:
    rows = np.arange(len(table))
    return _clean(table, rows, repeat)


def _clip_agiqa(table: ImageTable, units: np.ndarray, repeat: int) -> dict[str, np.ndarray]:
    """Split of CLIP-AGIQA's script: one list of prompts, shuffled again for every repeat."""
    key = table.frame["prompt" if table.name == "AGIQA-3K" else "group"]
    groups = sorted(key.unique())
    order, chain = list(range(_enough(len(groups), table))), random.Random(10)  # noqa: S311  the paper's own
    for _ in range(repeat + 1):
        chain.shuffle(order)
    tested = {groups[i] for i in order[round((1 - TEST) * len(order)) :]}
    test = key.isin(tested).to_numpy()
    return {"train": ~test, "val": test, "test": test}


def _own_parts(table: ImageTable) -> dict[str, np.ndarray]:
    """Official split of a data set, images with opinions only; validation may be empty."""
    judged = np.isfinite(table.targets()).any(1)
    masks = {part: (table.frame["part"] == part).to_numpy() & judged for part in PARTS}
    if not masks["train"].any() or not masks["test"].any():
        raise UsageError(
            f"a split of {table.name}'s own with opinions on training and test",
            "none in this copy",
            "choose another --protocol",
        )
    return masks


def _validated(masks: dict[str, np.ndarray], units: np.ndarray, repeat: int) -> None:
    """Move some units of training to validation where the split has no validation."""
    if not masks["val"].any():
        inside = np.unique(units[masks["train"]])
        chosen = inside[_shuffled(len(inside), repeat)[: max(1, round(VAL * len(inside)))]]
        masks["val"] = masks["train"] & np.isin(units, chosen)
        masks["train"] = masks["train"] & ~masks["val"]


def _official(table: ImageTable, units: np.ndarray, repeat: int) -> dict[str, np.ndarray]:
    masks = _own_parts(table)
    _validated(masks, units, repeat)
    return masks


def _official_disjoint(table: ImageTable, units: np.ndarray, repeat: int) -> dict[str, np.ndarray]:
    """Official test part, with every connected unit removed from validation and training."""
    masks = _own_parts(table)
    for part in ("val", "train"):
        masks[part] &= ~np.isin(units, units[masks["test"]])
    _validated(masks, units, repeat)
    masks["train"] &= ~np.isin(units, units[masks["val"]])
    if not masks["train"].any():
        raise UsageError(
            f"prompts in {table.name} that its own test part has not",
            "none",
            "choose another --protocol",
        )
    return masks


PROTOCOLS: dict[str, Protocol] = {
    "clean": Protocol(
        "70/10/20 % of the prompts at random; what shares an image stays together; epoch chosen "
        "on validation",
        _clean,
    ),
    "clean-folds": Protocol(
        f"{FOLDS} folds of the prompts, each the test once, 10 % of the prompts validation; "
        "epoch chosen on validation",
        _folds,
    ),
    "clip-agiqa": Protocol(
        "80/20 % of the prompts, rounds of one chain of shuffles from seed 10; epoch chosen on "
        "the test part (arXiv:2406.16641)",
        _clip_agiqa,
        frozenset({"file", "look"}),
    ),
    "image-level": Protocol(
        "70/10/20 % of the images at random, so that prompts are shared; epoch chosen on "
        "validation",
        _image_level,
        frozenset({"prompt", "file", "look"}),
    ),
    "official": Protocol(
        "the data set's own split, with the prompts it shares",
        _official,
        frozenset({"prompt", "file", "look"}),
    ),
    "official-disjoint": Protocol(
        "the data set's own test part; what it shares is taken out of training and validation",
        _official_disjoint,
    ),
}
"""By name; ``clean`` is what is meant where none is said."""


def draw_split(name: str, table: ImageTable, units: np.ndarray, repeat: int) -> Split:
    """The split of one repeat (from 0), the same for the same table, name and repeat.

    Images that nobody judged are left out.

    ``units`` are those of :func:`dcmpl.data.leaks.tied_units`. Raises :class:`DataError` where
    there are too few prompts, :class:`UsageError` for a split that the data set has not.
    """
    # In the order of names, so that a table whose rows were moved is split as before.
    order = np.argsort(table.frame["name"].to_numpy(str))
    table = ImageTable(table.name, table.scale, table.frame.iloc[order].reset_index(drop=True))
    _, first, units = np.unique(units[order], return_index=True, return_inverse=True)
    units = np.argsort(np.argsort(first))[units]
    names, judged = table.frame["name"].to_numpy(str), np.isfinite(table.targets()).any(1)
    masks = {p: m & judged for p, m in PROTOCOLS[name].draw(table, units, repeat).items()}
    parts = {part: tuple(sorted(names[mask].tolist())) for part, mask in masks.items()}
    in_some = np.any(list(masks.values()), axis=0)
    return Split(name, repeat, **parts, left_out=tuple(sorted(names[~in_some].tolist())))
