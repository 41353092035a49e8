"""Agreement of predictions with opinions: SRCC, PLCC, KRCC, RMSE, and their intervals.

All functions take two arrays of one length, predictions first. What is undefined (fewer
than two values, or a constant) is nan, as in scipy. Higher is better except for RMSE.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

__all__ = ["Interval", "bootstrap", "krcc", "logistic_mapped", "plcc", "rmse", "srcc", "within"]

Metric = Callable[[np.ndarray, np.ndarray], float]


def _defined(predicted: np.ndarray, opinion: np.ndarray) -> bool:
    return bool(len(predicted) > 1 and np.ptp(predicted) > 0 and np.ptp(opinion) > 0)


def srcc(predicted: np.ndarray, opinion: np.ndarray) -> float:
    """Spearman's rank correlation, ties given their mean rank, in [-1, 1].

    >>> srcc(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 90.0]))
    1.0
    """
    if not _defined(predicted, opinion):
        return float("nan")
    return float(stats.spearmanr(predicted, opinion).statistic)


def plcc(predicted: np.ndarray, opinion: np.ndarray) -> float:
    """Pearson's linear correlation, without any mapping, in [-1, 1]."""
    if not _defined(predicted, opinion):
        return float("nan")
    return float(np.corrcoef(predicted, opinion)[0, 1])


def krcc(predicted: np.ndarray, opinion: np.ndarray) -> float:
    """Kendall's rank correlation, tau-b, in [-1, 1]."""
    if not _defined(predicted, opinion):
        return float("nan")
    return float(stats.kendalltau(predicted, opinion).statistic)


def rmse(predicted: np.ndarray, opinion: np.ndarray) -> float:
    """Root mean square error, in units of ``opinion``; lower is better."""
    if not len(predicted):
        return float("nan")
    return float(np.sqrt(np.mean((predicted - opinion) ** 2)))


def logistic_mapped(predicted: np.ndarray, opinion: np.ndarray) -> np.ndarray:
    """``predicted`` after the monotone 4-parameter logistic that fits ``opinion`` best.

    f(x) = b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|)), VQEG FRTV Phase I (2000). Where no
    fit can be had (constant or fewer than five values) the predictions come back as they are.
    """
    if not _defined(predicted, opinion) or len(predicted) < 5:
        return predicted

    def curve(x: np.ndarray, b1: float, b2: float, b3: float, b4: float) -> np.ndarray:
        power = np.clip((x - b3) / (abs(b4) + 1e-12), -500, 500)
        mapped: np.ndarray = b2 + (b1 - b2) / (1 + np.exp(-power))
        return mapped

    start = [opinion.max(), opinion.min(), predicted.mean(), predicted.std()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optimize.OptimizeWarning)
            best, _ = optimize.curve_fit(curve, predicted, opinion, p0=start, maxfev=1000)
    except RuntimeError:  # no convergence
        return predicted
    return curve(predicted, *best)


def plcc_mapped(predicted: np.ndarray, opinion: np.ndarray) -> float:
    """PLCC after :func:`logistic_mapped`, in [-1, 1]."""
    return plcc(logistic_mapped(predicted, opinion), opinion)


def within(
    predicted: np.ndarray, opinion: np.ndarray, members: np.ndarray, metric: Metric = srcc
) -> float:
    """Mean of ``metric`` inside each class of ``members``: telling classes apart earns nothing."""
    values = [metric(predicted[members == m], opinion[members == m]) for m in np.unique(members)]
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


@dataclass(frozen=True)
class Interval:
    """A value and the 95 % bootstrap interval about it."""

    value: float
    low: float
    high: float


def bootstrap(
    metric: Metric,
    predicted: np.ndarray,
    opinion: np.ndarray,
    groups: np.ndarray,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """``metric`` with the 2.5 and 97.5 % quantiles over redrawn *groups* (prompts).

    Pictures of one prompt are not independent, so prompts are redrawn, not pictures.
    """
    rng = np.random.default_rng(seed)
    _, index = np.unique(groups, return_inverse=True)
    rows = [np.flatnonzero(index == g) for g in range(index.max() + 1)] if len(index) else []
    drawn = []
    for _ in range(draws if len(rows) > 1 else 0):
        chosen = np.concatenate([rows[g] for g in rng.integers(len(rows), size=len(rows))])
        drawn.append(metric(predicted[chosen], opinion[chosen]))
    known = np.array([value for value in drawn if not np.isnan(value)])
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    return Interval(metric(predicted, opinion), float(low), float(high))
