"""Fit the calibration of scores on validation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.polynomial import Polynomial
from scipy import optimize
from scipy.stats import norm

from dcmpl.data.splits import Split
from dcmpl.data.table import ImageTable, MosScale
from dcmpl.errors import DataError
from dcmpl.images.decode import read_image
from dcmpl.images.windows import window_corners
from dcmpl.metrics import fit_logistic4
from dcmpl.model.folded import Folded
from dcmpl.progress import say, track
from dcmpl.runs import Run
from dcmpl.scoring.calibration import (
    COVERAGE,
    LABELS,
    Calibration,
    Cut,
    Meaning,
    PatchReadout,
    Values,
)
from dcmpl.scoring.engines import Engine, all_scores
from dcmpl.scoring.explain import fit_patches
from dcmpl.scoring.torch_engine import TorchEngine, predict_table

__all__ = [
    "ENOUGH_IMAGES",
    "FULL",
    "SHARE",
    "TOLERANCE",
    "Judged",
    "calibrate",
    "compare_views",
    "enough_views",
    "fewest_views",
    "fit_meaning",
    "judged",
]


FOLDS = 5
COVERAGES = (0.5, 0.8, COVERAGE, 0.95)
SURE, FEWEST_SURE = 0.9, 10
MOST_RANKED, MOST_FITTED = 10_000, 400
"""Training images that percentiles are among, and those whose patches are looked at."""

FEWEST = 10
"""Opinions, below which nothing is fitted."""

LEAST_SPREAD = 1e-3
"""Range of predicted MOS over that of opinions, below which no curve over MOS is fitted."""


@dataclass(frozen=True)
class Judged:
    """Images with a score, the spread of its windows, and opinions in MOS units.

    ``raters`` is the deviation of the raters, NaN where it is not known.
    """

    scores: Values
    spread: Values
    mos: Values
    raters: Values
    groups: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, rows: np.ndarray) -> "Judged":
        return Judged(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def judged(table: ImageTable, target: str, scores: Values, spread: Values) -> Judged:
    """Images of ``table`` with an opinion on ``target`` and a score."""
    frame, nobody = table.frame, pd.Series(np.nan, table.frame.index)
    found = Judged(
        scores,
        spread,
        frame.get(f"mos_{target}", nobody).to_numpy(float),
        frame.get(f"std_{target}", nobody).to_numpy(float),
        frame["group"].to_numpy(str),
    )
    return found.select(np.isfinite(found.mos) & np.isfinite(scores))


def calibrate(run: Run, engine: TorchEngine, table: ImageTable, split: Split) -> Calibration | None:
    """Calibrate a finished run; ``engine`` gives the scores of its learned tasks.

    A target on which validation has too few opinions is left out, and that is said; None where
    that is so of all.
    """
    validation, training = split.validation_part(table).table, split.train_part(table).table
    views, scale = run.train.views, table.scale
    known, spread = predict_table(engine, validation, views, "calibrating on validation")
    ranked = _some(training, MOST_RANKED, run.train.seed)
    population, _ = predict_table(engine, ranked, views, "scores of the training images")
    generators = ranked.frame["generator"].tolist()
    targets = {}
    for i, task in enumerate(engine.tasks):
        of_task = judged(validation, task, known[:, i], spread[:, i])
        try:
            targets[task] = fit_meaning(of_task, scale, population[:, i], generators)
        except DataError as error:
            say(f"note: {task} is not calibrated: {error}")
    if not targets:
        return None
    patches = _fit_patches(engine.network, engine.tasks[0], training, run.train.seed)
    enough = enough_views(engine, validation)
    return Calibration(table.name, views, run.weights_sha256, targets, patches, enough)


def _some(table: ImageTable, most: int, seed: int) -> ImageTable:
    """Sample at most ``count`` rows from ``seed``, in their order."""
    order = np.random.default_rng([seed, 0x50E]).permutation(len(table))
    return table.select(pd.Series(np.argsort(order) < most))


def _fit_patches(network: Folded, task: str, training: ImageTable, seed: int) -> PatchReadout:
    chosen = _some(training.select(training.frame[f"mos_{task}"].notna()), MOST_FITTED, seed)
    paths = track(chosen.frame["image"], "how patches look")
    return fit_patches(network, map(read_image, paths), chosen.targets([task])[:, 0], seed)


def fit_meaning(
    known: Judged, scale: MosScale, population: Values, generators: Sequence[str]
) -> Meaning:
    """Fit the calibration of one target on images that were not trained on.

    ``population`` are the scores of the training images, made by ``generators``. Errors are
    those of curves that were fitted on other prompts. Raises :class:`DataError` for too few
    opinions.
    """
    if len(known) < FEWEST:
        raise DataError(
            f"at least {FEWEST} validation images with opinions to calibrate on", len(known)
        )
    plain = Meaning(float(scale.low), float(scale.high), _curve(known), validation=len(known))
    out_of_fold = _out_of_fold(known, plain)
    raters, rater_range = _rater_curve(known, out_of_fold)
    plain = replace(plain, raters=raters, rater_range=rater_range)
    errors = known.mos - out_of_fold
    plain = replace(plain, spread=_variance_weights(known, plain, out_of_fold, errors))
    apart = np.abs(errors) / plain.deviation(known.scores, known.spread)
    rows = np.isfinite(population)  # not judged without a prompt
    if not rows.any():
        raise DataError("training images with a prompt to rank among", "none")
    population, generators = population[rows], np.array(generators, dtype=str)[rows].tolist()
    by_generator = {
        str(name): _percentiles(population[np.array(generators) == name])
        for name in dict.fromkeys(generators)
        if name
    }
    return replace(
        plain,
        widths={f"{c:g}": _conformal_quantile(apart, c) for c in COVERAGES},
        pairs=_pair_scale(known, plain, out_of_fold),
        cuts=tuple(_cuts(known, plain, out_of_fold)),
        population=_percentiles(population),
        generators=by_generator,
        training=len(population),
    )


def _curve(known: Judged) -> tuple[float, ...]:
    """A rising logistic, or nothing where opinions do not rise with the scores."""
    found = fit_logistic4(known.scores, known.mos)
    return found if found is not None and found[0] > found[1] and found[3] != 0 else ()


def _out_of_fold(known: Judged, plain: Meaning) -> Values:
    """Out-of-fold MOS of each image; the images of a prompt are in one fold."""
    _, group = np.unique(known.groups, return_inverse=True)
    found = plain.mos(known.scores)
    for fold in range(FOLDS):
        inside = group % FOLDS == fold
        if inside.any() and (~inside).sum() >= FEWEST:
            others = replace(plain, curve=_curve(known.select(~inside)))
            found[inside] = others.mos(known.scores[inside])
    return found


def _rater_curve(known: Judged, mos: Values) -> tuple[tuple[float, ...], tuple[float, float]]:
    """A parabola from MOS to the deviation of raters, highest power first, and its bounds.

    Nothing where deviations are few, or the MOS all but equal, as those of a model that was
    hardly trained are.
    """
    rows = np.isfinite(known.raters)
    if rows.sum() < FEWEST or np.ptp(mos[rows]) < LEAST_SPREAD * np.ptp(known.mos):
        return (), (0.0, 0.0)
    raters = known.raters[rows]
    low, high = np.quantile(raters, [0.05, 0.95])
    curve, (_, rank, *_) = Polynomial.fit(mos[rows], raters, 2, full=True)
    if rank < 3:
        return (), (0.0, 0.0)
    return tuple(curve.convert().coef[::-1].tolist()), (float(low), float(high))


def _variance_weights(
    known: Judged, plain: Meaning, mos: Values, errors: Values
) -> tuple[float, float, float]:
    """Non-negative weights of 1, the squared spread and the raters' variance in squared errors."""
    columns = [np.ones_like(mos), known.spread**2, plain.rater_deviation(mos) ** 2]
    weights, _ = optimize.nnls(np.stack(columns, axis=1), errors**2)
    # An error that is never 0 keeps every interval open.
    least = 0.05 * float(np.mean(errors**2)) + 1e-12
    return max(float(weights[0]), least), float(weights[1]), float(weights[2])


