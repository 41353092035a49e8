"""What a score means: MOS, percentiles, labels, intervals, pairs; and the file that keeps it."""

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrated import SCALE, drawn, judged_of, plain_calibration, plain_meaning
from dcmpl.errors import RunError, UsageError
from dcmpl.files import sealed
from dcmpl.metrics import calibration_error, fit_logistic4, logistic4, logistic_mapped
from dcmpl.scoring.calibration import (
    CALIBRATION,
    LABELS,
    Calibration,
    Cut,
    PatchReadout,
    ranked,
    read_calibration,
)
from dcmpl.training.calibrate import fit_meaning

EXACT = 1e-12
"""Float64 sums of a few terms, added in another order."""

QUICK = settings(deadline=None, max_examples=40)
UNIT = st.floats(0, 1)
RISING = st.tuples(
    st.floats(-10, 10), st.floats(0.001, 20), st.floats(-1, 2), st.floats(1e-4, 50)
).map(lambda drawn: (drawn[0] + drawn[1], drawn[0], drawn[2], drawn[3]))


# MOS


@QUICK
@given(RISING, st.lists(UNIT, min_size=2, max_size=30))
def test_higher_score_never_has_a_lower_mos(curve: tuple[float, ...], scores: list[float]) -> None:
    mos = plain_meaning(curve=curve).mos(np.sort(scores))
    assert (np.diff(mos) >= 0).all()
    assert (mos >= 1).all()
    assert (mos <= 5).all()


def test_mos_is_the_curve_where_it_is_inside_the_scale() -> None:
    meaning, scores = plain_meaning(curve=(4.6, 1.4, 0.5, -0.1)), np.array([0.1, 0.5, 0.62])
    expected = [1.4 + 3.2 / (1 + np.exp(-(s - 0.5) / 0.1)) for s in scores]
    assert meaning.mos(scores) == pytest.approx(expected, abs=1e-9)  # 1e-12 is added to the slope


def test_mos_ends_where_the_scale_ends() -> None:
    meaning = plain_meaning(curve=(90.0, -80.0, 0.5, 0.1))
    assert meaning.mos(np.array([0.0, 0.5, 1.0])).tolist() == [1, 5, 5]


@pytest.mark.parametrize(("low", "high"), [(1, 5), (0, 100), (-3, 3)])
def test_mos_without_a_curve_is_the_place_on_the_scale(low: float, high: float) -> None:
    found = plain_meaning(low=low, high=high).mos(np.array([0.0, 0.25, 1.0]))
    assert found == pytest.approx([low, low + (high - low) / 4, high], abs=EXACT)


# Percentiles


def test_percentile_is_the_place_among_a_hundred() -> None:
    population = np.sort(np.random.default_rng(0).random(101))
    meaning = plain_meaning(population=tuple(population.tolist()))
    assert meaning.percentile(population) == pytest.approx(np.arange(101), abs=1e-9)
    assert meaning.percentile(np.array([-1.0, 2.0])).tolist() == [0, 100]


def test_percentile_among_a_generator_is_among_its_own() -> None:
    known = tuple(np.linspace(0.5, 0.6, 101).tolist())
    meaning = plain_meaning(generators={"b": known})
    assert meaning.percentile(np.array([0.52, 0.7]), "b") == pytest.approx([20, 100], abs=1e-9)


def test_percentile_among_an_unknown_generator_is_wrong_usage() -> None:
    meaning = plain_meaning(generators={"a": (0.0, 1.0), "b": (0.0, 1.0)})
    with pytest.raises(UsageError, match="expected a generator of a, b, got c"):
        meaning.percentile(np.array([0.5]), "c")


def test_percentile_of_a_tie_counts_only_what_scores_lower() -> None:
    population = np.repeat([0.5, 0.7], 50)
    meaning = fit_meaning(drawn(np.random.default_rng(0), 40), SCALE, population, [""] * 100)
    found = meaning.percentile(np.array([0.4, 0.5, 0.7, 0.9]))
    assert found == pytest.approx([0, 0, 50, 100], abs=1)


