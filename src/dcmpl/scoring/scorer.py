"""The scorer: a trained or exported model, pictures in any form, one row out for each."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from PIL import Image

from dcmpl.config import TARGETS, check_views
from dcmpl.data.sources import Request
from dcmpl.errors import DataError, UsageError
from dcmpl.images.decode import Input, Picture, cores, is_tensor, name_of, read_input, text_of
from dcmpl.model.tokenizer import LONG_PROMPTS, Parts
from dcmpl.runs import RECORD
from dcmpl.scoring.batching import ahead
from dcmpl.scoring.calibration import NUMBERS, Calibration, ranked, read_calibration
from dcmpl.scoring.engines import (
    BATCH,
    ENGINES,
    EXPORT,
    PRECISIONS,
    Answer,
    Engine,
    Question,
    open_export,
    read_export,
    scores_of,
)
from dcmpl.scoring.results import Score, Scores
from dcmpl.training.calibrate import fewest_of_run

if TYPE_CHECKING:
    from torch import Tensor

    from dcmpl.scoring.torch_engine import ScoreLoss

__all__ = [
    "CHUNK",
    "Opened",
    "RowOf",
    "Scorer",
    "Taken",
    "chosen_targets",
    "of_prompt",
    "open_model",
]


class Taken(NamedTuple):
    """What a row says of a picture beside its scores."""

    name: str
    prompt: str
    fault: str
    note: str
    dropped: int


def of_prompt(prompt: str, parts: Parts, target: str) -> list[str]:
    """What a row should say of how its prompt was read."""
    if not prompt.strip():
        return [f"no prompt to judge {target} by"]
    notes = []
    if parts.dropped:
        notes.append(f"{parts.dropped} tokens of the prompt were dropped")
    elif len(parts.ids) > 1:
        notes.append(f"the prompt was read in {len(parts.ids)} parts")
    letters = sum(not letter.isspace() for letter in prompt)
    if parts.count > letters + len(prompt.split()):  # a token may be the blank before a word
        notes.append("the model has no words for the letters of the prompt")
    return notes


class RowOf:
    """Makes the rows of a scorer; ``against`` is a generator to rank each picture among."""

    def __init__(
        self,
        engine: Engine,
        targets: Sequence[str],
        calibration: Calibration | None,
        against: str | None,
    ) -> None:
        self.tasks, self.targets, self.against = engine.tasks, tuple(targets), against
        self.known = calibration.targets if calibration else {}
        self.reads = engine.reads if engine.reads in self.targets else None
        calibrated = calibration.columns(self.targets, against) if calibration else ()
        own = (target for target in self.targets if target not in TARGETS)
        self.columns = (*own, *calibrated, *(["tokens_dropped"] if self.reads else []))
        """The names in ``more`` of every score."""

    def score(self, taken: Taken, answer: Answer | None, index: int) -> Score:
        """The row of what was ``taken``; ``answer`` is None where it could not be read."""
        fault, more = taken.fault, dict[str, Any].fromkeys(self.columns)
        found: dict[str, float] = {}
        if answer is not None and np.isfinite(answer.scores).all():
            found = dict(zip(self.tasks, answer.scores.tolist(), strict=True))
        elif answer is not None:
            fault = f"expected finite scores of {taken.name}, the model gave others"
        if self.reads and not taken.prompt.strip():
            found.pop(self.reads, None)
        if self.reads and found:
            more["tokens_dropped"] = taken.dropped
        if answer is not None:
            spread = dict(zip(self.tasks, answer.spread.tolist(), strict=True))
            for target in (t for t in found if t in self.targets and t in self.known):
                more |= self.known[target].row(target, found[target], spread[target], self.against)
        scores = {target: found.get(target) for target in self.targets}
        more |= {target: value for target, value in scores.items() if target not in TARGETS}
        return Score(
            taken.name,
            taken.prompt,
            quality=scores.get("quality"),
            alignment=scores.get("alignment"),
            authenticity=scores.get("authenticity"),
            reason=fault,
            note=taken.note,
            more=more,
            index=index,
        )


@dataclass(frozen=True)
class Opened:
    """An engine, the targets asked of it, its views, and what tells its model from all others.

    ``uncalibrated`` says why there is no calibration, as a part of a sentence.
    """

    engine: Engine
    targets: tuple[str, ...]
    views: str
    about: dict[str, Any]
    calibration: Calibration | None
    uncalibrated: str


def open_model(
    folder: Path,
    engine: str,
    precision: str,
    views: str | None,
    targets: Sequence[str] | None,
    backbone: str | None,
    device: str,
    lanes: int,
) -> Opened:
    """As :meth:`dcmpl.scoring.scorer.Scorer.from_pretrained` says."""
    if engine not in ("auto", *ENGINES) or precision not in PRECISIONS:
        raise UsageError(
            f"expected an engine of auto, {', '.join(ENGINES)} and a precision of "
            f"{', '.join(PRECISIONS)}, got {engine} and {precision}"
        )
    if (folder / EXPORT).is_file():
        if device not in ("auto", "cpu"):
            raise UsageError(
                f"expected the device cpu for an exported model, got {device}: score with the run "
                "itself, or leave the device out"
            )
        return _exported(folder, engine, precision, views, targets, lanes)
    return _trained(folder, engine, precision, views, targets, backbone, device)


def _exported(
    folder: Path,
    engine: str,
    precision: str,
    views: str | None,
    targets: Sequence[str] | None,
    lanes: int,
) -> Opened:
    exported = read_export(folder)
    chosen_targets(targets, exported.tasks, folder)
    record = exported.record
    if views == "auto":
        views = record.get("fewest_views")
        if not isinstance(views, str):
            raise UsageError(
                f"expected views that {folder} was measured with, it was exported without "
                "pictures: name --views"
            )
    opened = open_export(exported, engine, precision, lanes)
    return Opened(
        opened,
        chosen_targets(targets, opened.tasks, folder),
        views or str(record["views"]),
        {"model": folder.name, **exported.about},
        exported.calibration,
        "its run was not calibrated when it was exported",
    )


def _trained(
    folder: Path,
    engine: str,
    precision: str,
    views: str | None,
    targets: Sequence[str] | None,
    backbone: str | None,
    device: str,
) -> Opened:
    if engine not in ("auto", "torch") and (folder / RECORD).is_file():
        raise UsageError(
            f"expected an exported model for the engine {engine}, got the run {folder}: "
            f"dcmpl export {folder} -o DIR, then --model DIR"
        )
    from dcmpl.runs import uncalibrated, validation_pictures
    from dcmpl.scoring.torch_engine import TorchEngine, load_model

    run, network = load_model(folder, backbone, device)
    opened = TorchEngine(network, chosen_targets(targets, run.learned, folder), precision)
    if views == "auto":
        key = " ".join([run.identity, precision, *opened.tasks])
        views = fewest_of_run(folder, key, opened, lambda: validation_pictures(folder, run))
    return Opened(
        opened,
        opened.tasks,
        views or run.train.views,
        {"model": folder.name, **run.about(), "device": opened.device.type},
        read_calibration(folder, run.weights_sha256),
        uncalibrated(run),
    )


def chosen_targets(
    targets: Sequence[str] | None, known: Sequence[str], folder: Path
) -> tuple[str, ...]:
    """``targets`` where all are ``known``; raises :class:`UsageError` where not."""
    if not targets:
        return tuple(known)
    if unknown := [target for target in targets if target not in known]:
        raise UsageError(
            f"expected targets that {folder} predicts ({', '.join(known)}), got {unknown[0]}"
        )
    return tuple(targets)


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
        long_prompts: str = "truncate",
        calibration: Calibration | None = None,
        uncalibrated: str = "it was never calibrated",
        against: str | None = None,
    ) -> None:
        self.engine = engine
        self.views = check_views(views)
        self.targets = tuple(engine.tasks if targets is None else targets)
        self.about = about or {}
        self.long_prompts, self.uncalibrated = long_prompts, uncalibrated
        if calibration is not None and calibration.views != self.views:
            self.uncalibrated = f"it was calibrated for the views {calibration.views} only"
            calibration = None
        self.calibration = calibration
        self.row_of = RowOf(engine, self.targets, calibration, against)
        if against is not None:
            self._check_against(against)
        if long_prompts not in LONG_PROMPTS:
            raise UsageError(
                f"expected long_prompts of {', '.join(LONG_PROMPTS)}, got {long_prompts!r}"
            )
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
        device: str = "auto",
        *,
        engine: str = "auto",
        precision: str = "fp32",
        views: str | None = None,
        targets: Sequence[str] | None = None,
        workers: int | None = None,
        batch_size: int = BATCH,
        long_prompts: str = "truncate",
        against: str | None = None,
    ) -> "Scorer":
        """Load a run folder, or a folder that ``dcmpl export`` made.

        ``engine``: torch for a run; for an export onnx or openvino, or auto, the faster one
        here. ``views``: as the model was measured, unless given; ``auto`` takes the fewest
        that were found to be enough. ``targets``: what to compute, all that was learned
        unless given. ``backbone`` is needed only where the run's own has moved. ``device`` is
        auto, cpu, cuda, cuda:N or mps; what was exported runs on the CPU. ``workers`` threads
        each decode or compute on a core. ``long_prompts`` of ``LONG_PROMPTS`` is for a
        model that reads them. ``against`` is a generator of the training pictures, for
        percentiles among its own. Raises :class:`RunError` for a folder that
        is neither or was changed, :class:`UsageError` for what it has not.
        """
        count = cores() if workers is None else workers
        if count < 1:
            raise UsageError(f"expected at least one worker, got {count}: leave workers out")
        opened = open_model(Path(model), engine, precision, views, targets, backbone, device, count)
        return cls(
            opened.engine,
            opened.views,
            opened.targets,
            about=opened.about,
            workers=count,
            batch_size=batch_size,
            long_prompts=long_prompts,
            calibration=opened.calibration,
            uncalibrated=opened.uncalibrated,
            against=against,
        )

    def score(
        self,
        images: "Sequence[Input] | Tensor",
        prompts: Sequence[object] | str | None = None,
    ) -> Scores:
        """One :class:`Score` per picture, in order; ``prompts`` may be one for all.

        None or NaN among them, as tables have it, is a picture without a prompt.

        ``images`` is a sequence of pictures, one tensor (N, 3, height, width) or one array
        (N, height, width, 3). Raises
        :class:`UsageError` where the counts differ.
        """
        is_batch = isinstance(images, np.ndarray) and images.ndim == 4
        if isinstance(images, (str, Path, Image.Image, np.ndarray)) and not is_batch:
            raise UsageError(
                f"expected a list of pictures, got one {type(images).__name__}: put it in a list"
            )
        if is_tensor(images) and len(getattr(images, "shape", ())) != 4:
            raise UsageError(
                "expected a list of pictures or a tensor (N, 3, height, width), got one of shape "
                f"{tuple(getattr(images, 'shape', ()))}"
            )
        if not is_tensor(images):
            images = list(cast(Sequence[Input], images))
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

        ``index`` says which picture each was. Where ``by`` is calibrated, ``better_than_next``
        is the probability that people prefer a picture to the one behind it, and ``call`` says
        whether that is too close to call. Raises :class:`UsageError` for a target that the
        model does not predict.
        """
        self.check_target(by)
        found, target = self.score(images, prompt).best_first(by), self.target_of(by)
        spreads = [score.more.get(f"{target}_spread") for score in found]
        places = self.places([score[target] for score in found], spreads, target)
        return Scores(
            replace(score, more={**score.more, **place})
            for score, place in zip(found, places, strict=True)
        )

    def target_of(self, by: str) -> str:
        """The target that a number such as ``quality_mos`` goes with, or that it is."""
        known = [t for t in self.targets if by == t or by.startswith(f"{t}_")]
        return max(known, key=len, default=by)

    def places(
        self, scores: Sequence[float | None], spreads: Sequence[float | None], target: str
    ) -> Iterator[dict[str, Any]]:
        """What :func:`dcmpl.scoring.calibration.ranked` says of scores that come best first."""
        meaning = self.calibration.targets.get(target) if self.calibration else None
        return ranked(meaning, scores, spreads)

    def stream(self, pairs: Iterable[tuple[Input, object]]) -> Iterator[Score]:
        """The same for (picture, prompt) pairs that come one by one, in bounded memory."""
        one_at_a_time = Lock()  # of Pillow's images, which several pairs may share
        return self.rows(
            Request(name_of(picture), text_of(prompt), partial(read_input, picture, one_at_a_time))
            for picture, prompt in pairs
        )

    def rows(self, requests: Iterable[Request], start: int = 0) -> Iterator[Score]:
        """The same for what is still to be read, whose first has the index ``start``.

        Pictures are decoded while others are computed, a few ahead.
        """
        reads = self.row_of.reads
        taken: deque[Taken] = deque()  # not the requests: they may hold bytes

        def read(request: Request) -> tuple[Request, Picture | None, str]:
            try:
                return request, request.read(), ""
            except DataError as error:
                return request, None, str(error)

        def questions() -> Iterator[Question]:
            for request, picture, fault in ahead(requests, read, pool, self.workers):
                prompt, notes, parts = request.prompt, [request.note], Parts(((),))
                if picture is not None:
                    prompt = request.prompt_of(picture) if request.prompt_of else prompt
                    notes += picture.notes
                if picture is not None and reads is not None:
                    try:
                        parts = self.engine.parts(prompt, self.long_prompts)
                    except UsageError as error:
                        picture, fault = None, str(error)
                    else:
                        notes += of_prompt(prompt, parts, reads)
                taken.append(
                    Taken(
                        request.name, prompt, fault, "; ".join(filter(None, notes)), parts.dropped
                    )
                )
                yield Question(None if picture is None else picture.pixels, parts.ids)

        with self.engine.lanes(self.workers) as pool:
            found = scores_of(
                self.engine,
                questions(),
                self.views,
                batch_size=self.batch_size,
                chunk=CHUNK,
                pool=pool,
                depth=self.workers,
            )
            for index, answer in enumerate(found, start):
                yield self.row_of.score(taken.popleft(), answer, index)

    def check_target(self, target: str) -> None:
        """Raises :class:`UsageError` where the scorer does not predict ``target``.

        Numbers that go with a target, such as ``quality_mos``, count as well.
        """
        kinds = {f"{t}_{kind}" for t in self.targets for kind in NUMBERS}
        if target in self.row_of.columns and (target in self.targets or target in kinds):
            return
        model = self.about.get("model", "the model")
        if target in kinds and self.calibration is None:
            raise UsageError(
                f"expected a calibrated model for {target}, got {model}: {self.uncalibrated}"
            )
        chosen_targets([target], self.targets, Path(model))

    def _check_against(self, generator: str) -> None:
        if self.calibration is None:
            raise UsageError(
                f"expected a calibrated model for percentiles, got "
                f"{self.about.get('model', 'another')}: {self.uncalibrated}"
            )
        known = dict.fromkeys(g for m in self.calibration.targets.values() for g in m.generators)
        if generator not in known:
            raise UsageError(
                f"expected a generator of the training pictures ({', '.join(known) or 'none'}), "
                f"got {generator}"
            )

    def as_loss(self, target: str = "quality") -> "ScoreLoss":
        """1 - score for each picture, with gradients to the pixels; see :class:`ScoreLoss`.

        Raises :class:`UsageError` for an exported model, which has no gradients.
        """
        from dcmpl.scoring.torch_engine import ScoreLoss, TorchEngine

        if not isinstance(self.engine, TorchEngine):
            raise UsageError("expected a run folder for a loss, got an exported model")
        self.check_target(target)
        if target not in self.engine.tasks:
            raise UsageError(
                f"expected one of {', '.join(self.engine.tasks)} for a loss, got {target}"
            )
        if target == self.engine.reads:
            raise UsageError(
                f"expected a target that no prompt is read for, got {target}: take quality"
            )
        return ScoreLoss(self.engine, target, self.views)
