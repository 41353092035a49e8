"""Training and testing again and again: one trial is one configuration on one split.

Ablations, protocols and cross-data-set tables are all lists of trials. What is finished is
kept and not run again; what was broken off goes on.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from scipy import stats

from dcmpl.config import ModelConfig, TrainConfig
from dcmpl.data.leaks import PictureFacts, check_leaks, tied_units
from dcmpl.data.splits import PROTOCOLS, Split, draw_split
from dcmpl.data.table import ImageTable
from dcmpl.errors import DataError, RunError, UsageError
from dcmpl.evaluation.baselines import FLOORS, predict_floors, statistics_of
from dcmpl.evaluation.results import measured, plain_numbers, write_results
from dcmpl.model.dcmpl import DCMPL, trainable_parameters
from dcmpl.presets import PRESETS, with_settings
from dcmpl.runs import Run, Source, write_split
from dcmpl.training.features import FrozenTable, freeze_table, predict_frozen, predict_table
from dcmpl.training.loop import EpochReport, fit, trains_on_views
from dcmpl.weights.backbones import Backbone

__all__ = [
    "RESULT",
    "Trial",
    "Variant",
    "Workbench",
    "flat_numbers",
    "read_grid",
    "read_result",
    "run_trial",
    "run_trials",
    "spread",
    "summary",
    "trials_of",
]


RESULT = "trial.json"
"""Not ``metrics.json``, which ``dcmpl evaluate`` writes into any run."""


@dataclass(frozen=True)
class Trial:
    """A configuration, a split, and the run folder it goes to."""

    name: str
    run: Run
    split: Split
    folder: Path


@dataclass
class Workbench:
    """A data set and a backbone, with what several trials can share, each computed once."""

    table: ImageTable
    backbone: Backbone
    facts: dict[str, PictureFacts]
    device: torch.device
    _frozen: dict[tuple[str, ...], FrozenTable] = field(default_factory=dict)
    _floors: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    @cached_property
    def units(self) -> np.ndarray:
        return tied_units(self.table, self.facts)

    @cached_property
    def statistics(self) -> dict[str, np.ndarray]:
        return statistics_of(self.table.frame["image"])

    def split(self, protocol: str, repeat: int) -> Split:
        return draw_split(protocol, self.table, self.units, repeat)

    def floors(self, split: Split) -> dict[str, np.ndarray]:
        """Predictions of the test part that a model must beat."""
        if split.digest not in self._floors:
            parts = split.train_part(self.table).table, split.test_part(self.table).table
            self._floors[split.digest] = predict_floors(*parts, self.statistics)
        return self._floors[split.digest]

    def frozen(self, model: DCMPL, config: TrainConfig) -> FrozenTable | None:
        """What the frozen part makes of all pictures; None where windows are drawn anew."""
        if not trains_on_views(model.config, config):
            return None
        device = model.mean.device
        common = model.config.normalization, config.views, config.precision
        key = (model.config.frozen_part, *common)
        if key not in self._frozen:
            tokens = self._frozen.get(("tokens", *common))
            self._frozen[key] = (
                freeze_table(model, self.table, config.views, config.precision)
                if tokens is None
                else tokens.mapped(lambda batch: model.frozen_of(batch.float().to(device)))
            )
        return self._frozen[key]


def run_trials(
    trials: Iterable[Trial], bench: Workbench, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Run what is not finished; returns every trial's metrics, in order."""
    results = []
    for trial in trials:
        results.append(run_trial(trial, bench))
        told = "  ".join(
            f"{target} SRCC {results[-1][target]['srcc']['value'] or 0:.3f}"
            for target in measured(results[-1])
        )
        say(f"repeat {trial.split.repeat}  {trial.name:32} {told}")
    return results


def run_trial(trial: Trial, bench: Workbench) -> dict[str, Any]:
    """Train in the trial's folder and test there, unless that was done; returns the metrics.

    Raises :class:`DataError` where the split leaks what its protocol does not allow, and
    :class:`RunError` where results of other settings lie in the folder.
    """
    if not (trial.folder / RESULT).exists():
        _measure(trial, bench)
    return read_result(trial.folder, trial.run)


