"""Progress goes to standard error, and bars to a terminal alone."""

import os
import sys
from collections.abc import Iterator
from typing import TextIO

import pytest

from conftest import Capture
from dcmpl.progress import Console, say, track


def test_sentence_is_a_line_of_standard_error(capsys: Capture) -> None:
    say("three images are missing")
    assert capsys.readouterr() == ("", "three images are missing\n")


def test_tracked_items_come_in_order_and_no_bar_is_drawn_into_a_file(capsys: Capture) -> None:
    assert list(track(iter("abc"), "letters", 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def unread() -> Iterator[TextIO]:
    """A pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        yield stream


def test_work_goes_on_where_nobody_reads_its_notes(
    unread: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", unread)
    say("three images are missing")
    say("four images are missing")
    assert os.path.sameopenfile(unread.fileno(), os.open(os.devnull, os.O_WRONLY))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")
def test_work_goes_on_where_there_is_no_room_for_its_notes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        say("three images are missing")
        say("four images are missing")


def test_note_is_not_printed_among_results_where_standard_error_is_closed(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    say("three images are missing")
    assert capsys.readouterr().out == ""


def test_table_that_nobody_reads_is_a_broken_pipe_as_any_other(
    unread: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", unread)
    with pytest.raises(BrokenPipeError):
        Console().print("a table")
    os.dup2(os.open(os.devnull, os.O_WRONLY), unread.fileno())
