"""Curves from scores to opinions: the logistics of image quality assessment, and their fit."""

from collections.abc import Callable
from typing import Literal

import numpy as np

__all__ = ["fit_logistic4", "logistic4", "logistic_mapped"]

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
    curve: Callable[..., np.ndarray] = logistic4 if parameters == 4 else _logistic5
    x = (predicted - predicted.mean()) / predicted.std()
    mapped: np.ndarray = curve(x, *best) * opinion.std() + opinion.mean()
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
    """The best parameters for both in unit deviations."""
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
    curve: Callable[..., np.ndarray] = logistic4 if parameters == 4 else _logistic5

    def residuals(b: np.ndarray) -> np.ndarray:
        apart: np.ndarray = curve(x, *b) - y
        return apart

    # A fit that is still getting better when it is stopped is a fit all the same.
    found = optimize.least_squares(residuals, starts[parameters], method="lm", max_nfev=FIT_STEPS)
    best: np.ndarray = found.x
    return best
