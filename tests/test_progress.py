"""Progress goes to standard error, and bars to a terminal alone."""

from conftest import Capture
from dcmpl.progress import say, track


def test_sentence_is_a_line_of_standard_error(capsys: Capture) -> None:
    say("three images are missing")
    assert capsys.readouterr() == ("", "three images are missing\n")


def test_tracked_items_come_in_order_and_no_bar_is_drawn_into_a_file(capsys: Capture) -> None:
    assert list(track(iter("abc"), "letters", 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
