"""A service that is flooded, starved or left half-way stays up; one that is killed costs no row."""

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import pytest

from dcmpl.client import Client
from dcmpl.errors import RunError
from pngs import chunk
from served import as_png, png
from serving import running

pytest_plugins = ("calibrated",)

Process = "subprocess.Popen[str]"
EDGE = b"edge"
HUGE = 60_000
"""Pixels of a side: 10.8 GB of red, green and blue."""


@pytest.fixture(scope="module")
def service(calibrated_run: Path) -> Iterator[tuple[str, Any]]:
    with running("--model", calibrated_run, "--device", "cpu") as found:
        yield found
        assert found[1].poll() is None  # up to the end


@pytest.fixture(scope="module")
def url(service: tuple[str, Any]) -> str:
    return service[0]


def form(*images: bytes) -> bytes:
    """Body of a form with these images."""
    head = b'Content-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    parts = [b"--" + EDGE + b"\r\n" + head + image + b"\r\n" for image in images]
    return b"".join(parts) + b"--" + EDGE + b"--\r\n"


def posted(url: str, *images: bytes) -> tuple[int, dict[str, Any], str]:
    """Status, content and Retry-After of an answer about images."""
    kind = {"Content-Type": f"multipart/form-data; boundary={EDGE.decode()}"}
    try:
        with urlopen(Request(f"{url}/v1/score", form(*images), kind), timeout=300) as answer:
            return answer.status, json.load(answer), ""
    except HTTPError as error:
        with error:
            return error.code, json.load(error), error.headers.get("Retry-After", "")


def scored(url: str) -> float:
    """Quality of a good image, which the service must give."""
    status, content, _ = posted(url, png(100))
    assert status == 200, content
    (row,) = content["rows"]
    assert (row["status"], row["reason"]) == ("ok", "")
    return float(row["quality"])


def half_sent(url: str) -> socket.socket:
    """A connection that has sent half of a request."""
    body = form(*[png(level) for level in range(20)])
    head = (
        f"POST /v1/score HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n"
        f"Content-Type: multipart/form-data; boundary={EDGE.decode()}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection((urlsplit(url).hostname or "", urlsplit(url).port or 0))
    connection.sendall(head.encode() + body[: len(body) // 2])
    return connection


def test_clients_that_stop_half_way_hold_up_no_other(url: str) -> None:
    with ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(half_sent(url))
        assert scored(url) == scored(url)
    assert scored(url) == scored(url)  # and now they are gone


def test_client_that_stops_in_its_headers_holds_up_no_other(url: str) -> None:
    address = urlsplit(url).hostname or "", urlsplit(url).port or 0
    with ExitStack() as stack:
        for begin in (b"", b"POST", b"POST /v1/score HTTP/1.1\r\nHost: ", b"\0" * 1000, b"\r\n"):
            connection = stack.enter_context(socket.create_connection(address))
            connection.sendall(begin)
        scored(url)


def most_memory(process: Any) -> int:
    """MiB that a process has held at most."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
def test_image_of_huge_size_is_a_row_and_takes_no_memory(service: tuple[str, Any]) -> None:
    url, process = service
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", HUGE, HUGE, 8, 2, 0, 0, 0))
    rows = zlib.compress(bytes(64 * 2**20))
    huge = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    scored(url)
    before = most_memory(process)
    status, content, _ = posted(url, huge, png(100), huge)
    assert status == 200
    assert [row["status"] for row in content["rows"]] == ["error", "ok", "error"]
    assert f"({HUGE**2} pixels) exceeds limit" in content["rows"][0]["reason"]
    assert most_memory(process) - before < 200


def test_two_hundred_connections_at_a_time_all_have_an_answer(url: str) -> None:
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda level: posted(url, png(level)), range(200)))
    taken = [content["rows"][0] for status, content, _ in answers if status == 200]
    assert {status for status, _, _ in answers} <= {200, 503}
    assert all(int(after) >= 1 for status, _, after in answers if status == 503)
    assert all(row["status"] == "ok" for row in taken)
    assert taken
    scored(url)


def test_many_clients_that_wait_as_they_are_told_all_get_their_rows(url: str) -> None:
    client = Client(url, sleep=lambda _: None)
    with ThreadPoolExecutor(100) as pool:
        found = list(pool.map(lambda level: client.score([grey(level)])[0], range(100)))
    assert [score.status for score in found] == ["ok"] * 100


def grey(level: int) -> np.ndarray:
    return np.full((40, 44, 3), level, dtype=np.uint8)


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_rows_before_a_service_is_killed_are_kept(calibrated_run: Path, judged_data: Path) -> None:
    paths = sorted(judged_data.parent.glob("*.png"))
    with running("--model", calibrated_run, "--device", "cpu") as (url, process):
        scores = Client(url).stream((path, "a fox") for path in paths)
        kept = [next(scores)]
        process.kill()
        process.wait()
        with pytest.raises(RunError, match=f"^expected (an answer|32 rows) from .*{url[7:]}"):
            kept.extend(scores)
    assert all(score.status == "ok" for score in kept)


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGTERM")
def test_service_that_is_ended_finishes_what_it_took(calibrated_run: Path) -> None:
    images = [png(level % 256) for level in range(500)]
    with running("--model", calibrated_run, "--device", "cpu") as (url, process):
        with ThreadPoolExecutor(1) as pool:
            large = pool.submit(posted, url, *images)
            while not large.done() and not waiting(url):
                pass
            process.send_signal(signal.SIGTERM)
            status, content, _ = large.result()
        assert process.wait(120) == 0
    assert status == 200
    assert [row["status"] for row in content["rows"]] == ["ok"] * 500


def waiting(url: str) -> int:
    """Images in the queue."""
    with urlopen(f"{url}/metrics", timeout=60) as answer:
        told: str = answer.read().decode()
    return round(float(told.partition("\ndcmpl_queue_images ")[2].split()[0]))


def test_full_temporary_disk_is_told(calibrated_run: Path, tmp_path: Path) -> None:
    """Images beyond 1 MiB lie on disk; those of the next request find room again."""
    small = "mount -t tmpfs -o size=3m none " + str(tmp_path) + ' && exec "$@"'
    before = ["unshare", "-rm", "sh", "-c", small, "sh"]
    if not shutil.which("unshare") or subprocess.run([*before, "true"], check=False).returncode:
        pytest.skip("no small disk can be made here")
    pixels = np.random.default_rng(0).integers(0, 256, (800, 900, 3), dtype=np.uint8)
    large = as_png(pixels)  # 2 MiB of noise
    words = ["--model", calibrated_run, "--device", "cpu"]
    with running(*words, before=before, TMPDIR=str(tmp_path)) as (url, _):
        status, content, _ = posted(url, large, large)
        assert (status, content["title"]) == (507, "No room")
        assert content["detail"] == "expected room for what was sent, got No space left on device"
        status, content, _ = posted(url, large)
        assert (status, content["rows"][0]["status"]) == (200, "ok")
