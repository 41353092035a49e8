"""The linear probe: ridge regression from frozen image embeddings to opinions.

Solved at once instead of stepwise; how much to shrink is chosen on validation.
"""

import numpy as np
import torch

from dcmpl.data.table import ImageTable
from dcmpl.metrics import srcc
from dcmpl.model.dcmpl import DCMPL
from dcmpl.training.features import FrozenTable

__all__ = ["fit_ridge"]

STRENGTHS = np.logspace(-2, 5, 29)
"""Penalties on standardised features, from next to none to all but the mean."""


def _features(table: ImageTable, frozen: FrozenTable) -> np.ndarray:
    """(rows, joint): the mean embedding over a picture's windows."""
    means = [frozen[path].double().mean(0) for path in table.frame["image"]]
    return torch.stack(means).cpu().numpy()


def fit_ridge(
    model: DCMPL, training: ImageTable, validation: ImageTable, frozen: FrozenTable
) -> None:
    """Put the best linear map of each task into ``model.linear``."""
    x, x_val = _features(training, frozen), _features(validation, frozen)
    center, scale = x.mean(0), x.std(0) + 1e-12
    x, x_val = (x - center) / scale, (x_val - center) / scale
    for row, task in enumerate(model.config.tasks):
        y, y_val = (table.targets([task])[:, 0] for table in (training, validation))
        known, known_val = np.isfinite(y), np.isfinite(y_val)
        if not known.any():
            continue
        mean = y[known].mean()
        u, s, vt = np.linalg.svd(x[known], full_matrices=False)
        projected = u.T @ (y[known] - mean)
        maps = [vt.T @ (s / (s**2 + strength) * projected) for strength in STRENGTHS]
        merits = [srcc(x_val[known_val] @ weights, y_val[known_val]) for weights in maps]
        best = maps[int(np.argmax(np.nan_to_num(merits, nan=-1)))] / scale
        with torch.no_grad():
            model.linear.weight[row].copy_(torch.from_numpy(best))
            model.linear.bias[row] = float(mean - best @ center)
