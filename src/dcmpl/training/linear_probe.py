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


def _features(model: DCMPL, table: ImageTable, frozen: FrozenTable) -> np.ndarray:
    """(rows, joint): the mean embedding over an image's windows."""
    means = [model.plain_embedding(frozen[path]).double().mean(0) for path in table.frame["image"]]
    return torch.stack(means).cpu().numpy()


def fit_ridge(
    model: DCMPL, training: ImageTable, validation: ImageTable, frozen: FrozenTable
) -> None:
    """Put the best linear map of each task into ``model.linear``."""
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    x, x_val = (_features(model, table, frozen) for table in (training, validation))
    for row, task in enumerate(model.config.tasks):
        y, y_val = (table.targets([task])[:, 0] for table in (training, validation))
        known, known_val = np.isfinite(y), np.isfinite(y_val)
        if not known.any():
            continue
        scaler = StandardScaler().fit(x)
        z, z_val = scaler.transform(x[known]), scaler.transform(x_val[known_val])
        fits = [Ridge(alpha=strength, solver="svd").fit(z, y[known]) for strength in STRENGTHS]
        merits = [srcc(fit.predict(z_val), y_val[known_val]) for fit in fits]
        best = fits[int(np.argmax(np.nan_to_num(merits, nan=-1)))]
        weights = best.coef_ / scaler.scale_
        with torch.no_grad():
            model.linear.weight[row].copy_(torch.from_numpy(weights))
            model.linear.bias[row] = float(best.intercept_ - weights @ scaler.mean_)
