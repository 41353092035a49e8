"""Engines: windows to scores by PyTorch, ONNX Runtime or OpenVINO.

An engine is called from several threads at once and keeps each call on one core; windows are
uint8 (N, size, size, 3), scores float64 (N, tasks). A run folder is run by PyTorch; the other
two run what ``dcmpl export`` made of one, and never import torch.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float64, UInt8

from dcmpl.config import check_recorded_views
from dcmpl.errors import RunError, UsageError
from dcmpl.files import read_record, sha256_of
from dcmpl.images.decode import cores
from dcmpl.images.windows import windows
from dcmpl.model.tokenizer import Ids, Parts
from dcmpl.progress import say
from dcmpl.scoring.batching import keyed_outputs, lanes
from dcmpl.scoring.calibration import Calibration, of_record

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
    "batch_of",
    "open_export",
    "open_variant",
    "openvino_core",
    "read_export",
    "score_images",
    "score_windows",
]

ENGINES, PRECISIONS = ("torch", "onnx", "openvino"), ("fp32", "bf16", "int8")
"""What computes scores, and in what the towers' products are done."""


EXPORT = "export.json"
"""The record beside exported models."""


MODULES = {"openvino": "openvino", "onnx": "onnxruntime"}
"""By engine of exported models the package it needs, the faster on most CPUs first."""

BATCH = 16
"""Windows in a call, where they gain from standing together."""

LARGE = 512
"""Side of windows that a core computes one by one: PyTorch loses a twentieth by that, OpenVINO
gains a third, and no score depends on what else is scored, not even in its last digit."""


def batch_of(size: int) -> int:
    """Windows of ``size`` pixels in a call of a processor."""
    return 1 if size >= LARGE else BATCH


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
Key = TypeVar("Key")


@runtime_checkable
class Engine(Protocol):
    """Engine: windows to scores; ``reads`` is the task that reads image prompts, if any.

    ``batch`` is how many windows it takes in a call.
    """

    name: str
    precision: str
    tasks: tuple[str, ...]
    size: int
    reads: str | None
    batch: int

    def __call__(
        self, windows: Windows, texts: Sequence[Sequence[Ids]] = ()
    ) -> Float64[np.ndarray, "rows tasks"]:
        """Scores in [0, 1], one row per window and, for a reading model, per token chunk."""

    def parts(self, text: str, long: str) -> Parts:
        """Token chunks of a prompt; raises :class:`UsageError` for one too long."""

    def lanes(self, count: int) -> AbstractContextManager[Executor]:
        """Pool of threads that may call the engine, one core each."""


@dataclass(frozen=True)
class Exported:
    """Record of an export, and its folder."""

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
        """Description of the run, for the records of scores."""
        return {str(name): str(value) for name, value in self.record["about"].items()}

    @property
    def calibration(self) -> Calibration | None:
        """Calibration of the run."""
        record = self.record.get("calibration")
        return None if record is None else of_record(record)

    def variants(self, engine: str, precision: str) -> list[dict[str, Any]]:
        """Exported variants of an engine and precision that run here; ``auto`` is any engine."""
        return [
            variant
            for variant in self.record["variants"]
            if variant["precision"] == precision
            and engine in ("auto", variant["engine"])
            and find_spec(MODULES[variant["engine"]])
        ]

    def lack(self, engine: str, precision: str) -> str:
        """Reason why no variant fits, or an empty text."""
        asked = [name for name in ENGINES if name in MODULES and engine in ("auto", name)]
        if missing := [name for name in asked if not find_spec(MODULES[name])]:
            extras = ",".join(missing)
            return f"it takes what is not installed: pip install 'dcmpl-agiqa[{extras}]'"
        left_out = self.record.get("left_out", {})
        why = [left_out[key] for name in asked if (key := f"{name} {precision}") in left_out]
        return "; ".join(map(str, why))


MAX_SIZE, NAME = 4096, re.compile(r"[a-z]\w{0,63}")
"""Largest side of a window, and the form of a target's name."""


def read_export(folder: Path) -> Exported:
    """Read the record of an export; raises :class:`RunError` for other folders."""

    def build(record: dict[str, Any]) -> Exported:
        for name, kind in FIELDS.items():
            if not isinstance(record[name], kind):
                raise TypeError(f"{name} that is no {kind.__name__}")
        found = Exported(folder, record)
        found.calibration  # noqa: B018  # that it can be read
        check_recorded_views(str(record["views"]), str(record.get("version", "")))
        for variant in record["variants"]:
            if variant["engine"] not in KINDS or not isinstance(variant["file"], str):
                raise ValueError("a variant of an unknown engine")
            if Path(variant["file"]).name != variant["file"]:  # nothing checks files elsewhere
                raise ValueError("a model outside of the folder")
        if not 1 <= found.size <= MAX_SIZE or not all(map(NAME.fullmatch, found.tasks)):
            raise ValueError("a size or a name of a target that no model has")
        return found

    return read_record(folder / EXPORT, "what dcmpl export wrote", build)