def test_percentile_among_a_generator_that_a_target_has_not_is_none() -> None:
    """Alignment is not judged without a prompt, so it may lack a generator that quality has."""
    meaning = fit_meaning(
        drawn(np.random.default_rng(0), 40), SCALE, np.array([0.2, 0.4]), ["a"] * 2
    )
    assert meaning.row("quality", 0.3, 0.1, "b")["quality_percentile_against"] is None
    assert meaning.row("quality", 0.5, 0.1, "a")["quality_percentile_against"] == 100


def test_percentiles_are_among_training_images_with_a_score() -> None:
    population = np.array([0.2, np.nan, 0.4, np.nan])
    known = drawn(np.random.default_rng(0), 40)
    meaning = fit_meaning(known, SCALE, population, ["a", "a", "b", "b"])
    assert (meaning.training, meaning.population[0], meaning.population[-1]) == (2, 0.2, 0.4)
    assert set(meaning.generators["a"]) == {0.2}


# Labels


@pytest.mark.parametrize(("low", "high"), [(1, 5), (0, 100), (0, 1), (1, 7)])
def test_labels_are_fifths_of_the_scale(low: float, high: float) -> None:
    meaning = plain_meaning(low=low, high=high)
    below = [meaning.labels(np.array([(k + 1) / 5 - 1e-6]))[0] for k in range(5)]
    above = [meaning.labels(np.array([k / 5 + 1e-6]))[0] for k in range(5)]
    assert below == above == ["bad", "poor", "fair", "good", "excellent"]
    assert meaning.labels(np.array([0.0, 1.0])) == ["bad", "excellent"]


@pytest.mark.parametrize("seed", range(3))
def test_label_begins_at_the_score_of_its_cut(seed: int) -> None:
    rng = np.random.default_rng(seed)
    meaning = fit_meaning(drawn(rng, 60), SCALE, rng.random(20), [""] * 20)
    cuts = [cut for cut in meaning.cuts if cut.score is not None]
    assert len(cuts) >= 3
    for cut in cuts:
        at = np.array([cut.score, cut.score]) - [0, 1e-3]
        label, before = meaning.labels(at)
        assert label == cut.label
        assert before == LABELS[LABELS.index(label) - 1]


# Intervals


@QUICK
@given(RISING, UNIT, st.floats(0, 0.5), st.tuples(*[st.floats(0, 30)] * 3))
def test_interval_holds_the_mos_and_stays_inside_the_scale(
    curve: tuple[float, ...], score: float, spread: float, weights: tuple[float, float, float]
) -> None:
    raters = {"raters": (0.1, -0.2, 0.7), "rater_range": (0.2, 0.9)}
    meaning = plain_meaning(curve=curve, spread=weights, **raters)
    at = np.array([score]), np.array([spread])
    low, high = meaning.interval(*at)
    assert 1 <= low[0] <= meaning.mos(at[0])[0] <= high[0] <= 5


def test_deviation_is_of_a_constant_the_windows_and_the_raters() -> None:
    meaning = plain_meaning(spread=(0.04, 9.0, 0.5), raters=(0.0, 0.1, 0.2), rater_range=(0.0, 1.0))
    # A score of 0.5 is a MOS of 3, of which raters are 0.5 apart.
    found = meaning.deviation(np.array([0.5]), np.array([0.1]))
    assert found == pytest.approx([(0.04 + 9 * 0.01 + 0.5 * 0.25) ** 0.5], abs=EXACT)


def test_interval_reaches_so_many_deviations_to_each_side() -> None:
    low, high = plain_meaning().interval(np.array([0.5]), np.zeros(1), 0.8)
    assert [low[0], high[0]] == pytest.approx([3 - 1.3 * 0.5, 3 + 1.3 * 0.5], abs=EXACT)


