"""What a score means: its MOS, its rank in a population, its label, and how sure it is.

Fitted once for a run (``dcmpl.calibrating``), kept beside it, and applied row by row:

    calibration.json   curves, populations, cut-offs and widths of each target
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from dcmpl.curves import logistic4
from dcmpl.disk import check_sealed, sealed, write_atomically
from dcmpl.errors import DcmplError, RunError, UsageError

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
"""Of the intervals in rows; the share of pictures whose MOS lies inside."""

CLOSE = 0.8
"""Two pictures are too close to call where neither is better with this probability."""

Values = Float[np.ndarray, " pictures"]


@dataclass(frozen=True)
class Cut:
    """Calling a picture ``label`` or better, and how right that was on validation.

    ``score`` is where it begins, None where no score reaches it. ``sure`` is the lowest score
    from which on nine in ten such calls were right, ``sure_recall`` the share of such pictures
    that it finds. ``share`` of the validation pictures are that good.
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
    """What the scores of one target mean, on the MOS scale from ``low`` to ``high``.

    ``curve``: the four parameters of a rising logistic from score to MOS, or empty where
    none could be fitted, and a score is taken for its place on the scale. ``population`` and
    ``generators``: 101 percentiles of the scores of the training pictures. ``spread``: weights
    of 1, the squared spread of a picture's windows and the squared deviation of raters in the
    variance of the error; ``raters``: a parabola from MOS to that deviation, between
    ``rater_range``. ``widths``: by coverage, how many deviations the interval reaches.
    ``pairs``: what the deviation of the difference of two pictures of one prompt is
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
        """Scores in [0, 1] in MOS units; a higher score never has a lower MOS."""
        raw = np.asarray(scores, dtype=np.float64)
        if not self.curve:
            return self.low + raw * (self.high - self.low)
        b1, b2, b3, b4 = self.curve
        mapped: Values = np.clip(logistic4(raw, b1, b2, b3, b4), self.low, self.high)
        return mapped

    def deviation(self, scores: Values, spread: Values) -> Values:
        """The standard deviation of the error in MOS units; ``spread`` is over windows."""
        raters = self.rater_deviation(self.mos(scores))
        variance = np.stack([np.ones_like(raters), np.square(spread), raters**2], axis=-1)
        found: Values = np.sqrt(variance @ np.array(self.spread))
        return found

    def rater_deviation(self, mos: Values) -> Values:
        """How far raters are from one another about a picture of that MOS; 0 where unknown."""
        if not self.raters:
            return np.zeros_like(mos)
        return np.clip(np.polyval(self.raters, mos), *self.rater_range)

    def interval(
        self, scores: Values, spread: Values, coverage: float = COVERAGE
    ) -> tuple[Values, Values]:
        """Between what the MOS lies in ``coverage`` of all cases; inside the scale."""
        width = self.widths[f"{coverage:g}"] * self.deviation(scores, spread)
        mos = self.mos(scores)
        return np.maximum(mos - width, self.low), np.minimum(mos + width, self.high)

    def percentile(self, scores: Values, generator: str | None = None) -> Values:
        """How many in a hundred training pictures, of all or of one generator, score lower."""
        known = self.population if generator is None else self.generators.get(generator)
        if known is None:
            raise UsageError(
                f"expected a generator of {', '.join(self.generators) or 'none'}, got {generator}"
            )
        found: Values = np.interp(scores, known, np.linspace(0, 100, len(known)))
        return found

    def labels(self, scores: Values) -> list[str]:
        """The fifth of the scale that each MOS lies in."""
        place = (self.mos(scores) - self.low) / (self.high - self.low) * len(LABELS)
        return [LABELS[i] for i in np.clip(place.astype(int), 0, len(LABELS) - 1)]

    def is_better(self, ours: tuple[float, float], theirs: tuple[float, float]) -> float:
        """The probability that people prefer the first of two pictures of one prompt.

        Each is given as its score and its spread.
        """
        scores, spread = np.array([ours, theirs]).T
        apart = -float(np.diff(self.mos(scores))[0])
        deviation = self.pairs * float(np.hypot(*self.deviation(scores, spread)))
        return 0.5 * (1 + math.erf(apart / max(deviation, 1e-9) / math.sqrt(2)))

    def row(self, target: str, score: float, spread: float, against: str | None) -> dict[str, Any]:
        """The columns of a picture that ``target`` has beside its score."""
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
            found[f"{target}_percentile_against"] = float(self.percentile(at, against)[0])
        return {**found, f"{target}_label": self.labels(at)[0]}


@dataclass(frozen=True)
class PatchReadout:
    """A patch's score in [0, 1] is ``bias`` + ``weights`` . its features (``dcmpl.patches``)."""

    weights: tuple[float, ...]
    bias: float


