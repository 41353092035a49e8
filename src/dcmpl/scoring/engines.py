"""What turns windows into scores: PyTorch, ONNX Runtime or OpenVINO, and which is fastest here.

An engine is called from several threads at once and keeps each call on one core; windows are
uint8 (N, size, size, 3), scores float64 (N, tasks). A run folder is run by PyTorch; the other
two run what ``dcmpl export`` made of one, and never import torch.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64, UInt8

from dcmpl.errors import DcmplError, RunError, UsageError
from dcmpl.files import as_json, check_sealed, sha256_of, write_atomically
from dcmpl.images.decode import cores
from dcmpl.images.windows import windows
from dcmpl.model.tokenizer import Ids, Parts
from dcmpl.scoring.batching import lanes, outputs_of
from dcmpl.scoring.calibration import UNREADABLE, Calibration, of_record

__all__ = [
    "BATCH",
    "ENGINES",
    "EXPORT",
    "MODULES",
    "PRECISIONS",
    "Answer",
    "Engine",
    "Exported",
    "Question",
    "all_answers",
    "all_scores",
    "open_export",
    "open_variant",
    "read_export",
    "scores_of",
]

ENGINES, PRECISIONS = ("torch", "onnx", "openvino"), ("fp32", "bf16", "int8")
"""What computes scores, and in what the towers' products are done."""


EXPORT = "export.json"
"""The record beside exported models."""


MODULES = {"onnx": "onnxruntime", "openvino": "openvino"}
BATCH = 16
PROBE = 4
"""Windows in a call that is timed."""

FIELDS = {
    "tasks": list,
    "size": int,
    "views": str,
    "variants": list,
    "files": dict,
    "about": dict,
}
"""What must stand in the record of an export."""

Windows = UInt8[np.ndarray, "batch size size 3"]


@runtime_checkable
class Engine(Protocol):
    """``apart``: windows of two pictures must not share a call.

    ``reads`` is the task that reads the picture's own text, if one does.
    """

    name: str
    precision: str
    tasks: tuple[str, ...]
    size: int
    apart: bool
    reads: str | None

    def __call__(
        self, windows: Windows, texts: Sequence[Sequence[Ids]] = ()
    ) -> Float64[np.ndarray, "rows tasks"]:
        """Scores in [0, 1], a row for each window and, where they are read, each of its texts."""

    def parts(self, text: str, long: str) -> Parts:
        """The tokens of a text that is read; raises :class:`UsageError` for one too long."""

    def lanes(self, count: int) -> AbstractContextManager[Executor]:
        """Threads that may call the engine, which keeps each to one core."""


@dataclass(frozen=True)
class Exported:
    """The record beside exported models, and its folder."""

    folder: Path
    record: dict[str, Any]

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.record["tasks"])

    @property
    def size(self) -> int:
        return int(self.record["size"])

    @property
    def about(self) -> dict[str, str]:
        """What tells its run from all others."""
        return {str(name): str(value) for name, value in self.record["about"].items()}

    @property
    def calibration(self) -> Calibration | None:
        """What the scores of its run mean."""
        record = self.record.get("calibration")
        return None if record is None else of_record(record)

    def variants(self, engine: str, precision: str) -> list[dict[str, Any]]:
        """What was exported for them, where it can be run here; ``auto`` is any engine."""
        return [
            variant
            for variant in self.record["variants"]
            if variant["precision"] == precision
            and engine in ("auto", variant["engine"])
            and find_spec(MODULES[variant["engine"]])
        ]

    def lack(self, engine: str, precision: str) -> str:
        """Why there is no variant for them, as the end of a sentence."""
        asked = [name for name in MODULES if engine in ("auto", name)]
        if missing := [name for name in asked if not find_spec(MODULES[name])]:
            extras = ",".join(missing)
            return f", which takes what is not installed: pip install 'dcmpl-agiqa[{extras}]'"
        left_out = self.record.get("left_out", {})
        why = [left_out[key] for name in asked if (key := f"{name} {precision}") in left_out]
        return f": {'; '.join(map(str, why))}" if why else ""