def test_raters_are_never_further_apart_than_any_were() -> None:
    meaning = plain_meaning(raters=(1.0, 0.0, 0.0), rater_range=(0.3, 0.8))
    assert meaning.rater_deviation(np.array([0.1, 0.7, 5.0])) == pytest.approx([0.3, 0.49, 0.8])


# Pairs


@QUICK
@given(*[st.tuples(UNIT, st.floats(0, 0.3))] * 2, st.floats(0.1, 5))
def test_chance_of_a_pair_is_that_of_a_normal_difference(
    ours: tuple[float, float], theirs: tuple[float, float], pairs: float
) -> None:
    meaning = plain_meaning(spread=(0.1, 4.0, 0.0), pairs=pairs)
    variance = sum(0.1 + 4 * spread**2 for _, spread in (ours, theirs))
    expected = NormalDist().cdf(4 * (ours[0] - theirs[0]) / (pairs * variance**0.5))
    assert meaning.is_better(ours, theirs) == pytest.approx(expected, abs=1e-9)
    assert meaning.is_better(theirs, ours) == pytest.approx(1 - expected, abs=1e-9)


def test_chance_of_a_pair_without_any_error_is_none_or_all() -> None:
    meaning = plain_meaning(spread=(0.0, 0.0, 0.0))
    others = ((0.6, 0.0), (0.4, 0.0)), ((0.4, 0.0), (0.6, 0.0)), ((0.5, 0.0), (0.5, 0.0))
    assert [meaning.is_better(*pair) for pair in others] == [1, 0, 0.5]


def test_ranks_count_and_calls_say_what_four_in_five_agree_on() -> None:
    # Deviations of one half: 0.8 is reached by a difference of 0.8416 * 2 ** 0.5 / 2 = 0.595.
    scores = [0.9, 0.9 - 0.149 + 0.001, 0.6, 0.6 - 0.149 - 0.001, None]
    rows = list(ranked(plain_meaning(), scores, [0.0] * 5))
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, None]
    close, better = "too close to call", "better than the next"
    assert [row["call"] for row in rows] == [close, better, better, None, None]
    chances = [NormalDist(0, 0.5**0.5).cdf(4 * step) for step in (0.148, 0.152, 0.15)]
    assert [row["better_than_next"] for row in rows[:3]] == pytest.approx(chances, abs=1e-9)
    assert [row["better_than_next"] for row in rows[3:]] == [None, None]


def test_ranks_of_what_is_not_calibrated_are_all_that_is_known() -> None:
    rows = list(ranked(None, [0.9, 0.1, None], [None] * 3))
    assert [row["rank"] for row in rows] == [1, 2, None]
    assert {(row["better_than_next"], row["call"]) for row in rows} == {(None, None)}


def test_nothing_to_rank_gives_no_rows() -> None:
    assert list(ranked(plain_meaning(), [], [])) == []


# Rows


@pytest.mark.parametrize("against", [None, "a"])
def test_rows_have_just_the_columns_that_were_announced(against: str | None) -> None:
    meaning = plain_meaning(generators={"a": (0.0, 0.2)})
    calibration = plain_calibration("quality", "look_feel", meaning=meaning)
    row = {
        name: value
        for target in ("quality", "look_feel")
        for name, value in meaning.row(target, 0.1, 0.02, against).items()
    }
    assert calibration.columns(("quality", "look_feel", "other"), against) == tuple(row)
    assert ("quality_percentile_against" in row) is (against is not None)
    assert row["quality_percentile"] == pytest.approx(10)
    assert row.get("quality_percentile_against", 50) == pytest.approx(50)
    assert (row["quality_spread"], row["look_feel_label"]) == (0.02, "bad")


# The file


def fitted() -> Calibration:
    rng = np.random.default_rng(3)
    names = ["a", "b"] * 30
    quality = fit_meaning(drawn(rng, 80), SCALE, rng.random(60), names)
    falling = fit_meaning(
        judged_of(rng.random(20), rng.uniform(1, 2, 20)), SCALE, rng.random(60), names
    )
    patches = PatchReadout((0.1, 1 / 3, -2e-17))
    return replace(plain_calibration(), targets={"quality": quality, "x": falling}, patches=patches)


