"""Who may ask, how much may come, and what a browser may do with answers."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from conftest import Capture
from dcmpl.serve.guard import HEADERS, SLOWEST, Guard, is_loopback
from dcmpl.serve.problems import Problem, problem
from dcmpl.serve.queue import Limits
from served import HERE, Rounds, fault_of, files, held_scorer, png, served

pytest_plugins = ("calibrated",)

KEY = "a long random word"
MOST = 50_000
"""Bytes of a request here."""

Pairs = Sequence[tuple[str, str]]


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with served(limits=Limits(upload=MOST)) as client:
        yield client


@pytest.fixture(scope="module")
def locked() -> Iterator[TestClient]:
    """A service that needs a key."""
    with served(limits=Limits(upload=MOST), key=KEY) as client:
        yield client


async def length(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that answers with the length of what came."""
    body = await Request(scope, receive).body()
    await PlainTextResponse(str(len(body)))(scope, receive, send)


def status_of(guard: Guard, *headers: tuple[str, str], path: str = "/v1/model") -> int:
    """Status of a request with these headers and no others."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
    }
    asyncio.run(guard(scope, receive, send))
    assert {name.lower().encode() for name in HEADERS} <= {n for n, _ in sent[0]["headers"]}
    status: int = sent[0]["status"]
    return status


@contextmanager
def headers_beyond(headers: dict[str, str]) -> Iterator[TestClient]:
    """A service that listens beyond this machine, and a client that names it otherwise."""
    with served(key=KEY, any_host=True) as client:
        client.headers.update(headers)
        yield client


# Hosts

OWN = (
    "127.0.0.1",
    "127.0.0.1:8765",
    "localhost",
    "LOCALHOST:1",
    "[::1]",
    "[::1]:8765",
    "127.9.9.9",
)
FOREIGN = (
    "example.com",
    "example.com:8765",
    "localhost.example.com",
    "127.0.0.1.example.com",
    "192.168.0.1",
    "0.0.0.0",
    "[::]",
    "[fe80::1]",
    "::1",
    "127.0.0.1@example.com",
    "",
    ":8765",
    "[",
    "[::1",
    "[x]",
    "]",
    "127.1",
    "\xff",
)


@pytest.mark.parametrize("host", OWN)
def test_request_to_this_machine_comes_in(client: TestClient, host: str) -> None:
    assert client.get("/v1/model", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/model", "/healthz", "/metrics", "/nowhere"])
def test_request_to_another_machine_is_refused(client: TestClient, path: str) -> None:
    found = fault_of(client.get(path, headers={"host": "example.com:8765"}), 421)
    assert found["got"] == "example.com:8765"


@pytest.mark.parametrize("host", FOREIGN)
def test_strange_host_is_refused(host: str) -> None:
    assert status_of(Guard(length, limits=Limits(upload=MOST)), ("host", host)) == 421


@settings(deadline=None)
@given(host=st.text(st.characters(max_codepoint=255), max_size=12))
def test_any_host_has_an_answer(host: str) -> None:
    assert status_of(Guard(length, limits=Limits(upload=MOST)), ("host", host)) in (200, 421)


def test_request_without_a_host_is_refused() -> None:
    assert status_of(Guard(length, limits=Limits(upload=MOST))) == 421


def test_service_of_other_machines_takes_any_host() -> None:
    guard = Guard(length, key=KEY, any_host=True, limits=Limits(upload=MOST))
    assert status_of(guard, ("host", "example.com"), ("x-api-key", KEY)) == 200


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.com", False),
        ("", False),
    ],
)
def test_loopback_is_this_machine_alone(host: str, is_own: bool) -> None:
    assert is_loopback(host) is is_own


# Pages


def test_own_page_comes_in(client: TestClient) -> None:
    asked = {"origin": HERE, "sec-fetch-site": "same-origin"}
    assert client.post("/v1/score", files=files(10), headers=asked).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "http://example.com",
        "http://127.0.0.1:9999",
        "http://127.0.0.1",
        "http://localhost:8765",
        "http://127.0.0.1:8765.example.com",
        "null",
        "",
        "http://[",
        "127.0.0.1:8765",
    ],
)
def test_page_of_another_site_is_refused(client: TestClient, origin: str) -> None:
    found = fault_of(client.post("/v1/score", files=files(10), headers={"origin": origin}), 403)
    assert found["expected"] == "a request of this service's own page"


@pytest.mark.parametrize("site", ["cross-site", "same-site", "x"])
def test_request_that_another_site_made_is_refused(client: TestClient, site: str) -> None:
    fault_of(client.get("/v1/model", headers={"sec-fetch-site": site}), 403)


@pytest.mark.parametrize("site", ["none", "same-origin"])
def test_request_of_a_person_or_the_page_comes_in(client: TestClient, site: str) -> None:
    assert client.get("/v1/model", headers={"sec-fetch-site": site}).status_code == 200


def test_other_sites_are_refused_on_other_machines_too() -> None:
    with headers_beyond({"host": "example.com", "x-api-key": KEY}) as client:
        assert client.get("/v1/model", headers={"origin": "https://example.com"}).is_success
        fault_of(client.get("/v1/model", headers={"origin": "https://example.org"}), 403)


# Keys


@pytest.mark.parametrize(
    ("headers", "came"),
    [
        ({}, "none"),
        ({"x-api-key": ""}, "none"),
        ({"authorization": "Bearer"}, "none"),
        ({"authorization": f"Basic {KEY}"}, "none"),
        ({"authorization": KEY}, "none"),
        ({"x-api-key": KEY[:-1]}, "another"),
        ({"x-api-key": KEY + "x"}, "another"),
        ({"x-api-key": KEY.upper()}, "another"),
        ({"x-api-key": "ä"}, "another"),
        ({"authorization": "Bearer wrong"}, "another"),
        ({"authorization": "Bearer wrong", "x-api-key": KEY}, "another"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/model", "/v1/nowhere"])
def test_wrong_key_is_refused(
    locked: TestClient, headers: dict[str, str], came: str, path: str
) -> None:
    as_bytes = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = locked.get(path, headers=as_bytes)  # type: ignore[arg-type]
    assert fault_of(answer, 401)["got"] == came
    assert answer.headers["www-authenticate"] == "Bearer"
    assert KEY not in answer.text


@pytest.mark.parametrize("path", ["/v1/score", "/v1/rank", "/v1/compare"])
def test_scores_need_the_key(locked: TestClient, path: str) -> None:
    fault_of(locked.post(path, files=files(10, 20)), 401)
    assert locked.post(path, files=files(10, 20), headers={"x-api-key": KEY}).is_success


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": KEY},
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY} "},
        {"authorization": f"Basic {KEY}", "x-api-key": KEY},
    ],
)
def test_right_key_comes_in(locked: TestClient, headers: dict[str, str]) -> None:
    assert locked.get("/v1/model", headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_health_and_figures_need_no_key(locked: TestClient, path: str) -> None:
    assert locked.get(path).status_code == 200


def test_no_key_is_needed_where_there_is_none(client: TestClient) -> None:
    assert client.get("/v1/model", headers={"x-api-key": "x"}).status_code == 200


# How much


def test_request_over_the_bound_is_refused_before_it_is_read(client: TestClient) -> None:
    answer = client.post("/v1/score", files=[("files", ("a.png", b"x" * MOST))])
    found = fault_of(answer, 413)
    assert (found["expected"], found["hint"]) == ("at most 50,000 bytes", "send fewer images")


@pytest.mark.parametrize("given", [str(MOST + 1), "9" * 30, "9" * 5000, "-1", "x", "", "1.5", "²"])
def test_length_that_is_none_or_too_large_is_refused(given: str) -> None:
    guard = Guard(length, limits=Limits(upload=MOST))
    assert status_of(guard, ("host", "localhost"), ("content-length", given)) == 413


def test_length_up_to_the_bound_comes_in() -> None:
    guard = Guard(length, limits=Limits(upload=MOST))
    assert status_of(guard, ("host", "localhost"), ("content-length", str(MOST))) == 200


def chunked(content: bytes, size: int = 1000) -> Iterable[bytes]:
    """A body in pieces, which is sent without its length."""
    yield from (content[i : i + size] for i in range(0, len(content), size))


KINDS = ("application/json", "multipart/form-data; boundary=edge")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["/v1/score", "/v1/rank", "/v1/compare"])
def test_body_that_grows_over_the_bound_is_refused(
    client: TestClient, path: str, kind: str
) -> None:
    begin = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    content = chunked(begin + b"x" * (2 * MOST))
    found = fault_of(client.post(path, content=content, headers={"content-type": kind}), 413)
    assert found["detail"] == "expected at most 50,000 bytes, got more: send fewer images"


SLOW = b"slow"


def parts_of(guard: Guard, *bodies: Iterable[bytes | None]) -> list[tuple[int, str]]:
    """Statuses and Retry-After of requests that come at once, a part of each in turn.

    None is a part that never comes, SLOW one that takes ten times as long as it may.
    """
    found: list[tuple[int, str]] = [(0, "")] * len(bodies)

    async def one(place: int) -> None:
        parts = iter(bodies[place])

        async def receive() -> Message:
            await asyncio.sleep(0)
            part = next(parts, b"")
            if part is None:
                await asyncio.Event().wait()
            if part == SLOW:
                await asyncio.sleep(10 * len(part) / SLOWEST)
            return {"type": "http.request", "body": part, "more_body": bool(part)}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = {name.decode(): value.decode() for name, value in message["headers"]}
                found[place] = message["status"], headers.get("retry-after", "")

        headers = [(b"host", b"localhost")]
        await guard(
            {"type": "http", "method": "POST", "path": "/", "headers": headers}, receive, send
        )

    async def all_of() -> None:
        await asyncio.gather(*map(one, range(len(bodies))))

    asyncio.run(all_of())
    return found


async def read(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that reads the body and answers problems as the service does."""
    try:
        await length(scope, receive, send)
    except Problem as error:
        await problem(error.status, error.error, error.headers)(scope, receive, send)


