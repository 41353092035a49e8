"""Texts of strangers: decoded or refused, never guessed in silence."""

import codecs
from typing import Any

__all__ = ["as_cell", "decode_text", "encoding_of", "of_cell"]

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order mark -> the encoding it stands for."""

LEGACY = "cp1252"


def encoding_of(start: bytes, otherwise: str) -> str:
    """Encoding that a byte order mark at the start names, else ``otherwise``."""
    return next((name for mark, name in MARKS if start.startswith(mark)), otherwise)


def decode_text(content: bytes) -> tuple[str, str]:
    """Text and a note on it, empty where the encoding is sure.

    Raises :class:`ValueError` for bytes that are no text. UTF-8 is sure, or what a byte order
    mark names; anything else is taken for Windows-1252, with a note.
    """
    name = encoding_of(content[:4], "utf-8")
    try:
        text = content.decode(name)
    except UnicodeDecodeError as error:
        if name != "utf-8" or b"\0" in content:
            raise ValueError("bytes that are no text") from error
        return content.decode(LEGACY), "is no UTF-8 and was read as Windows-1252"
    if "\0" in text:
        raise ValueError("bytes that are no text")
    return text, ""


FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")
"""Beginnings of a text that spreadsheets would run, or that is marked as a text already."""


def as_cell(value: Any) -> Any:
    """Cell of CSV: behind a ' where a spreadsheet would take the text for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def of_cell(value: str) -> str:
    """Text of a cell that :func:`as_cell` wrote."""
    return value[1:] if value.startswith("'") and value[1:].startswith(FORMULA) else value
