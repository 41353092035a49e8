"""Agreement of predictions with opinions: SRCC, PLCC, KRCC, RMSE, and their intervals.

All functions take two arrays of one length, predictions first. What is undefined (fewer
than two values, or a constant) is nan, as in scipy. Higher is better except for RMSE.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = [
    "CURVES",
    "Interval",
    "Paired",
    "bootstrap",
    "calibration_error",
    "compare_paired",
    "fit_logistic4",
    "krcc",
    "logistic4",
    "logistic_mapped",
    "pairwise_accuracy",
    "plcc",
    "plcc_mapped",
    "plcc_mapped5",
    "redrawn",
    "rmse",
    "srcc",
    "within",
]


FIT_STEPS = 500


def logistic4(x: np.ndarray, b1: float, b2: float, b3: float, b4: float) -> np.ndarray:
    """b2 + (b1 - b2) / (1 + exp(-(x - b3) / abs(b4))), rising where b1 > b2."""
    power = np.clip((x - b3) / (abs(b4) + 1e-12), -500, 500)
    mapped: np.ndarray = b2 + (b1 - b2) / (1 + np.exp(-power))
    return mapped


def _logistic5(x: np.ndarray, b1: float, b2: float, b3: float, b4: float, b5: float) -> np.ndarray:
    power = np.clip(b2 * (x - b3), -500, 500)
    mapped: np.ndarray = b1 * (0.5 - 1 / (1 + np.exp(power))) + b4 * x + b5
    return mapped


def _slopes4(x: np.ndarray, b1: float, b2: float, b3: float, b4: float) -> np.ndarray:
    """Derivatives of :func:`logistic4` by its parameters, (rows, 4)."""
    width = abs(b4) + 1e-12
    power = np.clip((x - b3) / width, -500, 500)
    share = 1 / (1 + np.exp(-power))
    by_center = -(b1 - b2) * share * (1 - share) / width
    return np.stack([share, 1 - share, by_center, by_center * power * np.sign(b4)], axis=1)


def _slopes5(x: np.ndarray, b1: float, b2: float, b3: float, b4: float, b5: float) -> np.ndarray:
    """Derivatives of :func:`_logistic5` by its parameters, (rows, 5)."""
    share = 1 / (1 + np.exp(np.clip(b2 * (x - b3), -500, 500)))
    by_power = b1 * share * (1 - share)
    columns = [0.5 - share, by_power * (x - b3), -by_power * b2, x, np.ones_like(x)]
    return np.stack(columns, axis=1)


CURVES: dict[int, tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]] = {
    4: (logistic4, _slopes4),
    5: (_logistic5, _slopes5),
}
"""By number of parameters: a mapping and its derivatives."""


def logistic_mapped(
    predicted: np.ndarray, opinion: np.ndarray, parameters: Literal[4, 5] = 4
) -> np.ndarray:
    """``predicted`` after the logistic of 4 or 5 parameters that fits ``opinion`` best.

    4: :func:`logistic4`, monotone, VQEG FRTV Phase I (2000). 5: f(x) = b1 (1/2 - 1 / (1 +
    exp(b2 (x - b3)))) + b4 x + b5, Sheikh, Sabir, Bovik, IEEE TIP 15(11), 2006. Where no fit
    can be had (constant, or no more values than parameters) the predictions come back as they
    are.
    """
    best = _fitted(predicted, opinion, parameters)
    if best is None:
        return predicted
    x = (predicted - predicted.mean()) / predicted.std()
    mapped: np.ndarray = CURVES[parameters][0](x, *best) * opinion.std() + opinion.mean()
    return mapped


def fit_logistic4(predicted: np.ndarray, opinion: np.ndarray) -> tuple[float, ...] | None:
    """The parameters of the :func:`logistic4` from ``predicted`` to ``opinion``, None for none."""
    best = _fitted(predicted, opinion, 4)
    if best is None:
        return None
    (b1, b2), (b3, b4) = best[:2] * opinion.std() + opinion.mean(), best[2:] * predicted.std()
    return float(b1), float(b2), float(b3 + predicted.mean()), float(b4)


def _fitted(
    predicted: np.ndarray, opinion: np.ndarray, parameters: Literal[4, 5]
) -> np.ndarray | None:
    """Best parameters of a logistic, for predictions and opinions in unit deviations."""
    varies = np.ptp(predicted) > 0 and np.ptp(opinion) > 0 if len(predicted) else False
    if not varies or len(predicted) <= parameters:
        return None
    from scipy import optimize  # slow to import, and scoring never fits

    # The fit works on unit deviations, so that no start is far off whatever the units.
    x = (predicted - predicted.mean()) / predicted.std()
    y = (opinion - opinion.mean()) / opinion.std()
    slope = float(np.mean(x * y))
    sign = 1.0 if slope >= 0 else -1.0
    ends = [y.max(), y.min()][:: int(sign)]
    starts = {4: [*ends, 0.0, 1.0], 5: [sign * np.ptp(y) / 4, 1.0, 0.0, slope / 2, 0.0]}
    curve, slopes = CURVES[parameters]

    def residuals(b: np.ndarray) -> np.ndarray:
        apart: np.ndarray = curve(x, *b) - y
        return apart

    def jacobian(b: np.ndarray) -> np.ndarray:
        return slopes(x, *b)

    # A fit that is still getting better when it is stopped is a fit all the same.
    found = optimize.least_squares(
        residuals, starts[parameters], jac=jacobian, method="lm", max_nfev=FIT_STEPS
    )
    best: np.ndarray = found.x
    return best


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
    from scipy import stats  # slow to import, and scoring never ranks

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
    from scipy import stats  # slow to import, and scoring never ranks

    return float(stats.kendalltau(predicted, opinion).statistic)


def rmse(predicted: np.ndarray, opinion: np.ndarray) -> float:
    """Root mean square error, in units of ``opinion``; lower is better."""
    if not len(predicted):
        return float("nan")
    return float(np.sqrt(np.mean((predicted - opinion) ** 2)))


def plcc_mapped(predicted: np.ndarray, opinion: np.ndarray) -> float:
    """PLCC after :func:`logistic_mapped` with 4 parameters, in [-1, 1]."""
    return plcc(logistic_mapped(predicted, opinion, 4), opinion)


def plcc_mapped5(predicted: np.ndarray, opinion: np.ndarray) -> float:
    """PLCC after :func:`logistic_mapped` with 5 parameters, in [-1, 1]."""
    return plcc(logistic_mapped(predicted, opinion, 5), opinion)


def calibration_error(predicted: np.ndarray, opinion: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error over bins of equal count, in units of ``opinion``.

    The images are cut into ``bins`` of equal counts by prediction; the mean over images of
    the distance between the means of both in their bin.

    >>> calibration_error(np.array([1.0, 2.0, 3.0]), np.array([1.5, 2.5, 3.5]), bins=3)
    0.5
    """
    order = np.argsort(predicted, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    if not parts:
        return float("nan")
    gaps = [abs(predicted[part].mean() - opinion[part].mean()) * len(part) for part in parts]
    return float(sum(gaps) / len(predicted))


def pairwise_accuracy(predicted: np.ndarray, opinion: np.ndarray, groups: np.ndarray) -> float:
    """Pairwise accuracy over images of one prompt, in [0, 1]; chance is 0.5.

    Over all pairs inside a group whose opinions differ; equal predictions count half.

    >>> pairwise_accuracy(np.array([0.1, 0.4, 0.4]), np.array([1.0, 2.0, 3.0]), np.zeros(3))
    0.8333333333333334
    """
    right, pairs = 0.0, 0
    for group in np.unique(groups):
        member = groups == group
        upper = np.triu_indices(int(member.sum()), 1)
        ours, theirs = (
            np.subtract.outer(x[member], x[member])[upper] for x in (predicted, opinion)
        )
        known = np.isfinite(ours) & (np.abs(theirs) > 0)
        agreed = np.sign(ours[known]) * np.sign(theirs[known])
        right += float((agreed > 0).sum() + 0.5 * (agreed == 0).sum())
        pairs += int(known.sum())
    return right / pairs if pairs else float("nan")


def within(
    predicted: np.ndarray, opinion: np.ndarray, members: np.ndarray, metric: Metric = srcc
) -> float:
    """Mean of ``metric`` within classes of ``members``: separating classes earns nothing."""
    values = [metric(predicted[members == m], opinion[members == m]) for m in np.unique(members)]
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % bootstrap interval."""

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

    Images of one prompt are not independent, so prompts are redrawn, not images.
    """
    drawn = [metric(predicted[rows], opinion[rows]) for rows in redrawn(groups, draws, seed)]
    known = np.array([value for value in drawn if not np.isnan(value)])
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    return Interval(metric(predicted, opinion), float(low), float(high))


def redrawn(groups: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Rows of ``draws`` samples in which whole groups are drawn with replacement.

    None where there are fewer than two groups.
    """
    rng = np.random.default_rng(seed)
    _, index = np.unique(groups, return_inverse=True)
    rows = [np.flatnonzero(index == g) for g in range(index.max() + 1)] if len(index) else []
    for _ in range(draws if len(rows) > 1 else 0):
        yield np.concatenate([rows[g] for g in rng.integers(len(rows), size=len(rows))])


@dataclass(frozen=True)
class Paired:
    """Paired difference (ours less theirs) with its 95 % bootstrap interval and two p-values.

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
    from scipy import stats  # slow to import, and scoring never ranks

    return float(stats.wilcoxon(differences).pvalue)
