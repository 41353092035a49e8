"""Training and testing again and again: one trial is one configuration on one split.

Ablations, protocols and cross-data-set tables are all lists of trials. What is finished is
kept and not run again; what was broken off goes on.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from dcmpl.config import TrainConfig
from dcmpl.data.leaks import PictureFacts, check_leaks, tied_units
from dcmpl.data.splits import PROTOCOLS, Split, draw_split
from dcmpl.data.table import ImageTable
from dcmpl.errors import RunError
from dcmpl.evaluate import measured, plain_numbers, write_results
from dcmpl.floors import predict_floors, statistics_of
from dcmpl.model.dcmpl import DCMPL, trainable_parameters
from dcmpl.runs import Run, write_split
from dcmpl.training.features import FrozenTable, freeze_table, predict_frozen, predict_table
from dcmpl.training.loop import EpochReport, fit, trains_on_views
from dcmpl.weights.backbones import Backbone

__all__ = [
    "RESULT",
    "Trial",
    "Workbench",
    "flat_numbers",
    "read_result",
    "run_trial",
    "run_trials",
    "spread",
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
