"""``dcmpl serve``: an HTTP service that scores images."""

import json
import os
import signal
import socket
import webbrowser
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dcmpl.cli.options import (
    DEVICE,
    Arguments,
    Command,
    Flag,
    check_device,
    check_scoring_model,
    key_in,
)
from dcmpl.config import MOST_WORKERS
from dcmpl.errors import UsageError
from dcmpl.progress import say
from dcmpl.weights import model_folder, warn_of_model

__all__ = ["SERVE"]

NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")

FLAGS = (
    Flag(
        "--model",
        "run folder, or an exported one (default: the model of the package)",
        metavar="DIR",
        at_url="folder",
    ),
    Flag(
        "--host",
        "address to listen at; others than this machine need --key-file",
        default="127.0.0.1",
        metavar="ADDRESS",
    ),
    Flag("--port", "0 takes any that is free", int, 8765, metavar="PORT"),
    Flag("--key-file", "file with the key that requests must bring", metavar="FILE"),
    Flag("--max-upload", "megabytes of a request", int, 256, metavar="MB"),
    Flag("--max-images", "images of a request", int, 1000, metavar="N"),
    Flag(
        "--workers",
        "threads that decode and compute, a core each (default: all cores)",
        int,
        metavar="N",
    ),
    Flag("--open", "open the page in a browser", bool, False),
    Flag("--log-json", "print a line of JSON for each request", bool, False),
    DEVICE,
)


def serve(arguments: Arguments) -> int:
    """Listen until a signal; what was taken by then is finished."""
    key = _checked(arguments)
    import uvicorn

    from dcmpl.scoring.scorer import Scorer
    from dcmpl.serve.app import service
    from dcmpl.serve.queue import Limits

    folder = model_folder(arguments.model)
    scorer = Scorer.from_pretrained(folder, device=arguments.device, workers=arguments.workers)
    warn_of_model(folder, str(scorer.about.get("backbone", "")))
    limits = Limits(upload=arguments.max_upload * 2**20, images=arguments.max_images)
    log = _print_json if arguments.log_json else None
    # Under a key no page elsewhere can ask, so a proxy may give the service any name.
    app = service(scorer, limits, key=key, any_host=key is not None, log=log)
    config = uvicorn.Config(
        app,
        log_config=None,  # its own would close the handlers of all others
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=60,
    )
    server = uvicorn.Server(config)

    def end(number: int, frame: object) -> None:
        server.should_exit = True

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, end)  # uvicorn has its own, and comes back to these at its end
    with _listening(arguments.host, arguments.port) as listener:
        port = listener.getsockname()[1]
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        say(f"serving {folder} at http://{host}:{port}; Ctrl-C ends it")
        if arguments.open:
            webbrowser.open(f"http://{host}:{port}/")
        server.run([listener])
    return 0


def _print_json(entry: dict[str, Any]) -> None:
    stamp = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    print(json.dumps({"time": stamp, **entry}), flush=True)


def _listening(host: str, port: int) -> socket.socket:
    """Socket that listens; raises :class:`UsageError` where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise UsageError(
            f"an address of this machine and a free port at {host}:{port}",
            os.strerror(error.errno) if error.errno else error,
            "take another --host or --port",
        ) from error


def _checked(arguments: Arguments) -> str | None:
    """The key, after all checks that need no PyTorch."""
    if missing := [name for name in NEEDED if not find_spec(name)]:
        raise UsageError(
            "the packages of the service", f"no {missing[0]}", "pip install 'dcmpl-agiqa[serve]'"
        )
    check_device(arguments.device)
    check_scoring_model(arguments.model)
    if not 0 <= arguments.port <= 65535:
        raise UsageError("--port from 0 to 65535", arguments.port)
    if arguments.max_upload < 1 or arguments.max_images < 1:
        raise UsageError(
            "--max-upload and --max-images of at least 1",
            f"{arguments.max_upload} and {arguments.max_images}",
        )
    if arguments.workers is not None and not 1 <= arguments.workers <= MOST_WORKERS:
        raise UsageError(f"1 to {MOST_WORKERS} --workers", arguments.workers)
    from dcmpl.serve.guard import is_loopback

    if arguments.key_file is None:
        if not is_loopback(arguments.host):
            raise UsageError(
                "--key-file where others can reach the service",
                f"--host {arguments.host} alone",
                "write a long random word into a file and name it",
            )
        return None
    return key_in(Path(arguments.key_file))


SERVE = Command("Score images over HTTP, and on a page in the browser.", FLAGS, serve)
