"""Pictures, and where it is read their text, to scores: cut into windows, computed, averaged."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from dcmpl.engines import BATCH, Engine
from dcmpl.images.decode import cores
from dcmpl.images.windows import windows
from dcmpl.packing import outputs_of
from dcmpl.scores import Ids

__all__ = ["Answer", "Question", "all_answers", "all_scores", "scores_of"]


@dataclass(frozen=True)
class Question:
    """A picture to score, uint8 (height, width, 3), if it could be read; and its text in parts."""

    pixels: np.ndarray | None
    texts: tuple[Ids, ...] = ((),)


class Answer(NamedTuple):
    """Each task's score of a picture: the mean over its windows, and their standard deviation."""

    scores: Float64[np.ndarray, " tasks"]
    spread: Float64[np.ndarray, " tasks"]


def scores_of(
    engine: Engine,
    questions: Iterable[Question],
    views: str,
    *,
    batch_size: int = BATCH,
    chunk: int | None = None,
    pool: Executor | None = None,
    depth: int = 0,
) -> Iterator[Answer | None]:
    """Each picture's scores over its views, in order; None for no picture.

    Questions are taken one by one; ``batch_size`` counts windows. Where a text has several
    parts, each window is scored with each. The rest is as for
    :func:`dcmpl.packing.outputs_of`.
    """

    def compute(waiting: list[tuple[np.ndarray, Ids]]) -> np.ndarray:
        cut: list[np.ndarray] = []
        texts: list[list[Ids]] = []
        for window, text in waiting:
            if not cut or window is not cut[-1]:  # each is looked at once for all its texts
                cut.append(window)
                texts.append([])
            texts[-1].append(text)
        return engine(np.stack(cut), texts)

    def asked(question: Question) -> Iterator[tuple[np.ndarray, Ids]]:
        if question.pixels is not None:
            for window in windows(question.pixels, engine.size, views):
                yield from ((window, text) for text in question.texts)

    chunk = 1 if engine.apart else chunk
    for found in outputs_of(
        map(asked, questions), compute, batch_size, chunk=chunk, pool=pool, depth=depth
    ):
        yield Answer(np.mean(found, axis=0), np.std(found, axis=0)) if found else None


def all_answers(engine: Engine, questions: Iterable[Question], views: str) -> list[Answer]:
    """:func:`scores_of` pictures that are all there, on all cores."""
    count = cores()
    with engine.lanes(count) as pool:
        found = scores_of(engine, questions, views, pool=pool, depth=count)
        return [answer for answer in found if answer is not None]


def all_scores(
    engine: Engine, pictures: Iterable[np.ndarray], views: str
) -> Float64[np.ndarray, "pictures tasks"]:
    """The scores of pictures without texts."""
    answers = all_answers(engine, map(Question, pictures), views)
    return np.stack([answer.scores for answer in answers])
