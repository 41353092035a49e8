"""Errors that a user can meet, in three parts: expected, got, what to do.

DcmplError
├── UsageError      what was asked for makes no sense (exit code 2)
├── DataError       a table or an image
├── WeightsError    a pretrained backbone
└── RunError        a run folder: checkpoint, split, record
"""

import difflib
from collections.abc import Iterable

__all__ = ["DataError", "DcmplError", "RunError", "UsageError", "WeightsError", "nearest"]


class DcmplError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is the command's.

    ``expected`` is what was asked for, ``got`` what came, ``reason`` the words of the system or
    of a library for it, ``hint`` what to do. The error as a text is one sentence of them.
    """

    exit_code = 1

    def __init__(
        self, expected: str, got: object = "", hint: str = "", reason: object = ""
    ) -> None:
        super().__init__(expected, str(got), hint, str(reason))  # what pickling makes it of again
        self.expected, self.got, self.hint, self.reason = expected, str(got), hint, str(reason)

    def __str__(self) -> str:
        came = f"got {self.got}" if self.got else "got"
        more = [self.reason] if self.reason else []
        sentence = ": ".join([f"expected {self.expected}, {came}", *more])
        sentence = sentence.replace("\n", "\\n")  # a name may have lines, a sentence has one
        return f"{sentence}: {self.hint}" if self.hint else sentence


class UsageError(DcmplError):
    """Error of a wrong request; nothing was started."""

    exit_code = 2


class DataError(DcmplError):
    """Error of a table, an image or a folder of images."""


class WeightsError(DcmplError):
    """Error of a backbone: missing, damaged or of another shape."""


class RunError(DcmplError):
    """Error of a run folder: missing, damaged or of another origin."""


def nearest(word: str, known: Iterable[str], otherwise: str) -> str:
    """Suggestion of the nearest of ``known`` names, ``otherwise`` where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else otherwise