def read_result(folder: Path, run: Run) -> dict[str, Any]:
    """The metrics in ``folder``; raises :class:`RunError` where they are not those of ``run``."""
    try:
        found: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        same = found["run"] == run.identity
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"expected results at {folder / RESULT}, got unreadable content") from error
    if not same:
        raise RunError(
            f"expected results of these settings, data and backbone in {folder}, "
            "got those of others: choose another --out"
        )
    return found


def _measure(trial: Trial, bench: Workbench) -> None:
    run, split, table, config = trial.run, trial.split, bench.table, trial.run.train
    leaks = check_leaks(split, table, bench.facts, PROTOCOLS[split.protocol].leaks)
    backbone = bench.backbone
    model = DCMPL(backbone.clip, backbone.tokenizer, run.model, config.seed)
    model.to(bench.device)
    frozen = bench.frozen(model, config)
    write_split(trial.folder, split)
    seconds: list[float] = []

    def note(report: EpochReport) -> None:
        seconds.append(report.seconds_per_step)

    parts = split.train_part(table), split.validation_part(table)
    run = fit(model, *parts, run, trial.folder, note, frozen)
    test = split.test_part(table).table
    if frozen is None:
        predicted = predict_table(model, test, config.views, "fp32", "testing")
    else:
        predicted = predict_frozen(model, test, frozen, "fp32")
    notes = {
        "run": run.identity,
        "name": trial.name,
        "protocol": split.protocol,
        "repeat": split.repeat,
        "split_sha256": split.digest,
        "leaks": leaks,
        "preset": run.preset,
        "backbone": run.backbone,
        "best_epoch": run.best_epoch,
        "history": list(run.history),
        "parameters": sum(p.numel() for p in trainable_parameters(model).values()),
        "seconds_per_step": statistics.median(seconds) if seconds else 0.0,
    }
    predicted, floors = run.only_learned(predicted, test), bench.floors(split)
    write_results(trial.folder, test, predicted, notes, floors, draws=0, name=RESULT)


def flat_numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """``quality_srcc`` and the like of one trial's metrics, NaN where undefined."""
    return {
        f"{target}_{name}": float(value)
        for target in measured(result)
        for name, value in plain_numbers(result[target]).items()
    }


def spread(values: "pd.Series[float]") -> dict[str, float]:
    """Mean, median, standard deviation and the mean's 95 % interval by Student's t.

    The last three are nan for a single value.
    """
    n, mean, median = len(values), float(values.mean()), float(values.median())
    found = {"mean": mean, "median": median, "deviation": np.nan, "low": np.nan, "high": np.nan}
    if n > 1:
        deviation = float(values.std(ddof=1))
        half = float(stats.t.ppf(0.975, n - 1)) * deviation / n**0.5
        found |= {"deviation": deviation, "low": mean - half, "high": mean + half}
    return found


MAX_GRID_BYTES = 2**20


@dataclass(frozen=True)
class Variant:
    """One row of an ablation."""

    name: str
    preset: str
    model: ModelConfig
    train: TrainConfig

    @property
    def folder(self) -> str:
        """Its name as the name of a folder."""
        return "".join(c if c.isalnum() or c in "-._=" else "-" for c in self.name)


def read_grid(file: Path, recipe: TrainConfig, flags: Mapping[str, Any]) -> list[Variant]:
    """The variants of a grid file; the first is the base all others are compared with.

    The file maps ``train`` to settings of all, and ``variants`` to a mapping from names to
    ``preset`` (``dcmpl`` where absent), ``model`` (fields by dotted names) and ``train``;
    ``flags`` go over all of them. Raises :class:`UsageError` where it is anything else.
    """
    try:
        if file.stat().st_size > MAX_GRID_BYTES:
            raise UsageError(f"expected a grid of at most {MAX_GRID_BYTES} bytes, got {file}")
        grid = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        told = " ".join(str(error).split())
        raise UsageError(f"expected a YAML grid at {file}, got: {told}") from error
    common, variants = _mapping(grid, "", {"train", "variants"}, file), []
    for name, entry in _mapping(common.get("variants"), "variants", None, file).items():
        entry = _mapping(entry or {}, str(name), {"preset", "model", "train"}, file)
        preset = entry.get("preset", "dcmpl")
        if preset not in PRESETS:
            raise UsageError(f"expected a preset for {name} in {file}, got {preset!r}")
        fields = _mapping(entry.get("model") or {}, f"{name}: model", None, file)
        settings = [
            f"model.{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in fields.items()
        ]
        chosen = {**(common.get("train") or {}), **(entry.get("train") or {}), **flags}
        try:
            train = replace(recipe, **chosen)
            model = with_settings(PRESETS[preset].model, settings)
        except (TypeError, UsageError) as error:
            raise UsageError(f"expected settings that fit for {name} in {file}: {error}") from error
        variants.append(Variant(str(name), preset, model, train))
    if not variants:
        raise UsageError(f"expected at least one entry under variants in {file}, got none")
    return variants


