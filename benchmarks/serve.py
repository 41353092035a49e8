"""What a service costs, beside the scorer in it: ratios, all measured in one run.

    python benchmarks/serve.py [--rounds 3] [--requests 2000] [--model RUN]

``dcmpl serve`` in a process of its own, 512 x 512 JPEG, one prompt. In each round the scorer itself
and 1, 8 and 32 clients take their turn on the same images, as requests of 32 and of one image;
medians of images a second are compared, and how long requests waited. Then one image is asked
for while 500 of another request wait, and memory is read while many requests go by.
"""

import argparse
import base64
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from score_speed import draw

from dcmpl.client import SOME, Client
from dcmpl.progress import track
from dcmpl.scoring.scorer import Scorer
from dcmpl.serve.queue import ROUND

IMAGES, CLIENTS, LARGE = 96, (1, 8, 32), 500
PROMPT = "a painting of an ocean with clouds and birds"


@contextmanager
def served(words: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Address and process id of a service."""
    line = [sys.executable, "-m", "dcmpl", "serve", "--port", "0", "--device", "cpu", *words]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)  # noqa: S603  (ours)
    try:
        told = iter(process.stderr or ())
        found = next((f for line in told if (f := re.search(r"at (http://\S+);", line))), None)
        if found is None:
            raise SystemExit("the service did not begin")
        yield found[1], process.pid
    finally:
        process.terminate()
        process.wait()


def memory(process: int) -> float:
    """MiB that a process holds now."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def asked(client: Client, requests: Sequence[Sequence[Path]], clients: int) -> list[float]:
    """Seconds that each request waited, with so many under way at a time."""

    def one(paths: Sequence[Path]) -> float:
        start = time.perf_counter()
        if any(score.status != "ok" for score in client.score(list(paths), PROMPT)):
            raise SystemExit("an image was not scored")
        return time.perf_counter() - start

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(one, requests))


def throughput(scorer: Scorer, client: Client, paths: list[Path], rounds: int) -> None:
    """Print images a second of the scorer and of clients, and waiting times."""
    whole = [paths[i : i + SOME] for i in range(0, len(paths), SOME)]
    variants = {
        "1 client, requests of 32": (whole, 1),
        **{f"{n} clients, requests of 1": ([[path] for path in paths], n) for n in CLIENTS},
    }
    took: dict[str, list[float]] = {name: [] for name in ("the scorer itself", *variants)}
    waited: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):  # the first warms up
        for name in took:
            start = time.perf_counter()
            if name in variants:
                waits = asked(client, *variants[name])
            else:
                waits = []
                scorer.score(paths, PROMPT)
            if turn:
                took[name].append(time.perf_counter() - start)
                waited.setdefault(name, []).extend(waits)
        print(f"round {turn} of {rounds}", file=sys.stderr, flush=True)
    alone = statistics.median(took["the scorer itself"])
    print(f"{'what':28} {'images/s':>8} {'ratio':>6} {'median wait':>12} {'99 %':>7}")
    for name, seconds in took.items():
        middle = statistics.median(seconds)
        row = f"{name:28} {len(paths) / middle:8.1f} {alone / middle:6.2f}"
        if waited[name]:
            median, most = np.percentile(waited[name], [50, 99])
            row += f" {median:10.2f} s {most:5.2f} s"
        print(row)
    print("asked: a ratio of 0.85")


def sent_at_once(url: str, paths: Sequence[Path]) -> int:
    """Number of rows of one request of many images; a client would send several."""
    data = [{"data": base64.b64encode(path.read_bytes()).decode()} for path in paths]
    body = json.dumps({"images": data, "prompt": PROMPT}).encode()
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/score", body, kind)  # noqa: S310  (http)
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        return len(json.load(answer)["rows"])


def fairness(url: str, client: Client, paths: list[Path], pace: float) -> None:
    """Print how long one image waits while many of another request do."""
    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(sent_at_once, url, list(islice(cycle(paths), LARGE)))
        time.sleep(3 * ROUND * pace)
        waits = [asked(client, [paths[:1]], 1)[0] for _ in range(10)]
        if large.done() or large.result() != LARGE:
            raise SystemExit("the large request was not under way")
    middle, most = statistics.median(waits), max(waits)
    print(
        f"one image beside {LARGE} of another request: {middle:.2f} s, at most {most:.2f} s, "
        f"{most / pace / ROUND:.1f} rounds of {ROUND} images (asked: 2)"
    )


def flatness(client: Client, process: int, paths: list[Path], requests: int) -> None:
    """Print the memory of the service while requests of one image go by, from 8 clients."""
    before = memory(process)
    told, step = [], max(8, requests // 10)
    for first in track(range(0, requests, step), "requests"):
        some = min(step, requests - first)
        asked(client, [[path] for path in islice(cycle(paths), some)], 8)
        told.append(memory(process))
    print(f"memory: {before:.0f} MiB, then {', '.join(f'{m:.0f}' for m in told)}")
    ratio = told[-1] / told[0]
    print(f"after {requests} requests {ratio:.3f} of what it was after {step} (asked: flat)")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="behind one that warms up")
    parser.add_argument("--requests", type=int, default=2000, help="of the test of memory")
    parser.add_argument("--model", help="run or export (default: the model of the package)")
    options = parser.parse_args()
    words = ["--model", options.model] if options.model else []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, served(words) as (url, process):
        ready = time.perf_counter() - began
        paths = draw(Path(name) / "images", IMAGES)
        client, scorer = Client(url), Scorer.from_pretrained(options.model, device="cpu")
        print(f"ready after {ready:.1f} s (asked: 6); at {memory(process):.0f} MiB")
        throughput(scorer, client, paths, options.rounds)
        start = time.perf_counter()
        scorer.score(paths, PROMPT)
        fairness(url, client, paths, (time.perf_counter() - start) / len(paths))
        flatness(client, process, paths, options.requests)


if __name__ == "__main__":
    main()
