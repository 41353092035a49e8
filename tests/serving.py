"""A service that listens while a test talks to it, in a thread or as the command."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """Serve ``app`` in a thread; gives its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, log_level="warning"))
    ready, begin = threading.Event(), server.startup

    async def startup(*arguments: Any, **options: Any) -> None:
        await begin(*arguments, **options)
        ready.set()

    server.startup = startup  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert ready.wait(60)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def running(
    *words: object, before: Sequence[str] = (), **environment: str
) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """``dcmpl serve`` on a free port: its address, and its process.

    ``before``: the command that runs it.
    """
    command = [*before, sys.executable, "-m", "dcmpl", "serve", "--port", "0", *map(str, words)]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **environment},
    ) as process:
        assert process.stderr is not None
        told = []
        try:
            for line in process.stderr:
                told.append(line)
                if found := re.search(r"^serving .* at (http://\S+:\d+); Ctrl-C ends it$", line):
                    yield found[1], process
                    return
        finally:
            if process.poll() is None:
                process.kill()
        pytest.fail("".join(told))
