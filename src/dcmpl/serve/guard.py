"""Guard of the service: who may ask, how much may come, what a browser may do with answers.

A service on the own machine can be reached by every web page that is open there. So a request
must name this machine as its host (no page elsewhere can, not even by a name that resolves to
it) and, where a browser says from which page it comes, that page must be this service's own.
"""

import asyncio
import hmac
from collections.abc import Mapping
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dcmpl.errors import DcmplError
from dcmpl.progress import say
from dcmpl.serve.problems import Problem, problem
from dcmpl.serve.queue import Limits

__all__ = ["Guard", "is_loopback"]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
AGAIN = 5
"""Seconds after which a request may find room."""

SLOWEST = 4096
"""Bytes a second of a body on the whole: one that trickles would keep its room for days."""

KEPT = "/v1/"
"""Paths that need a key where there is one; health, figures and the page itself do not."""


def is_loopback(host: str) -> bool:
    """Whether ``host``, a name or an address, is this machine as seen from itself."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _split(address: str) -> SplitResult:
    """Parts of an address, of which one that cannot be read has none."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


class Guard:
    """ASGI application around the service that lets only good requests in.

    ``key``: what requests to the API must bring, as ``Authorization: Bearer`` or ``X-API-Key``.
    ``any_host``: the service listens beyond this machine, under names it does not know.
    ``limits``: bytes of a request and of all at a time. A body whose next part does not come in
    ``patience`` seconds is given up, as is an answer of which nothing is taken for so long.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        key: str | None = None,
        any_host: bool = False,
        limits: Limits,
        patience: float = 60,
    ) -> None:
        self.app, self.key, self.any_host, self.patience = app, key, any_host, patience
        self.most = limits.upload
        self.room = max(limits.upload, limits.waiting_upload)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        began, gone = False, False

        async def answer(message: Message) -> None:
            nonlocal began, gone
            if message["type"] == "http.response.start":
                began = True
                MutableHeaders(scope=message).update(HEADERS)
            try:
                await asyncio.wait_for(send(message), self.patience)
            except asyncio.TimeoutError:
                gone = True
                raise

        try:
            self._check(scope["path"], Headers(scope=scope))
        except Problem as found:
            await problem(found.status, found.error, found.headers)(scope, receive, answer)
            return
        body = _Body(self, receive)
        try:
            await self.app(scope, body, answer)
        except Exception as error:  # one request must not end the service
            if gone:
                say(f"a client of {scope['path']} took nothing for {self.patience:g} s: let go")
                return
            say(f"a request to {scope['path']} failed: {error!r}")
            if began:
                raise
            wanted = DcmplError("an answer", "an error", "the log of the service has more")
            await problem(500, wanted)(scope, receive, answer)
        finally:
            body.free()

    def _check(self, path: str, headers: Headers) -> None:
        """Raise :class:`Problem` for a request that must not come in."""
        host = headers.get("host", "")
        name = _split(f"//{host}").hostname or ""
        if not self.any_host and not is_loopback(name):
            raise Problem(421, "a request to this machine (127.0.0.1 or localhost)", host or "none")
        origin = headers.get("origin")
        if origin is not None and _split(origin).netloc != host:
            raise Problem(403, "a request of this service's own page", f"one of {origin}")
        if origin is None and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Problem(403, "a request of this service's own page", "one of another site")
        if self.key is not None and path.startswith(KEPT):
            self._check_key(headers)
        length = headers.get("content-length", "0")
        is_number = length.isascii() and length.isdecimal() and len(length) < 20
        if not is_number or int(length) > self.most:
            came = f"{length[:20]} bytes"
            raise Problem(413, f"at most {self.most:,} bytes", came, "send fewer images")

    def _check_key(self, headers: Mapping[str, str]) -> None:
        given = headers.get("x-api-key", "")
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given = token.strip()
        if not hmac.compare_digest(given.encode(), str(self.key).encode()):
            came = "another" if given else "none"
            raise Problem(
                401,
                "the key of this service, as Authorization: Bearer KEY or X-API-Key: KEY",
                came,
                **{"WWW-Authenticate": "Bearer"},
            )


class _Body:
    """Body of a request as it comes, counted: one that says less than it brings is stopped."""

    def __init__(self, guard: Guard, receive: Receive) -> None:
        self.guard, self.receive = guard, receive
        self.came, self.whole = 0, False
        self.began = asyncio.get_running_loop().time()

    async def __call__(self) -> Message:
        guard = self.guard
        if self.whole:  # what comes now is that the client goes
            return await self.receive()
        try:
            message = await asyncio.wait_for(self.receive(), self._seconds())
        except asyncio.TimeoutError:
            pace = f"a pause of {guard.patience:g} s, of {SLOWEST:,} bytes a second"
            raise self._refused(408, f"a body without {pace}", f"{self.came:,} bytes") from None
        self.whole = not message.get("more_body", False)
        count = len(message.get("body", b""))
        self.came, guard.room = self.came + count, guard.room - count
        if self.came > guard.most:
            wanted = f"at most {guard.most:,} bytes"
            raise self._refused(413, wanted, "more", "send fewer images")
        if guard.room < 0:
            hint, headers = f"send it again in {AGAIN} s", {"Retry-After": str(AGAIN)}
            raise self._refused(503, "room for what is sent", "none", hint, **headers)
        return message

    def free(self) -> None:
        """Give back the room that the body has taken."""
        self.guard.room += self.came
        self.came = 0

    def _refused(self, status: int, *told: str, **headers: str) -> Problem:
        """Reason to refuse the body, whose room is free before that is sent."""
        self.free()
        return Problem(status, *told, **headers)

    def _seconds(self) -> float:
        """Seconds in which the next part must come."""
        spent = asyncio.get_running_loop().time() - self.began
        return self.guard.patience + min(0, self.came / SLOWEST - spent)
