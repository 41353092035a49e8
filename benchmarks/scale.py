"""How the cost of scoring on Ray grows: ratios, all measured in one run on this machine.

    python benchmarks/scale.py [--images 512] [--sizes 1000 10000 100000] [--rows 10000000]

The rate of the local scorer and of one and two actors is that of many images less that of few,
so what starting costs is beside it. How it grows is measured with a small random model on small
images and one actor, which leaves most of the time to the pipeline: images a second in the tenths
of a job, the memory of all its processes, and the driver's own seconds. Of small jobs all is
decoded before the actor has begun. A list is looked through by a process of its own, twice.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file
from score_speed import draw

from dcmpl.cli.main import main as dcmpl
from dcmpl.data.sources import iterate_sources
from dcmpl.integrations.ray import Actors, RayJob, connected
from dcmpl.model.clip import Clip
from dcmpl.scoring.partitions import Part
from dcmpl.scoring.scorer import Scorer
from dcmpl.weights.layouts import read_config

STORE = 2 * 2**30
"""Bytes of Ray's object store here: with 400 MiB, room for eight chunks, one actor of two idled."""

TINY = {
    "projection_dim": 24,
    "vision_config": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 16,
        "hidden_act": "quick_gelu",
    },
    "text_config": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 640,
        "max_position_embeddings": 40,
        "hidden_act": "quick_gelu",
    },
}
"""A CLIP that computes next to nothing."""


