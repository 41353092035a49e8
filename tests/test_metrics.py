"""Metrics equal scipy's where they are defined, and are nan where they are not."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dcmpl.metrics import (
    CURVES,
    bootstrap,
    krcc,
    logistic_mapped,
    plcc,
    plcc_mapped,
    rmse,
    srcc,
    within,
)

TOLERANCE = 1e-12
"""Float64 sums of at most 300 terms, added in another order."""

CORRELATIONS = {
    "srcc": (srcc, lambda x, y: stats.spearmanr(x, y).statistic),
    "plcc": (plcc, lambda x, y: stats.pearsonr(x, y).statistic),
    "krcc": (krcc, lambda x, y: stats.kendalltau(x, y).statistic),
}
Metric = Callable[[np.ndarray, np.ndarray], float]


def cases(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Related pairs of 3 to 300 values with few, some and many ties."""
    rng = np.random.default_rng(0)
    found = []
    while len(found) < count:
        n = int(rng.integers(3, 300))
        y = rng.normal(size=n)
        x = y * rng.uniform(-2, 2) + rng.normal(size=n)
        if len(found) % 2:
            x, y = (np.round(a * rng.uniform(0.5, 3)) for a in (x, y))
        if np.ptp(x) > 0 and np.ptp(y) > 0:
            found.append((x, y))
    return found


@pytest.mark.parametrize("name", CORRELATIONS)
def test_correlation_equals_scipy_with_and_without_ties(name: str) -> None:
    ours, theirs = CORRELATIONS[name]
    pairs = cases(200)
    expected = [theirs(x, y) for x, y in pairs]
    assert [ours(x, y) for x, y in pairs] == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("name", CORRELATIONS)
@pytest.mark.parametrize("length", [0, 1])
def test_correlation_of_less_than_two_values_is_nan(name: str, length: int) -> None:
    assert np.isnan(CORRELATIONS[name][0](np.ones(length), np.ones(length)))


@pytest.mark.parametrize("name", CORRELATIONS)
@pytest.mark.parametrize(("slope", "expected"), [(3.0, 1.0), (-3.0, -1.0)])
def test_two_values_agree_or_disagree(name: str, slope: float, expected: float) -> None:
    x = np.array([0.2, 0.7])
    assert CORRELATIONS[name][0](x, slope * x) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("name", CORRELATIONS)
@pytest.mark.parametrize("length", [2, 3, 50])
def test_correlation_with_a_constant_is_nan(name: str, length: int) -> None:
    metric, rising, flat = CORRELATIONS[name][0], np.arange(length) / 7, np.full(length, 0.1)
    assert np.isnan(metric(flat, rising))
    assert np.isnan(metric(rising, flat))


@pytest.mark.parametrize("name", CORRELATIONS)
def test_correlation_changes_its_sign_with_the_predictions(name: str) -> None:
    metric = CORRELATIONS[name][0]
    for x, y in cases(20):
        assert metric(-x, y) == pytest.approx(-metric(x, y), abs=TOLERANCE)


@pytest.mark.parametrize("metric", [srcc, krcc])
def test_rank_correlation_ignores_a_monotone_map(metric: Metric) -> None:
    for x, y in cases(20):
        assert metric(np.exp(x / 4), y) == pytest.approx(metric(x, y), abs=TOLERANCE)


def test_rmse_is_the_root_of_the_mean_square() -> None:
    x, y = np.array([1.0, 2.0, 4.0]), np.array([1.0, 4.0, 3.0])
    assert rmse(x, y) == pytest.approx((5 / 3) ** 0.5, abs=TOLERANCE)


def test_rmse_of_equal_values_is_zero() -> None:
    assert rmse(np.arange(4.0), np.arange(4.0)) == 0


def test_rmse_of_nothing_is_nan() -> None:
    assert np.isnan(rmse(np.empty(0), np.empty(0)))


def sigmoidal(n: int = 200, noise: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Opinions that saturate at both ends of the predictions."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 2, n)
    return x, 1 + 4 / (1 + np.exp(-(x - 0.5) / 0.15)) + rng.normal(0, noise, n)


def test_mapping_is_monotone() -> None:
    x, y = sigmoidal()
    steps = np.diff(logistic_mapped(x, y)[np.argsort(x)])
    assert (steps >= 0).all()


def test_mapping_raises_plcc_where_opinions_saturate() -> None:
    x, y = sigmoidal()
    assert plcc_mapped(x, y) > plcc(x, y) + 0.01


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.5, 2.0])
def test_mapping_does_not_lower_plcc_of_a_sigmoid(noise: float) -> None:
    x, y = sigmoidal(noise=noise)
    assert plcc_mapped(x, y) >= plcc(x, y) - 1e-6  # the fit ends at a tolerance


def test_mapping_recovers_a_logistic_without_noise() -> None:
    x, y = sigmoidal(noise=0.0)
    assert logistic_mapped(x, y) == pytest.approx(y, abs=1e-4)  # the fit ends at a tolerance


@pytest.mark.parametrize("parameters", [4, 5])
@pytest.mark.parametrize(
    "at", [[2.0, -1.5, 0.3, 0.7], [-1.0, 3.0, -0.2, -0.4], [1.0, 2.0, 9.0, 1e-3]]
)
def test_slopes_of_the_mappings_are_their_derivatives(
    parameters: Literal[4, 5], at: list[float]
) -> None:
    curve, slopes = CURVES[parameters]
    x, at = np.linspace(-2, 2, 9), [*at, 0.1][:parameters]
    for place, value in enumerate(at):
        step = 1e-6 * max(1.0, abs(value))
        ends = [curve(x, *at[:place], value + side * step, *at[place + 1 :]) for side in (1, -1)]
        expected = (ends[0] - ends[1]) / (2 * step)
        assert slopes(x, *at)[:, place] == pytest.approx(expected, abs=1e-6, rel=1e-5)


