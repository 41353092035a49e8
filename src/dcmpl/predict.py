"""The scorer: a trained run, pictures in any form, one row out for each."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dcmpl.checkpoint import load_learned, read_run
from dcmpl.config import MODEL, TARGETS
from dcmpl.errors import DataError, UsageError
from dcmpl.images import from_pil, read_image
from dcmpl.inference import score_pictures
from dcmpl.model import DCMPL
from dcmpl.weights import load_backbone

__all__ = ["Picture", "Score", "Scorer"]

Picture = Union[str, Path, Image.Image, np.ndarray]
"""A file, a Pillow image, or uint8 RGB of shape (height, width, 3)."""


@dataclass(frozen=True)
class Score:
    """One picture's row. The scores lie in [0, 1], higher is better.

    Where the picture could not be read all are None and ``reason`` says why; what the run has
    not learned is None as well. Alignment is judged from the picture alone, as in the paper:
    ``prompt`` is carried along, not read.
    """

    image: str
    prompt: str
    quality: float | None = None
    alignment: float | None = None
    authenticity: float | None = None
    reason: str = ""

    @property
    def status(self) -> str:
        """``ok`` or ``error``."""
        return "error" if self.reason else "ok"


class Scorer:
    """Scores pictures with a trained run.

    >>> scorer = Scorer.from_pretrained("runs/demo")        # doctest: +SKIP
    >>> scorer.score(["a.png"], ["a red fox"])[0].quality   # doctest: +SKIP
    0.71
    """

    def __init__(
        self,
        model: DCMPL,
        views: str,
        batch_size: int = 64,
        tasks: Sequence[str] | None = None,
    ) -> None:
        self.model = model.eval()
        self.tasks = tuple(model.config.tasks if tasks is None else tasks)
        self.views = views
        self.batch_size = batch_size

    @classmethod
    def from_pretrained(
        cls, run: str | Path, backbone: str | None = None, device: str | None = None
    ) -> "Scorer":
        """Load a run folder made by ``dcmpl train``.

        ``backbone`` is needed only where the run's own has moved. Raises ``RunError`` for
        what is not a run, or is one of another backbone.
        """
        folder = Path(run)
        record = read_run(folder)
        frozen = load_backbone(backbone or record.backbone)
        record.check_backbone(frozen)
        model = DCMPL(frozen.clip, frozen.tokenizer, record.model, record.train.seed)
        load_learned(folder / MODEL, model, record)
        model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(model, record.train.views, tasks=record.learned)

    def score(
        self, images: Sequence[Picture], prompts: Sequence[str] | str | None = None
    ) -> list[Score]:
        """One :class:`Score` per picture, in order; ``prompts`` may be one for all.

        Raises :class:`UsageError` where the counts differ.
        """
        if prompts is None or isinstance(prompts, str):
            prompts = [prompts or ""] * len(images)
        if len(prompts) != len(images):
            raise UsageError(
                f"expected one prompt for each of {len(images)} pictures, got {len(prompts)}"
            )
        return list(self.stream(zip(images, prompts, strict=True)))

    def stream(self, pairs: Iterable[tuple[Picture, str]]) -> Iterator[Score]:
        """The same for (picture, prompt) pairs that come one by one, in bounded memory."""
        taken: list[tuple[str, str]] = []
        faults: dict[int, str] = {}
        index = 0

        def readable() -> Iterator[Tensor]:
            for index, (picture, prompt) in enumerate(pairs):
                taken.append((_name(picture), prompt))
                try:
                    yield _decode(picture)
                except DataError as error:
                    faults[index] = str(error)

        def rows(upto: int) -> Iterator[Score]:
            nonlocal index
            while index < upto and index in faults:
                yield Score(*taken[index], reason=faults.pop(index))
                index += 1

        for found in score_pictures(self.model, readable(), self.views, self.batch_size):
            # By now all pictures up to the one that was scored have been decoded.
            yield from rows(len(taken))
            quality, alignment, authenticity = (
                found.get(target) if target in self.tasks else None for target in TARGETS
            )
            yield Score(*taken[index], quality, alignment, authenticity)
            index += 1
        yield from rows(len(taken))


def _name(picture: Picture) -> str:
    return str(picture) if isinstance(picture, (str, Path)) else ""


def _decode(picture: Picture) -> Tensor:
    if isinstance(picture, (str, Path)):
        return read_image(picture)
    if isinstance(picture, Image.Image):
        return from_pil(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise DataError(
            "expected an array of uint8 RGB, (height, width, 3), got "
            f"{picture.dtype} of shape {picture.shape}"
        )
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)