def test_body_that_does_not_come_is_given_up() -> None:
    guard = Guard(read, limits=Limits(), patience=0.01)
    assert parts_of(guard, [b"x", None], [b"x"]) == [(408, ""), (200, "")]


def test_body_that_trickles_is_given_up() -> None:
    """Each part comes in time, but not all of them."""
    guard = Guard(read, limits=Limits(), patience=0.05)
    assert parts_of(guard, [b"x"] * 1000, repeat(SLOW)) == [(200, ""), (408, "")]


def test_answer_of_which_nothing_is_taken_is_given_up(capsys: Capture) -> None:
    ended = []

    async def lines(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"row", "more_body": True})
        finally:
            ended.append(scope["path"])

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # the buffers of the connection are full

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    guard = Guard(lines, limits=Limits(), patience=0.01)
    headers = [(b"host", b"localhost")]
    asyncio.run(guard({"type": "http", "path": "/v1/score", "headers": headers}, receive, send))
    assert ended == ["/v1/score"]
    assert "a client of /v1/score took nothing for 0.01 s: let go" in capsys.readouterr().err


def test_all_bodies_have_no_more_than_their_room() -> None:
    guard = Guard(read, limits=Limits(upload=40, waiting_upload=100))
    large = [b"x" * 10] * 4
    assert parts_of(guard, large, large) == [(200, "")] * 2
    found = parts_of(guard, *[large] * 3)
    assert sorted(found) == [(200, ""), (200, ""), (503, "5")]
    assert parts_of(guard, large, large) == [(200, "")] * 2  # what they held is free again


