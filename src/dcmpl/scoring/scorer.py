"""Scorer: a trained or exported model that scores images in any form."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dcmpl import __version__
from dcmpl.config import MOST_WORKERS, TARGETS, check_views
from dcmpl.data.sources import Source
from dcmpl.errors import DataError, UsageError, nearest
from dcmpl.images.decode import cores
from dcmpl.images.windows import too_small
from dcmpl.model.tokenizer import LONG_PROMPTS, Parts
from dcmpl.scoring.batching import ahead
from dcmpl.scoring.calibration import Calibration, read_calibration
from dcmpl.scoring.engines import (
    ENGINES,
    EXPORT,
    PRECISIONS,
    Answer,
    Engine,
    Question,
    open_export,
    read_export,
    score_images,
)
from dcmpl.scoring.judge import CHUNK, Judge, chosen_targets
from dcmpl.scoring.results import Score
from dcmpl.weights import as_installed, model_folder

if TYPE_CHECKING:
    from dcmpl.scoring.torch_engine import ScoreLoss

__all__ = ["Scorer", "ScoringOptions"]

EDGE = 1e-3
"""How far rounding may carry a score beyond 0 and 1."""

TOLD_WORDS = 5
"""Words of a prompt that a note names."""

MOST_LETTERS = 40
"""Letters of such a word."""

PACKAGES = {"torch": ["torch"], "onnx": ["onnxruntime"], "openvino": ["openvino"]}
"""Packages that compute, by engine."""

NO_IMAGE = Question(None)


@dataclass(frozen=True)
class ScoringOptions:
    """Options of scoring.

    ``engine``: torch for a run; for an export openvino or onnx; auto takes what is there.
    ``views``: as the model was measured, unless given; ``auto`` takes the fewest that were found
    to be enough. ``targets``: what to compute, all that was learned unless given. ``workers``
    threads each decode or compute on a core, all cores unless given. ``batch_size`` counts
    windows, as suits the engine unless given. ``long_prompts`` of ``LONG_PROMPTS`` is for a
    model that reads them. ``against`` is a
    generator of the training images, for percentiles among its own. ``device`` is auto, cpu,
    cuda, cuda:N or mps; exported models run on the CPU. ``backbone`` is needed only where the
    run's own has moved. Raises :class:`UsageError` for values that are none of these.
    """

    engine: str = "auto"
    precision: str = "fp32"
    views: str | None = None
    targets: tuple[str, ...] | None = None
    workers: int | None = None
    batch_size: int | None = None
    long_prompts: str = "truncate"
    against: str | None = None
    device: str = "auto"
    backbone: str | None = None

    def __post_init__(self) -> None:
        if self.engine not in ("auto", *ENGINES) or self.precision not in PRECISIONS:
            raise UsageError(
                f"an engine of auto, {', '.join(ENGINES)} and a precision of "
                f"{', '.join(PRECISIONS)}",
                f"{self.engine} and {self.precision}",
            )
        if self.views not in (None, "auto"):
            check_views(str(self.views))
        if self.long_prompts not in LONG_PROMPTS:
            raise UsageError(f"long_prompts of {', '.join(LONG_PROMPTS)}", f"{self.long_prompts!r}")
        workers = 1 if self.workers is None else self.workers
        windows = 1 if self.batch_size is None else self.batch_size
        if not 1 <= workers <= MOST_WORKERS or windows < 1 or self.targets == ():
            raise UsageError(
                f"1 to {MOST_WORKERS} workers, at least one window in a batch and one target",
                f"{self.workers}, {self.batch_size} and {self.targets}",
            )

    def changed(self, **changes: Any) -> "ScoringOptions":
        """Copy with some options changed; raises :class:`UsageError` for unknown names."""
        known = [field.name for field in fields(self)]
        for name in changes:
            if name not in known:
                hint = nearest(name, known, f"they are {', '.join(known)}")
                raise UsageError("an option of the scorer", name, hint)
        if changes.get("targets") is not None:
            changes["targets"] = tuple(changes["targets"])
        return replace(self, **changes)


DEFAULTS = ScoringOptions()


class Read(NamedTuple):
    """Reading of an image: everything in its row but the scores."""

    name: str
    prompt: str
    fault: str
    note: str
    dropped: int
    file: str
    shard: str


def shorten(word: str) -> str:
    """A word for a note; a long one loses its end."""
    return word if len(word) <= MOST_LETTERS else f"{word[:MOST_LETTERS]}..."


def of_prompt(prompt: str, parts: Parts, target: str) -> list[str]:
    """Note on the reading of a prompt."""
    if not prompt.strip():
        return [f"no prompt to judge {target} by"]
    notes = []
    if parts.dropped:
        notes.append(f"{parts.dropped} tokens of the prompt were dropped")
    elif len(parts.ids) > 1:
        notes.append(f"the prompt was read in {len(parts.ids)} parts")
    if parts.unknown:
        more = ", ..." if len(parts.unknown) > TOLD_WORDS else ""
        told = (shorten(word) for word in parts.unknown[:TOLD_WORDS])
        notes.append(f"not understood: {', '.join(told)}{more}")
    letters = sum(not letter.isspace() for letter in prompt)
    if parts.count > letters + len(prompt.split()):  # a token may be the blank before a word
        notes.append("the model has no words for the letters of the prompt")
    return notes


class RowOf:
    """Builder of a scorer's rows; ``against`` is a generator for percentiles."""

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

    def score(self, read: Read, answer: Answer | None, index: int) -> Score:
        """Score of a reading; ``answer`` is None for an unreadable image."""
        fault, more = read.fault, dict[str, Any].fromkeys(self.columns)
        found: dict[str, float] = {}
        if answer is not None and ((answer.scores >= -EDGE) & (answer.scores <= 1 + EDGE)).all():
            found = dict(zip(self.tasks, answer.scores.tolist(), strict=True))
        elif answer is not None:  # nan too
            fault = f"expected finite scores of {read.name} in [0, 1], got others from the model"
        if self.reads and not read.prompt.strip():
            found.pop(self.reads, None)
        if self.reads and found:
            more["tokens_dropped"] = read.dropped
        if answer is not None:
            spread = dict(zip(self.tasks, answer.spread.tolist(), strict=True))
            for target in (t for t in found if t in self.targets and t in self.known):
                more |= self.known[target].row(target, found[target], spread[target], self.against)
        scores = {target: found.get(target) for target in self.targets}
        more |= {target: value for target, value in scores.items() if target not in TARGETS}
        return Score(
            read.name,
            read.prompt,
            quality=scores.get("quality"),
            alignment=scores.get("alignment"),
            authenticity=scores.get("authenticity"),
            reason=fault,
            note=read.note,
            more=more,
            index=index,
            file=read.file,
        )