@pytest.mark.parametrize("length", [0, 1, 4])
def test_mapping_of_few_values_leaves_them(length: int) -> None:
    x = np.arange(length) / 3
    assert np.array_equal(logistic_mapped(x, x**2), x)


def test_mapping_of_a_constant_leaves_it() -> None:
    x = np.full(20, 0.4)
    assert np.array_equal(logistic_mapped(x, np.arange(20.0)), x)


@settings(deadline=None, max_examples=40)
@given(st.integers(5, 60), st.integers(0, 10_000))
def test_mapping_of_noise_is_finite(length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert np.isfinite(logistic_mapped(rng.random(length), rng.random(length))).all()


def test_within_is_the_mean_over_classes() -> None:
    x = np.array([1.0, 2.0, 3.0, 1.0, 2.0, 3.0])
    y = np.array([1.0, 2.0, 3.0, 3.0, 2.0, 1.0])
    assert within(x, y, np.array(list("aaabbb"))) == pytest.approx(0.0, abs=TOLERANCE)


def test_within_rewards_no_telling_apart_of_classes() -> None:
    rng = np.random.default_rng(0)
    members = np.repeat(["bad", "good"], 500)
    offset = np.where(members == "good", 10.0, 0.0)
    x, y = offset + rng.random(1000), offset + rng.random(1000)
    assert srcc(x, y) > 0.7
    assert abs(within(x, y, members)) < 0.1  # three deviations of the mean of two


def test_within_leaves_out_classes_that_have_no_value() -> None:
    x = np.array([1.0, 2.0, 5.0, 7.0, 8.0])
    y = np.array([1.0, 2.0, 9.0, 3.0, 3.0])
    assert within(x, y, np.array(list("aabcc"))) == pytest.approx(1.0, abs=TOLERANCE)


def test_within_single_members_is_nan() -> None:
    assert np.isnan(within(np.arange(3.0), np.arange(3.0), np.array(list("abc"))))


def related(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    y = rng.random(n)
    return y + rng.normal(0, 0.2, n), y


def test_bootstrap_is_deterministic() -> None:
    x, y = related(60)
    assert bootstrap(srcc, x, y, np.arange(60), 100) == bootstrap(srcc, x, y, np.arange(60), 100)


def test_bootstrap_of_another_seed_draws_others() -> None:
    x, y = related(60)
    first, other = (bootstrap(srcc, x, y, np.arange(60), 100, seed) for seed in (0, 1))
    assert first.low != other.low


def test_bootstrap_value_is_that_of_all_rows() -> None:
    x, y = related(60)
    assert bootstrap(srcc, x, y, np.arange(60), 50).value == srcc(x, y)


@pytest.mark.parametrize("metric", [srcc, plcc, krcc, rmse])
def test_bootstrap_interval_contains_the_value(metric: Metric) -> None:
    x, y = related(200)
    found = bootstrap(metric, x, y, np.arange(200) // 2, 300)
    assert found.low < found.value < found.high


def test_bootstrap_interval_covers_95_percent_as_theory_has_it() -> None:
    x, y = related(300)
    found = bootstrap(plcc, x, y, np.arange(300), 1000)
    centre, half = np.arctanh(plcc(x, y)), 1.96 / np.sqrt(297)  # Fisher's transformation
    # A fifth of the width: noise of 1,000 draws, and a distribution that is no normal one.
    assert found.low == pytest.approx(np.tanh(centre - half), abs=0.4 * half * (1 - 0.8**2))
    assert found.high == pytest.approx(np.tanh(centre + half), abs=0.4 * half * (1 - 0.8**2))


def test_bootstrap_redraws_groups_and_not_rows() -> None:
    x, y = (np.repeat(values, 8) for values in related(40))
    groups = np.repeat(np.arange(40), 8)
    by_group = bootstrap(srcc, x, y, groups, 300)
    by_row = bootstrap(srcc, x, y, np.arange(320), 300)
    # Eight equal rows are one: the interval is sqrt(8) = 2.8 times as wide.
    assert by_group.high - by_group.low > 2 * (by_row.high - by_row.low)


def test_bootstrap_of_equal_rows_is_that_of_one_row_each() -> None:
    x, y = related(40)
    alone = bootstrap(srcc, x, y, np.arange(40), 100)
    eight = bootstrap(srcc, np.repeat(x, 8), np.repeat(y, 8), np.repeat(np.arange(40), 8), 100)
    assert eight.low == pytest.approx(alone.low, abs=TOLERANCE)
    assert eight.high == pytest.approx(alone.high, abs=TOLERANCE)


@pytest.mark.parametrize("length", [0, 1, 6])
def test_bootstrap_of_one_group_has_no_interval(length: int) -> None:
    x = np.arange(length) / 3
    found = bootstrap(rmse, x, x, np.zeros(length), 20)
    assert np.isnan([found.low, found.high]).all()


def test_bootstrap_takes_names_as_groups() -> None:
    x, y = related(20)
    names = np.array([f"prompt {i:02}" for i in range(20)])
    assert bootstrap(srcc, x, y, names, 50) == bootstrap(srcc, x, y, np.arange(20), 50)
