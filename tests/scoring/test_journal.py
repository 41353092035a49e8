"""Journals of finished rows: read in any order, cut at the beginning of a chunk, one writer."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conftest import Capture
from dcmpl.errors import DataError, RunError
from dcmpl.scoring.files import COLUMNS, Row
from dcmpl.scoring.journal import FILE, MARK, Journal, journal_of, open_journal

COUNT = 2 * MARK + 7
"""Rows, of which the places of every 64th are remembered."""

STARTS = (0, 5, 64, 70, 130, COUNT)
"""Numbers of the first rows of chunks of unequal size, and the end."""


def row(index: int) -> Row:
    """A row of its own length."""
    texts = {"image": f"{index}.png", "prompt": "\u72d0\n" * (index % 11), "status": "ok"}
    return {**dict.fromkeys(COLUMNS), **texts, "quality": index / 7, FILE: f"{index} 1 abc"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "sub" / "scores.csv"


def same(_: str) -> bool:
    return True


@contextmanager
def opened(
    out: Path,
    *,
    resume: bool = False,
    count: int = COUNT,
    starts: Sequence[int] = STARTS,
    is_same: Any = same,
    job: str = "a job",
) -> Iterator[Journal]:
    record = {"name": job, "count": count, "columns": list(COLUMNS)}
    with open_journal(out, record, resume, starts, is_same) as journal:
        yield journal


def write(journal: Journal, indices: Iterable[int]) -> None:
    for index in indices:
        journal.write(row(index))


def _fail(out: Path, work: Callable[[Journal], None], **options: Any) -> None:
    with opened(out, resume=True, **options) as journal:
        work(journal)
        raise OSError("the disk is full")


def broken_off(out: Path, rows: int) -> None:
    """Write so many rows, then fail."""
    with pytest.raises(RunError, match="the disk is full"):
        _fail(out, lambda journal: write(journal, range(len(journal), rows)))


def left(out: Path, **options: Any) -> int:
    """Number of the rows that a resumed job counts; they stay there."""
    found = list[Row]()
    with pytest.raises(RunError, match="the disk is full"):
        _fail(out, lambda journal: found.extend(journal.rows()), **options)
    assert found == [row(index) for index in range(len(found))]
    return len(found)


def test_rows_are_read_in_the_order_of_writing(out: Path) -> None:
    with opened(out) as journal:
        write(journal, range(COUNT))
        assert len(journal) == COUNT
        assert [*journal.rows()] == [row(index) for index in range(COUNT)]
        assert len(journal._marks) == 3
    assert not journal_of(out).exists()
    assert [*out.parent.iterdir()] == []


@pytest.mark.parametrize(
    "order",
    [
        [*range(COUNT)][::-1],
        [0, MARK - 1, MARK, MARK + 1, 2 * MARK - 1, 2 * MARK, COUNT - 1],
        [70, 70, 71, 3, 4, 5, 130, 0],
        [],
    ],
)
def test_rows_are_read_in_any_order(out: Path, order: list[int]) -> None:
    with opened(out) as journal:
        write(journal, range(COUNT))
        assert [*journal.rows(order)] == [row(index) for index in order]
        assert [*journal.rows(iter(order))] == [row(index) for index in order]


def test_rows_may_be_read_by_two_at_once(out: Path) -> None:
    with opened(out) as journal:
        write(journal, range(COUNT))
        pairs = zip(journal.rows(), journal.rows([*range(COUNT)][::-1]), strict=True)
        assert all(a["image"] == f"{i}.png" for i, (a, _) in enumerate(pairs))


def test_resumed_journal_reads_rows_of_both_lives(out: Path) -> None:
    broken_off(out, 131)
    with opened(out, resume=True) as journal:
        assert len(journal) == 130
        write(journal, range(130, COUNT))
        assert [*journal.rows()] == [row(index) for index in range(COUNT)]
        backwards = [*range(COUNT)][::-1]
        assert [*journal.rows(backwards)] == [row(index) for index in backwards]


@pytest.mark.parametrize(
    ("rows", "counted"),
    [
        *[(0, 0), (1, 0), (4, 0), (5, 5), (6, 5), (63, 5), (64, 64), (69, 64), (70, 70)],
        *[(129, 70), (130, 130), (COUNT - 1, 130), (COUNT, COUNT)],
    ],
)
def test_rows_count_up_to_the_last_chunk_that_is_whole(out: Path, rows: int, counted: int) -> None:
    broken_off(out, rows)
    assert left(out) == counted
    assert journal_of(out).read_bytes().count(b"\n") == 1 + counted


def test_job_without_images_has_a_journal_without_rows(out: Path) -> None:
    with opened(out, count=0, starts=(0,)) as journal:
        assert [*journal.rows()] == []


@pytest.mark.parametrize(("changed", "counted"), [(0, 0), (63, 5), (64, 64), (130, 130)])
def test_rows_count_up_to_the_chunk_of_an_image_that_was_changed(
    out: Path, changed: int, counted: int, capsys: Capture
) -> None:
    broken_off(out, COUNT)
    assert left(out, is_same=lambda file: file != f"{changed} 1 abc") == counted
    assert f"{changed}.png was changed since it was scored" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        json.dumps({**row(0), "more": 1}).encode(),
    ],
)
def test_row_that_is_none_ends_those_that_count(out: Path, line: bytes) -> None:
    broken_off(out, COUNT)
    lines = journal_of(out).read_bytes().splitlines()
    lines[1 + 66] = line
    journal_of(out).write_bytes(b"\n".join(lines) + b"\n")
    assert left(out) == 64


def test_torn_last_row_does_not_count(out: Path) -> None:
    broken_off(out, COUNT)
    content = journal_of(out).read_bytes()
    journal_of(out).write_bytes(content[:-1])
    assert left(out) == 130


def test_row_that_is_changed_while_the_job_runs_is_one_sentence(out: Path) -> None:
    with opened(out) as journal:
        write(journal, range(COUNT))
        content = journal.path.read_bytes()
        journal.path.write_bytes(content.replace(b'"image": "66.png"', b'"image": "66.png}'))
        with pytest.raises(RunError, match=r"expected whole rows in .*, got a changed row 66"):
            [*journal.rows()]


def test_more_rows_than_the_job_has_are_one_sentence(out: Path) -> None:
    """As of somebody who adds lines of the same form."""
    broken_off(out, COUNT)
    with journal_of(out).open("ab") as file:
        file.write(json.dumps(row(COUNT)).encode() + b"\n")
    own = iter(range(COUNT))
    with (
        pytest.raises(RunError) as caught,
        opened(out, resume=True, is_same=lambda _: next(own) >= 0),
    ):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (json.dumps({"job": {"name": "b job"}}), "differs in name, count, columns"),
        ("{}", "differs in a damaged first line"),
        ("[" * 100_000, "differs in a damaged first line"),
    ],
)
def test_rows_of_another_job_are_refused_and_kept(out: Path, head: str, words: str) -> None:
    broken_off(out, 5)
    lines = journal_of(out).read_bytes().splitlines(keepends=True)
    content = b"".join([head.encode() + b"\n", *lines[1:]])
    journal_of(out).write_bytes(content)
    with pytest.raises(RunError) as caught, opened(out, resume=True):
        pass
    assert words in str(caught.value)
    assert journal_of(out).read_bytes() == content


def test_rows_are_not_thrown_away_without_resume(out: Path) -> None:
    broken_off(out, 5)
    with pytest.raises(RunError, match="add --resume to go on with it, or delete it"):
        opened(out).__enter__()
    assert left(out) == 5


def test_second_writer_is_refused(out: Path) -> None:
    with opened(out), pytest.raises(RunError, match="to be the only one that writes"):
        opened(out, resume=True).__enter__()
    with opened(out):
        pass


def _lose_the_judge(out: Path, rows: int) -> None:
    with opened(out) as journal:
        write(journal, range(rows))
        raise DataError("a service", "none")


def test_journal_without_rows_is_removed_where_the_judge_is_gone(out: Path) -> None:
    for rows in (0, 1):
        with pytest.raises(DataError):
            _lose_the_judge(out, rows)
        assert journal_of(out).exists() is bool(rows)
