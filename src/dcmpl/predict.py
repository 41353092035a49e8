"""The scorer: a trained or exported model, pictures in any form, one row out for each."""

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Union, cast

import numpy as np
from PIL import Image

from dcmpl.config import RECORD, check_views
from dcmpl.engines import BATCH, Engine, open_export, read_export, scores_of
from dcmpl.errors import DataError, UsageError
from dcmpl.fewest import fewest_of_run
from dcmpl.images import Picture, decode, from_pil
from dcmpl.packing import ahead, cores
from dcmpl.scores import ENGINES, EXPORT, PRECISIONS, Score, Scores
from dcmpl.sources import Request

if TYPE_CHECKING:
    from torch import Tensor

    from dcmpl.loss import ScoreLoss

__all__ = ["CHUNK", "Input", "Scorer"]

Input = Union[str, Path, Image.Image, np.ndarray, "Tensor"]
"""A file, a Pillow image, uint8 RGB of shape (height, width, 3), or a tensor (3, height, width)
of floats in [0, 1]."""

CHUNK = 64
"""Pictures: no batch holds windows of two chunks, so a job that goes on at the beginning of a
chunk computes just what it would have computed in one go."""


class Scorer:
    """Scores pictures with a run folder or with what ``dcmpl export`` made of one.

    >>> scorer = Scorer.from_pretrained("runs/demo")        # doctest: +SKIP
    >>> scorer.score(["a.png"], ["a red fox"])[0].quality   # doctest: +SKIP
    0.71
    """

    def __init__(
        self,
        engine: Engine,
        views: str,
        targets: Sequence[str] | None = None,
        *,
        about: dict[str, Any] | None = None,
        workers: int | None = None,
        batch_size: int = BATCH,
    ) -> None:
        self.engine = engine
        self.views = check_views(views)
        self.targets = tuple(engine.tasks if targets is None else targets)
        self.about = about or {}
        self.workers = cores() if workers is None else workers
        self.batch_size = batch_size
        if self.workers < 1 or batch_size < 1 or not self.targets:
            raise UsageError(
                "expected at least one worker, one window in a batch and one target, got "
                f"{self.workers}, {batch_size} and {len(self.targets)}"
            )

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        backbone: str | None = None,
        device: str | None = None,
        *,
        engine: str = "auto",
        precision: str = "fp32",
        views: str | None = None,
        targets: Sequence[str] | None = None,
        workers: int | None = None,
        batch_size: int = BATCH,
    ) -> "Scorer":
        """Load a run folder, or a folder that ``dcmpl export`` made.

        ``engine``: torch for a run; for an export onnx or openvino, or auto, the faster one
        here. ``views``: as the model was measured, unless given; ``auto`` takes the fewest
        that were found to be enough. ``targets``: what to compute, all that was learned
        unless given. ``backbone`` is needed only where the run's own has moved. ``workers``
        threads each decode or compute on a core. Raises :class:`RunError` for a folder that
        is neither or was changed, :class:`UsageError` for what it has not.
        """
        folder, count = Path(model), max(1, cores() if workers is None else workers)
        if engine not in ("auto", *ENGINES) or precision not in PRECISIONS:
            raise UsageError(
                f"expected an engine of auto, {', '.join(ENGINES)} and a precision of "
                f"{', '.join(PRECISIONS)}, got {engine} and {precision}"
            )
        if (folder / EXPORT).is_file():
            found, own, about = _exported(folder, engine, precision, views, targets, count)
        else:
            from_run = _trained(folder, engine, precision, views, targets, backbone, device)
            found, own, about = from_run
        chosen = found.tasks if targets is None else targets
        return cls(found, own, chosen, about=about, workers=count, batch_size=batch_size)

    def score(
        self,
        images: "Sequence[Input] | Tensor",
        prompts: Sequence[str] | str | None = None,
    ) -> Scores:
        """One :class:`Score` per picture, in order; ``prompts`` may be one for all.

        ``images`` is a sequence of pictures or one tensor (N, 3, height, width). Raises
        :class:`UsageError` where the counts differ.
        """
        if isinstance(images, (str, Path, Image.Image, np.ndarray)):
            raise UsageError(
                f"expected a list of pictures, got one {type(images).__name__}: put it in a list"
            )
        if not _is_tensor(images):
            images = list(cast(Sequence[Input], images))
        shape = getattr(images, "shape", (len(images), 3, 0, 0))
        if len(shape) != 4:
            raise UsageError(
                "expected a list of pictures or a tensor (N, 3, height, width), got one of shape "
                f"{tuple(shape)}"
            )
        if prompts is None or isinstance(prompts, str):
            prompts = [prompts or ""] * len(images)
        if len(prompts) != len(images):
            raise UsageError(
                f"expected one prompt for each of {len(images)} pictures, got {len(prompts)}"
            )
        return Scores(self.stream(zip(images, prompts, strict=True)))

    def rank(
        self, images: "Sequence[Input] | Tensor", prompt: str = "", by: str = "quality"
    ) -> Scores:
        """The same, best first: the best of N pictures of one prompt; what fails comes last.

        ``index`` says which picture each was. Raises :class:`UsageError` for a target that
        the model does not predict.
        """
        self.check_target(by)
        return self.score(images, prompt).best_first(by)

    def stream(self, pairs: Iterable[tuple[Input, str]]) -> Iterator[Score]:
        """The same for (picture, prompt) pairs that come one by one, in bounded memory."""
        one_at_a_time = Lock()  # of Pillow's images, which several pairs may share
        return self.rows(
            Request(_name(picture), prompt, partial(_read, picture, one_at_a_time))
            for picture, prompt in pairs
        )

    def rows(self, requests: Iterable[Request], start: int = 0) -> Iterator[Score]:
        """The same for what is still to be read, whose first has the index ``start``.

        Pictures are decoded while others are computed, a few ahead.
        """
        taken: deque[tuple[str, str, str, str]] = deque()  # not the request: it may hold bytes

        def read(request: Request) -> tuple[Request, Picture | None, str]:
            try:
                return request, request.read(), ""
            except DataError as error:
                return request, None, str(error)

        def pixels() -> Iterator[np.ndarray | None]:
            for request, picture, fault in ahead(requests, read, pool, self.workers):
                prompt, note = request.prompt, ""
                if picture is not None:
                    prompt = request.prompt_of(picture) if request.prompt_of else prompt
                    note = "; ".join(picture.notes)
                taken.append((request.name, prompt, fault, note))
                yield None if picture is None else picture.pixels

        with self.engine.lanes(self.workers) as pool:
            found = scores_of(
                self.engine,
                pixels(),
                self.views,
                batch_size=self.batch_size,
                chunk=CHUNK,
                pool=pool,
                depth=self.workers,
            )
            for index, values in enumerate(found, start):
                name, prompt, fault, note = taken.popleft()
                if values is not None and not np.isfinite(values).all():
                    values, fault = None, f"expected finite scores of {name}, the model gave others"
                of_task = (
                    {}
                    if values is None
                    else dict(zip(self.engine.tasks, values.tolist(), strict=True))
                )
                scores = {task: of_task.get(task) for task in self.targets}
                yield Score(name, prompt, **scores, reason=fault, note=note, index=index)

    def check_target(self, target: str) -> None:
        """Raises :class:`UsageError` where the scorer does not predict ``target``."""
        _chosen([target], self.targets, Path(self.about.get("model", "the model")))

    def as_loss(self, target: str = "quality") -> "ScoreLoss":
        """1 - score for each picture, with gradients to the pixels; see :class:`ScoreLoss`.

        Raises :class:`UsageError` for an exported model, which has no gradients.
        """
        from dcmpl.loss import ScoreLoss
        from dcmpl.trained import TorchEngine

        if not isinstance(self.engine, TorchEngine):
            raise UsageError("expected a run folder for a loss, got an exported model")
        self.check_target(target)
        return ScoreLoss(self.engine, target, self.views)