def tiny_run(place: Path) -> Path:
    """A run of a random tiny CLIP, trained for an epoch on noise."""
    backbone = place / "clip"
    backbone.mkdir()
    (backbone / "config.json").write_text(json.dumps(TINY))
    tokens = Path(__file__).parents[1] / "tests" / "tokenizer.json"
    (backbone / "tokenizer.json").write_bytes(tokens.read_bytes())
    torch.manual_seed(0)
    save_file(
        Clip(read_config(backbone / "config.json")).state_dict(), backbone / "model.safetensors"
    )
    rng, lines = np.random.default_rng(0), ["image,prompt,mos_quality,mos_alignment"]
    for i in range(48):
        pixels = 128 + rng.normal(0, 5 + 2 * i, (32, 32, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"noise{i}.png")
        lines.append(f"noise{i}.png,prompt {i % 12},{5 - i / 12:.2f},{1 + 4 * rng.random():.2f}")
    (place / "noise.csv").write_text("\n".join(lines) + "\n")
    words = ["--data", str(place / "noise.csv"), "--mos-scale", "1", "5", "--epochs", "1"]
    words += ["--backbone", str(backbone), "--preset", "dcmpl", "--device", "cpu"]
    if dcmpl(["train", *words, "--out", str(place / "run")]):
        raise SystemExit("the tiny model was not trained")
    return place / "run"


def memory_of(processes: Sequence[int]) -> float:
    """MiB that processes hold together, shared pages counted once."""
    total = 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return total / 1024


def family() -> list[int]:
    """This process and all that it started."""
    parents = dict[int, int]()
    for place in Path("/proc").iterdir():
        try:
            if place.name.isdigit():
                about = (place / "stat").read_text().rpartition(")")[2].split()
                parents[int(place.name)] = int(about[1])
        except OSError:
            continue
    found = {os.getpid()}
    while more := {p for p, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


@contextmanager
def peak() -> Iterator[list[float]]:
    """Most MiB of this process and its children while the block lasts, looked at each second."""
    found, end = [0.0], threading.Event()

    def watch() -> None:
        while not end.wait(1):
            found[0] = max(found[0], memory_of(family()))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        end.set()
        thread.join()


def seconds_of(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and those of this process's own CPU."""
    clock, own = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - own


@dataclass(frozen=True)
class Timed(RayJob):
    """Job that notes when each partition is there, and how many images are done then."""

    times: list[tuple[float, int]] = field(default_factory=list)

    def _run(self, *given: Any) -> Iterator[Part]:
        done = 0
        for part in super()._run(*given):
            done += part.ok + part.error
            self.times.append((time.perf_counter(), done))
            yield part

    def rates(self) -> np.ndarray:
        """Images a second in each tenth of the job, from its first partition on."""
        at, done = np.array([(at, done) for at, done in self.times]).T
        return (done[-1] - done[0]) / 10 / np.diff(np.interp(marks(done), done, at))


def marks(done: np.ndarray) -> np.ndarray:
    """Ends of the tenths of what is done."""
    return np.linspace(done[0], done[-1], 11)


def on_ray(
    model: str | None, paths: Sequence[str], actors: int, **options: Any
) -> tuple[float, float, Timed]:
    """Seconds of a job on Ray, those of the driver's CPU, and the job."""
    scorer = Scorer.from_pretrained(model, workers=1, **options)
    with tempfile.TemporaryDirectory() as out:
        sources = iterate_sources(paths, closed=True)
        job = Timed(scorer, sources, f"{out}/scores", model, actors=Actors(actors))
        return (*seconds_of(lambda: job.write(resume=False)), job)


def efficiency(place: Path, images: int, rounds: int) -> None:
    """Print the rates of the local scorer, and of one and two actors."""
    folders = {}
    for kind, count in (("few", images // 4), ("many", images)):
        folders[kind] = place / kind
        draw(folders[kind], count)
    local = Scorer.from_pretrained(workers=2)
    variants: dict[str, Callable[[str], float]] = {
        "local scorer, 2 workers": lambda path: seconds_of(
            lambda: local.score([*Path(path).iterdir()])
        )[0],
        "Ray, 1 actor": lambda path: on_ray(None, [path], 1)[0],
        "Ray, 2 actors": lambda path: on_ray(None, [path], 2)[0],
    }
    rates: dict[str, list[float]] = {name: [] for name in variants}
    starts: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            few, many = (run(str(folders[kind])) for kind in ("few", "many"))
            rates[name].append((images - images // 4) / (many - few))
            starts[name].append(few - images // 4 / rates[name][-1])
    base = float(np.median(rates["local scorer, 2 workers"]))
    for name in variants:
        rate, start = float(np.median(rates[name])), float(np.median(starts[name]))
        print(f"{name:24} {rate:6.1f} images/s, {rate / base:.2f}; {start:.0f} s to start")


def growth(place: Path, sizes: Sequence[int]) -> None:
    """Print the rate, the memory and the driver's cost by the number of images."""
    run = str(tiny_run(place))
    small = place / "small"
    small.mkdir()
    for i in range(100):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(small / f"{i}.jpg")
    for size in sizes:
        table = pa.table({"image": [f"small/{i % 100}.jpg" for i in range(size)]})
        pq.write_table(table, place / f"list{size}.parquet")
    before = first = 0.0
    for count, size in pairwise([0, *sizes]):
        with peak() as most:
            _, own, job = on_ray(run, [str(place / f"list{size}.parquet")], 1, views="center")
        found = job.rates()
        middle = float(np.median(found))
        first = first or middle
        print(
            f"{size:8,} images: {middle:6.0f} a second ({middle / first:.2f}), tenths from "
            f"{found.min():.0f} to {found.max():.0f}, at most {most[0]:.0f} MiB in all processes, "
            f"driver {1e6 * (own - before) / (size - count):.0f} s of CPU a million more"
        )
        before = own


LOOK = """
import resource, sys, time
from dcmpl.data.sources import Found
from dcmpl.scoring.job import plan_of
began = time.process_time()
plan = plan_of(Found([sys.argv[1]]))
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(plan.images, round(most), round(time.process_time() - began, 1))
"""


def lists(place: Path, rows: int) -> None:
    """Print what looking through a list costs, of so many rows and of a tenth of them."""
    for count in (rows // 10, rows):
        path = place / f"rows{count}.parquet"
        schema = pa.schema([("image", pa.string()), ("prompt", pa.string())])
        with pq.ParquetWriter(path, schema) as writer:
            for first in range(0, count, 100_000):
                numbers = range(first, min(count, first + 100_000))
                images = [f"images/{i:09}.png" for i in numbers]
                prompts = [f"a red fox in snow, number {i}" for i in numbers]
                writer.write_table(pa.table([images, prompts], schema))
        line = [sys.executable, "-c", LOOK, str(path)]
        told = subprocess.run(line, check=True, capture_output=True, text=True)  # noqa: S603  (ours)
        images_found, most, seconds = told.stdout.split()
        print(f"list of {int(images_found):,} rows: {most} MiB, {seconds} s of CPU")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=512, help="whole chunks of 64, four or more")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--rows", type=int, default=10_000_000)
    options = parser.parse_args()
    import ray

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        lists(place, options.rows)
        # As the local scorer: Ray's processes would else give way to all others.
        os.environ |= {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_worker_niceness": "0"}
        ray.init(
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=STORE,
        )
        with connected():
            efficiency(place, options.images, options.rounds)
            growth(place, options.sizes)
        ray.shutdown()


if __name__ == "__main__":
    main()
