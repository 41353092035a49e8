"""Queue of the service: requests take turns, and one thread scores them in rounds.

A round takes one image of each request in turn until it is full, so a request of one image
waits for the round that is under way and is in the next, however long the others are.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from time import monotonic
from typing import TYPE_CHECKING

from dcmpl.data.sources import Source
from dcmpl.errors import DataError, DcmplError
from dcmpl.images.decode import quiet_pillow
from dcmpl.progress import say
from dcmpl.scoring.results import Score

if TYPE_CHECKING:
    from dcmpl.scoring.scorer import Scorer

__all__ = ["ROUND", "FullError", "Limits", "ScoringQueue", "Upload"]

ROUND = 16
"""Images that are scored together: enough to keep all cores at work, few to wait for."""


@dataclass(frozen=True)
class Limits:
    """Bounds of the service: of one request, and of all that wait."""

    upload: int = 256 * 2**20
    """Bytes of a request."""
    images: int = 1000
    """Images of a request."""
    waiting: int = 64
    """Requests at a time."""
    waiting_images: int = 4000
    """Images of all of them."""
    waiting_upload: int = 512 * 2**20
    """Bytes of all of them, or those of one request where that may have more."""


class FullError(DcmplError):
    """Error of a queue that takes no more; ``seconds`` is when to come again."""

    def __init__(self, got: str, seconds: int) -> None:
        super().__init__("room in the queue", got, f"send it again in {seconds} s")
        self.seconds = seconds


@dataclass(frozen=True)
class Upload:
    """Image of a request; ``read`` gives its bytes when its turn comes."""

    name: str
    prompt: str
    read: Callable[[], bytes]

    def source(self) -> Source:
        """The image with its bytes, or with the fault that there are none."""
        try:
            return Source(self.name, content=self.read(), prompt=self.prompt)
        except (OSError, ValueError) as error:  # a disk, or a file that was closed
            fault = DataError("an image that can be read", self.name, reason=error)
            return Source(self.name, fault=fault, prompt=self.prompt)


Deliver = Callable[["Score | Exception"], object]


@dataclass(eq=False)
class Ticket:
    """Request in the queue: its images that wait, and where their scores go."""

    images: Sequence[Upload]
    deliver: Deliver
    taken: int = 0
    gone: bool = False


class ScoringQueue:
    """Fair and bounded queue before a scorer."""

    def __init__(self, scorer: "Scorer", limits: Limits) -> None:
        self.scorer, self.limits = scorer, limits
        self._tickets: deque[Ticket] = deque()
        self._change = threading.Condition()
        self._closing = False
        self._pace = 0.1  # seconds an image, as last measured
        self._thread = threading.Thread(target=self._work, name="scoring", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> tuple[int, int]:
        """Requests in the queue, and their images that have not had their turn."""
        with self._change:
            return self._waiting()

    def _waiting(self) -> tuple[int, int]:
        return len(self._tickets), sum(len(t.images) - t.taken for t in self._tickets)

    @property
    def is_open(self) -> bool:
        """Whether requests are taken."""
        return not self._closing and self._thread.is_alive()

    def close(self) -> None:
        """Take no more requests, and wait until all that were taken are done."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        self._thread.join()

    async def scores(self, images: Sequence[Upload]) -> AsyncGenerator[Score, None]:
        """Scores of a request in order, as they come; what is left when the caller goes is freed.

        Raises :class:`FullError` where the queue takes no more.
        """
        loop, found = asyncio.get_running_loop(), asyncio.Queue["Score | Exception"]()

        def deliver(item: Score | Exception) -> None:
            with suppress(RuntimeError):  # the loop has ended, and so has who waited
                loop.call_soon_threadsafe(found.put_nowait, item)

        ticket = self._enter(images, deliver)
        try:
            for _ in images:
                item = await found.get()
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self._leave(ticket)

    def _enter(self, images: Sequence[Upload], deliver: Deliver) -> Ticket:
        with self._change:
            requests, waiting = self._waiting()
            after = max(1, round(waiting * self._pace))
            if self._closing:
                raise FullError("a service that is about to end", after)
            if requests >= self.limits.waiting:
                raise FullError(f"{requests} requests that wait", after)
            if requests and waiting + len(images) > self.limits.waiting_images:
                raise FullError(f"{waiting} images that wait", after)
            ticket = Ticket(images, deliver)
            self._tickets.append(ticket)
            self._change.notify_all()
        return ticket

    def _leave(self, ticket: Ticket) -> None:
        with self._change:
            ticket.gone = True
            if ticket in self._tickets:
                self._tickets.remove(ticket)

    def _round(self) -> list[tuple[Ticket, int]]:
        """The next images, one of each request in turn; none when the queue is closed."""
        with self._change:
            self._change.wait_for(lambda: self._tickets or self._closing)
            chosen: list[tuple[Ticket, int]] = []
            while self._tickets and len(chosen) < ROUND:
                ticket = self._tickets.popleft()
                chosen.append((ticket, ticket.taken))
                ticket.taken += 1
                if ticket.taken < len(ticket.images):
                    self._tickets.append(ticket)
            return chosen

    def _work(self) -> None:
        with quiet_pillow():
            while chosen := self._round():
                began = monotonic()
                self._score(chosen)
                self._pace = (monotonic() - began) / len(chosen)

    def _score(self, chosen: Sequence[tuple[Ticket, int]]) -> None:
        left = iter(chosen)
        try:
            for score in self.scorer.rows(self._sources(chosen)):
                ticket, index = next(left)
                if not ticket.gone:
                    ticket.deliver(replace(score, index=index))
        except Exception as error:  # one round must not end the service
            say(f"a round of {len(chosen)} images failed: {error!r}")
            for ticket, _ in left:
                ticket.deliver(error)

    def _sources(self, chosen: Sequence[tuple[Ticket, int]]) -> Iterator[Source]:
        for ticket, index in chosen:
            yield ticket.images[index].source()
