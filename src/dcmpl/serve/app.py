"""Application of the service: its paths, and what becomes of errors."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from time import monotonic
from typing import Any, TypeVar

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dcmpl import __version__
from dcmpl.client import MODEL, digest_of
from dcmpl.errors import DataError, DcmplError, UsageError
from dcmpl.files import as_json
from dcmpl.scoring.calibration import TOO_CLOSE
from dcmpl.scoring.results import Score, Scores
from dcmpl.scoring.scorer import Scorer
from dcmpl.serve.answers import (
    LINES,
    Compared,
    Explained,
    Fault,
    Model,
    Ranked,
    Rows,
    as_lines,
    described,
    rows_of,
)
from dcmpl.serve.explanations import Explainer
from dcmpl.serve.figures import Figures
from dcmpl.serve.forms import Asked, body, read_request
from dcmpl.serve.guard import Guard
from dcmpl.serve.pages import api, home, part
from dcmpl.serve.problems import Problem, problem
from dcmpl.serve.queue import FullError, Limits, ScoringQueue

__all__ = ["service"]

FAULTS: dict[int | str, dict[str, Any]] = {
    status: {
        "content": {"application/problem+json": {"schema": Fault.model_json_schema()}},
        "description": about,
    }
    for status, about in {
        400: "no form that can be read",
        401: "no key",
        403: "a page of another site asks",
        408: "the body does not come",
        413: "more than the service takes",
        415: "neither a form nor JSON",
        421: "a request to another machine",
        422: "other fields than expected",
        501: "the model that is served cannot do it",
        503: "the queue is full; Retry-After says when to come again",
        507: "no room on the disk for what was sent",
    }.items()
}


Log = Callable[[dict[str, Any]], object]
Result = TypeVar("Result")


class _Timed:
    """ASGI application around the paths that notes what each request took."""

    def __init__(self, app: ASGIApp, figures: Figures, log: Log | None) -> None:
        self.app, self.figures, self.log = app, figures, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = monotonic(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            route = scope.get("route")  # the path as it is declared: strangers name no figure
            path, seconds = getattr(route, "path", "other"), monotonic() - began
            self.figures.note(path, status, seconds)
            if self.log:
                self.log({"path": path, "status": status, "seconds": round(seconds, 4)})


async def _while_there(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Result of ``work``, which is cancelled where who waits for it goes.

    Only for a request whose body has been read.
    """

    async def until_gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(until_gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Problem(499, "a request that waits for its answer", "one that is gone")
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.wait({working, watching})


async def _next(scores: AsyncIterator[Score]) -> Score:
    return await anext(scores)


class _Paths:
    """What each path of the API does."""

    def __init__(self, queue: ScoringQueue, figures: Figures) -> None:
        self.queue, self.figures, self.scorer = queue, figures, queue.scorer
        self.explainer = Explainer(queue.scorer)
        self.digest = digest_of(queue.scorer.identity())

    async def _scores(self, asked: Asked) -> AsyncGenerator[Score, None]:
        async with aclosing(self.queue.scores(asked.images)) as scores:
            async for score in scores:
                self.figures.count(score)
                yield score

    async def _all(self, asked: Asked) -> Scores:
        return Scores([score async for score in self._scores(asked)])

    async def score(self, request: Request) -> Any:
        """Score images; rows in the order of the request, each as it is ready with NDJSON."""
        if LINES in request.headers.get("accept", ""):
            return await self._lines(request)
        async with read_request(request, self.queue.limits) as asked:
            rows = rows_of(await _while_there(request, self._all(asked)))
        return JSONResponse({"rows": rows}, headers={MODEL: self.digest})

    async def _lines(self, request: Request) -> Any:
        async with AsyncExitStack() as stack:
            asked = await stack.enter_async_context(read_request(request, self.queue.limits))
            scores = await stack.enter_async_context(aclosing(self._scores(asked)))
            # A full queue must have its own status, so no answer begins before the first row.
            first = await _while_there(request, _next(scores))
            kept = stack.pop_all()

        async def found() -> AsyncIterator[Score]:
            async with kept:
                yield first
                async for score in scores:
                    yield score

        return as_lines(found(), {MODEL: self.digest})

    async def rank(self, request: Request) -> Any:
        """Rank images of one prompt, best first, with what is too close to call."""
        async with read_request(request, self.queue.limits) as asked:
            by = self._target(asked)
            found = await _while_there(request, self._all(asked))
        return JSONResponse({"by": by, "rows": rows_of(self.scorer.ranked(found, by), index=True)})

    async def compare(self, request: Request) -> Any:
        """Compare two images of one prompt: the probability that people prefer the first."""
        async with read_request(request, self.queue.limits, count=2) as asked:
            by = self._target(asked)
            found = await _while_there(request, self._all(asked))
        best = self.scorer.ranked(found, by)[0]
        chance, call = best.more["better_than_next"], best.more["call"]
        if chance is not None and best.index == 1:
            chance = 1 - chance
        if chance is not None and call != TOO_CLOSE:
            call = "first" if chance > 0.5 else "second"
        content = {"by": by, "rows": rows_of(found), "first_is_better": chance, "call": call}
        return JSONResponse(content)

    def _target(self, asked: Asked) -> str:
        if len(prompts := {image.prompt for image in asked.images}) > 1:
            raise Problem(
                422, "images of one prompt", f"{len(prompts)} prompts", "rank those of each alone"
            )
        by = asked.by or self.scorer.targets[0]
        self.scorer.check_target(by)
        return by

    async def explain(self, request: Request) -> Any:
        """Show where an image looks bad, and which words of its prompt it lacks.

        JSON of maps and words, or with ``Accept: image/png`` a figure.
        """
        async with read_request(request, self.queue.limits, count=1) as asked:
            answer = self.explainer.answer(asked.images[0], request.headers.get("accept", ""))
            return await _while_there(request, answer)

    async def model(self) -> Any:
        """Describe the model: what it is, what it predicts, and what its scores mean."""
        found = described(self.scorer, self.queue.limits)
        return Response(as_json(found), media_type="application/json")

    async def healthz(self) -> Any:
        """Say that the service runs."""
        return JSONResponse({"status": "ok"})

    async def readyz(self) -> Any:
        """Say whether requests are taken."""
        if self.queue.is_open:
            return JSONResponse({"status": "ready"})
        return problem(503, DcmplError("a service that takes requests", "one that is ending"))

    async def metrics(self) -> Any:
        """Figures for Prometheus."""
        return self.figures.answer()


def service(
    scorer: Scorer,
    limits: Limits | None = None,
    *,
    key: str | None = None,
    any_host: bool = False,
    log: Log | None = None,
) -> FastAPI:
    """ASGI application that scores with ``scorer``; see :class:`dcmpl.serve.guard.Guard`.

    ``log`` takes an entry for each request.
    """
    limits = limits or Limits()
    queue = ScoringQueue(scorer, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        queue.close()

    app = FastAPI(
        title="dcmpl",
        version=__version__,
        summary="How good AI-generated images look, and how well they follow their prompts.",
        docs_url=None,  # its page loads scripts from elsewhere; /docs is ours
        redoc_url=None,
        lifespan=lifespan,
    )
    figures = Figures(queue)
    app.add_middleware(_Timed, figures=figures, log=log)
    app.add_middleware(Guard, key=key, any_host=any_host, limits=limits)
    _add_paths(app, _Paths(queue, figures))
    _add_faults(app)
    return app


def _add_paths(app: FastAPI, paths: _Paths) -> None:
    lines: dict[int | str, Any] = {200: {"content": {LINES: {"schema": {"type": "string"}}}}}
    for path, does, count, model, more in (
        ("/v1/score", paths.score, None, Rows, lines),
        ("/v1/rank", paths.rank, None, Ranked, {}),
        ("/v1/compare", paths.compare, 2, Compared, {}),
        (
            "/v1/explain",
            paths.explain,
            1,
            Explained,
            {200: {"content": {"image/png": {}}}, **_kept(501)},
        ),
    ):
        app.add_api_route(
            path,
            does,
            methods=["POST"],
            response_model=model,
            responses={**FAULTS, **more},
            openapi_extra=body(count),
        )
    app.add_api_route(
        "/v1/model", paths.model, response_model=Model, responses=_kept(401, 403, 421)
    )
    app.add_api_route("/", home, response_class=HTMLResponse)
    app.add_api_route("/docs", api, response_class=HTMLResponse)
    app.add_api_route("/page/{name}", part, response_class=Response, include_in_schema=False)
    app.add_api_route("/healthz", paths.healthz)
    app.add_api_route("/readyz", paths.readyz, responses=_kept(503))
    app.add_api_route("/metrics", paths.metrics, response_class=Response)


def _kept(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: FAULTS[status] for status in statuses}


def _add_faults(app: FastAPI) -> None:
    """Turn errors into problems."""

    async def known(request: Request, error: Exception) -> Response:
        if isinstance(error, Problem):
            return problem(error.status, error.error, error.headers)
        if isinstance(error, FullError):
            return problem(503, error, {"Retry-After": str(error.seconds)})
        if isinstance(error, (UsageError, DataError)):
            return problem(422, error)
        if isinstance(error, HTTPException):
            wanted = "a path of this service" if error.status_code == 404 else "another request"
            found = DcmplError(wanted, f"{request.method} {request.url.path}", "see /openapi.json")
            return problem(error.status_code, found, error.headers)
        return problem(500, DcmplError("an answer", "an error", reason=error))

    handled: tuple[type[Exception], ...] = (Problem, DcmplError, HTTPException)
    for kind in handled:
        app.add_exception_handler(kind, known)
