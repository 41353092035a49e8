"""Answers of the service: rows as JSON, or as lines as they are ready; their schema."""

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import StreamingResponse

from dcmpl import __version__
from dcmpl.scoring.files import row_of
from dcmpl.scoring.results import Score
from dcmpl.scoring.scorer import Scorer
from dcmpl.serve.queue import Limits

__all__ = [
    "LINES",
    "Compared",
    "Explained",
    "Fault",
    "Model",
    "Ranked",
    "Rows",
    "as_lines",
    "described",
    "rows_of",
]

LINES = "application/x-ndjson"


class Row(BaseModel):
    """Row of one image, as in a CSV of ``dcmpl score``: all its columns, of which these are some.

    Where the image could not be read its numbers are null, ``status`` is ``error`` and
    ``reason`` says why.
    """

    model_config = ConfigDict(extra="allow")
    image: str
    prompt: str
    quality: float | None = Field(description="0 to 1, higher is better")
    alignment: float | None = Field(description="0 to 1, how well it follows its prompt")
    status: str = Field(pattern="^(ok|error)$")
    reason: str
    note: str


class Rows(BaseModel):
    """Rows of all images of the request, in its order."""

    rows: list[Row]


class Ranked(BaseModel):
    """Rows, best first; ``index`` is an image's place in the request."""

    by: str
    rows: list[Row]


class Compared(BaseModel):
    """Two rows, in the order of the request."""

    by: str
    rows: list[Row]
    first_is_better: float | None = Field(
        description="probability that people prefer the first; null where it is not known"
    )
    call: str | None = Field(description="first, second or too close to call")


class Map(BaseModel):
    """Map of the first target: a value for every 8 x 8 pixels, row by row."""

    name: str
    units: str
    relative: bool = Field(description="whether only differences have a meaning")
    values: list[list[float]]
    worst: list[int] = Field(description="row and column of the pixel in the lowest block")


class Explained(BaseModel):
    """Explanation of an image: sentences, maps, and what the score gains without each word."""

    task: str
    sentences: list[str]
    maps: list[Map]
    words: list[tuple[str, float]]
    notes: list[str] = Field(description="what could not be explained, and why")


class Model(BaseModel):
    """Description of the model that scores, and of what a request may bring."""

    model_config = ConfigDict(extra="allow")
    version: str
    about: dict[str, Any] = Field(description="the run: its name, backbone, data and digests")
    engine: str
    precision: str
    views: str
    targets: list[str]
    reads: str | None = Field(description="the target that is judged by the prompt")
    columns: list[str] = Field(description="what rows have beside the columns of every model")
    scales: dict[str, list[float]] = Field(description="lowest and highest MOS of a target")
    uncalibrated: str = Field(description="why there are no MOS units and labels")
    calibration: dict[str, Any] | None = Field(description="how scores become MOS units")
    identity: dict[str, Any] = Field(description="all that a row depends on but the image")
    most_bytes: int = Field(description="of a request")
    most_images: int = Field(description="of a request")


class Fault(BaseModel):
    """Problem (RFC 9457): what was expected, what came, what to do."""

    type: str
    title: str
    status: int
    detail: str
    expected: str
    got: str
    hint: str


def rows_of(scores: Iterable[Score], *, index: bool = False) -> list[dict[str, Any]]:
    """Rows of scores; with ``index`` the place of each in the request."""
    return [{**row_of(s), **({"index": s.index} if index else {})} for s in scores]


def described(scorer: Scorer, limits: Limits) -> dict[str, Any]:
    """Fields of :class:`Model`."""
    known = scorer.calibration.targets if scorer.calibration else {}
    return {
        "version": __version__,
        "about": dict(scorer.about),
        "engine": scorer.engine.name,
        "precision": scorer.engine.precision,
        "views": scorer.views,
        "targets": scorer.targets,
        "reads": scorer.reads,
        "columns": scorer.columns,
        "scales": {target: [m.low, m.high] for target, m in known.items()},
        "uncalibrated": "" if known else scorer.uncalibrated,
        "calibration": scorer.calibration and scorer.calibration.record(),
        "identity": scorer.identity(),
        "most_bytes": limits.upload,
        "most_images": limits.images,
    }


def as_lines(scores: AsyncIterator[Score], headers: Mapping[str, str]) -> StreamingResponse:
    """Answer of one row a line, each as it is ready."""

    async def lines() -> AsyncIterator[str]:
        async for score in scores:
            yield json.dumps(row_of(score)) + "\n"

    return StreamingResponse(lines(), headers=headers, media_type=LINES)
