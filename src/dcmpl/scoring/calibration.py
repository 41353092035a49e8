"""Calibration: from a score to MOS, prediction interval, percentile, label and confidence.

Fitted once for a run (``dcmpl.training.calibrate``), kept beside it, and applied row by row:

    calibration.json   curves, populations, cut-offs and widths of each target
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from dcmpl.config import check_views
from dcmpl.errors import RunError, UsageError
from dcmpl.files import as_json, read_record, sealed, write_atomically
from dcmpl.metrics import logistic4

__all__ = [
    "CALIBRATION",
    "CLOSE",
    "COVERAGE",
    "LABELS",
    "Calibration",
    "Cut",
    "Meaning",
    "PatchReadout",
    "of_record",
    "ranked",
    "read_calibration",
]

CALIBRATION = "calibration.json"

LABELS = ("bad", "poor", "fair", "good", "excellent")
"""Equal fifths of the MOS scale, as on the five-grade scale of ITU-R BT.500."""

COVERAGE = 0.9
"""Of the intervals in rows; the share of images whose MOS lies inside."""

NUMBERS = ("spread", "mos", "low", "high", "percentile", "percentile_against")
"""What goes with the score of a target, as in ``quality_mos``; a label besides."""

CLOSE = 0.8
"""Two images are too close to call where neither is better with this probability."""

TOO_CLOSE = "too close to call"

Values = Float[np.ndarray, " images"]


@dataclass(frozen=True)
class Cut:
    """Validation figures of the call "``label`` or better".

    ``score`` is where it begins, None where no score reaches it. ``sure`` is the lowest score
    from which on nine in ten such calls were right, ``sure_recall`` the share of such images
    that it finds. ``share`` of the validation images are that good.
    """

    label: str
    mos: float
    score: float | None
    precision: float
    recall: float
    share: float
    sure: float | None
    sure_recall: float


@dataclass(frozen=True)
class Meaning:
    """Calibration of one target, on the MOS scale from ``low`` to ``high``.

    ``curve``: the four parameters of a rising logistic from score to MOS, or empty where
    none could be fitted, and a score is taken for its place on the scale. ``population`` and
    ``generators``: 101 percentiles of the scores of the training images. ``spread``: weights
    of 1, the squared spread of an image's windows and the squared deviation of raters in the
    variance of the error; ``raters``: a parabola from MOS to that deviation, between
    ``rater_range``. ``widths``: by coverage, how many deviations the interval reaches.
    ``pairs``: what the deviation of the difference of two images of one prompt is
    multiplied by.
    """

    low: float
    high: float
    curve: tuple[float, ...] = ()
    population: tuple[float, ...] = ()
    generators: dict[str, tuple[float, ...]] = field(default_factory=dict)
    spread: tuple[float, float, float] = (0.0, 0.0, 0.0)
    raters: tuple[float, ...] = ()
    rater_range: tuple[float, float] = (0.0, 0.0)
    widths: dict[str, float] = field(default_factory=dict)
    pairs: float = 1.0
    cuts: tuple[Cut, ...] = ()
    validation: int = 0
    training: int = 0

    def mos(self, scores: Values) -> Values:
        """MOS of scores in [0, 1], never falling with the score."""
        raw = np.asarray(scores, dtype=np.float64)
        if not self.curve:
            return self.low + raw * (self.high - self.low)
        b1, b2, b3, b4 = self.curve
        mapped: Values = np.clip(logistic4(raw, b1, b2, b3, b4), self.low, self.high)
        return mapped

    def deviation(self, scores: Values, spread: Values) -> Values:
        """Standard deviation of the MOS error; ``spread`` is the deviation over windows."""
        raters = self.rater_deviation(self.mos(scores))
        variance = np.stack([np.ones_like(raters), np.square(spread), raters**2], axis=-1)
        found: Values = np.sqrt(variance @ np.array(self.spread))
        return found

    def rater_deviation(self, mos: Values) -> Values:
        """Standard deviation of raters about an image of that MOS; 0 where unknown."""
        if not self.raters:
            return np.zeros_like(mos)
        return np.clip(np.polyval(self.raters, mos), *self.rater_range)

    def interval(
        self, scores: Values, spread: Values, coverage: float = COVERAGE
    ) -> tuple[Values, Values]:
        """Prediction interval of the MOS at ``coverage``, inside the scale."""
        width = self.widths[f"{coverage:g}"] * self.deviation(scores, spread)
        mos = self.mos(scores)
        return np.maximum(mos - width, self.low), np.minimum(mos + width, self.high)

    def percentile(self, scores: Values, generator: str | None = None) -> Values:
        """Percentile among training images, of all generators or of one, in [0, 100]."""
        known = self.population if generator is None else self.generators.get(generator)
        if known is None:
            raise UsageError(f"a generator of {', '.join(self.generators) or 'none'}", generator)
        # Of equal scores none is lower: each counts with the first.
        values, first = np.unique(known, return_index=True)
        percent = first * (100 / (len(known) - 1))
        found: Values = np.interp(scores, values, percent, right=100.0)
        return found

    def labels(self, scores: Values) -> list[str]:
        """Label of each MOS: its fifth of the scale."""
        place = (self.mos(scores) - self.low) / (self.high - self.low) * len(LABELS)
        return [LABELS[i] for i in np.clip(place.astype(int), 0, len(LABELS) - 1)]

    def is_better(self, ours: tuple[float, float], theirs: tuple[float, float]) -> float:
        """The probability that people prefer the first of two images of one prompt.

        Each is given as its score and its spread.
        """
        scores, spread = np.array([ours, theirs]).T
        apart = -float(np.diff(self.mos(scores))[0])
        deviation = self.pairs * float(np.hypot(*self.deviation(scores, spread)))
        return 0.5 * (1 + math.erf(apart / max(deviation, 1e-9) / math.sqrt(2)))

    def row(self, target: str, score: float, spread: float, against: str | None) -> dict[str, Any]:
        """Columns of an image that ``target`` has beside the score."""
        at, over = np.array([score]), np.array([spread])
        low, high = self.interval(at, over)
        found: dict[str, Any] = {
            f"{target}_spread": spread,
            f"{target}_mos": float(self.mos(at)[0]),
            f"{target}_low": float(low[0]),
            f"{target}_high": float(high[0]),
            f"{target}_percentile": float(self.percentile(at)[0]),
        }
        if against is not None:
            has = against in self.generators  # a target may lack one that another has
            among = float(self.percentile(at, against)[0]) if has else None
            found[f"{target}_percentile_against"] = among
        return {**found, f"{target}_label": self.labels(at)[0]}


@dataclass(frozen=True)
class PatchReadout:
    """Linear readout of patch features (``dcmpl.scoring.explain``).

    Differences of patch scores within an image show where the image is good or bad.
    """

    weights: tuple[float, ...]


@dataclass(frozen=True)
class Calibration:
    """Calibration of every target of a run, for scores over its ``views``.

    ``patches`` scores patches by the first target, None for models without it.
    ``enough_views`` is the smallest tiling whose scores match full tiling, None where it was
    not measured.
    """

    data: str
    views: str
    weights_sha256: str
    targets: dict[str, Meaning]
    patches: PatchReadout | None = None
    enough_views: str | None = None

    def columns(self, targets: tuple[str, ...], against: str | None) -> tuple[str, ...]:
        """Names of the columns of :meth:`Meaning.row`."""
        kinds = [kind for kind in NUMBERS if kind != "percentile_against" or against is not None]
        known = [target for target in targets if target in self.targets]
        return tuple(f"{target}_{kind}" for target in known for kind in [*kinds, "label"])

    @property
    def digest(self) -> str:
        """SHA-256 of the calibration, for the records of scores."""
        return hashlib.sha256(as_json(self.record())).hexdigest()

    def record(self) -> dict[str, Any]:
        """Calibration as JSON values."""
        return asdict(self)

    def write(self, folder: Path) -> None:
        write_atomically(folder / CALIBRATION, sealed(self.record()))


def ranked(
    meaning: Meaning | None, scores: Sequence[float | None], spreads: Sequence[float | None]
) -> Iterator[dict[str, Any]]:
    """Columns ``rank``, ``better_than_next`` and ``call`` for rows of one prompt, best first.

    ``better_than_next`` is the probability that people prefer an image to the one behind it;
    ``call`` says in words what that means. Both are None where nothing is known.
    """
    for place, (ours, over) in enumerate(zip(scores, spreads, strict=True)):
        known = place + 1 < len(scores) and scores[place + 1] is not None
        row: dict[str, Any] = {"rank": place + 1, "better_than_next": None, "call": None}
        if ours is not None and known and meaning is not None:
            pair = (ours, over or 0.0), (scores[place + 1] or 0.0, spreads[place + 1] or 0.0)
            chance = meaning.is_better(*pair)
            row |= {"better_than_next": chance, "call": _call(chance)}
        yield row if ours is not None else {**row, "rank": None}


def _call(chance: float) -> str:
    if chance >= CLOSE:
        return "better than the next"
    return "worse than the next" if chance <= 1 - CLOSE else TOO_CLOSE


def _numbers(values: Any, counts: tuple[int, ...] = ()) -> tuple[float, ...]:
    """Check finite numbers from JSON, of one of ``counts``; raises ValueError or TypeError."""
    found = tuple(values)
    if counts and len(found) not in counts:
        raise ValueError(f"expected {' or '.join(map(str, counts))} numbers, got {len(found)}")
    if not all(type(value) in (int, float) and math.isfinite(float(value)) for value in found):
        raise TypeError("expected numbers, got others")
    return tuple(map(float, found))


def _rising(values: Any) -> tuple[float, ...]:
    found = _numbers(values)
    if len(found) < 2 or any(np.diff(found) < 0):
        raise ValueError("expected percentiles that rise, got others")
    return found


def _cut_of(entry: Mapping[str, Any]) -> Cut:
    nan = {
        name: math.nan if entry[name] is None else entry[name] for name in ("precision", "recall")
    }
    cut = Cut(**{**entry, **nan})
    known = [v for v in (cut.score, cut.sure) if v is not None]
    rates = [v for v in (cut.precision, cut.recall) if not (type(v) is float and math.isnan(v))]
    _numbers([cut.mos, cut.share, cut.sure_recall, *known, *rates])
    if cut.label not in LABELS:
        raise ValueError(f"expected a label of {', '.join(LABELS)}, got another")
    return cut


def _meaning_of(entry: Mapping[str, Any]) -> Meaning:
    widths = dict(zip(map(str, entry["widths"]), _numbers(entry["widths"].values()), strict=True))
    spread, (pairs,) = _numbers(entry["spread"], (3,)), _numbers([entry["pairs"]])
    low, high = _numbers([entry["low"], entry["high"]])
    raters, reach = _numbers(entry["raters"], (0, 3)), _numbers(entry["rater_range"], (2,))
    if not low < high or min(spread) < 0 or pairs < 0 or min(widths.values()) < 0:
        raise ValueError("expected a scale that rises and widths from 0 on, got others")
    if others := set(entry) - set(Meaning.__dataclass_fields__):
        raise ValueError(f"expected fields of a meaning, got {min(others)}")
    if f"{COVERAGE:g}" not in widths or sum(spread) == 0:
        raise ValueError(f"expected the width of {COVERAGE:g}, got none")
    return Meaning(
        low=low,
        high=high,
        curve=_numbers(entry["curve"], (0, 4)),
        population=_rising(entry["population"]),
        generators={str(n): _rising(known) for n, known in entry["generators"].items()},
        spread=(spread[0], spread[1], spread[2]),
        raters=raters,
        rater_range=(reach[0], reach[1]),
        widths=widths,
        pairs=pairs,
        cuts=tuple(_cut_of(cut) for cut in entry["cuts"]),
        validation=int(entry["validation"]),
        training=int(entry["training"]),
    )


def of_record(record: Mapping[str, Any]) -> Calibration:
    """Calibration of a :meth:`Calibration.record`; raises ValueError, KeyError or TypeError."""
    targets = {str(name): _meaning_of(entry) for name, entry in record["targets"].items()}
    data, views, weights = (str(record[name]) for name in ("data", "views", "weights_sha256"))
    patches = record["patches"]
    if patches is not None:
        patches = PatchReadout(_numbers(patches["weights"]))
    enough = record["enough_views"]
    return Calibration(data, views, weights, targets, patches, enough and check_views(enough))


def read_calibration(folder: Path, weights_sha256: str) -> Calibration | None:
    """Read the calibration of a run folder; None where there is none.

    Raises :class:`RunError` where it was changed or is another run's.
    """
    path = folder / CALIBRATION
    if not path.is_file():
        return None
    found = read_record(path, "a calibration", of_record)
    if found.weights_sha256 != weights_sha256:
        raise RunError(
            f"the calibration of the run beside {path}",
            "that of another",
            "remove it and run dcmpl train --resume",
        )
    return found
