"""One picture's answer as its row: scores, what they mean, and what was done to get them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dcmpl.answers import Answer
from dcmpl.calibration import Calibration
from dcmpl.config import TARGETS
from dcmpl.engines import Engine
from dcmpl.scores import Parts, Score

__all__ = ["RowOf", "Taken", "of_prompt"]


class Taken(NamedTuple):
    """What a row says of a picture beside its scores."""

    name: str
    prompt: str
    fault: str
    note: str
    dropped: int


def of_prompt(prompt: str, parts: Parts, target: str) -> list[str]:
    """What a row should say of how its prompt was read."""
    if not prompt.strip():
        return [f"no prompt to judge {target} by"]
    notes = []
    if parts.dropped:
        notes.append(f"{parts.dropped} tokens of the prompt were dropped")
    elif len(parts.ids) > 1:
        notes.append(f"the prompt was read in {len(parts.ids)} parts")
    letters = sum(not letter.isspace() for letter in prompt)
    if parts.count > letters + len(prompt.split()):  # a token may be the blank before a word
        notes.append("the model has no words for the letters of the prompt")
    return notes


class RowOf:
    """Makes the rows of a scorer; ``against`` is a generator to rank each picture among."""

    def __init__(
        self,
        engine: Engine,
        targets: Sequence[str],
        calibration: Calibration | None,
        against: str | None,
    ) -> None:
        self.tasks, self.targets, self.against = engine.tasks, tuple(targets), against
        self.known = calibration.targets if calibration else {}
        self.reads = engine.reads if engine.reads in self.targets else None
        calibrated = calibration.columns(self.targets, against) if calibration else ()
        own = (target for target in self.targets if target not in TARGETS)
        self.columns = (*own, *calibrated, *(["tokens_dropped"] if self.reads else []))
        """The names in ``more`` of every score."""

    def score(self, taken: Taken, answer: Answer | None, index: int) -> Score:
        """The row of what was ``taken``; ``answer`` is None where it could not be read."""
        fault, more = taken.fault, dict[str, Any].fromkeys(self.columns)
        found: dict[str, float] = {}
        if answer is not None and np.isfinite(answer.scores).all():
            found = dict(zip(self.tasks, answer.scores.tolist(), strict=True))
        elif answer is not None:
            fault = f"expected finite scores of {taken.name}, the model gave others"
        if self.reads and not taken.prompt.strip():
            found.pop(self.reads, None)
        if self.reads and found:
            more["tokens_dropped"] = taken.dropped
        if answer is not None:
            spread = dict(zip(self.tasks, answer.spread.tolist(), strict=True))
            for target in (t for t in found if t in self.targets and t in self.known):
                more |= self.known[target].row(target, found[target], spread[target], self.against)
        scores = {target: found.get(target) for target in self.targets}
        more |= {target: value for target, value in scores.items() if target not in TARGETS}
        return Score(
            taken.name,
            taken.prompt,
            quality=scores.get("quality"),
            alignment=scores.get("alignment"),
            authenticity=scores.get("authenticity"),
            reason=fault,
            note=taken.note,
            more=more,
            index=index,
        )
