"""PyTorch engine for a trained run."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from dcmpl.data.table import ImageTable
from dcmpl.errors import UsageError
from dcmpl.images.coats import Coat
from dcmpl.images.decode import cores, read_image
from dcmpl.images.windows import window_corners, windows
from dcmpl.model.dcmpl import DCMPL
from dcmpl.model.folded import Folded, TextReader
from dcmpl.model.tokenizer import Ids, Parts
from dcmpl.progress import say, track
from dcmpl.runs import MODEL, Run, load_learned, read_run
from dcmpl.scoring.batching import lanes
from dcmpl.scoring.engines import BATCH, batch_of, score_windows
from dcmpl.weights.backbones import load_backbone

__all__ = [
    "ModelEngine",
    "ScoreLoss",
    "TableEngine",
    "TorchEngine",
    "by_target",
    "choose_device",
    "core_lanes",
    "has_bfloat16",
    "load_model",
    "predict_table",
]


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; ``auto`` is a GPU where there is one.

    Raises :class:`UsageError` for a device that this machine or this build of torch has not.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UsageError(
            "a device that torch can use here (auto, cpu, cuda, cuda:N, mps)",
            name,
            reason,
        ) from error


def has_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` has units for bfloat16, whose products are several times slower without.

    PyTorch then computes them number by number on processors, and by way of float32 on GPUs.
    """
    if device.type == "cpu":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # no public name tells
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def load_model(
    folder: Path, backbone: str | None = None, device: str = "auto"
) -> tuple[Run, DCMPL]:
    """Load the record and the model of a run, on ``device`` as in :func:`choose_device`.

    ``backbone`` is needed only where the run's own has moved. Raises :class:`RunError` for
    what is not a run, or is one of another backbone.
    """
    place, run = choose_device(device), read_run(folder)
    frozen = load_backbone(backbone or run.backbone)
    run.check_backbone(frozen)
    model = DCMPL(frozen.clip, frozen.tokenizer, run.model, run.train.seed)
    load_learned(folder / MODEL, model, run)
    return run, model.to(place).eval()


@runtime_checkable
class TableEngine(Protocol):
    """Engine of :func:`predict_table`: windows of an image file, and their scores."""

    tasks: tuple[str, ...]
    reads: str | None
    batch: int

    def windows_of(self, path: str, views: str) -> Iterable[np.ndarray]:
        """Windows of an image file in the engine's form."""

    def __call__(self, windows: Any, texts: Sequence[Sequence[Ids]] = ()) -> np.ndarray:
        """Scores in [0, 1], (rows, tasks)."""

    def parts(self, text: str, long: str) -> Parts:
        """Token chunks of a prompt."""

    def lanes(self, count: int) -> AbstractContextManager[Executor]:
        """Pool of threads that may call the engine."""


def predict_table(
    engine: TableEngine,
    table: ImageTable,
    views: str,
    what: str,
    prompts: Sequence[str] | None = None,
    chunk: int | None = None,
) -> tuple[Float64[np.ndarray, "images tasks"], Float64[np.ndarray, "images tasks"]]:
    """Predict a table: scores and spreads (rows, tasks), with its own prompts or ``prompts``.

    The one way from a table to predictions: validation, evaluation, benchmarks and calibration
    all come here. NaN for the task that reads a prompt where there is none. ``what`` names the
    progress bar. ``chunk``: batches end behind every so many images, for which see
    :func:`dcmpl.scoring.batching.keyed_outputs`.
    """
    asked = list(table.frame["prompt"] if prompts is None else prompts)
    paths = track(table.frame["image"], what)
    items = (
        (None, engine.windows_of(path, views), engine.parts(prompt, "truncate").ids)
        for path, prompt in zip(paths, asked, strict=True)
    )
    count = cores()
    with engine.lanes(count) as pool:
        found = score_windows(
            engine, items, batch_size=engine.batch, chunk=chunk, pool=pool, depth=count
        )
        answers = [answer for _, answer in found if answer is not None]
    scores, spread = (np.stack(each) for each in zip(*answers, strict=True))
    if engine.reads is not None:
        without = [row for row, prompt in enumerate(asked) if not prompt.strip()]
        scores[without, engine.tasks.index(engine.reads)] = np.nan
    return scores, spread


def by_target(values: np.ndarray, tasks: Sequence[str], table: ImageTable) -> np.ndarray:
    """Rearrange columns of ``tasks`` to the targets of a table; NaN for missing ones."""
    found = np.full((len(values), len(table.asked)), np.nan)
    for column, task in enumerate(tasks):
        if task in table.asked:
            found[:, table.asked.index(task)] = values[:, column]
    return found


