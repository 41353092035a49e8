"""Fitting what scores mean, holding it to fresh images, and what training and evaluate do."""

import json
import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import NormalDist, mean, median
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from calibrated import PROMPTS, SCALE, drawn, judged_of, plain_meaning
from conftest import Capture, made_table, refused
from dcmpl.cli.main import main
from dcmpl.errors import DataError
from dcmpl.evaluation.results import measure_calibration
from dcmpl.metrics import fit_logistic4, logistic4
from dcmpl.runs import read_run, read_split
from dcmpl.scoring.calibration import CALIBRATION, CLOSE, Calibration, Meaning, read_calibration
from dcmpl.scoring.scorer import Scorer
from dcmpl.training.calibrate import Judged, _some, fit_meaning, judged

pytest_plugins = ("calibrated",)

LEVELS = (0.5, 0.8, 0.9, 0.95)
FOLDS = 5
EXACT = 1e-12
"""Float64 sums of a few terms, added in another order."""


def fitted(known: Judged, **population: Any) -> Meaning:
    scores = population.get("population", np.linspace(0, 1, 20))
    return fit_meaning(known, SCALE, scores, population.get("generators", [""] * len(scores)))


def flat(errors: np.ndarray, spread: np.ndarray | None = None) -> Judged:
    """Images of one score, 0.5, so of a MOS of 3, which is off by so much."""
    return judged_of(np.full(len(errors), 0.5), 3 + errors, spread=spread)


def falling(count: int, raters: np.ndarray | None = None, seed: int = 0) -> Judged:
    """Scores that nothing but their place on the scale can be said of: opinions fall."""
    rng = np.random.default_rng(seed)
    scores = rng.permutation(np.linspace(0.05, 0.95, count))
    noise = rng.normal(0, 0.3, count)
    return judged_of(scores, np.clip(4.6 - 3 * scores + noise, 1, 5), raters=raters)


def width_at(meaning: Meaning, level: float, score: float = 0.5, spread: float = 0.0) -> float:
    """Half of an interval that the scale does not cut."""
    low, high = meaning.interval(np.array([score]), np.array([spread]), level)
    assert 1 < low[0] < high[0] < 5
    return float(high[0] - low[0]) / 2


