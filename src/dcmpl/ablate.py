"""Presets and options over repeated prompt-grouped splits: which choice is worth what.

A grid file names the configurations; each is trained and tested on the same splits, so that
differences are paired. Whatever is finished is kept and not run again.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy import stats

from dcmpl.config import ModelConfig, TrainConfig
from dcmpl.errors import DataError, UsageError
from dcmpl.floors import FLOORS
from dcmpl.presets import PRESETS, with_settings
from dcmpl.repeats import Trial, Workbench, flat_numbers, spread
from dcmpl.runs import Run, Source

__all__ = ["Variant", "read_grid", "summary", "trials_of"]

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
