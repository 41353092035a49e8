"""Two runs on the same pictures: is the one better, or was it the choice of prompts?

Pictures of one prompt are not independent, so both tests take the prompt as their unit.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from dcmpl.metrics import Metric, redrawn

__all__ = ["Paired", "compare_paired"]


@dataclass(frozen=True)
class Paired:
    """``difference`` = ours less theirs, with its 95 % bootstrap interval and two p-values.

    ``p_bootstrap`` is two-sided; ``p_wilcoxon`` is the signed-rank test's on each prompt's
    mean absolute error. What cannot be computed is nan.
    """

    difference: float
    low: float
    high: float
    p_bootstrap: float
    p_wilcoxon: float


def compare_paired(
    metric: Metric,
    ours: np.ndarray,
    theirs: np.ndarray,
    opinion: np.ndarray,
    groups: np.ndarray,
    draws: int = 1000,
    seed: int = 0,
) -> Paired:
    """Compare two predictions (rows,) of the same ``opinion`` (rows,), all in one unit."""
    difference = metric(ours, opinion) - metric(theirs, opinion)
    drawn = np.array(
        [
            metric(ours[rows], opinion[rows]) - metric(theirs[rows], opinion[rows])
            for rows in redrawn(groups, draws, seed)
        ]
    )
    drawn = drawn[np.isfinite(drawn)]
    low, high, p = np.nan, np.nan, np.nan
    if len(drawn):
        low, high = np.quantile(drawn, [0.025, 0.975])
        # One more on each side: a p-value of a finite number of draws is never zero.
        p = min(1.0, 2 * (min((drawn <= 0).sum(), (drawn >= 0).sum()) + 1) / (len(drawn) + 1))
    return Paired(
        difference,
        float(low),
        float(high),
        float(p),
        _signed_rank(np.abs(ours - opinion), np.abs(theirs - opinion), groups),
    )


def _signed_rank(ours: np.ndarray, theirs: np.ndarray, groups: np.ndarray) -> float:
    """Wilcoxon's p-value on the groups' means; nan where none of them differ."""
    names, index = np.unique(groups, return_inverse=True)
    counts = np.bincount(index, minlength=len(names))
    differences = np.bincount(index, ours - theirs, minlength=len(names)) / counts
    if len(differences) < 2 or not differences.any():
        return float("nan")
    return float(stats.wilcoxon(differences).pvalue)