def test_one_body_may_have_what_a_request_may() -> None:
    guard = Guard(read, limits=Limits(upload=40, waiting_upload=1))
    assert parts_of(guard, [b"x" * 40]) == [(200, "")]


def test_body_in_pieces_up_to_the_bound_comes_in(client: TestClient) -> None:
    begin = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    content = begin + png(10) + b"\r\n--edge--\r\n"
    content += b" " * (MOST - len(content))
    answer = client.post("/v1/score", content=chunked(content), headers={"content-type": KINDS[1]})
    assert [row["status"] for row in answer.json()["rows"]] == ["ok"]


# Answers


def has_headers(answer: Any) -> bool:
    return all(answer.headers.get_list(name) == [value] for name, value in HEADERS.items())


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("GET", "/v1/model", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/metrics", 200),
        ("GET", "/nowhere", 404),
        ("GET", "/v1/score", 405),
        ("POST", "/v1/score", 415),
        ("GET", "/v1/model/", 307),
    ],
)
def test_every_answer_has_its_headers(
    client: TestClient, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path, follow_redirects=False)
    assert answer.status_code == status
    assert has_headers(answer)


def test_answers_with_rows_have_their_headers(client: TestClient) -> None:
    assert has_headers(client.post("/v1/score", files=files(10)))
    lines = {"accept": "application/x-ndjson"}
    assert has_headers(client.post("/v1/score", files=files(10), headers=lines))
    assert has_headers(client.post("/v1/score", files=[("file", ("a.png", png(10)))]))


def test_refusals_have_their_headers(client: TestClient, locked: TestClient) -> None:
    assert has_headers(client.get("/healthz", headers={"host": "example.com"}))
    assert has_headers(client.get("/healthz", headers={"origin": "http://example.com"}))
    assert has_headers(locked.get("/v1/model"))
    assert has_headers(client.post("/v1/score", content=b"x" * (MOST + 1)))


def test_answer_to_a_failure_has_its_headers() -> None:
    with served(held_scorer(Rounds(failing=[0]))) as client:
        answer = client.post("/v1/score", files=files(10))
    fault_of(answer, 500)
    assert has_headers(answer)


def test_answers_forbid_scripts_of_others_and_frames(client: TestClient) -> None:
    headers = client.get("/healthz").headers
    policy = headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= {*policy}
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers
