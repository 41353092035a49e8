"""Scoring of columns, for any engine that hands dictionaries of columns to a class."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dcmpl.data.sources import Source
from dcmpl.errors import DataError, UsageError
from dcmpl.images.decode import quiet_pillow, text_of
from dcmpl.scoring.files import columns_of, is_text, row_of
from dcmpl.scoring.scorer import Scorer, ScoringOptions

__all__ = ["BatchScorer"]


class BatchScorer:
    """Score columns of images: a dictionary of columns in, one out.

    >>> scorer = BatchScorer(targets=["quality"])                     # doctest: +SKIP
    >>> scorer({"image": ["a.png"], "prompt": ["a red fox"]})["quality"]  # doctest: +SKIP
    array([0.71])

    ``image`` and ``prompt`` name the columns; the second may be missing. An image is a path or
    a URL, the bytes of a file, what the hub's data sets have in a column (``bytes`` and
    ``path``), a Pillow image or an array as :meth:`Scorer.score` takes it. The other columns
    are carried along. Every image gets its row: numbers are float64 with NaN where there is
    none, texts are objects. ``options`` are those of :class:`ScoringOptions`; one core unless
    ``workers`` says more.

    A copy, as an engine sends it to its processes, opens the model there, once, when it is first
    called. Images are scored in chunks of 64 from the first of a call on; so calls of whole
    chunks give the bits that the scorer gives, whoever makes them.

    Raises :class:`UsageError` for columns that are missing or would be overwritten.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        image: str = "image",
        prompt: str = "prompt",
        **options: Any,
    ) -> None:
        self.model, self.image, self.prompt = model, image, prompt
        self.options = ScoringOptions(workers=1).changed(**options)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "scorer"}

    @cached_property
    def scorer(self) -> Scorer:
        """Scorer of this process; raises as :meth:`Scorer.from_pretrained` does."""
        return Scorer.from_pretrained(self.model, self.options)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that are added."""
        return columns_of(self.scorer.columns)

    def __call__(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Score a batch; rows keep their order."""
        if self.image not in columns:
            raise UsageError(f"a column {self.image}", ", ".join(columns), "name it with image=")
        images = list(columns[self.image])
        prompts = list(columns[self.prompt]) if self.prompt in columns else [""] * len(images)
        kept = {n: c for n, c in columns.items() if n not in (self.image, self.prompt)}
        if twice := [name for name in self.columns if name in kept]:
            raise UsageError(
                "columns of other names than scores have", twice[0], "rename it, or leave it out"
            )
        sources = (
            source_of(image, text_of(prompt)) for image, prompt in zip(images, prompts, strict=True)
        )
        with quiet_pillow():
            rows = [row_of(score) for score in self.scorer.rows(sources)]
        return {**kept, **{name: as_column(name, [r[name] for r in rows]) for name in self.columns}}


def source_of(image: Any, prompt: str) -> Source:
    """Source of a cell of an image column."""
    if isinstance(image, Mapping):  # as the hub lays images out
        name, content = str(image.get("path") or ""), image.get("bytes")
        if content is None and not name:
            return Source("", prompt=prompt, fault=DataError("an image in every row", "none"))
        if isinstance(content, (bytearray, memoryview)):
            content = bytes(content)
        if not isinstance(content, (bytes, type(None))):
            wrong = DataError("the bytes of an image in every row", f"a {type(content).__name__}")
            return Source(name, prompt=prompt, fault=wrong)
        return Source(name, name, prompt=prompt, content=content)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return Source("", prompt=prompt, content=bytes(image))
    if isinstance(image, (str, Path)):
        return Source(str(image), str(image), prompt=prompt)
    if image is None:
        return Source("", prompt=prompt, fault=DataError("an image in every row", "none"))
    return Source("", prompt=prompt, given=image)


def as_column(name: str, values: Sequence[Any]) -> np.ndarray:
    """Column of numbers, NaN where there is none, or of texts."""
    if is_text(name):
        found = np.empty(len(values), dtype=object)
        found[:] = values
        return found
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
