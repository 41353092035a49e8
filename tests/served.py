"""The service around scorers that are quick, or that wait for a word; for tests of it.

PYTEST_DONT_REWRITE: tests import it.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from calibrated import Brightness, grey, plain_calibration
from dcmpl.data.sources import Source
from dcmpl.scoring.results import Score
from dcmpl.scoring.scorer import Scorer
from dcmpl.serve.app import service
from dcmpl.serve.queue import Limits, Upload

HERE = "http://127.0.0.1:8765"
TARGETS = ("quality", "alignment")


class Rounds:
    """A scorer that notes its rounds; ``held``: each waits for :meth:`go` before its first row."""

    def __init__(self, held: bool = False, failing: Iterable[int] = (), after: int = 0) -> None:
        self.about: dict[str, Any] = {}
        self.rounds: list[list[str]] = []
        self.held, self.failing, self.after = held, frozenset(failing), after
        self.begun, self._go = threading.Semaphore(0), threading.Semaphore(0)

    def rows(self, sources: Iterable[Source]) -> Iterator[Score]:
        """Rows of a round; those ``failing``, from 0, end with an error ``after`` some rows."""
        chosen = list(sources)
        number = len(self.rounds)
        self.rounds.append([source.name for source in chosen])
        self.begun.release()
        if self.held:
            self._go.acquire()
        for place, source in enumerate(chosen):
            if number in self.failing and place == self.after:
                raise RuntimeError(f"round {number}")
            yield Score(source.name, source.prompt, quality=0.5, index=place)

    def go(self) -> None:
        """Let the round go that waits, or the next."""
        self._go.release()

    def free(self) -> None:
        """Hold no round any more."""
        self.held = False
        self._go.release()


class Held(Scorer):
    """A scorer by brightness whose rounds wait as those of :class:`Rounds` do."""

    rounds: Rounds

    def rows(self, sources: Iterable[Source], start: int = 0) -> Iterator[Score]:
        """Rows of a round."""
        return self.rounds.rows(sources)


def by_brightness(*targets: str, calibrated: bool = True) -> Scorer:
    """A scorer whose quality is how bright an image is, and whose alignment is how dark."""
    targets = targets or TARGETS
    known = plain_calibration(*targets) if calibrated else None
    about = {"model": "bright", "backbone": "none"}
    return Scorer(Brightness(*targets), "center", about=about, calibration=known)


def held_scorer(rounds: Rounds) -> Held:
    """A scorer that does as ``rounds`` does."""
    scorer = Held(Brightness(*TARGETS), "center", about={"model": "held"})
    scorer.rounds = rounds
    return scorer


@contextmanager
def served(
    scorer: Scorer | None = None, limits: Limits | None = None, **options: Any
) -> Iterator[TestClient]:
    """A client of the service, which ends with the block; errors are answers, as for others."""
    app = service(scorer or by_brightness(), limits, **options)
    with TestClient(app, base_url=HERE, raise_server_exceptions=False) as client:
        yield client


def png(level: int) -> bytes:
    """A grey image as a file."""
    return as_png(grey(level))


def as_png(pixels: np.ndarray) -> bytes:
    """Pixels as a file."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def files(*levels: int) -> list[tuple[str, tuple[str, bytes]]]:
    """Grey images for a form, named after their levels."""
    return [("files", (f"{level}.png", png(level))) for level in levels]


def uploads(name: str, count: int) -> list[Upload]:
    """Images of a request for the queue: ``a 0``, ``a 1``, ..."""
    return [Upload(f"{name} {i}", f"prompt {i}", lambda: b"") for i in range(count)]


def fault_of(answer: Any, status: int) -> dict[str, Any]:
    """The problem in an answer, which must be whole."""
    assert (answer.status_code, answer.headers["content-type"]) == (
        status,
        "application/problem+json",
    ), answer.text
    found: dict[str, Any] = answer.json()
    assert set(found) == {"type", "title", "status", "detail", "expected", "got", "hint"}
    assert (found["type"], found["status"]) == ("about:blank", status)
    assert found["detail"].startswith(f"expected {found['expected']}, got")
    return found
