"""What the scorer says of a picture, and of many; and the words it is asked with."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from dcmpl.config import TARGETS
from dcmpl.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ENGINES", "EXPORT", "FORMATS", "PRECISIONS", "PROMPTS_FROM", "Score", "Scores"]

ENGINES, PRECISIONS = ("torch", "onnx", "openvino"), ("fp32", "bf16", "int8")
"""What computes scores, and in what the towers' products are done."""

EXPORT = "export.json"
"""The record beside exported models."""

FORMATS = (".csv", ".jsonl", ".parquet")
"""Of files of scores."""

PROMPTS_FROM = ("sidecar", "metadata")
"""Where prompts stand that are not given as words or as a table."""


@dataclass(frozen=True)
class Score:
    """One picture's row. The scores lie in [0, 1], higher is better.

    Where the picture could not be read all are None and ``reason`` says why; what the model
    does not predict is None as well. ``note`` says what was done to read the picture.
    Alignment is judged from the picture alone, as in the paper: ``prompt`` is carried along,
    not read. ``index`` is the picture's place among those that were given.
    """

    image: str
    prompt: str
    quality: float | None = None
    alignment: float | None = None
    authenticity: float | None = None
    reason: str = ""
    note: str = field(default="", compare=False)
    index: int = field(default=0, compare=False)

    @property
    def status(self) -> str:
        """``ok`` or ``error``."""
        return "error" if self.reason else "ok"

    def __getitem__(self, target: str) -> float | None:
        if target not in TARGETS:
            raise UsageError(f"expected a target of {', '.join(TARGETS)}, got {target}")
        value: float | None = getattr(self, target)
        return value


class Scores(list[Score]):
    """Scores in the order the pictures were given, or best first."""

    def to_dataframe(self) -> "pd.DataFrame":
        """One row for each, with a column for each field and ``status``."""
        import pandas as pd

        columns = [*Score.__dataclass_fields__, "status"]
        rows = [{**asdict(score), "status": score.status} for score in self]
        frame = pd.DataFrame(rows, columns=columns)
        return frame.astype({**dict.fromkeys(TARGETS, "float64"), "index": "int64"})

    def best_first(self, by: str = "quality") -> "Scores":
        """Sorted by a target; equal ones in the order they came, errors last."""

        def place(score: Score) -> tuple[bool, float]:
            value = score[by]
            return value is None, -(value or 0.0)

        return Scores(sorted(self, key=place))