Opened = tuple[Engine, str, dict[str, str]]
"""An engine, its views, and what tells its model from all others."""


def _exported(
    folder: Path,
    engine: str,
    precision: str,
    views: str | None,
    targets: Sequence[str] | None,
    lanes: int,
) -> Opened:
    exported = read_export(folder)
    _chosen(targets, exported.tasks, folder)
    record = exported.record
    if views == "auto":
        views = record.get("fewest_views")
        if not isinstance(views, str):
            raise UsageError(
                f"expected views that {folder} was measured with, it was exported without "
                "pictures: name --views"
            )
    opened = open_export(exported, engine, precision, lanes)
    return opened, views or str(record["views"]), {"model": folder.name, **exported.about}


def _trained(
    folder: Path,
    engine: str,
    precision: str,
    views: str | None,
    targets: Sequence[str] | None,
    backbone: str | None,
    device: str | None,
) -> Opened:
    if engine not in ("auto", "torch") and (folder / RECORD).is_file():
        raise UsageError(
            f"expected an exported model for the engine {engine}, got the run {folder}: "
            f"dcmpl export {folder} -o DIR, then --model DIR"
        )
    from dcmpl.trained import TorchEngine, load_model, validation_pictures  # import torch

    run, network = load_model(folder, backbone, device)
    opened = TorchEngine(network, _chosen(targets, run.learned, folder), precision)
    if views == "auto":
        key = " ".join([run.identity, precision, *opened.tasks])
        views = fewest_of_run(folder, key, opened, lambda: validation_pictures(folder, run))
    return (
        opened,
        views or run.train.views,
        {
            "model": folder.name,
            **run.about(),
            "device": opened.device.type,
        },
    )


