"""Baselines: predictions without any vision-language model.

``generator`` predicts the mean opinion of an image's generator; ``statistics`` is an SVR on
natural-scene statistics. Both are fitted on the training part.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
import torch

from dcmpl.data.table import ImageTable
from dcmpl.images.decode import read_image
from dcmpl.images.windows import windows
from dcmpl.model.stem import cell_statistics, dct_kernels, to_unit_range
from dcmpl.progress import track

__all__ = ["BASELINES", "Statistics", "predict_baselines", "statistics_of"]

SIZE, CELLS = 256, 8

BASELINES = {
    "generator": "generator's mean",
    "statistics": "statistics, support vectors",
}

Statistics = Mapping[str, np.ndarray]


def statistics_of(paths: Iterable[str]) -> dict[str, np.ndarray]:
    """NSS features by path: mean and deviation over the cells of each statistic, 1,386 numbers.

    They are those of a hybrid stem (:mod:`dcmpl.model.stem`) on 2 x 2 windows, averaged.
    """
    luma, chroma = dct_kernels(8), dct_kernels(4)
    found = {}
    for path in track(list(dict.fromkeys(paths)), "hand-made statistics"):
        cut = np.stack(list(windows(read_image(path), SIZE, "grid-2")))
        with torch.inference_mode():
            cells = cell_statistics(to_unit_range(torch.from_numpy(cut)), CELLS, luma, chroma)
            summary = torch.cat([cells.mean(1), cells.std(1, correction=0)], dim=1)
        found[path] = summary.mean(0).numpy()
    return found


def predict_baselines(
    training: ImageTable, tested: ImageTable, statistics: Statistics | None
) -> dict[str, np.ndarray]:
    """Predictions of each baseline, (rows, targets) in [0, 1]; NaN without training opinions.

    Without ``statistics`` only the generator's mean.
    """
    known = training.targets(tested.asked)
    found = {"generator": np.full((len(tested), len(tested.asked)), np.nan, np.float64)}
    if statistics is not None:
        found["statistics"] = found["generator"].copy()
    ours, theirs = (t.frame["generator"].to_numpy(str) for t in (training, tested))
    for column in range(len(tested.asked)):
        judged = np.isfinite(known[:, column])
        if not judged.any():
            continue
        opinion = known[judged, column].astype(np.float64)
        means = {g: opinion[ours[judged] == g].mean() for g in np.unique(ours[judged])}
        found["generator"][:, column] = [means.get(g, opinion.mean()) for g in theirs]
        if statistics is not None:
            x, new = (
                np.stack([statistics[path] for path in t.frame["image"]])
                for t in (training.select(pd.Series(judged)), tested)
            )
            found["statistics"][:, column] = _support_vectors(x, opinion, new)
    return found


def _support_vectors(x: np.ndarray, opinion: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Predictions of an SVR on standardised features for standardised opinions."""
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVR

    machine = SVR(C=2.0, gamma=0.3 / x.shape[1], epsilon=0.2)
    model = TransformedTargetRegressor(
        make_pipeline(StandardScaler(), machine), transformer=StandardScaler()
    )
    predicted: np.ndarray = model.fit(x, opinion).predict(new)
    return predicted.clip(0, 1)
