"""Judge: what gives a row for every image, a :class:`Scorer` here or a client of a service."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from dcmpl.data.sources import Source
from dcmpl.errors import UsageError
from dcmpl.images.decode import Input, is_tensor, name_of, text_of
from dcmpl.scoring.calibration import NUMBERS, Calibration, ranked
from dcmpl.scoring.results import Score, Scores

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CHUNK", "Judge", "chosen_targets", "paired"]

CHUNK = 64
"""Images: no batch holds windows of two chunks, so a job that goes on at the beginning of a
chunk computes just what it would have computed in one go."""


def chosen_targets(
    targets: Sequence[str] | None, known: Sequence[str], model: object
) -> tuple[str, ...]:
    """``targets`` where all are ``known``; raises :class:`UsageError` where not."""
    if not targets:
        return tuple(known)
    if unknown := [target for target in targets if target not in known]:
        raise UsageError(f"targets that {model} predicts ({', '.join(known)})", unknown[0])
    return tuple(targets)


def paired(
    images: "Sequence[Input] | Tensor", prompts: Sequence[object] | str | None
) -> "Iterator[tuple[Input, object]]":
    """(image, prompt) pairs of what :meth:`Judge.score` takes; raises :class:`UsageError`."""
    is_batch = isinstance(images, np.ndarray) and images.ndim == 4
    if isinstance(images, (str, Path, Image.Image, np.ndarray)) and not is_batch:
        raise UsageError("a list of images", f"one {type(images).__name__}", "put it in a list")
    if is_tensor(images) and len(getattr(images, "shape", ())) != 4:
        raise UsageError(
            "a list of images or a tensor (N, 3, height, width)",
            f"one of shape {tuple(getattr(images, 'shape', ()))}",
        )
    if not is_tensor(images):
        images = list(cast(Sequence[Input], images))
    if prompts is None or isinstance(prompts, str):
        prompts = [prompts or ""] * len(images)
    if len(prompts) != len(images):
        raise UsageError(f"one prompt for each of {len(images)} images", len(prompts))
    return zip(images, prompts, strict=True)


class Judge(ABC):
    """Base of what scores images: how to ask it, and what its scores mean.

    ``about`` describes the model. ``targets`` are those it predicts, ``columns`` the names in
    ``more`` of every score, ``reads`` the target that is judged by the prompt, if any.
    ``uncalibrated`` is the reason for no ``calibration``.
    """

    about: Mapping[str, Any]
    targets: tuple[str, ...]
    columns: tuple[str, ...]
    reads: str | None
    calibration: Calibration | None
    uncalibrated: str

    @abstractmethod
    def rows(self, sources: Iterable[Source], start: int = 0) -> Iterator[Score]:
        """Score sources, numbered from ``start``, in order and in bounded memory."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything of the judge that determines a row."""

    def score(
        self,
        images: "Sequence[Input] | Tensor",
        prompts: Sequence[object] | str | None = None,
    ) -> Scores:
        """One :class:`Score` per image, in order; ``prompts`` may be one for all.

        None or NaN among them, as tables have it, is an image without a prompt.

        ``images`` is a sequence of images, one tensor (N, 3, height, width) or one array
        (N, height, width, 3). Raises
        :class:`UsageError` where the counts differ.
        """
        return Scores(self.stream(paired(images, prompts)))

    def stream(self, pairs: Iterable[tuple[Input, object]]) -> Iterator[Score]:
        """Score (image, prompt) pairs one by one, in bounded memory."""
        return self.rows(
            Source(name_of(image), prompt=text_of(prompt), given=image) for image, prompt in pairs
        )

    def rank(
        self, images: "Sequence[Input] | Tensor", prompt: str = "", by: str = "quality"
    ) -> Scores:
        """Score images of one prompt, best first; failed images come last.

        ``index`` says which image each was. Where ``by`` is calibrated, ``better_than_next``
        is the probability that people prefer an image to the one behind it, and ``call`` says
        whether that is too close to call. Raises :class:`UsageError` for a target that the
        model does not predict.
        """
        self.check_target(by)
        return self.ranked(self.score(images, prompt), by)

    def ranked(self, scores: Scores, by: str = "quality") -> Scores:
        """Rank scores of one prompt as :meth:`rank` does."""
        found, target = scores.best_first(by), self.target_of(by)
        spreads = [score.more.get(f"{target}_spread") for score in found]
        places = self.places([score[target] for score in found], spreads, target)
        return Scores(
            replace(score, more={**score.more, **place})
            for score, place in zip(found, places, strict=True)
        )

    def target_of(self, by: str) -> str:
        """Target of a column such as ``quality_mos``."""
        known = [t for t in self.targets if by == t or by.startswith(f"{t}_")]
        return max(known, key=len, default=by)

    def places(
        self, scores: Sequence[float | None], spreads: Sequence[float | None], target: str
    ) -> Iterator[dict[str, Any]]:
        """Columns of :func:`dcmpl.scoring.calibration.ranked` for scores, best first."""
        meaning = self.calibration.targets.get(target) if self.calibration else None
        return ranked(meaning, scores, spreads)

    def check_target(self, target: str) -> None:
        """Check that the model predicts ``target``; raises :class:`UsageError`.

        Numbers that go with a target, such as ``quality_mos``, count as well.
        """
        kinds = {f"{t}_{kind}" for t in self.targets for kind in NUMBERS}
        if target in self.columns and (target in self.targets or target in kinds):
            return
        model = self.about.get("model", "the model")
        if target in kinds and self.calibration is None:
            raise UsageError(f"a calibrated model for {target}", model, self.uncalibrated)
        chosen_targets([target], self.targets, Path(model))
