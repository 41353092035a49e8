"""Trials: one configuration trained and tested on one split.

A benchmark is a list of trials. What is finished is kept and not run again; what was broken off
goes on.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcmpl.config import ModelConfig, TrainConfig
from dcmpl.data.leaks import ImageFacts, check_leaks, find_leaks, tied_units
from dcmpl.data.splits import PROTOCOLS, Split, draw_split
from dcmpl.data.table import ImageTable, listed
from dcmpl.errors import DataError, RunError, UsageError
from dcmpl.evaluation.baselines import predict_baselines, statistics_of
from dcmpl.evaluation.results import prompts_matter, write_results
from dcmpl.files import read_plain, read_yaml
from dcmpl.model.dcmpl import DCMPL, trainable_parameters
from dcmpl.presets import PRESETS, with_settings
from dcmpl.runs import MODEL, DataSource, Run, load_learned, read_run, write_split
from dcmpl.scoring.torch_engine import TorchEngine, by_target, predict_table
from dcmpl.training.features import (
    Frozen,
    FrozenEngine,
    FrozenTable,
    freeze_draws,
    freeze_table,
)
from dcmpl.training.loop import EpochReport, fit, kept_windows
from dcmpl.weights.backbones import Backbone

__all__ = [
    "RESULT",
    "Trial",
    "TrialContext",
    "Variant",
    "read_grid",
    "read_result",
    "run_transfer",
    "run_trial",
    "trials_of",
]

RESULT = "trial.json"
"""Not ``metrics.json``, which ``dcmpl evaluate`` writes into any run."""

MAX_GRID_BYTES = 2**20


@dataclass(frozen=True)
class Variant:
    """One row of an ablation."""

    name: str
    preset: str
    model: ModelConfig
    train: TrainConfig


def read_grid(file: Path, recipe: TrainConfig, settings: Sequence[str] = ()) -> list[Variant]:
    """The variants of a grid file; the first is the base all others are compared with.

    The file maps ``train`` to settings of all, and ``variants`` to a mapping from names to
    ``preset`` (``dcmpl`` where absent), ``model`` (fields by dotted names) and ``train``;
    ``settings`` as of ``--set train.FIELD=VALUE`` go over all of them. Raises
    :class:`UsageError` where it is anything else.
    """
    try:
        if file.stat().st_size > MAX_GRID_BYTES:
            raise UsageError(f"a grid of at most {MAX_GRID_BYTES} bytes", file)
        grid = read_yaml(file, MAX_GRID_BYTES)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"a YAML grid at {file}", reason=reason) from error
    common, variants = _mapping(grid, "", {"train", "variants"}, file), []
    for name, entry in _mapping(common.get("variants"), "variants", None, file).items():
        entry = _mapping(entry or {}, str(name), {"preset", "model", "train"}, file)
        preset = entry.get("preset", "dcmpl")
        if preset not in PRESETS:
            raise UsageError(f"a preset for {name} in {file}", f"{preset!r}")
        fields = _mapping(entry.get("model") or {}, f"{name}: model", None, file)
        own = [_setting("model", *pair) for pair in fields.items()]
        recipes = [*(common.get("train") or {}).items(), *(entry.get("train") or {}).items()]
        of_train = [*(_setting("train", *pair) for pair in recipes), *settings]
        try:
            train = with_settings(recipe, of_train, "train")
            model = with_settings(PRESETS[preset].model, own)
        except UsageError as error:
            raise UsageError(
                f"{error.expected} for {name} in {file}", error.got, error.hint
            ) from error
        variants.append(Variant(str(name), preset, model, train))
    if not variants:
        raise UsageError(f"at least one entry under variants in {file}", "none")
    return variants


def _mapping(value: Any, what: str, keys: set[str] | None, file: Path) -> dict[str, Any]:
    if not isinstance(value, dict) or (keys is not None and set(value) - keys):
        wanted = f"a mapping with {', '.join(sorted(keys))}" if keys else "a mapping"
        got = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
        raise UsageError(f"{wanted} {f'under {what} ' if what else ''}in {file}", got)
    return value


def _setting(section: str, name: Any, value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{section}.{name}={text}"


@dataclass(frozen=True)
class Trial:
    """A configuration, a split, and the run folder it goes to."""

    name: str
    run: Run
    split: Split
    folder: Path


@dataclass
class TrialContext:
    """A data set and a backbone with what trials share, each computed once."""

    table: ImageTable
    backbone: Backbone
    facts: dict[str, ImageFacts]
    device: torch.device
    _frozen: dict[tuple[str, ...], FrozenTable] = field(default_factory=dict)
    _baselines: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    @cached_property
    def units(self) -> np.ndarray:
        return tied_units(self.table, self.facts)

    @cached_property
    def statistics(self) -> dict[str, np.ndarray]:
        return statistics_of(self.table.frame["image"])

    def split(self, protocol: str, repeat: int) -> Split:
        return draw_split(protocol, self.table, self.units, repeat)

    def baselines(self, split: Split) -> dict[str, np.ndarray]:
        """Baseline predictions of the test part."""
        if split.digest not in self._baselines:
            parts = split.train_part(self.table).table, split.test_part(self.table).table
            self._baselines[split.digest] = predict_baselines(*parts, self.statistics)
        return self._baselines[split.digest]

    def frozen(self, model: DCMPL, config: TrainConfig) -> Frozen | None:
        """Frozen features of all images; None where windows are drawn anew every epoch."""
        kept = kept_windows(model.config, config)
        if kept is None:
            return None
        scored = self._kept(
            model,
            (config.views, config.precision),
            lambda: freeze_table(model, self.table, config.views, config.precision),
        )
        if kept == "views":
            return Frozen(scored, scored)
        drawn = f"{config.draws} draws, coats: {config.coats}"
        training = self._kept(
            model,
            (drawn, config.precision),
            lambda: freeze_draws(model, self.table, config),
        )
        return Frozen(training, scored)

    def _kept(
        self, model: DCMPL, windows: tuple[str, ...], freeze: Callable[[], FrozenTable]
    ) -> FrozenTable:
        """Frozen features of ``windows``: known, made from known tokens, or computed."""
        device, common = model.mean.device, (model.config.normalization, *windows)
        key = (model.config.frozen_part, *common)
        if key not in self._frozen:
            tokens = self._frozen.get(("tokens", *common))
            self._frozen[key] = (
                freeze()
                if tokens is None
                else tokens.mapped(lambda batch: model.frozen_of(batch.float().to(device)))
            )
        return self._frozen[key]


def trials_of(
    context: TrialContext,
    source: DataSource,
    variants: Iterable[Variant],
    protocols: Sequence[str],
    repeats: int,
    out: Path,
) -> Iterator[Trial]:
    """Every variant under every protocol on every repeat, split by split.

    The repeat is the number of the split and the seed of the training. Each trial is a run
    folder ``out``/data/variant/protocol/repeatN that ``dcmpl evaluate`` and ``score`` take.
    """
    variants = list(variants)
    for repeat in range(repeats):
        for protocol in protocols:
            split = context.split(protocol, repeat)
            for variant in variants:
                train = replace(variant.train, seed=repeat)
                model = variant.model
                run = Run.begin(
                    variant.preset, context.backbone, source, model, train, split, context.table
                )
                place = out / _as_folder(context.table.name) / _as_folder(variant.name)
                yield Trial(variant.name, run, split, place / protocol / f"repeat{repeat}")


def _as_folder(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-._=" else "-" for c in name)


def run_trial(trial: Trial, context: TrialContext) -> dict[str, Any]:
    """Train and test a trial in its folder, unless it is finished; returns the metrics.

    Raises :class:`DataError` where the split leaks what its protocol does not allow, and
    :class:`RunError` where results of other settings lie in the folder.
    """
    if not (trial.folder / RESULT).exists():
        _measure(trial, context)
    return read_result(trial.folder, trial.run)


def read_result(folder: Path, run: Run) -> dict[str, Any]:
    """The metrics in ``folder``; raises :class:`RunError` where they are not those of ``run``."""
    found, name = read_plain(folder / RESULT, "results", lambda record: (record, record["run"]))
    if name != run.identity:
        raise RunError(
            f"results of these settings, data and backbone in {folder}",
            "those of others",
            "choose another --out",
        )
    return found


def _measure(trial: Trial, context: TrialContext) -> None:
    run, split, table, config = trial.run, trial.split, context.table, trial.run.train
    leaks = check_leaks(split, table, context.facts, PROTOCOLS[split.protocol].leaks)
    model = _built(run, context)
    frozen = context.frozen(model, config)
    write_split(trial.folder, split)
    seconds: list[float] = []

    def note(report: EpochReport) -> None:
        seconds.append(report.seconds_per_step)

    parts = split.train_part(table), split.validation_part(table)
    run = fit(model, *parts, run, trial.folder, note, frozen)
    test = split.test_part(table).table
    learned = run.learned
    known = frozen.scored if frozen else None
    engine = FrozenEngine(model, learned, known) if known else TorchEngine(model, learned)
    scores, _ = predict_table(engine, test, config.views, "testing")
    notes = {
        **_about(trial, run),
        "data": table.name,
        "leaks": leaks,
        "prompts": prompts_matter(engine, test, config.views, scores),
        "best_epoch": run.best_epoch,
        "history": list(run.history),
        "parameters": sum(p.numel() for p in trainable_parameters(model).values()),
        "seconds_per_step": statistics.median(seconds) if seconds else 0.0,
    }
    predicted, baselines = by_target(scores, learned, test), context.baselines(split)
    write_results(trial.folder, test, predicted, notes, baselines, draws=0, name=RESULT)


def _built(run: Run, context: TrialContext) -> DCMPL:
    backbone = context.backbone
    return DCMPL(backbone.clip, backbone.tokenizer, run.model, run.train.seed).to(context.device)


def _about(trial: Trial, run: Run) -> dict[str, Any]:
    return {
        "run": trial.run.identity,
        "name": trial.name,
        "protocol": trial.split.protocol,
        "repeat": trial.split.repeat,
        "split_sha256": trial.split.digest,
        "preset": run.preset,
        "backbone": run.backbone,
    }


def run_transfer(trial: Trial, context: TrialContext, other: TrialContext) -> dict[str, Any]:
    """Test a finished trial on every image of another data set; returns the metrics.

    Raises :class:`DataError` where the two data sets share prompts or images.
    """
    folder = trial.folder / f"on-{_as_folder(other.table.name)}"
    if not (folder / RESULT).exists():
        unseen = {*trial.split.test, *trial.split.left_out}
        known = context.table.select(~context.table.frame["name"].isin(unseen))
        if leaks := find_leaks(known, other.table, {**context.facts, **other.facts}):
            pairs = [f"{leak.tested} and {leak.known} ({leak.kind})" for leak in leaks]
            raise DataError(
                f"nothing of {other.table.name} in the training of {context.table.name}",
                listed(pairs, 5),
                "take the rows out of one",
            )
        run = read_run(trial.folder)
        model = _built(run, context)
        load_learned(trial.folder / MODEL, model, run)
        engine = TorchEngine(model, run.learned)
        scores, _ = predict_table(engine, other.table, run.train.views, "testing")
        predicted = by_target(scores, run.learned, other.table)
        notes = {**_about(trial, run), "trained_on": context.table.name}
        write_results(folder, other.table, predicted, notes, draws=0, name=RESULT)
    return read_result(folder, trial.run)