@dataclass(frozen=True)
class Calibration:
    """The meaning of every target that a run learned, for scores over its own ``views``.

    ``patches`` tells where a picture looks bad, by its first target; None where the model
    cannot say.
    """

    data: str
    views: str
    weights_sha256: str
    targets: dict[str, Meaning]
    patches: PatchReadout | None = None

    def columns(self, targets: tuple[str, ...], against: str | None) -> tuple[str, ...]:
        """The names of what :meth:`Meaning.row` adds."""
        kinds = ["spread", "mos", "low", "high", "percentile"]
        kinds += ["percentile_against"] if against is not None else []
        known = [target for target in targets if target in self.targets]
        return tuple(f"{target}_{kind}" for target in known for kind in [*kinds, "label"])

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def write(self, folder: Path) -> None:
        write_atomically(folder / CALIBRATION, sealed(self.record()))


def ranked(
    meaning: Meaning | None, scores: Sequence[float | None], spreads: Sequence[float | None]
) -> Iterator[dict[str, Any]]:
    """``rank``, ``better_than_next`` and ``call`` of rows of one prompt that come best first.

    ``better_than_next`` is the probability that people prefer a picture to the one behind it;
    ``call`` says in words what that means. Both are None where nothing is known.
    """
    for place, (ours, over) in enumerate(zip(scores, spreads, strict=True)):
        known = place + 1 < len(scores) and scores[place + 1] is not None
        row: dict[str, Any] = {"rank": place + 1, "better_than_next": None, "call": None}
        if ours is not None and known and meaning is not None:
            pair = (ours, over or 0.0), (scores[place + 1] or 0.0, spreads[place + 1] or 0.0)
            chance = meaning.is_better(*pair)
            call = "better than the next" if chance >= CLOSE else "too close to call"
            row |= {"better_than_next": chance, "call": call}
        yield row if ours is not None else {**row, "rank": None}


def of_record(record: Mapping[str, Any]) -> Calibration:
    """Back from :meth:`Calibration.record`; raises ValueError, KeyError or TypeError for others."""
    targets = {}
    for name, entry in record["targets"].items():
        cuts = tuple(Cut(**cut) for cut in entry["cuts"])
        meaning = Meaning(**{**entry, "cuts": cuts})
        numbers = [meaning.low, meaning.high, meaning.pairs, *meaning.curve, *meaning.spread]
        numbers += [*meaning.population, *meaning.raters, *meaning.widths.values()]
        if not np.isfinite(np.array(numbers, dtype=np.float64)).all():
            raise ValueError(f"{name} with what is no number")
        if len(meaning.curve) not in (0, 4) or f"{COVERAGE:g}" not in meaning.widths:
            raise ValueError(f"{name} without a curve or a width")
        targets[str(name)] = replace(meaning, curve=tuple(meaning.curve))
    data, views, weights = (str(record[name]) for name in ("data", "views", "weights_sha256"))
    patches = record["patches"]
    if patches is not None:
        patches = PatchReadout(tuple(map(float, patches["weights"])), float(patches["bias"]))
    return Calibration(data, views, weights, targets, patches)


def read_calibration(folder: Path, weights_sha256: str) -> Calibration | None:
    """The calibration in a run folder, None where there is none.

    Raises :class:`RunError` where it was changed or is another run's.
    """
    path = folder / CALIBRATION
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        check_sealed(record, path)
        found = of_record(record)
    except DcmplError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"expected a calibration at {path}, got: {error!r}") from error
    if found.weights_sha256 != weights_sha256:
        raise RunError(
            f"expected the calibration of the run beside {path}, got that of another: remove it "
            "and run dcmpl train --resume"
        )
    return found