class Scorer(Judge):
    """Score images with a run or an export of one.

    >>> scorer = Scorer.from_pretrained("runs/demo")        # doctest: +SKIP
    >>> scorer.score(["a.png"], ["a red fox"])[0].quality   # doctest: +SKIP
    0.71
    """

    def __init__(
        self,
        engine: Engine,
        views: str,
        options: ScoringOptions = DEFAULTS,
        *,
        about: dict[str, Any] | None = None,
        calibration: Calibration | None = None,
        uncalibrated: str = "it was never calibrated",
    ) -> None:
        """Build a scorer over ``views``; ``uncalibrated`` is the reason for no calibration."""
        self.engine, self.options, self.about = engine, options, about or {}
        self.views = check_views(views)
        self.targets = tuple(options.targets or engine.tasks)
        self.uncalibrated = uncalibrated
        if calibration is not None and calibration.views != self.views:
            self.uncalibrated = f"it was calibrated for the views {calibration.views} only"
            calibration = None
        self.calibration = calibration
        self.row_of = RowOf(engine, self.targets, calibration, options.against)
        self.columns, self.reads = self.row_of.columns, self.row_of.reads
        if options.against is not None:
            self._check_against(options.against)
        self.workers = cores() if options.workers is None else options.workers
        self.batch_size = options.batch_size or engine.batch

    @classmethod
    def from_pretrained(
        cls, model: str | Path | None = None, options: ScoringOptions = DEFAULTS, **changes: Any
    ) -> "Scorer":
        """Load a run folder or an export; the model of the package where none is named.

        ``changes`` are fields of :class:`ScoringOptions` by name, as in ``device="cuda"``.
        Raises :class:`RunError` for a folder that is neither or was changed,
        :class:`UsageError` for what it has not.
        """
        folder, options = model_folder(model), options.changed(**changes)
        if (folder / EXPORT).is_file():
            return cls._of_export(folder, options)
        with as_installed(folder):
            return cls._of_run(folder, options)

    @classmethod
    def _of_export(cls, folder: Path, options: ScoringOptions) -> "Scorer":
        if options.device not in ("auto", "cpu"):
            raise UsageError(
                "the device cpu for an exported model",
                options.device,
                "score with the run itself, or leave the device out",
            )
        exported = read_export(folder)
        chosen_targets(options.targets, exported.tasks, folder)
        lanes = cores() if options.workers is None else options.workers
        engine = open_export(exported, options.engine, options.precision, lanes)
        calibration = exported.calibration
        return cls(
            engine,
            _views(options.views, str(exported.record["views"]), calibration, folder),
            options,
            about={"model": folder.name, **exported.about},
            calibration=calibration,
            uncalibrated="its run was not calibrated when it was exported",
        )

    @classmethod
    def _of_run(cls, folder: Path, options: ScoringOptions) -> "Scorer":
        from dcmpl.runs import RECORD, uncalibrated  # imports torch

        if options.engine not in ("auto", "torch") and (folder / RECORD).is_file():
            raise UsageError(
                f"an exported model for the engine {options.engine}",
                f"the run {folder}",
                f"dcmpl export {folder} -o DIR, then --model DIR",
            )
        from dcmpl.scoring.torch_engine import TorchEngine, load_model

        run, network = load_model(folder, options.backbone, options.device)
        targets = chosen_targets(options.targets, run.learned, folder)
        engine = TorchEngine(network, targets, options.precision)
        calibration = read_calibration(folder, run.weights_sha256)
        return cls(
            engine,
            _views(options.views, run.train.views, calibration, folder),
            options,
            about={"model": folder.name, **run.about(), "device": engine.device.type},
            calibration=calibration,
            uncalibrated=uncalibrated(run),
        )

    def identity(self) -> dict[str, Any]:
        """Everything of the scorer that determines a row: its model, options and packages."""
        options = self.options
        packages = ["numpy", "pillow", *PACKAGES[self.engine.name]]
        return {
            **{name: value for name, value in self.about.items() if name != "model"},
            "engine": self.engine.name,
            "precision": self.engine.precision,
            "views": self.views,
            "targets": list(self.targets),
            "batch_size": self.batch_size,
            "long_prompts": options.long_prompts if self.reads else None,
            "against": options.against,
            "calibration": self.calibration and self.calibration.digest,
            "dcmpl": __version__,
            **{name: version(name) for name in packages if find_spec(name) or name == "pillow"},
        }

    def rows(self, sources: Iterable[Source], start: int = 0) -> Iterator[Score]:
        """Score sources, numbered from ``start``, in bounded memory.

        Images are decoded while others are computed, a few ahead.
        """
        with self.engine.lanes(self.workers) as pool:
            images = ahead(sources, self._read, pool, self.workers)
            found = score_images(
                self.engine,
                images,
                self.views,
                batch_size=self.batch_size,
                chunk=CHUNK,
                shard=lambda read: read.shard,
                pool=pool,
                depth=self.workers,
            )
            for index, (read, answer) in enumerate(found, start):
                yield self.row_of.score(read, answer, index)

    def _read(self, source: Source) -> tuple[Read, Question]:
        """Decode an image and tokenise its prompt; a failure becomes the fault of its row."""
        source = source.fetched()
        prompt, notes, parts = source.prompt, [source.note], Parts(((),))
        file = source.file() if source.is_job else ""
        try:
            image = source.read()
            prompt, words, note = source.prompt_of(image)
            small = too_small(image.pixels, self.engine.size, self.views)
            notes += [note, *image.notes, small]
            if self.reads is not None:
                parts = self.engine.parts(words, self.options.long_prompts)
                notes += of_prompt(words, parts, self.reads)
        except (DataError, UsageError) as error:
            note = "; ".join(filter(None, notes))
            return Read(source.name, prompt, str(error), note, 0, file, source.shard), NO_IMAGE
        note = "; ".join(filter(None, notes))
        read = Read(source.name, prompt, "", note, parts.dropped, file, source.shard)
        return read, Question(image.pixels, parts.ids)

    def _check_against(self, generator: str) -> None:
        if self.calibration is None:
            raise UsageError(
                "a calibrated model for percentiles",
                self.about.get("model", "another"),
                self.uncalibrated,
            )
        known = dict.fromkeys(g for m in self.calibration.targets.values() for g in m.generators)
        if generator not in known:
            raise UsageError(
                f"a generator of the training images ({', '.join(known) or 'none'})", generator
            )

    def as_loss(self, target: str = "quality") -> "ScoreLoss":
        """Loss of images, 1 - score, with gradients to the pixels; see :class:`ScoreLoss`.

        Raises :class:`UsageError` for an exported model, which has no gradients.
        """
        from dcmpl.scoring.torch_engine import ScoreLoss, TorchEngine

        if not isinstance(self.engine, TorchEngine):
            raise UsageError("a run folder for a loss", "an exported model")
        self.check_target(target)
        if target not in self.engine.tasks:
            raise UsageError(f"one of {', '.join(self.engine.tasks)} for a loss", target)
        if target == self.engine.reads:
            raise UsageError("a target that no prompt is read for", target, "take quality")
        return ScoreLoss(self.engine, target, self.views)


def _views(asked: str | None, measured: str, calibration: Calibration | None, folder: Path) -> str:
    """Views to score over: the chosen ones, or the model's own."""
    if asked != "auto":
        return asked or measured
    if calibration is None or calibration.enough_views is None:
        raise UsageError(
            "a model that knows how few views are enough for --views auto",
            f"{folder}, which does not",
            "name --views",
        )
    return calibration.enough_views