def read_export(folder: Path) -> Exported:
    """The record in a folder that ``dcmpl export`` wrote; raises :class:`RunError` else."""
    path = folder / EXPORT
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        check_sealed(record, path)
        for name, kind in FIELDS.items():
            if not isinstance(record[name], kind):
                raise TypeError(f"{name} that is no {kind.__name__}")
        Exported(folder, record).calibration  # noqa: B018  # that it can be read
        for variant in record["variants"]:
            if variant["engine"] not in KINDS or not isinstance(variant["file"], str):
                raise ValueError("a variant of an unknown engine")
    except (OSError, *UNREADABLE) as error:
        raise RunError(f"expected what dcmpl export wrote at {path}, got: {error!r}") from error
    return Exported(folder, record)


class _OfExport:
    """What both engines of exported models share."""

    name: str
    apart = False
    reads: str | None = None

    def __init__(self, exported: Exported, precision: str) -> None:
        self.precision = precision
        self.tasks, self.size = exported.tasks, exported.size

    def lanes(self, count: int) -> AbstractContextManager[Executor]:
        """Threads; the engines were opened to keep each call on one core."""
        return lanes(count)

    def __call__(
        self, windows: Windows, texts: Sequence[Sequence[Ids]] = ()
    ) -> Float64[np.ndarray, "batch tasks"]:
        raise NotImplementedError

    def parts(self, text: str, long: str) -> Parts:
        return Parts(((),))


class OnnxEngine(_OfExport):
    """ONNX Runtime; a call runs in its caller's thread and no other."""

    name = "onnx"

    def __init__(self, exported: Exported, precision: str, path: Path, lanes: int) -> None:
        import onnxruntime

        super().__init__(exported, precision)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )

    def __call__(
        self, windows: Windows, texts: Sequence[Sequence[Ids]] = ()
    ) -> Float64[np.ndarray, "batch tasks"]:
        (found,) = self._session.run(None, {"windows": windows})
        return np.asarray(found, dtype=np.float64)


class OpenVinoEngine(_OfExport):
    """OpenVINO with one stream of one thread for each of ``lanes`` callers."""

    name = "openvino"

    def __init__(self, exported: Exported, precision: str, path: Path, lanes: int) -> None:
        import openvino

        super().__init__(exported, precision)
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",  # each file says itself what is lower
            "NUM_STREAMS": lanes,
            "INFERENCE_NUM_THREADS": lanes,
        }
        core = openvino.Core()
        self._compiled = core.compile_model(core.read_model(path), "CPU", settings)
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(lanes):
            self._idle.put(self._compiled.create_infer_request())
        # Its first look at an array must not happen in two threads at once: they wait for ever.
        self(np.zeros((1, self.size, self.size, 3), np.uint8))

    def __call__(
        self, windows: Windows, texts: Sequence[Sequence[Ids]] = ()
    ) -> Float64[np.ndarray, "batch tasks"]:
        request = self._idle.get()
        try:
            # In OpenVINO's own threads: one of ours would first get a copy of the model.
            request.start_async([windows])
            request.wait()
            return np.array(request.get_output_tensor(0).data, dtype=np.float64)
        finally:
            self._idle.put(request)


KINDS = {"onnx": OnnxEngine, "openvino": OpenVinoEngine}


def open_variant(exported: Exported, variant: dict[str, Any], lanes: int) -> Engine:
    """One of the variants; raises :class:`RunError` where its file was changed or does not run."""
    path = exported.folder / variant["file"]
    names = [path.name, path.with_suffix(".bin").name] if path.suffix == ".xml" else [path.name]
    for name in names:
        _check_unchanged(exported.folder / name, str(exported.record["files"].get(name)))
    try:
        return KINDS[variant["engine"]](exported, variant["precision"], path, lanes)
    except Exception as error:  # each runtime has exceptions of its own
        told = str(error).strip().splitlines()[0]
        raise RunError(
            f"expected a model that {variant['engine']} runs at {path}, got: {told}: export again"
        ) from error


def _check_unchanged(path: Path, digest: str) -> None:
    try:
        found = sha256_of(path)
    except OSError as error:
        raise RunError(f"expected an exported model at {path}, got: {error.strerror}") from error
    if found != digest:
        raise RunError(
            f"expected {path} as dcmpl export wrote it, {EXPORT} names another SHA-256: "
            "the file was changed, export again"
        )


