"""Every error a user can meet.

    DcmplError
    ├── UsageError      what was asked for makes no sense (exit code 2)
    ├── DataError       a table or a picture
    ├── WeightsError    a pretrained backbone
    └── RunError        a run folder: checkpoint, split, record

A message is one sentence: what was expected, what came, what to do.
"""

import difflib
from collections.abc import Iterable

__all__ = ["DataError", "DcmplError", "RunError", "UsageError", "WeightsError", "nearest"]


class DcmplError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is the command's."""

    exit_code = 1


class UsageError(DcmplError):
    """The request itself is wrong; nothing was started."""

    exit_code = 2


class DataError(DcmplError):
    """A table, a picture or a folder of pictures is not what it should be."""


class WeightsError(DcmplError):
    """A backbone is missing, damaged or of another shape."""


class RunError(DcmplError):
    """A run folder is missing, damaged, or made with something else."""


def nearest(word: str, known: Iterable[str], otherwise: str) -> str:
    """A question with the nearest of ``known``, or ``otherwise`` where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else otherwise
