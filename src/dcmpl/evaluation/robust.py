"""Robustness: how far scores move when a file is cropped, resized or encoded anew.

A score should depend on what an image shows, not on the coat it comes in.
"""

from collections.abc import Callable

import numpy as np
from rich.table import Table

from dcmpl.data.table import ImageTable
from dcmpl.images.coats import COATS
from dcmpl.metrics import srcc
from dcmpl.scoring.torch_engine import TorchEngine, predict_table

__all__ = ["FAR", "Robustness", "robust_table", "robustness"]

FAR = 0.05
"""A score in [0, 1] that moves by more has moved far."""

Robustness = dict[str, dict[str, dict[str, float]]]
"""By coat and target: ``srcc``, ``srcc_drop``, ``mean_move`` and ``moved_far``."""


def robustness(
    engine: TorchEngine, table: ImageTable, views: str, scores: np.ndarray
) -> Robustness:
    """Robustness of the ``scores`` (rows, tasks) that ``engine`` gives to the images of a table.

    ``srcc_drop`` is what is lost of SRCC to the opinions (NaN without any), ``mean_move`` the
    mean absolute change of a score in [0, 1], ``moved_far`` the share of scores that change by
    more than ``FAR``.
    """
    found: Robustness = {}
    opinions = table.targets(engine.tasks)
    for name, coat in COATS.items():
        coated, _ = predict_table(engine.in_coat(coat), table, views, name)
        found[name] = {
            task: _moves(scores[:, column], coated[:, column], opinions[:, column])
            for column, task in enumerate(engine.tasks)
        }
    return found


def _moves(plain: np.ndarray, coated: np.ndarray, opinions: np.ndarray) -> dict[str, float]:
    scored = np.isfinite(plain) & np.isfinite(coated)
    judged = scored & np.isfinite(opinions)
    moves = np.abs(plain - coated)[scored]

    def merit(scores: np.ndarray) -> float:
        return srcc(scores[judged], opinions[judged]) if judged.any() else float("nan")

    return {
        "srcc": merit(coated),
        "srcc_drop": merit(plain) - merit(coated),
        "mean_move": float(moves.mean()) if len(moves) else float("nan"),
        "moved_far": float((moves > FAR).mean()) if len(moves) else float("nan"),
    }


SHOWN: dict[str, tuple[str, Callable[[float], str]]] = {
    "srcc": ("SRCC", lambda value: f"{value:.3f}"),
    "srcc_drop": ("lost", lambda value: f"{value:+.3f}"),
    "mean_move": ("mean move", lambda value: f"{value:.3f}"),
    "moved_far": (f"moved > {FAR}", lambda value: f"{value:.1%}"),
}


def robust_table(found: Robustness, title: str) -> Table:
    """Table to print: one row per coat and target."""
    table = Table("coat", "target", title=title)
    for label, _ in SHOWN.values():
        table.add_column(label, justify="right")
    for coat, of_target in found.items():
        for target, entry in of_target.items():
            values = (shown(entry[key]) for key, (_, shown) in SHOWN.items())
            table.add_row(coat, target, *values)
    return table