class _OfExport:
    """Common part of the engines of exported models; a copy opens its files anew, and checks them.

    ``lanes`` is the number of threads that will call it at a time.
    """

    name: str
    reads: str | None = None

    def __init__(self, exported: Exported, variant: dict[str, Any], lanes: int) -> None:
        self._opened_with = exported, variant, lanes
        self.precision = str(variant["precision"])
        self.tasks, self.size = exported.tasks, exported.size
        self.batch = batch_of(self.size)
        self._path = exported.folder / variant["file"]

    def __reduce__(self) -> tuple[Any, ...]:
        return open_variant, self._opened_with

    def lanes(self, count: int) -> AbstractContextManager[Executor]:
        """Pool of threads; the engines keep each call to one core."""
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

    def __init__(self, exported: Exported, variant: dict[str, Any], lanes: int) -> None:
        import onnxruntime

        super().__init__(exported, variant, lanes)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            self._path, options, providers=["CPUExecutionProvider"]
        )

    def __call__(
        self, windows: Windows, texts: Sequence[Sequence[Ids]] = ()
    ) -> Float64[np.ndarray, "batch tasks"]:
        (found,) = self._session.run(None, {"windows": windows})
        return np.asarray(found, dtype=np.float64)


@cache
def openvino_core(process: int) -> Any:
    """OpenVINO's core, one for a whole process, which is named by its id.

    A core gives the thread that made it a stack for signals, and takes it away when it ends:
    after two that end in the order they were made, the next signal ends the process.
    """
    import openvino

    return openvino.Core()


class OpenVinoEngine(_OfExport):
    """OpenVINO with one stream of one thread for each of ``lanes`` callers.

    A fork has none of its parent's threads, so the model is opened there once more.
    """

    name = "openvino"

    def __init__(self, exported: Exported, variant: dict[str, Any], lanes: int) -> None:
        super().__init__(exported, variant, lanes)
        self._lanes = lanes
        self._opened: dict[int, tuple[Any, SimpleQueue[Any]]] = {}
        self._idle()

    def _idle(self) -> "SimpleQueue[Any]":
        """Requests of this process that wait for windows."""
        process = os.getpid()
        if process not in self._opened:  # what a parent opened is kept: to end it would hang
            settings = {
                "INFERENCE_PRECISION_HINT": "f32",  # each file says itself what is lower
                "NUM_STREAMS": self._lanes,
                "INFERENCE_NUM_THREADS": self._lanes,
            }
            core = openvino_core(process)
            model = core.read_model(self._path)
            if self.batch == 1:  # a fixed shape is faster
                model.reshape([1, self.size, self.size, 3])
            compiled = core.compile_model(model, "CPU", settings)
            idle: SimpleQueue[Any] = SimpleQueue()
            for _ in range(self._lanes):
                idle.put(compiled.create_infer_request())
            self._opened[process] = compiled, idle
            # The first look at an array must not happen in two threads: they wait for ever.
            self(np.zeros((1, self.size, self.size, 3), np.uint8))
        return self._opened[process][1]

    def lanes(self, count: int) -> AbstractContextManager[Executor]:
        self._idle()  # before there are threads
        return super().lanes(count)

    def __call__(
        self, windows: Windows, texts: Sequence[Sequence[Ids]] = ()
    ) -> Float64[np.ndarray, "batch tasks"]:
        idle = self._idle()
        request = idle.get()
        try:
            found = []
            for part in np.split(windows, len(windows) if self.batch == 1 else 1):
                # In OpenVINO's own threads: one of ours would first get a copy of the model.
                request.start_async([part])
                request.wait()
                found.append(np.array(request.get_output_tensor(0).data, dtype=np.float64))
            return np.concatenate(found)
        finally:
            idle.put(request)


KINDS = {"onnx": OnnxEngine, "openvino": OpenVinoEngine}


def open_variant(exported: Exported, variant: dict[str, Any], lanes: int) -> Engine:
    """Open one variant; raises :class:`RunError` where its file was changed or does not run."""
    path = exported.folder / variant["file"]
    names = [path.name, path.with_suffix(".bin").name] if path.suffix == ".xml" else [path.name]
    for name in names:
        _check_unchanged(exported.folder / name, str(exported.record["files"].get(name)))
    try:
        return KINDS[variant["engine"]](exported, variant, lanes)
    except Exception as error:  # each runtime has exceptions of its own
        reason = str(error).strip().splitlines()[0]
        raise RunError(
            f"a model that {variant['engine']} runs at {path}",
            hint="take another --engine, or export again",
            reason=reason,
        ) from error