# Curves and intervals


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 10**6), st.integers(10, 60))
def test_whatever_is_fitted_rises_and_stays_inside_the_scale(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    known = judged_of(rng.random(count), rng.uniform(1, 5, count), spread=rng.random(count) / 9)
    meaning, grid = fitted(known), np.linspace(0, 1, 200)
    low, high = meaning.interval(grid, np.full(200, 0.1))
    assert (np.diff(meaning.mos(grid)) >= 0).all()
    assert (low >= 1).all()
    assert (high <= 5).all()
    assert (high > low).all()


def test_curve_is_found_in_spite_of_noise() -> None:
    meaning = fitted(drawn(np.random.default_rng(0), 400))
    at = np.array([0.2, 0.5, 0.8])
    expected = [1.3 + 3.4 / (1 + np.exp(-(s - 0.5) / 0.15)) for s in at]
    assert meaning.mos(at) == pytest.approx(expected, abs=0.1)  # noise of 0.35 over 400 images


@pytest.mark.parametrize("kind", ["falls", "one score", "one opinion"])
def test_relation_that_does_not_rise_gives_no_curve_and_sane_rows(kind: str) -> None:
    rng = np.random.default_rng(1)
    some, same = np.linspace(0.1, 0.9, 30), np.full(30, 0.4)
    known = {
        "falls": judged_of(some, 5 - 4 * some),
        "one score": judged_of(same, rng.uniform(1, 5, 30)),
        "one opinion": judged_of(some, np.full(30, 2.0)),
    }[kind]
    meaning = fitted(known)
    assert meaning.curve == ()
    assert meaning.mos(np.array([0.25])) == pytest.approx([2])
    row = meaning.row("quality", 0.6, 0.0, None)
    assert 1 <= row["quality_low"] <= row["quality_mos"] <= row["quality_high"] <= 5
    assert (row["quality_label"], row["quality_percentile"]) == ("good", pytest.approx(60))
    assert 0.5 < meaning.is_better((0.9, 0.0), (0.1, 0.0)) <= 1


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("count", [10, 19, 20, 39, 57])
def test_interval_reaches_to_the_error_of_the_rank_that_conformal_prediction_names(
    count: int, level: float
) -> None:
    errors = np.random.default_rng(count).uniform(-1.9, 1.9, count)
    rank = math.ceil((count + 1) * Fraction(str(level)))
    expected = sorted(abs(errors))[min(rank, count) - 1]
    assert width_at(fitted(flat(errors)), level) == pytest.approx(expected, abs=EXACT)


def test_errors_are_those_of_curves_that_never_saw_the_prompt() -> None:
    known = drawn(np.random.default_rng(4), 60)
    meaning = fitted(known)
    prompts = sorted(set(known.groups))
    mos = np.full(60, np.nan)
    for fold in range(FOLDS):
        inside = np.isin(known.groups, prompts[fold::FOLDS])
        curve = fit_logistic4(known.scores[~inside], known.mos[~inside])
        assert curve is not None
        mos[inside] = logistic4(known.scores[inside], *curve).clip(1, 5)
    scaled = np.abs(known.mos - mos) / meaning.deviation(known.scores, known.spread)
    expected = {f"{c:g}": np.sort(scaled)[math.ceil(61 * c) - 1] for c in LEVELS}
    assert meaning.widths == pytest.approx(expected, rel=1e-9)


def test_images_whose_windows_disagree_get_wider_intervals_just_as_their_errors_do() -> None:
    rng = np.random.default_rng(2)
    spread = rng.uniform(0, 0.3, 80)
    errors = np.sqrt(0.04 + 9 * spread**2) * rng.choice([-1, 1], 80)
    meaning = fitted(flat(errors, spread))
    assert meaning.spread == pytest.approx((0.04, 9, 0), abs=1e-9)
    ratio = width_at(meaning, 0.9, spread=0.3) / width_at(meaning, 0.9, spread=0.0)
    assert ratio == pytest.approx((0.04 + 9 * 0.09) ** 0.5 / 0.2, rel=1e-9)


def test_interval_of_an_image_whose_windows_agree_is_still_open() -> None:
    spread = np.linspace(0.01, 0.5, 40)
    errors = spread * np.tile([1.0, -1.0], 20)
    meaning = fitted(flat(errors, spread))
    assert meaning.spread[0] == pytest.approx(0.05 * np.mean(errors**2))
    assert width_at(meaning, 0.9) > 0.03


@pytest.mark.parametrize("uneven", [False, True], ids=["even errors", "uneven errors"])
def test_intervals_hold_the_stated_share_of_fresh_images(uneven: bool) -> None:
    shares = dict.fromkeys(LEVELS, 0.0)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        meaning, fresh = fitted(drawn(rng, 160, uneven)), drawn(rng, 2000, uneven)
        for level in LEVELS:
            low, high = meaning.interval(fresh.scores, fresh.spread, level)
            shares[level] += float(((low <= fresh.mos) & (fresh.mos <= high)).mean()) / 8
    for level, share in shares.items():
        # Three deviations of the mean of eight shares, each a beta variable of 160 images.
        assert share == pytest.approx(level, abs=3 * (level * (1 - level) / 162 / 8) ** 0.5)


def test_intervals_of_few_images_hold_the_stated_share_on_average() -> None:
    inside = []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        meaning, fresh = fitted(drawn(rng, 24)), drawn(rng, 500)
        low, high = meaning.interval(fresh.scores, fresh.spread)
        inside.append(float(((low <= fresh.mos) & (fresh.mos <= high)).mean()))
    assert mean(inside) == pytest.approx(0.9, abs=3 * (0.9 * 0.1 / 26 / 16) ** 0.5)


# Raters


def test_deviation_of_raters_is_a_parabola_of_the_mos_where_it_is_known() -> None:
    known = falling(60)
    mos = 1 + 4 * known.scores
    raters = 0.2 + 0.3 * (mos - 1) - 0.06 * (mos - 1) ** 2
    raters += np.random.default_rng(0).normal(0, 0.02, 60)
    raters[::3] = np.nan
    meaning = fitted(falling(60, raters))
    rows = np.isfinite(raters)
    design = np.stack([mos[rows] ** 2, mos[rows], np.ones(rows.sum())], axis=1)
    expected, *_ = np.linalg.lstsq(design, raters[rows], rcond=None)
    assert meaning.raters == pytest.approx(expected, abs=1e-9)
    ends = np.quantile(raters[rows], [0.05, 0.95])
    assert meaning.rater_range == pytest.approx(ends, abs=EXACT)
    grid = np.linspace(1, 5, 50)
    assert meaning.rater_deviation(grid).min() >= ends[0]
    assert meaning.rater_deviation(grid).max() <= ends[1]


@pytest.mark.parametrize("spread", [0.0, 1e-15, 1e-9, 1e-6, 1e-3, 0.1])
@pytest.mark.parametrize("range_of_mos", [1e-9, 1e-5, 2.0])
def test_predictions_that_are_all_but_equal_are_calibrated(
    spread: float, range_of_mos: float
) -> None:
    """As those of a model after an epoch; numpy's fits warn of them, and a warning fails."""
    rng = np.random.default_rng(0)
    scores = 0.5 + spread * rng.permutation(np.arange(40) / 40)
    mos = 3 + range_of_mos * (scores - 0.5 + rng.uniform(0, 0.1, 40))
    known = judged_of(scores, mos, raters=rng.uniform(0.3, 0.9, 40))
    meaning = fitted(known)
    low, high = meaning.interval(scores, np.zeros(40))
    assert np.isfinite([low, high, meaning.rater_deviation(meaning.mos(scores))]).all()


@pytest.mark.parametrize(("count", "is_known"), [(9, False), (10, True)])
def test_few_known_deviations_of_raters_are_none(count: int, is_known: bool) -> None:
    raters = np.full(40, np.nan)
    raters[:count] = np.random.default_rng(0).uniform(0.3, 0.9, count)
    meaning = fitted(falling(40, raters))
    assert (meaning.raters != ()) is is_known
    assert (meaning.rater_deviation(np.array([3.0])).tolist() != [0]) is is_known


def test_raters_of_two_scores_of_one_prompt_need_no_parabola() -> None:
    raters = np.random.default_rng(0).uniform(0.3, 0.9, 20)
    scores, mos = np.repeat([0.2, 0.8], 10), np.tile([4.0, 2.0], 10)
    mos[:10] += 0.5  # falls, so that both keep their places
    assert fitted(judged_of(scores, mos, raters=raters, per_prompt=20)).curve == ()


# Pairs


def pair_chances(meaning: Meaning, fresh: Judged) -> tuple[np.ndarray, np.ndarray]:
    """The chance of the first of each pair of one prompt, and whether it won."""
    chances, won = [], []
    for prompt in set(fresh.groups):
        rows = np.flatnonzero(fresh.groups == prompt)
        for a, b in combinations(rows.tolist(), 2):
            ours, theirs = ((fresh.scores[i], fresh.spread[i]) for i in (a, b))
            chances.append(meaning.is_better(ours, theirs))
            won.append(fresh.mos[a] > fresh.mos[b])
    return np.array(chances), np.array(won, dtype=float)


@pytest.mark.parametrize("shared", [0.0, 0.6], ids=["errors of images", "errors of prompts"])
def test_chances_of_pairs_come_true(shared: float) -> None:
    def prompts(rng: np.random.Generator, count: int) -> Judged:
        scores = rng.uniform(0.2, 0.8, count)
        error = np.repeat(rng.normal(0, shared, count // 4), 4) + rng.normal(0, 0.3, count)
        return judged_of(scores, (1 + 4 * scores + error).clip(1, 5))

    rng = np.random.default_rng(5)
    meaning = fitted(prompts(rng, 400))
    chances, won = pair_chances(meaning, prompts(rng, 1000))
    for low, high in ((0, 0.1), (0.1, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1)):
        rows = (chances >= low) & (chances < high)
        assert rows.sum() > 50
        # Three deviations of a share, pairs of a prompt being far from independent.
        most = 0.02 + 3 * (0.25 / rows.sum()) ** 0.5
        assert won[rows].mean() == pytest.approx(chances[rows].mean(), abs=most)
    assert meaning.pairs == pytest.approx(0.3 / (0.3**2 + shared**2) ** 0.5, rel=0.15)


@pytest.mark.parametrize("per_prompt", [1, 30], ids=["a prompt each", "one prompt"])
def test_one_prompt_and_prompts_of_one_image_are_calibrated_all_the_same(per_prompt: int) -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(30)
    mos = (1.5 + 3 * scores + rng.normal(0, 0.2, 30)).clip(1, 5)
    meaning = fitted(judged_of(scores, mos, per_prompt=per_prompt))
    assert meaning.mos(np.array([0.5])) == pytest.approx([3], abs=0.2)
    assert (meaning.pairs == 1) is (per_prompt == 1)
    assert 0.9 < meaning.is_better((0.9, 0.0), (0.1, 0.0)) <= 1
    assert 0.2 < width_at(meaning, 0.9) < 0.5


# Who counts


def test_only_images_with_an_opinion_and_a_score_count() -> None:
    mos = np.array([2.0, np.nan, 3.0, 4.0])
    table = made_table(mos_quality=mos, std_quality=[0.5, 0.1, np.nan, 0.2], group=list("abca"))
    found = judged(table, "quality", np.array([0.1, 0.2, 0.3, np.nan]), np.arange(4) / 10)
    assert (found.scores.tolist(), found.spread.tolist()) == ([0.1, 0.3], [0.0, 0.2])
    assert (found.mos.tolist(), found.groups.tolist()) == ([2, 3], ["a", "c"])
    assert found.raters == pytest.approx([0.5, np.nan], nan_ok=True)


def test_table_without_a_target_has_no_opinions_on_it() -> None:
    found = judged(made_table(mos_quality=[2.0, 3.0]), "look_feel", np.ones(2), np.zeros(2))
    assert len(found) == 0


def test_ten_opinions_are_enough() -> None:
    meaning = fitted(drawn(np.random.default_rng(0), 10))
    assert (meaning.validation, len(meaning.cuts)) == (10, 4)


@pytest.mark.parametrize("count", [0, 1, 9])
def test_fewer_than_ten_opinions_are_too_few(count: int) -> None:
    told = f"at least 10 validation images with opinions to calibrate on, got {count}"
    with pytest.raises(DataError, match=told):
        fitted(drawn(np.random.default_rng(0), count))


def test_percentiles_count_the_training_images_and_those_of_each_generator() -> None:
    rng = np.random.default_rng(0)
    scores, names = rng.random(700), rng.choice(["a", "b", ""], 700)
    known = drawn(rng, 40)
    meaning = fitted(known, population=scores, generators=names.tolist())
    assert (meaning.training, set(meaning.generators)) == (700, {"a", "b"})
    for generator, own in ((None, scores), ("a", scores[names == "a"])):
        for at in rng.random(20):
            expected = 100 * sum(own < at) / len(own)
            found = meaning.percentile(np.array([at]), generator)
            assert found == pytest.approx([expected], abs=1)


# Where labels begin


def test_cuts_count_what_is_right_and_found() -> None:
    known = falling(60)
    mos = 1 + 4 * known.scores
    for cut, bound in zip(fitted(known).cuts, (1.8, 2.6, 3.4, 4.2), strict=True):
        called, is_so = set(np.flatnonzero(mos >= bound)), set(np.flatnonzero(known.mos >= bound))
        assert cut.mos == pytest.approx(bound)
        assert cut.score == pytest.approx((bound - 1) / 4, abs=1e-4)
        assert cut.precision == pytest.approx(len(called & is_so) / len(called))
        assert cut.recall == pytest.approx(len(called & is_so) / len(is_so))
        assert cut.share == pytest.approx(len(is_so) / 60)


def test_cut_that_no_score_reaches_has_no_score() -> None:
    scores = np.linspace(0.1, 0.9, 40)
    *_, cut = fitted(judged_of(scores, 1.5 + scores)).cuts
    assert (cut.label, cut.score, cut.sure) == ("excellent", None, None)
    assert math.isnan(cut.precision)
    assert math.isnan(cut.recall)


@pytest.mark.parametrize("seed", range(3))
def test_nine_in_ten_are_right_from_the_sure_score_on_and_from_no_lower_one(seed: int) -> None:
    known = drawn(np.random.default_rng(seed), 120)
    for cut in fitted(known).cuts:
        is_so = known.mos >= cut.mos
        good = [
            at
            for at in known.scores
            if sum(known.scores >= at) >= 10 and is_so[known.scores >= at].mean() >= 0.9
        ]
        assert cut.sure == (min(good) if good else None)
        found = is_so[known.scores >= min(good)].sum() / is_so.sum() if good else 0
        assert cut.sure_recall == pytest.approx(found)


@pytest.mark.parametrize(("good", "is_sure"), [(8, False), (9, True)])
def test_sure_score_is_that_of_ten_images_at_least(good: int, is_sure: bool) -> None:
    scores = np.linspace(0.9, 0.1, 40)
    cut = fitted(judged_of(scores, np.where(np.arange(40) < good, 4.5, 1.5))).cuts[-1]
    assert (cut.sure, cut.sure_recall) == ((scores[9], 1.0) if is_sure else (None, 0.0))


def test_sure_score_counts_all_images_of_that_score() -> None:
    mos = np.repeat([4.5, 1.5], 10)
    cut = fitted(judged_of(np.full(20, 0.5), mos)).cuts[-1]
    assert cut.sure is None  # from 0.5 on one half is right


# Held to images that nothing has seen


def test_measures_count_intervals_and_calls() -> None:
    meaning = plain_meaning()  # MOS 1 + 4 score; deviations of one half; 1.6 of them
    scores, mos = [0.2, 0.4, 0.45, 0.8, 0.5, 0.9], [1.0, 3.5, 2.9, 3.9, 4.5, 5.0]
    found = measure_calibration(meaning, judged_of(scores, mos))
    errors = [abs(1 + 4 * s - m) for s, m in zip(scores, mos, strict=True)]
    assert found["mean_error"] == pytest.approx(mean(errors))
    assert found["calibration_error"] == pytest.approx(mean(errors))  # an image in each bin
    assert found["coverage_0.9"] == pytest.approx(sum(e <= 0.8 for e in errors) / 6)
    assert found["coverage_0.5"] == pytest.approx(sum(e <= 0.35 for e in errors) / 6)
    # The scale cuts the last two from above (0.8: 4.2, 0.9: 4.6) and none from below.
    assert found["width_0.9"] == pytest.approx((5 * 1.6 - 0.0 + 1.2) / 6)
    pairs = [*combinations(range(4), 2), (4, 5)]
    chances = [NormalDist(0, 0.5**0.5).cdf(4 * abs(scores[a] - scores[b])) for a, b in pairs]
    right = [(scores[a] > scores[b]) == (mos[a] > mos[b]) for a, b in pairs]
    called = [chance >= CLOSE for chance in chances]
    assert found["called"] == pytest.approx(mean(called))
    assert found["called_right"] == pytest.approx(
        mean(r for r, c in zip(right, called, strict=True) if c)
    )
    assert found["close_right"] == pytest.approx(
        mean(r for r, c in zip(right, called, strict=True) if not c)
    )
    gaps = [abs(c - r) for c, r in zip(chances, right, strict=True)]
    assert found["pair_error"] == pytest.approx(mean(gaps))  # a pair in each bin


def test_error_before_is_that_of_places_on_the_scale() -> None:
    scores = [0.2, 0.4, 0.6, 0.8]
    meaning = plain_meaning(curve=(5.0, 1.0, 0.5, 0.1))
    mos = meaning.mos(np.array(scores)).tolist()
    found = measure_calibration(meaning, judged_of(scores, mos))
    assert found["calibration_error"] == found["mean_error"] == 0
    expected = mean(abs(1 + 4 * s - m) for s, m in zip(scores, mos, strict=True))
    assert found["calibration_error_before"] == pytest.approx(expected)


def test_pairs_of_equal_opinions_are_no_pairs() -> None:
    found = measure_calibration(plain_meaning(), judged_of([0.2, 0.5, 0.8], [3.0, 3.0, 4.0]))
    assert (found["called"], found["called_right"]) == (1, 1)
    close = measure_calibration(plain_meaning(), judged_of([0.2, 0.21, 0.8], [3.0, 3.0, 4.0]))
    assert close["called"] == 1


def test_images_of_a_prompt_each_have_no_pairs_to_measure() -> None:
    found = measure_calibration(plain_meaning(), judged_of([0.2, 0.5], [2.0, 3.0], per_prompt=1))
    assert "coverage_0.9" in found
    assert "called" not in found


def test_share_of_calls_that_were_never_made_is_nan() -> None:
    close = measure_calibration(plain_meaning(), judged_of([0.5, 0.51], [2.0, 3.0]))
    assert (close["called"], close["close_right"]) == (0, 1)
    assert math.isnan(close["called_right"])
    far = measure_calibration(plain_meaning(), judged_of([0.1, 0.9], [2.0, 3.0]))
    assert (far["called"], far["called_right"]) == (1, 1)
    assert math.isnan(far["close_right"])


def test_equal_scores_are_right_in_one_half() -> None:
    rising = measure_calibration(plain_meaning(), judged_of([0.5] * 8, [1.0, 2, 3, 4] * 2))
    assert rising["close_right"] == 0.5


# The commands


@pytest.fixture(scope="module")
def known(calibrated_run: Path) -> Calibration:
    found = read_calibration(calibrated_run, read_run(calibrated_run).weights_sha256)
    assert found is not None
    return found


Rows = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def rows(calibrated_run: Path, judged_data: Path) -> Rows:
    """What the run says of each of its images."""
    paths = sorted(judged_data.parent.glob("*.png"))
    scores = Scorer.from_pretrained(calibrated_run).score(paths)
    found = [{"quality": s.quality, "alignment": s.alignment, **s.more} for s in scores]
    return {path.name: row for path, row in zip(paths, found, strict=True)}


@pytest.fixture(scope="module")
def opinions(judged_data: Path) -> dict[str, float]:
    lines = judged_data.read_text().splitlines()[1:]
    return {line.split(",")[0]: float(line.split(",")[3]) for line in lines}


def part_of(run: Path, part: str) -> tuple[str, ...]:
    split = read_split(run, read_run(run))
    names: tuple[str, ...] = getattr(split, part)
    return names


def test_training_calibrates_on_validation_and_ranks_among_training_images(
    calibrated_run: Path, known: Calibration, rows: Rows, opinions: dict[str, float]
) -> None:
    assert (known.data, known.views, list(known.targets)) == (
        *("noise", "grid-2"),
        ["quality", "alignment"],
    )
    train, val = (part_of(calibrated_run, part) for part in ("train", "val"))
    for target, meaning in known.targets.items():
        assert (meaning.low, meaning.high) == (1, 5)
        assert (meaning.training, meaning.validation) == (len(train), len(val))
        own = sorted(rows[name][target] for name in train)
        ends = meaning.population[0], meaning.population[50], meaning.population[100]
        assert ends == pytest.approx((own[0], median(own), own[-1]), abs=1e-6)
        assert set(meaning.generators) == {"a", "b"}
    scores = np.array([rows[name]["quality"] for name in val])
    curve = fit_logistic4(scores, np.array([opinions[name] for name in val]))
    assert curve is not None
    expected = logistic4(scores, *curve).clip(1, 5)
    assert known.targets["quality"].mos(scores) == pytest.approx(expected, abs=0.02)
    assert known.targets["quality"].raters
    assert not known.targets["alignment"].raters


def test_errors_on_validation_are_inside_the_intervals_that_they_made(
    calibrated_run: Path, known: Calibration, rows: Rows, opinions: dict[str, float]
) -> None:
    names = part_of(calibrated_run, "val")
    inside = [rows[n]["quality_low"] <= opinions[n] <= rows[n]["quality_high"] for n in names]
    assert mean(inside) >= 0.85  # errors are those of other folds' curves


def test_run_that_is_calibrated_again_says_the_same(
    capsys: Capture, copied: Path, calibrated_words: list[str]
) -> None:
    before = (copied / CALIBRATION).read_bytes()
    (copied / CALIBRATION).unlink()
    assert main([*calibrated_words, "--out", str(copied), "--resume"]) == 0
    told = f"calibrated on validation: quality, alignment; dcmpl info {copied} shows it"
    assert told in capsys.readouterr().err.splitlines()
    assert (copied / CALIBRATION).read_bytes() == before


def test_run_of_too_few_opinions_is_finished_all_the_same(
    capsys: Capture, copied: Path, calibrated_words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / CALIBRATION).unlink()
    monkeypatch.setattr("dcmpl.training.calibrate.FEWEST", 13)
    assert main([*calibrated_words, "--out", str(copied), "--resume"]) == 0
    told = capsys.readouterr().err.splitlines()
    for target in ("quality", "alignment"):
        assert (
            f"note: {target} is not calibrated: expected at least 13 validation images with "
            "opinions to calibrate on, got 12"
        ) in told
    assert not (copied / CALIBRATION).exists()


def _of_another(folder: Path) -> None:
    Calibration("x", "grid-2", "0" * 64, {}).write(folder)


def _changed(folder: Path) -> None:
    content = (folder / CALIBRATION).read_text()
    (folder / CALIBRATION).write_text(content.replace("grid-2", "grid-3"))


def _nested(folder: Path) -> None:
    (folder / CALIBRATION).write_text("[" * 10**5)


@pytest.mark.parametrize(
    ("command", "change"),
    [
        *(("info", change) for change in (_of_another, _changed, _nested)),
        *(("score", _changed), ("evaluate", _nested), ("export", _changed), ("train", _of_another)),
    ],
)
def test_every_command_refuses_a_damaged_calibration_in_one_sentence(
    capsys: Capture,
    copied: Path,
    judged_data: Path,
    calibrated_words: list[str],
    command: str,
    change: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    change(copied)
    image = judged_data.parent / "000.png"
    words: dict[str, list[object]] = {
        "info": [copied],
        "score": [image, "--model", copied, "-o", tmp_path / "x.csv"],
        "evaluate": [copied],
        "export": [copied, "-o", tmp_path / "x", "--images", image],
        "train": [*calibrated_words[1:], "--out", copied, "--resume"],
    }
    told = refused(capsys, 1, command, *words[command])
    assert told.startswith("expected ")
    assert str(copied / CALIBRATION) in told


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """``dcmpl evaluate`` with two bootstrap draws and without plots and floors."""
    from dcmpl.evaluation import results

    monkeypatch.setattr(results, "FITTED_DRAWS", 1)
    monkeypatch.setattr(results, "write_results", partial(results.write_results, draws=2))
    monkeypatch.setattr(results, "write_plots", lambda *_: True)
    monkeypatch.setattr(results, "statistics_of", lambda *_: {})
    monkeypatch.setattr(results, "predict_baselines", lambda *_: {})
    monkeypatch.setenv("COLUMNS", "160")


def test_evaluate_measures_the_calibration_on_the_test_part(
    capsys: Capture,
    copied: Path,
    known: Calibration,
    rows: Rows,
    opinions: dict[str, float],
    quick: None,
) -> None:
    assert main(["evaluate", str(copied)]) == 0
    printed = capsys.readouterr().out
    found = json.loads((copied / "metrics.json").read_text())["calibration"]
    assert set(found) == {"quality", "alignment"}
    names = part_of(copied, "test")
    tested = {name: rows[name] for name in names}
    inside = [r["quality_low"] <= opinions[n] <= r["quality_high"] for n, r in tested.items()]
    assert found["quality"]["coverage_0.9"] == pytest.approx(mean(inside))
    widths = [row["quality_high"] - row["quality_low"] for row in tested.values()]
    assert found["quality"]["width_0.9"] == pytest.approx(mean(widths), abs=1e-4)
    errors = [abs(row["quality_mos"] - opinions[name]) for name, row in tested.items()]
    assert found["quality"]["mean_error"] == pytest.approx(mean(errors), abs=1e-3)
    pairs = [(a, b) for a, b in combinations(names, 2) if (int(a[:3]) - int(b[:3])) % PROMPTS == 0]
    chances = {
        (a, b): known.targets["quality"].is_better(
            *((rows[n]["quality"], rows[n]["quality_spread"]) for n in (a, b))
        )
        for a, b in pairs
        if opinions[a] != opinions[b]
    }
    called = [pair for pair, chance in chances.items() if not 1 - CLOSE < chance < CLOSE]
    assert found["quality"]["called"] == pytest.approx(len(called) / len(chances))
    right = [(chances[a, b] > 0.5) == (opinions[a] > opinions[b]) for a, b in called]
    assert found["quality"]["called_right"] == pytest.approx(mean(right))
    shown = next(line for line in printed.splitlines() if "MOS inside the 90 % interval" in line)
    cells = [cell.strip() for cell in shown.strip("│ ").split("│")[1:]]
    assert cells == [f"{found[t]['coverage_0.9']:.3f}" for t in ("quality", "alignment")]
    for name in ("calibration error, MOS units", "decided pairs"):
        assert name in printed


def test_evaluate_of_an_uncalibrated_run_says_why_nothing_is_measured(
    capsys: Capture, uncalibrated_run: Path, tmp_path: Path, quick: None
) -> None:
    assert main(["evaluate", str(uncalibrated_run), "--out", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert (
        f"note: no calibration of {uncalibrated_run} can be measured: it was not calibrated "
        "(dcmpl train --resume does that)"
    ) in told.err.splitlines()
    assert json.loads((tmp_path / "metrics.json").read_text())["calibration"] == {}
    assert "90 % interval" not in told.out


def test_evaluate_on_another_scale_measures_no_calibration(
    capsys: Capture, calibrated_run: Path, tmp_path: Path, quick: None
) -> None:
    """Opinions from 0 to 10 are nothing that intervals from 1 to 5 could hold."""
    rng = np.random.default_rng(8)
    for i in range(6):
        pixels = rng.integers(0, 256, (40, 44, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    rows = "".join(f"{i}.png,another {i // 2},{1 + i / 2}\n" for i in range(6))
    (tmp_path / "other.csv").write_text(f"image,prompt,mos_quality\n{rows}")
    words = f"--data {tmp_path}/other.csv --split all --out {tmp_path}/out --mos-scale"
    for scale, is_measured in (("0 10", False), ("1 5", True)):
        assert main(["evaluate", str(calibrated_run), *words.split(), *scale.split()]) == 0
        metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert list(metrics["calibration"]) == (["quality"] if is_measured else [])
        assert ("90 % interval" in capsys.readouterr().out) is is_measured


@pytest.mark.parametrize("rows", [1, 10, 11, 400])
def test_some_of_many_rows_are_drawn_from_the_seed_and_stay_in_order(rows: int) -> None:
    table = made_table(prompt=[str(row) for row in range(rows)])
    one, same, other = (_some(table, 10, seed).frame["prompt"].astype(int) for seed in (0, 0, 1))
    assert one.tolist() == sorted(set(one)) == same.tolist()
    assert len(one) == min(rows, 10)
    assert (one.tolist() != other.tolist()) == (rows > 10)
    if rows == 400:  # no stride, which would take every other kind of a table that alternates
        assert len(set(np.diff(one))) > 3


def test_target_without_a_training_score_is_not_calibrated() -> None:
    known = drawn(np.random.default_rng(0), 40)
    with pytest.raises(DataError, match=r"^expected training images with a prompt"):
        fit_meaning(known, SCALE, np.full(3, np.nan), ["a", "b", ""])