def _conformal_quantile(apart: Values, coverage: float) -> float:
    """Conformal quantile of new images (Lei et al., JASA 113(523), 2018, eq. 8)."""
    rank = min(int(np.ceil((len(apart) + 1) * coverage)), len(apart))
    return float(np.sort(apart)[rank - 1])


def pairs_of(known: Judged) -> tuple[np.ndarray, np.ndarray]:
    """Rows of all pairs of images of one prompt whose opinions differ."""
    first, second = [], []
    for group in np.unique(known.groups):
        rows = np.flatnonzero(known.groups == group)
        a, b = (rows[i] for i in np.triu_indices(len(rows), 1))
        differ = known.mos[a] != known.mos[b]
        first.append(a[differ])
        second.append(b[differ])
    empty = np.zeros(0, dtype=int)
    return np.concatenate([empty, *first]), np.concatenate([empty, *second])


def _pair_scale(known: Judged, plain: Meaning, mos: Values) -> float:
    """Maximum-likelihood scale of the probabilities of pairs; 1 without pairs."""
    a, b = pairs_of(known)
    if not len(a):
        return 1.0
    deviation = plain.deviation(known.scores, known.spread)
    z = (mos[a] - mos[b]) / np.hypot(deviation[a], deviation[b])
    z = np.where(known.mos[a] > known.mos[b], z, -z)
    found = optimize.minimize_scalar(
        lambda log: -norm.logcdf(z / np.exp(log)).mean(), bounds=(-3, 3), method="bounded"
    )
    return float(np.exp(found.x))


