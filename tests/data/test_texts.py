"""Texts are decoded or refused."""

import pytest

from dcmpl.data.texts import decode_text, encoding_of


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_read_by_its_mark_without_a_note(encoding: str) -> None:
    assert decode_text("a café fox 狐".encode(encoding)) == ("a café fox 狐", "")


@pytest.mark.parametrize("order", ["le", "be"])
def test_mark_says_the_order_of_bytes(order: str) -> None:
    assert decode_text("\ufeffa fox".encode(f"utf-16-{order}")) == ("a fox", "")


def test_other_bytes_are_read_as_windows_has_them_with_a_note() -> None:
    text, note = decode_text("a café “fox”".encode("cp1252"))
    assert text == "a café “fox”"
    assert note == "is no UTF-8 and was read as Windows-1252"


@pytest.mark.parametrize(
    "content",
    [b"a\0fox", b"\xff\xfea", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"caf\xe9\x81"],
    ids=["NUL", "half a letter", "image", "no letter of Windows"],
)
def test_bytes_that_are_no_text_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"decode|no text"):
        decode_text(content)


def test_encoding_without_a_mark_is_the_one_that_was_expected() -> None:
    assert encoding_of(b"image,prompt", "gb18030") == "gb18030"
