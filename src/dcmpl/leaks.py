"""What training has seen of a test: a prompt, the same file, or a picture that looks the same.

Prompts alone do not tell: AGIQA-3K has five Midjourney pictures, byte for byte, under two
prompts each.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from dcmpl.errors import DataError
from dcmpl.splits import Split
from dcmpl.survey import ALIKE_BITS, LOOK_BYTES, PictureFacts
from dcmpl.table import ImageTable, as_group

__all__ = ["KINDS", "Leak", "check_leaks", "find_leaks", "tied_units"]

Facts = Mapping[str, PictureFacts]

KINDS = {"prompt": "share a prompt", "file": "are the same file", "look": "look the same"}
ROWS = 1024


@dataclass(frozen=True)
class Leak:
    """Two pictures that must not be on two sides; ``kind`` is one of ``KINDS``."""

    kind: str
    known: str
    tested: str


def _looks(table: ImageTable, facts: Facts) -> tuple[np.ndarray, np.ndarray]:
    """(rows, bits) of what can be compared, and which rows that are: flat pictures look alike."""
    rows = [i for i, path in enumerate(table.frame["image"]) if not facts[path].flat]
    packed = b"".join(facts[table.frame["image"].iloc[i]].look for i in rows)
    bytes_ = np.frombuffer(packed, np.uint8).reshape(-1, LOOK_BYTES)
    return np.unpackbits(bytes_, axis=1).astype(np.float32), np.array(rows, dtype=int)


def _alike(
    ours: ImageTable, theirs: ImageTable, facts: Facts
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of the one and of the other whose pictures are near-duplicates, block by block."""
    (bits, rows), (others, columns) = _looks(ours, facts), _looks(theirs, facts)
    if not len(rows) or not len(columns):
        return
    ones = others.sum(1)
    for start in range(0, len(rows), ROWS):
        block = bits[start : start + ROWS]
        # Bits that differ: those set in either less those set in both, twice.
        differ = block.sum(1)[:, None] + ones - 2 * (block @ others.T)
        near, far = np.nonzero(differ <= ALIKE_BITS)
        yield rows[start + near], columns[far]


def _codes(table: ImageTable, facts: Facts) -> Iterator[tuple[str, list[str]]]:
    """By kind, a text for every row; rows with the same are tied. Empty ones tie nothing."""
    paths = table.frame["image"]
    yield "prompt", table.frame["group"].tolist()
    yield "prompt", as_group(table.frame["prompt"]).tolist()
    yield "file", ["" if facts[path].flat else facts[path].sha256 for path in paths]


def tied_units(table: ImageTable, facts: Facts) -> np.ndarray:
    """(rows,) numbers; rows of one number share a prompt or a picture, through others or not.

    Dealing out whole units leaks nothing. Raises :class:`DataError` where a picture of the
    table could not be read.
    """
    size = len(table)
    if fault := next((f for f in (facts[p].fault for p in table.frame["image"]) if f), ""):
        raise DataError(fault)
    ones, others = [np.arange(size)], [np.arange(size)]
    for _, codes in _codes(table, facts):
        first: dict[str, int] = {}
        for row, code in enumerate(codes):
            if code:
                ones.append(np.array([row]))
                others.append(np.array([first.setdefault(code, row)]))
    for rows, columns in _alike(table, table, facts):
        ones.append(rows)
        others.append(columns)
    pairs = np.concatenate(ones), np.concatenate(others)
    graph = coo_matrix((np.ones(len(pairs[0]), bool), pairs), shape=(size, size))
    units: np.ndarray = connected_components(graph, directed=False)[1]
    return units


def find_leaks(training: ImageTable, tested: ImageTable, facts: Facts) -> list[Leak]:
    """Every picture of ``tested`` that ``training`` gives away, once for each kind."""
    found: dict[tuple[str, str], Leak] = {}

    def note(kind: str, ours: int, theirs: int) -> None:
        known, name = training.frame["name"].iloc[ours], tested.frame["name"].iloc[theirs]
        found.setdefault((kind, name), Leak(kind, known, name))

    for (kind, ours), (_, theirs) in zip(
        _codes(training, facts), _codes(tested, facts), strict=True
    ):
        first = {code: row for row, code in reversed(list(enumerate(ours))) if code}
        for row, code in enumerate(theirs):
            if code in first:
                note(kind, first[code], row)
    for rows, columns in _alike(training, tested, facts):
        for ours, theirs in zip(rows.tolist(), columns.tolist(), strict=True):
            paths = training.frame["image"].iloc[ours], tested.frame["image"].iloc[theirs]
            if facts[paths[0]].sha256 != facts[paths[1]].sha256:
                note("look", ours, theirs)
    return list(found.values())


def check_leaks(
    split: Split, table: ImageTable, facts: Facts, allowed: frozenset[str]
) -> list[str]:
    """Sentences on the leaks that the split's protocol commits by design.

    Training is held against validation and test, validation against test. Raises
    :class:`DataError`, naming pictures, for leaks of kinds that are not ``allowed``.
    """
    notes = ["the epoch is chosen on the test part"] if split.selects_on_test else []
    pairs = [("train", "test")]
    pairs += [] if split.selects_on_test else [("train", "val"), ("val", "test")]
    for first, second in pairs:
        parts = split.rows(table, first), split.rows(table, second)
        leaks = find_leaks(*parts, facts)
        for kind, told in KINDS.items():
            some = [leak for leak in leaks if leak.kind == kind]
            if not some:
                continue
            shown = "; ".join(f"{leak.tested} and {leak.known}" for leak in some[:3])
            more = f" and {len(some) - 3} more" if len(some) > 3 else ""
            sentence = (
                f"{len(some)} of {len(parts[1])} {second} pictures {told} with one of {first}"
                f" ({shown}{more})"
            )
            if kind not in allowed:
                raise DataError(
                    f"expected no leak between {first} and {second}, but {sentence}: mend the "
                    "split, or name a protocol that commits it"
                )
            notes.append(sentence)
    return notes