@pytest.fixture(scope="module")
def made() -> Calibration:
    return fitted()


@pytest.fixture
def folder(tmp_path: Path, made: Calibration) -> Path:
    """A run folder with nothing but its calibration."""
    made.write(tmp_path)
    return tmp_path


def read(folder: Path) -> Calibration:
    found = read_calibration(folder, "0" * 64)
    assert found is not None
    return found


def test_calibration_that_was_read_gives_the_same_rows_and_bytes(
    folder: Path, made: Calibration
) -> None:
    found = read(folder)
    for target, meaning in made.targets.items():
        for score, spread in np.random.default_rng(1).random((20, 2)).tolist():
            expected = meaning.row(target, score, spread, "a")
            assert found.targets[target].row(target, score, spread, "a") == expected
            pair = (score, spread), (0.5, 0.1)
            assert found.targets[target].is_better(*pair) == meaning.is_better(*pair)
    assert found.patches == made.patches
    before = (folder / CALIBRATION).read_bytes()
    found.write(folder)
    assert (folder / CALIBRATION).read_bytes() == before


def test_calibration_that_was_read_equals_what_was_written(folder: Path, made: Calibration) -> None:
    assert np.isnan(made.targets["x"].cuts[-1].recall)
    assert repr(read(folder)) == repr(made)  # nan equals nan here


def test_folder_without_the_file_has_no_calibration(tmp_path: Path) -> None:
    assert read_calibration(tmp_path, "0" * 64) is None


def test_calibration_of_other_weights_is_refused(folder: Path) -> None:
    with pytest.raises(RunError, match="got that of another: remove it and run dcmpl train"):
        read_calibration(folder, "1" * 64)


def refusal(folder: Path, content: bytes) -> str:
    (folder / CALIBRATION).write_bytes(content)
    with pytest.raises(RunError) as caught:
        read_calibration(folder, "0" * 64)
    told = str(caught.value)
    assert str(folder / CALIBRATION) in told
    assert "\n" not in told
    assert told.startswith("expected ")
    return told


def test_changed_number_is_refused(folder: Path) -> None:
    content = (folder / CALIBRATION).read_bytes()
    assert "got one that its digest says was changed since" in refusal(
        folder, content.replace(b'"high": 5.0', b'"high": 6.0')
    )


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\x00", b"\xff\xfe", b"null", b"[]", b"{}", b'"text"', b"1e999", b"nan", b"PK\x03"),
        *(b"1" * 5000, b"[" * 100_000, b'{"a":' * 100_000, b'{"targets": []}'),
    ],
    ids=lambda content: repr(content[:8]),
)
def test_what_is_no_calibration_is_refused(folder: Path, content: bytes) -> None:
    refusal(folder, content)


