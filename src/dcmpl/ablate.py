"""Presets and options over repeated prompt-grouped splits: which choice is worth what.

A grid file names the configurations; each is trained and tested on the same splits, so that
differences are paired. Whatever is finished is kept and not run again.
"""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from dcmpl.checkpoint import Run, Source, as_json, write_atomically, write_split
from dcmpl.config import ModelConfig, TrainConfig
from dcmpl.datasets import TARGETS, ImageTable
from dcmpl.errors import DataError, RunError, UsageError
from dcmpl.inference import FrozenTable, freeze_table, predict_frozen, predict_table
from dcmpl.metrics import krcc, plcc, srcc, within
from dcmpl.model import DCMPL, trainable_parameters
from dcmpl.presets import PRESETS, with_settings
from dcmpl.splits import Split, make_split
from dcmpl.train import EpochReport, fit, trains_on_views
from dcmpl.weights import Backbone

__all__ = ["Variant", "ablate", "read_grid", "summary"]

RESULT = "result.json"
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


class _FrozenParts:
    """What the frozen part makes of the whole table, shared by the variants that can."""

    def __init__(self, table: ImageTable) -> None:
        self.table = table
        self.known: dict[tuple[str, ...], FrozenTable] = {}

    def of(self, model: DCMPL, config: TrainConfig) -> FrozenTable | None:
        """None for a variant that draws its windows anew."""
        if not trains_on_views(model.config, config):
            return None
        part = "tokens" if model.config.has_visual_prompts else "embedding"
        common = model.config.normalization, config.views, config.precision
        key = (part, *common)
        if key not in self.known:
            tokens = self.known.get(("tokens", *common))
            self.known[key] = (
                freeze_table(model, self.table, config.views, config.precision)
                if tokens is None
                else tokens.mapped(lambda batch: model.clip.visual.encode(batch.float()))
            )
        return self.known[key]


def ablate(
    table: ImageTable,
    source: Source,
    backbone: Backbone,
    variants: Iterable[Variant],
    seeds: Iterable[int],
    out: Path,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Train and test every variant on the split of every seed; returns one result for each.

    Each is a run folder below ``out`` that ``dcmpl evaluate`` and ``score`` take.
    """
    variants, frozen, results = list(variants), _FrozenParts(table), []
    for seed in seeds:
        for variant in variants:
            folder = out / variant.folder / f"seed{seed}"
            split = make_split(table, seed)
            run = _run(variant, seed, backbone, source, split)
            if not (folder / RESULT).exists():
                result = _measure(table, backbone, variant.name, run, split, folder, frozen)
                write_atomically(folder / RESULT, as_json(result))
            results.append(_read_result(folder / RESULT, run))
            told = {t: results[-1][f"{t}_srcc"] for t in TARGETS if f"{t}_srcc" in results[-1]}
            say(
                f"seed {seed}  {variant.name:32} "
                + "  ".join(f"{task} SRCC {value or 0:.3f}" for task, value in told.items())
            )
    return results


def _run(variant: Variant, seed: int, backbone: Backbone, source: Source, split: Split) -> Run:
    return Run(
        preset=variant.preset,
        backbone=backbone.name,
        backbone_sha256=backbone.sha256,
        source=source,
        model=variant.model,
        train=replace(variant.train, seed=seed),
        split_sha256=split.digest,
    )


def _read_result(file: Path, run: Run) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        same = found["run"] == run.identity
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"expected a result at {file}, got unreadable content") from error
    if not same:
        raise RunError(
            f"expected results of this grid, data and backbone in {file.parent}, "
            "got those of other settings: choose another --out"
        )
    return found


def _measure(
    table: ImageTable,
    backbone: Backbone,
    name: str,
    run: Run,
    split: Split,
    folder: Path,
    shared: _FrozenParts,
) -> dict[str, Any]:
    """Train in ``folder`` and test: numbers on the test part, parameters, seconds per step."""
    config = run.train
    model = DCMPL(backbone.clip, backbone.tokenizer, run.model, config.seed)
    frozen = shared.of(model, config)
    write_split(folder, split)
    seconds: list[float] = []

    def note(report: EpochReport) -> None:
        seconds.append(report.seconds_per_step)

    parts = split.train_part(table), split.validation_part(table)
    run = fit(model, *parts, run, folder, note, frozen)
    test = split.test_part(table).table
    if frozen is None:
        predicted = predict_table(model, test, config.views, "fp32", "testing")
    else:
        predicted = predict_frozen(model, test, frozen, "fp32")
    found: dict[str, Any] = {"run": run.identity, "name": name, "seed": config.seed}
    targets, generators = test.targets(), test.frame["generator"].to_numpy(str)
    for column, task in enumerate(TARGETS):
        pair = predicted[:, column], targets[:, column]
        known = np.isfinite(pair[0]) & np.isfinite(pair[1])
        if known.any():
            x, y = (values[known] for values in pair)
            found |= {f"{task}_srcc": srcc(x, y), f"{task}_plcc": plcc(x, y)}
            found |= {f"{task}_krcc": krcc(x, y), f"{task}_within": within(x, y, generators[known])}
    found["parameters"] = sum(p.numel() for p in trainable_parameters(model).values())
    found["seconds_per_step"] = statistics.median(seconds) if seconds else 0.0
    return found | {"best_epoch": run.best_epoch}


def summary(results: list[dict[str, Any]], variants: list[Variant]) -> pd.DataFrame:
    """One row per variant, in the grid's order: means, deviations, intervals, differences.

    ``low`` and ``high`` bound the mean SRCC by Student's t at 95 %; ``difference`` is the
    mean paired difference to the first variant, ``p`` its paired t-test's.
    """
    frame = pd.DataFrame(results)
    rows = []
    for variant in variants:
        own = frame[frame["name"] == variant.name].set_index("seed")
        base = frame[frame["name"] == variants[0].name].set_index("seed")
        row: dict[str, Any] = {"variant": variant.name, "repeats": len(own)}
        for task in TARGETS:
            column = f"{task}_srcc"
            if column not in own or own[column].isna().all():
                continue
            values = own[column].astype(float)
            row |= {f"{task} {k}": v for k, v in _spread(values).items()}
            row[f"{task} plcc"] = own[f"{task}_plcc"].astype(float).mean()
            row[f"{task} within"] = own[f"{task}_within"].astype(float).mean()
            if variant is not variants[0] and column in base:
                difference = (values - base[column].astype(float)).dropna()
                row[f"{task} difference"] = difference.mean()
                row[f"{task} p"] = _paired_p(difference.to_numpy())
        row["parameters"] = int(own["parameters"].iloc[0])
        row["seconds per step"] = float(own["seconds_per_step"].median())
        rows.append(row)
    if not rows:
        raise DataError("expected results to sum up, got none")
    return pd.DataFrame(rows)


def _spread(values: "pd.Series[float]") -> dict[str, float]:
    """Mean, standard deviation and the mean's 95 % interval, nan for a single value."""
    n, mean = len(values), float(values.mean())
    if n < 2:
        return {"srcc": mean, "deviation": np.nan, "low": np.nan, "high": np.nan}
    deviation = float(values.std(ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * deviation / n**0.5
    return {"srcc": mean, "deviation": deviation, "low": mean - half, "high": mean + half}


def _paired_p(difference: np.ndarray) -> float:
    if len(difference) < 2 or np.ptp(difference) == 0:
        return float("nan")
    return float(stats.ttest_1samp(difference, 0.0).pvalue)