def _percentiles(scores: Values) -> tuple[float, ...]:
    if not len(scores):
        return ()
    found: list[float] = np.quantile(scores, np.linspace(0, 1, 101)).tolist()
    return tuple(found)


def _cuts(known: Judged, plain: Meaning, mos: Values) -> Iterator[Cut]:
    """Cut "that label or better" of each label but the worst."""
    grid = np.linspace(0, 1, 10001)
    rises = plain.mos(grid)
    for place, label in enumerate(LABELS[1:], 1):
        bound = plain.low + place / len(LABELS) * (plain.high - plain.low)
        called, is_so = mos >= bound, known.mos >= bound
        right = (called & is_so).sum()
        reached = np.flatnonzero(rises >= bound)
        sure, recall = _sure(known.scores, is_so)
        yield Cut(
            label,
            bound,
            float(grid[reached[0]]) if len(reached) else None,
            float(right / called.sum()) if called.any() else float("nan"),
            float(right / is_so.sum()) if is_so.any() else float("nan"),
            float(is_so.mean()),
            sure,
            recall,
        )


def _sure(scores: Values, is_so: np.ndarray) -> tuple[float | None, float]:
    """Lowest score above which a share of ``SURE`` is right, and the share of images it finds."""
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(is_so[order])
    count = np.arange(1, len(order) + 1)
    # Images of equal scores are called together.
    last_of_equals = np.append(np.diff(scores[order]) != 0, True)
    good = np.flatnonzero((right / count >= SURE) & (count >= FEWEST_SURE) & last_of_equals)
    if not len(good):
        return None, 0.0
    last = good[-1]
    return float(scores[order][last]), float(right[last] / max(1, is_so.sum()))


FULL = "windows"
FEWER = ("center", "grid-2", "grid-3", "grid-4")
ENOUGH_IMAGES = 64
"""Validation images on which views are compared."""

TOLERANCE, SHARE = 0.02, 0.95
"""Enough: the scores of this share of images are within the tolerance, of a range of 1."""


def compare_views(engine: Engine, images: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Windows of each kind of views, fewest first, and distances of scores to full tiling."""
    full = all_scores(engine, images, FULL)
    rows = []
    for views in (*FEWER, FULL):
        found = all_scores(engine, images, views)
        distance = np.abs(found - full).max(1)
        counts = [len(window_corners(p.shape[0], p.shape[1], engine.size, views)) for p in images]
        rows.append(
            {
                "views": views,
                "windows": float(np.mean(counts)),
                "mean": float(distance.mean()),
                "most": float(distance.max()),
                "of_share": float(np.quantile(distance, SHARE)),
            }
        )
    return rows


def fewest_views(rows: Sequence[dict[str, Any]]) -> str:
    """First kind of views whose scores match full tiling within the tolerance.

    >>> fewest_views([{"views": "center", "of_share": 0.05}, {"views": "grid-2", "of_share": 0.01}])
    'grid-2'
    """
    enough = (row["views"] for row in rows if row["of_share"] <= TOLERANCE)
    return str(next(enough, FULL))


def enough_views(engine: Engine, validation: ImageTable) -> str:
    """Smallest tiling whose scores match full tiling, on evenly spread validation images."""
    chosen = validation.spread_images(ENOUGH_IMAGES)
    images = [read_image(path) for path in track(chosen, "how few views are enough")]
    return fewest_views(compare_views(engine, images))
