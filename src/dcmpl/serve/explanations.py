"""Explanations over HTTP: maps and words of one image, one request at a time."""

import asyncio
from typing import TYPE_CHECKING, Any, cast

from starlette.responses import JSONResponse, Response

from dcmpl.images.decode import quiet_pillow
from dcmpl.pages import has_matplotlib
from dcmpl.scoring.scorer import Scorer
from dcmpl.serve.problems import Problem
from dcmpl.serve.queue import FullError, Upload

if TYPE_CHECKING:
    from dcmpl.scoring.explain import Explanation
    from dcmpl.scoring.torch_engine import TorchEngine

__all__ = ["Explainer"]

MOST_WAITING, SECONDS = 8, 5
"""Explanations that may wait, and about what one takes."""


class Explainer:
    """What a scorer's model sees in an image; needs a run, since an export has no gradients."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self._turn = asyncio.Semaphore(1)
        self._waiting = 0

    async def answer(self, upload: Upload, accept: str) -> Response:
        """Maps and words as JSON, or as a figure where ``accept`` names PNG first."""
        if self.scorer.engine.name != "torch":
            raise Problem(501, "a run to explain images by", "an export", "serve the run itself")
        drawn = accept.partition(",")[0].strip() == "image/png"
        if drawn and not has_matplotlib():
            raise Problem(
                501, "matplotlib to draw with", "none", "pip install 'dcmpl-agiqa[plots]'"
            )
        if self._waiting >= MOST_WAITING:
            raise FullError(f"{self._waiting} explanations that wait", SECONDS * self._waiting)
        self._waiting += 1
        try:
            await self._turn.acquire()
            work = asyncio.ensure_future(asyncio.to_thread(self._explained, upload, drawn))
            work.add_done_callback(self._free)  # a thread goes on where who asked is gone
            found, figure = await asyncio.shield(work)
        finally:
            self._waiting -= 1
        if drawn:
            return Response(figure, media_type="image/png")
        return JSONResponse(_as_json(found))

    def _free(self, done: "asyncio.Future[Any]") -> None:
        self._turn.release()
        if not done.cancelled():
            done.exception()  # known to who asked, if anybody is left

    def _explained(self, upload: Upload, drawn: bool) -> "tuple[Explanation, bytes]":
        from dcmpl.scoring.explain import explain  # imports torch

        scorer = self.scorer
        with quiet_pillow():
            pixels = upload.source().read().pixels
        engine = cast("TorchEngine", scorer.engine)
        found = explain(engine, scorer.calibration, pixels, upload.prompt, scorer.views)
        return found, found.figure(pixels) if drawn else b""


def _as_json(found: "Explanation") -> dict[str, Any]:
    maps = [
        {
            "name": drawn.name,
            "units": drawn.units,
            "relative": drawn.relative,
            "values": drawn.values.tolist(),
            "worst": list(drawn.worst),
        }
        for drawn in found.maps
    ]
    words = [[word, gain] for word, gain in found.words]
    return {
        "task": found.task,
        "sentences": list(found.sentences),
        "maps": maps,
        "words": words,
        "notes": list(found.notes),
    }
