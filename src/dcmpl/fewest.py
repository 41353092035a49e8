"""How few views of a picture are enough: measured on pictures that training has not seen."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from dcmpl import __version__
from dcmpl.errors import RunError
from dcmpl.files import check_sealed, sealed, write_atomically
from dcmpl.images.windows import window_corners
from dcmpl.scoring.engines import Engine, all_scores

__all__ = [
    "ENOUGH_PICTURES",
    "FULL",
    "SHARE",
    "TOLERANCE",
    "compare_views",
    "fewest_of_run",
    "fewest_views",
]

FULL = "windows"
FEWER = ("center", "grid-2", "grid-3", "grid-4")
TOLERANCE, SHARE = 0.02, 0.95
"""Enough: the scores of this share of pictures are within the tolerance, of a range of 1."""


def compare_views(engine: Engine, pictures: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """For each kind of views, the fewest first: windows, and how far scores are from all's."""
    full = all_scores(engine, pictures, FULL)
    rows = []
    for views in (*FEWER, FULL):
        found = all_scores(engine, pictures, views)
        distance = np.abs(found - full).max(1)
        counts = [len(window_corners(p.shape[0], p.shape[1], engine.size, views)) for p in pictures]
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
    """The first kind of views that is enough; all of them where no fewer are.

    >>> fewest_views([{"views": "center", "of_share": 0.05}, {"views": "grid-2", "of_share": 0.01}])
    'grid-2'
    """
    enough = (row["views"] for row in rows if row["of_share"] <= TOLERANCE)
    return str(next(enough, FULL))


MEASURED = "views.json"
ENOUGH_PICTURES = 64


def fewest_of_run(
    folder: Path, identity: str, engine: Engine, pictures: Callable[[], Sequence[np.ndarray]]
) -> str:
    """The fewest views that are enough for a run; measured once, on ``pictures()``, and kept.

    ``identity`` is that of the run and of what is asked of it. What was measured lies in the
    run folder as ``views.json``.
    """
    path = folder / MEASURED
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        check_sealed(record, path)
        known = [str(record["identity"]), str(record["fewest_views"])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, RunError):
        known = []
    if known[:1] == [identity]:
        return known[1]
    shown = pictures()
    rows = compare_views(engine, shown[:: max(1, len(shown) // ENOUGH_PICTURES)])
    record = {"identity": identity, "fewest_views": fewest_views(rows), "views_compared": rows}
    with suppress(RunError):  # what cannot be kept is measured again the next time
        write_atomically(path, sealed({**record, "version": __version__}))
    return str(record["fewest_views"])