def test_nothing_in_the_file_is_executed(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return Path.mkdir, (Path(folder / "made"),)  # type: ignore[return-value]

    refusal(folder, pickle.dumps(Bomb()))
    refusal(folder, f"__import__('pathlib').Path({str(folder / 'made')!r}).mkdir()".encode())
    assert not (folder / "made").exists()


@pytest.mark.parametrize("bit", [0, 1, 5, 7])
def test_flipped_bit_is_refused_or_changes_nothing(folder: Path, bit: int) -> None:
    content, record = (folder / CALIBRATION).read_bytes(), read(folder).record()
    places = np.random.default_rng(bit).choice(len(content), 25, replace=False)
    for place in map(int, places):
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        (folder / CALIBRATION).write_bytes(bytes(flipped))
        try:
            found = read(folder).record()
        except RunError:
            refusal(folder, bytes(flipped))
        else:  # as of the letter of an exponent
            assert found == record


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_file_that_ends_early_is_refused(folder: Path, share: float) -> None:
    content = (folder / CALIBRATION).read_bytes()
    refusal(folder, content[: int(share * len(content))])


Record = dict[str, Any]
CUT = [field.name for field in fields(Cut)]


def resealed(folder: Path, change: Callable[[Record], object]) -> bytes:
    """The file as someone makes it who knows how it is sealed."""
    record = json.loads((folder / CALIBRATION).read_text())
    del record["digest"]
    change(record)
    return sealed(record)


def quality_with(name: str, value: object) -> Callable[[Record], object]:
    return lambda record: record["targets"]["quality"].update({name: value})


@pytest.mark.parametrize("key", ["data", "views", "weights_sha256", "targets", "patches"])
def test_record_without_an_entry_is_refused(folder: Path, key: str) -> None:
    refusal(folder, resealed(folder, lambda record: record.pop(key)))


@pytest.mark.parametrize("key", ["low", "high", "cuts"])
def test_meaning_without_an_entry_is_refused(folder: Path, key: str) -> None:
    refusal(folder, resealed(folder, lambda record: record["targets"]["quality"].pop(key)))


STRANGE = {
    "curve of three": ("curve", [1.0, 2.0, 3.0]),
    "curve of words": ("curve", ["a"] * 4),
    "curve that is no list": ("curve", 4.0),
    "null in the curve": ("curve", [None, 1.0, 0.5, 0.1]),
    "null for the scale": ("low", None),
    "nested population": ("population", [[0.1], [0.2, 0.3]]),
    "words in the population": ("population", ["__import__('os')"] * 101),
    "widths without that of rows": ("widths", {"0.5": 1.0}),
    "widths in a list": ("widths", [1.0]),
    "words for a width": ("widths", {"0.9": "wide"}),
    "cuts that are numbers": ("cuts", [1.0]),
    "cuts with other fields": ("cuts", [{"label": "poor", "eval": "x"}]),
    "a generator without scores": ("generators", {"a": None}),
    "generators in a list": ("generators", []),
    "no range of raters": ("rater_range", None),
}

BROKEN = {
    "a number beyond floats": ("low", 10**400),
    "a width beyond floats": ("widths", {"0.9": 10**400}),
    "weights of one": ("spread", [1.0]),
    "weights below zero": ("spread", [-1.0, 0.0, 0.0]),
    "no population": ("population", []),
    "a population of words that are numbers": ("population", ["0.1"] * 101),
    "a population that falls": ("population", [1.0, 0.5, 0.0]),
    "a scale without length": ("high", 1.0),
    "a scale upside down": ("high", -5.0),
    "a scale in words": ("low", "1.0"),
    "a width in words": ("widths", {"0.9": "1.0"}),
    "a width below zero": ("widths", {"0.9": -1.0}),
    "cuts in words": ("cuts", [dict.fromkeys(CUT, "poor")]),
}
"""Of a form that could be read, but of which no row can be made, or one that makes no sense."""

READ = """
import sys
from pathlib import Path
from dcmpl.scoring.calibration import read_calibration
for folder in sys.argv[1:]:
    try:
        found = read_calibration(Path(folder), "0" * 64)
    except Exception as error:
        print(type(error).__name__, *str(error).split())
    else:
        print("read")
"""


@pytest.fixture(scope="module")
def outcomes(made: Calibration, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What becomes of each of them where types are not checked at run time, as for users."""
    folders = {}
    for number, (kind, change) in enumerate({**STRANGE, **BROKEN}.items()):
        folders[kind] = tmp_path_factory.mktemp(f"kind-{number}")
        made.write(folders[kind])
        content = resealed(folders[kind], quality_with(*change))
        (folders[kind] / CALIBRATION).write_bytes(content)
    words = [sys.executable, "-c", READ, *map(str, folders.values())]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return dict(zip(folders, done.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("kind", STRANGE)
def test_meaning_of_another_form_is_refused_although_sealed(
    outcomes: dict[str, str], kind: str
) -> None:
    assert outcomes[kind].startswith("RunError expected a calibration at /")


@pytest.mark.parametrize("kind", BROKEN)
def test_meaning_that_makes_no_sense_is_refused_although_sealed(
    outcomes: dict[str, str], kind: str
) -> None:
    assert outcomes[kind].startswith("RunError expected a calibration at /")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@settings(deadline=None, max_examples=25)
@given(value=JSON, key=st.sampled_from(["targets", "quality", "patches"]))
def test_any_json_in_place_of_an_entry_is_refused_or_read(
    value: Any, key: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("fuzzed")
    plain_calibration().write(folder)

    def change(record: Record) -> None:
        (record["targets"] if key == "quality" else record)[key] = value

    (folder / CALIBRATION).write_bytes(resealed(folder, change))
    if value is None if key == "patches" else value == {} and key == "targets":
        read(folder)
    else:
        refusal(folder, (folder / CALIBRATION).read_bytes())


# Curves and how far they are off


def test_logistic4_is_half_way_up_at_its_middle_and_ends_at_its_ends() -> None:
    found = logistic4(np.array([-1e6, 0.3, 0.4, 1e6]), 5.0, 1.0, 0.3, 0.1)
    assert found == pytest.approx([1, 3, 1 + 4 * 0.7310585786300049, 5], abs=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_fit_finds_the_logistic_that_made_the_opinions(sign: int) -> None:
    x = np.linspace(0.2, 0.8, 60)
    truth = (3 + 1.5 * sign, 3 - 1.5 * sign, 0.45, 0.07)
    found = fit_logistic4(x, logistic4(x, *truth))
    assert found is not None
    assert [*found[:3], abs(found[3])] == pytest.approx(truth, abs=1e-4)


def test_fit_is_the_mapping_of_the_metrics_in_other_words() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(40, 7, 80)
    y = 1 + 3 / (1 + np.exp(-(x - 42) / 3)) + rng.normal(0, 0.2, 80)
    found = fit_logistic4(x, y)
    assert found is not None
    assert logistic4(x, *found) == pytest.approx(logistic_mapped(x, y), abs=1e-9)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.full(20, 0.4), np.arange(20.0)),
        (np.arange(20.0), np.full(20, 3.0)),
        (np.arange(4.0), np.arange(4.0)),
        (np.empty(0), np.empty(0)),
    ],
    ids=["one score", "one opinion", "four images", "no image"],
)
def test_nothing_can_be_fitted_to_a_constant_or_to_few(x: np.ndarray, y: np.ndarray) -> None:
    assert fit_logistic4(x, y) is None


def test_calibration_error_is_the_mean_distance_of_the_means_of_bins() -> None:
    predicted = np.array([0.9, 0.1, 0.2, 0.8, 0.3])
    opinion = np.array([1.0, 0.3, 0.2, 0.8, 0.7])
    # In two bins: 0.1, 0.2, 0.3 with 0.3, 0.2, 0.7, and 0.8, 0.9 with 0.8, 1.0.
    expected = (3 * (0.4 - 0.2) + 2 * (0.9 - 0.85)) / 5
    assert calibration_error(predicted, opinion, bins=2) == pytest.approx(expected, abs=EXACT)


def test_calibration_error_forgives_errors_that_cancel_in_a_bin() -> None:
    predicted = np.arange(20) // 2 / 10
    opinion = predicted + np.tile([0.3, -0.3], 10)
    assert calibration_error(predicted, opinion) == pytest.approx(0, abs=EXACT)
    assert calibration_error(predicted, opinion, bins=20) == pytest.approx(0.3, abs=EXACT)


@QUICK
@given(st.lists(UNIT, min_size=1, max_size=40, unique=True), st.floats(-2, 2))
def test_calibration_error_of_a_shift_is_the_shift(values: list[float], shift: float) -> None:
    predicted = np.array(values)
    assert calibration_error(predicted, predicted + shift) == pytest.approx(abs(shift), abs=1e-9)


def test_calibration_error_of_nothing_is_nan() -> None:
    assert np.isnan(calibration_error(np.empty(0), np.empty(0)))