def _chosen(targets: Sequence[str] | None, known: Sequence[str], folder: Path) -> tuple[str, ...]:
    """``targets`` where all are ``known``; raises :class:`UsageError` where not."""
    if not targets:
        return tuple(known)
    if unknown := [target for target in targets if target not in known]:
        raise UsageError(
            f"expected targets that {folder} predicts ({', '.join(known)}), got {unknown[0]}"
        )
    return tuple(targets)


def _name(picture: Input) -> str:
    return str(picture) if isinstance(picture, (str, Path)) else ""


def _is_tensor(picture: Any) -> bool:
    torch = sys.modules.get("torch")  # who has a tensor has imported it
    return torch is not None and isinstance(picture, torch.Tensor)


def _read(picture: Input, one_at_a_time: Lock) -> Picture:
    if isinstance(picture, (str, Path)):
        return decode(picture)
    if isinstance(picture, Image.Image):
        with one_at_a_time:
            return from_pil(picture)
    if _is_tensor(picture):
        return Picture(_of_tensor(picture))
    return Picture(_of_array(picture))


def _of_array(picture: Any) -> np.ndarray:
    if not isinstance(picture, np.ndarray):
        raise DataError(
            f"expected a path, a Pillow image, an array or a tensor, got {type(picture).__name__}"
        )
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise DataError(
            "expected an array of uint8 RGB, (height, width, 3), got "
            f"{picture.dtype} of shape {picture.shape}"
        )
    return picture


def _of_tensor(picture: Any) -> np.ndarray:
    """Rounded to bytes, as the picture would be when saved."""
    shape = tuple(picture.shape)
    if not picture.is_floating_point() or len(shape) != 3 or shape[0] != 3 or not picture.numel():
        raise DataError(
            "expected a tensor of floats in [0, 1], (3, height, width), got "
            f"{picture.dtype} of shape {shape}"
        )
    values = picture.detach().float().cpu().numpy()
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise DataError(f"expected a tensor of floats in [0, 1], got {low:g} to {high:g}")
    return np.ascontiguousarray(np.rint(values * 255).astype(np.uint8).transpose(1, 2, 0))
