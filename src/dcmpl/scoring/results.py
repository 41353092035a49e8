"""Scores of one image and of many."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from dcmpl.config import TARGETS
from dcmpl.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Score",
    "Scores",
]


@dataclass(frozen=True)
class Score:
    """Row of one image; scores in [0, 1], higher is better.

    Where the image could not be read all are None and ``reason`` says why; what the model
    does not predict is None as well. ``note`` says what was done to read image and prompt.
    Alignment is judged from the image alone, as in the paper, unless the model reads the
    prompt. ``more`` has what a run adds by name, each also an attribute: a target of its own,
    and for each target that is calibrated ``quality_mos``, ``quality_low`` and ``quality_high``
    (90 % interval), ``quality_percentile``, ``quality_label``. ``index`` is the image's place
    among those that were given, ``file`` what a job knows its file by.
    """

    image: str
    prompt: str
    quality: float | None = None
    alignment: float | None = None
    authenticity: float | None = None
    reason: str = ""
    note: str = field(default="", compare=False)
    more: Mapping[str, Any] = field(default_factory=dict, hash=False)
    index: int = field(default=0, compare=False)
    file: str = field(default="", compare=False, repr=False)

    @property
    def status(self) -> str:
        """``ok`` or ``error``."""
        return "error" if self.reason else "ok"

    def __getitem__(self, name: str) -> Any:
        """A target's score, or an entry of ``more``."""
        if name in TARGETS:
            return getattr(self, name)
        if name not in self.more:
            known = ", ".join([*TARGETS, *self.more])
            raise UsageError(f"one of {known}", name)
        return self.more[name]

    def __getattr__(self, name: str) -> Any:
        more = self.__dict__.get("more", {})
        if name not in more:
            raise AttributeError(f"a score has no {name}; it has {', '.join([*TARGETS, *more])}")
        return more[name]


class Scores(list[Score]):
    """Scores of many images, in the given order or best first; slices are of this class too."""

    @overload
    def __getitem__(self, place: SupportsIndex, /) -> Score: ...

    @overload
    def __getitem__(self, place: slice, /) -> "Scores": ...

    def __getitem__(self, place: SupportsIndex | slice, /) -> "Score | Scores":
        found = super().__getitem__(place)
        return Scores(found) if isinstance(found, list) else found

    def to_dataframe(self) -> "pd.DataFrame":
        """DataFrame with a row per image, a column per field, and ``status``."""
        import pandas as pd

        own = [name for name in Score.__dataclass_fields__ if name not in ("more", "file")]
        more = dict.fromkeys(name for score in self for name in score.more)
        rows = [
            {**{name: getattr(score, name) for name in own}, **score.more, "status": score.status}
            for score in self
        ]
        frame = pd.DataFrame(rows, columns=[*own, *more, "status"])
        return frame.astype({**dict.fromkeys(TARGETS, "float64"), "index": "int64"})

    def best_first(self, by: str = "quality") -> "Scores":
        """Sort by a target or a column of ``more``; ties stable, errors last."""

        def place(score: Score) -> tuple[bool, float]:
            value = score[by] if by in TARGETS else score.more.get(by)
            return value is None, -(value or 0.0)

        return Scores(sorted(self, key=place))