def _mapping(value: Any, what: str, keys: set[str] | None, file: Path) -> dict[str, Any]:
    if not isinstance(value, dict) or (keys is not None and set(value) - keys):
        wanted = f"a mapping with {', '.join(sorted(keys))}" if keys else "a mapping"
        got = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
        raise UsageError(
            f"expected {wanted} {f'under {what} ' if what else ''}in {file}, got {got}"
        )
    return value


def trials_of(
    bench: Workbench, source: Source, variants: Iterable[Variant], seeds: Iterable[int], out: Path
) -> Iterator[Trial]:
    """Every variant on the clean split of every seed, split by split.

    Each is a run folder below ``out`` that ``dcmpl evaluate`` and ``score`` take.
    """
    variants = list(variants)
    for seed in seeds:
        split = bench.split("clean", seed)
        for variant in variants:
            train = replace(variant.train, seed=seed)
            run = Run.begin(
                variant.preset, bench.backbone, source, variant.model, train, split, bench.table
            )
            yield Trial(variant.name, run, split, out / variant.folder / f"seed{seed}")


def summary(results: Sequence[Mapping[str, Any]], names: Sequence[str]) -> pd.DataFrame:
    """One row per variant: means, deviations, intervals, paired differences to the first.

    ``results`` are metrics of trials. ``low`` and ``high`` bound the mean SRCC by Student's t
    at 95 %; ``difference`` is the mean paired difference to the first variant, ``p`` its
    paired t-test's. The floors follow, on the same splits.
    """
    if not results:
        raise DataError("expected results to sum up, got none")
    frame = pd.DataFrame([_row(r["name"], r, flat_numbers(r)) for r in results])
    of_base = [r for r in results if r["name"] == names[0]]
    floors = list(dict.fromkeys(floor for r in of_base for floor in r["floors"]))
    frame = pd.concat(
        [
            frame,
            pd.DataFrame(
                _row(f"floor: {FLOORS[floor]}", r, flat_numbers(r["floors"].get(floor, {})))
                for floor in floors
                for r in of_base
            ),
        ],
        ignore_index=True,
    )
    base = frame[frame["name"] == names[0]].set_index("repeat")
    rows = []
    for name in [*names, *(f"floor: {FLOORS[floor]}" for floor in floors)]:
        own = frame[frame["name"] == name].set_index("repeat")
        row: dict[str, Any] = {"variant": name, "repeats": len(own)}
        within = "_within_generator_srcc"
        measured = [str(c) for c in own if str(c).endswith("_srcc")]
        for column in (c for c in measured if not c.endswith(within)):
            task = column.removesuffix("_srcc")
            if own[column].isna().all():
                continue
            values = own[column].astype(float)
            row |= {f"{task} {k}": v for k, v in spread(values).items()}
            row[f"{task} plcc"] = own[f"{task}_plcc"].astype(float).mean()
            row[f"{task} within"] = own[f"{task}_within_generator_srcc"].astype(float).mean()
            if name != names[0] and column in base:
                difference = (values - base[column].astype(float)).dropna()
                row[f"{task} difference"] = difference.mean()
                row[f"{task} p"] = _paired_p(difference.to_numpy())
        row["parameters"] = int(own["parameters"].iloc[0])
        row["seconds per step"] = float(own["seconds_per_step"].median())
        rows.append(row)
    return pd.DataFrame(rows)


def _row(name: str, result: Mapping[str, Any], numbers: Mapping[str, float]) -> dict[str, Any]:
    is_floor = name != result["name"]
    cost = {k: 0 if is_floor else result[k] for k in ("parameters", "seconds_per_step")}
    return {"name": name, "repeat": result["repeat"], **cost, **numbers}


def _paired_p(difference: np.ndarray) -> float:
    if len(difference) < 2 or np.ptp(difference) == 0:
        return float("nan")
    return float(stats.ttest_1samp(difference, 0.0).pvalue)