class ModelEngine:
    """Common part of engines that hold a model: prompt reader, threads, device."""

    name = "torch"

    def __init__(self, model: DCMPL, tasks: Sequence[str]) -> None:
        self.tasks = tuple(tasks)
        reads = model.config.reads_prompt and "alignment" in tasks
        self.reads = "alignment" if reads else None
        self._reader = TextReader(model) if reads else None
        self.size = model.clip.config.image_size
        self.device = model.mean.device
        self.batch = batch_of(self.size) if self.device.type == "cpu" else BATCH

    def parts(self, text: str, long: str) -> Parts:
        """Token chunks of a prompt; raises :class:`UsageError` for a prompt that is too long."""
        return Parts(((),)) if self._reader is None else self._reader.parts(text, long)

    def lanes(self, count: int) -> AbstractContextManager[Executor]:
        """Pool of threads that may call the engine."""
        return core_lanes(count)


class TorchEngine(ModelEngine):
    """Windows to scores by PyTorch, on one core for each thread that calls it, or on a GPU."""

    coat: Coat | None = None

    def __init__(self, model: DCMPL, tasks: Sequence[str], precision: str = "fp32") -> None:
        if precision not in ("fp32", "bf16"):
            raise UsageError(
                "--precision fp32 or bf16 with the engine torch",
                precision,
                "dcmpl export makes models of int8",
            )
        super().__init__(model, tasks)
        self.precision = precision
        if precision == "bf16" and not has_bfloat16(self.device):
            say(f"note: {self.device.type} has no units for bfloat16 here; fp32 is faster")
        folded = Folded(model, tasks)
        self.network = folded.in_bfloat16() if precision == "bf16" else folded

    @torch.inference_mode()
    def __call__(
        self, windows: UInt8[np.ndarray, "batch size size 3"], texts: Sequence[Sequence[Ids]] = ()
    ) -> Float64[np.ndarray, "rows tasks"]:
        inputs = torch.from_numpy(windows).to(self.device)
        if self._reader is None:
            found: Tensor = self.network(inputs)
        else:
            of_window = texts or [[()]] * len(windows)
            rows = [row for row, own in enumerate(of_window) for _ in own]
            vectors = self._reader([text for own in of_window for text in own])
            found = self.network(inputs, vectors, torch.tensor(rows).to(self.device))
        return found.cpu().double().numpy()

    def windows_of(self, path: str, views: str) -> Iterator[np.ndarray]:
        """Windows of an image file over ``views``, (windows, size, size, 3)."""
        image = read_image(path)
        return windows(image if self.coat is None else self.coat(image), self.size, views)

    def in_coat(self, coat: Coat) -> "TorchEngine":
        """The same engine, which sees every image file in ``coat``."""
        coated = copy(self)
        coated.coat = coat
        return coated


@contextmanager
def core_lanes(count: int) -> Iterator[Executor]:
    """Pool of threads of one core each; other threads keep their settings."""
    threads = torch.get_num_threads()
    with lanes(count, _keep_to_one_core) as pool:
        # It counts for the thread that says it, and for those that begin later.
        torch.set_num_threads(threads)
        yield pool


def _keep_to_one_core() -> None:
    torch.get_num_threads()  # a thread's first question would set it to what all others have
    torch.set_num_threads(1)


class ScoreLoss(nn.Module):
    """``loss(images)``: 1 - score of each image, (N,), lower is better.

    ``images`` are RGB in [0, 1], (N, 3, height, width), of at least a window's size; the
    gradient reaches them. Views are those of the scorer. Pixels are not rounded to bytes, so
    the value differs from the scorer's by what rounding changes. The model's own weights are
    frozen. Raises :class:`UsageError` for other shapes and ranges, and for a model that cannot be
    folded.
    """

    def __init__(self, engine: TorchEngine, target: str, views: str) -> None:
        super().__init__()
        self.network, self.device = engine.network, engine.device
        self.size, self.views = engine.size, views
        self.column = engine.tasks.index(target)

    def forward(self, images: Tensor) -> Float[Tensor, " batch"]:
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise UsageError(
                "floats of shape (N, 3, height, width)",
                f"{images.dtype} of shape {tuple(images.shape)}",
            )
        if not len(images):
            return images.new_zeros(0)
        low, high = (float(value) for value in images.detach().aminmax())
        if not (low >= 0 and high <= 1):
            raise UsageError("images in [0, 1]", f"{low:g} to {high:g}", "clamp them")
        cut = self._windows(images.float())
        windows = (torch.cat(cut).permute(0, 2, 3, 1) * 255).to(self.device)
        scores: Tensor = self.network(windows)[:, self.column].unflatten(0, (len(cut), -1))
        return (1 - scores.mean(0)).to(images.device)

    def _windows(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[2:]
        size, side = self.size, min(height, width)
        if self.views == "resize":
            top, left = (height - side) // 2, (width - side) // 2
            square = images[..., top : top + side, left : left + side]
            shape = (size, size)
            scaled = F.interpolate(square, shape, mode="bicubic", antialias=True)
            return [scaled.clamp(0, 1)]
        if side < size:
            raise UsageError(f"images of at least {size} x {size}", f"{height} x {width}")
        corners = window_corners(height, width, size, self.views)
        return [images[..., t : t + size, x : x + size] for t, x in corners]