def open_export(exported: Exported, engine: str, precision: str, lanes: int) -> Engine:
    """The engine for an exported model; ``auto`` is the fastest of those at hand.

    Raises :class:`UsageError` where there is none of that kind and precision.
    """
    variants = exported.variants(engine, precision)
    if not variants:
        known = [f"{v['engine']} {v['precision']}" for v in exported.record["variants"]]
        told = (
            f"expected one of {', '.join(known)} from {exported.folder}, got {engine} {precision}"
        )
        raise UsageError(told + exported.lack(engine, precision))
    if len(variants) == 1:
        return open_variant(exported, variants[0], lanes)
    name = _fastest(exported, variants)
    chosen = next(v for v in variants if v["engine"] == name)
    return open_variant(exported, chosen, lanes)


def _fastest(exported: Exported, variants: Sequence[dict[str, Any]]) -> str:
    """The engine that took least time on this machine; measured once and remembered."""
    versions = [f"{v['engine']} {version(MODULES[v['engine']])}" for v in variants]
    machine = f"{platform.node()} {platform.processor() or platform.machine()} {os.cpu_count()}"
    model = (
        f"{exported.about.get('identity')} {variants[0]['precision']} {' '.join(exported.tasks)}"
    )
    key = f"{model} {' '.join(versions)} {machine}"
    place = _cache() / "engines.json"
    known = _remembered(place)
    if known.get(key) in [v["engine"] for v in variants]:
        return str(known[key])
    took = {v["engine"]: _seconds(open_variant(exported, v, 1)) for v in variants}
    best = str(min(took, key=lambda name: took[name]))
    with suppress(DcmplError):  # a cache that cannot be written only costs time
        write_atomically(place, as_json({**known, key: best}))
    return best


def _seconds(engine: Engine) -> float:
    """Median CPU seconds of a call behind one that warms up."""
    windows = np.random.default_rng(0).integers(
        0, 256, (PROBE, engine.size, engine.size, 3), dtype=np.uint8
    )
    engine(windows)
    took = []
    for _ in range(3):
        start = time.process_time()
        engine(windows)
        took.append(time.process_time() - start)
    return statistics.median(took)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dcmpl"


def _remembered(place: Path) -> dict[str, str]:
    try:
        known = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


@dataclass(frozen=True)
class Question:
    """A picture to score, uint8 (height, width, 3), if it could be read; and its text in parts."""

    pixels: np.ndarray | None
    texts: tuple[Ids, ...] = ((),)


class Answer(NamedTuple):
    """Each task's score of a picture: the mean over its windows, and their standard deviation."""

    scores: Float64[np.ndarray, " tasks"]
    spread: Float64[np.ndarray, " tasks"]


def scores_of(
    engine: Engine,
    questions: Iterable[Question],
    views: str,
    *,
    batch_size: int = BATCH,
    chunk: int | None = None,
    pool: Executor | None = None,
    depth: int = 0,
) -> Iterator[Answer | None]:
    """Each picture's scores over its views, in order; None for no picture.

    Questions are taken one by one; ``batch_size`` counts windows. Where a text has several
    parts, each window is scored with each. The rest is as for
    :func:`dcmpl.scoring.batching.outputs_of`.
    """

    def compute(waiting: list[tuple[np.ndarray, Ids]]) -> np.ndarray:
        cut: list[np.ndarray] = []
        texts: list[list[Ids]] = []
        for window, text in waiting:
            if not cut or window is not cut[-1]:  # each is looked at once for all its texts
                cut.append(window)
                texts.append([])
            texts[-1].append(text)
        return engine(np.stack(cut), texts)

    def asked(question: Question) -> Iterator[tuple[np.ndarray, Ids]]:
        if question.pixels is not None:
            for window in windows(question.pixels, engine.size, views):
                yield from ((window, text) for text in question.texts)

    chunk = 1 if engine.apart else chunk
    for found in outputs_of(
        map(asked, questions), compute, batch_size, chunk=chunk, pool=pool, depth=depth
    ):
        yield Answer(np.mean(found, axis=0), np.std(found, axis=0)) if found else None


def all_answers(engine: Engine, questions: Iterable[Question], views: str) -> list[Answer]:
    """:func:`scores_of` pictures that are all there, on all cores."""
    count = cores()
    with engine.lanes(count) as pool:
        found = scores_of(engine, questions, views, pool=pool, depth=count)
        return [answer for answer in found if answer is not None]


def all_scores(
    engine: Engine, pictures: Iterable[np.ndarray], views: str
) -> Float64[np.ndarray, "pictures tasks"]:
    """The scores of pictures without texts."""
    answers = all_answers(engine, map(Question, pictures), views)
    return np.stack([answer.scores for answer in answers])