def _check_unchanged(path: Path, digest: str) -> None:
    try:
        found = sha256_of(path)
    except OSError as error:
        raise RunError(f"an exported model at {path}", reason=error.strerror or error) from error
    if found != digest:
        raise RunError(
            f"{path} as dcmpl export wrote it",
            f"one of another SHA-256 than {EXPORT} names",
            "the file was changed, export again",
        )


def open_export(exported: Exported, engine: str, precision: str, lanes: int) -> Engine:
    """Open an export; ``auto`` takes the first engine of ``MODULES``.

    Raises :class:`UsageError` where there is none of that kind and precision.
    """
    variants = exported.variants(engine, precision)
    if not variants:
        known = [f"{v['engine']} {v['precision']}" for v in exported.record["variants"]]
        wanted = f"one of {', '.join(known)} from {exported.folder}"
        raise UsageError(wanted, f"{engine} {precision}", exported.lack(engine, precision))
    order = list(MODULES)
    *others, last = sorted(variants, key=lambda v: order.index(v["engine"]), reverse=True)
    while others:
        try:
            return open_variant(exported, last, lanes)
        except RunError as error:
            if engine != "auto" or not error.reason:  # a file that was changed is not passed over
                raise
            say(f"note: {last['engine']} does not run here: {error.reason}; taking another engine")
            last = others.pop()
    return open_variant(exported, last, lanes)


class Question(NamedTuple):
    """An image to score, uint8 RGB (height, width, 3) or None, and its prompt's token chunks.

    ``texts`` are the parts of its prompt, each as token ids.
    """

    pixels: np.ndarray | None
    texts: tuple[Ids, ...] = ((),)


class Answer(NamedTuple):
    """Scores of an image by task: mean over its windows, and their standard deviation."""

    scores: Float64[np.ndarray, " tasks"]
    spread: Float64[np.ndarray, " tasks"]


def score_images(
    engine: "Engine", images: Iterable[tuple[Key, Question]], views: str, **options: Any
) -> Iterator[tuple[Key, Answer | None]]:
    """Score images over their views; yields key and answer in order, None without an image.

    ``options`` are those of :func:`score_windows`.
    """
    items = (
        (key, () if q.pixels is None else windows(q.pixels, engine.size, views), q.texts)
        for key, q in images
    )
    return score_windows(engine, items, **options)


def score_windows(
    compute_with: Callable[..., np.ndarray],
    items: Iterable[tuple[Key, Iterable[np.ndarray], Sequence[Ids]]],
    *,
    batch_size: int = BATCH,
    **options: Any,
) -> Iterator[tuple[Key, Answer | None]]:
    """Score images by their windows; yields key and answer in order, None without windows.

    Images are taken one by one; ``batch_size`` counts windows. Where a prompt has several
    parts, each window is scored with each. ``options`` are those of
    :func:`dcmpl.scoring.batching.keyed_outputs`.
    """

    def compute(waiting: list[tuple[Any, Ids]]) -> np.ndarray:
        cut: list[Any] = []
        texts: list[list[Ids]] = []
        for window, text in waiting:
            if not cut or window is not cut[-1]:  # each is looked at once for all its texts
                cut.append(window)
                texts.append([])
            texts[-1].append(text)
        return compute_with(np.stack(cut), texts)

    def pairs(cut: Iterable[np.ndarray], texts: Sequence[Ids]) -> Iterator[tuple[np.ndarray, Ids]]:
        for window in cut:
            yield from ((window, text) for text in texts)

    cut = ((key, pairs(own, texts)) for key, own, texts in items)
    outputs = keyed_outputs(cut, compute, batch_size, **options)
    for key, found in outputs:
        yield key, Answer(np.mean(found, axis=0), np.std(found, axis=0)) if found else None


def all_answers(engine: "Engine", questions: Iterable[Question], views: str) -> list[Answer]:
    """Answers for images that are all readable, on all cores."""
    count = cores()
    with engine.lanes(count) as pool:
        keyed = ((None, question) for question in questions)
        found = score_images(engine, keyed, views, pool=pool, depth=count)
        return [answer for _, answer in found if answer is not None]


def all_scores(
    engine: "Engine", images: Iterable[np.ndarray], views: str
) -> Float64[np.ndarray, "images tasks"]:
    """Scores (images, tasks) of images without prompts."""
    answers = all_answers(engine, map(Question, images), views)
    return np.stack([answer.scores for answer in answers])
