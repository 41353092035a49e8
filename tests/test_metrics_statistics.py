"""Statistics equal scipy's, plain loops and hand computations; what is undefined is nan."""

import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dcmpl.metrics import (
    compare_paired,
    krcc,
    logistic_mapped,
    pairwise_accuracy,
    plcc,
    plcc_mapped,
    plcc_mapped5,
    redrawn,
    rmse,
    srcc,
)

TOLERANCE = 1e-12
"""Float64 sums of at most 60 terms, added in another order."""

FITTED = 1e-4
"""Of a deviation: fits end at a tolerance."""

Metric = Callable[[np.ndarray, np.ndarray], float]

METRICS: dict[str, tuple[Metric, Metric]] = {
    "srcc": (srcc, lambda x, y: stats.spearmanr(x, y).statistic),
    "plcc": (plcc, lambda x, y: stats.pearsonr(x, y).statistic),
    "krcc": (krcc, lambda x, y: stats.kendalltau(x, y, variant="b").statistic),
    "rmse": (rmse, lambda x, y: np.linalg.norm(x - y) / len(x) ** 0.5),
}


def random_pair(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Plain, tied, with a constant, with a NaN, or tiny; the kind follows from ``index``."""
    rng = np.random.default_rng(index)
    n = int(rng.integers(0, 5)) if index % 5 == 4 else int(rng.integers(2, 60))
    y = rng.normal(size=n) * 10 ** rng.uniform(-3, 3)
    x = y * rng.uniform(-2, 2) + rng.normal(size=n)
    if index % 5 == 1:
        x, y = np.round(x), np.round(y, int(rng.integers(-1, 2)))
    if index % 5 == 2:
        (x if rng.random() < 0.5 else y)[:] = 0.1
    if index % 5 == 3 and n:
        (x if rng.random() < 0.5 else y)[rng.integers(n)] = np.nan
    return x, y


@pytest.mark.parametrize("name", METRICS)
def test_metric_equals_the_reference_on_1000_random_cases(name: str) -> None:
    ours, theirs = METRICS[name]
    least = 1 if name == "rmse" else 2  # of fewer nothing is defined
    pairs = [random_pair(index) for index in range(1000)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's of constants
        expected = [theirs(x, y) if len(x) >= least else np.nan for x, y in pairs]
    found = [ours(x, y) for x, y in pairs]
    assert found == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE, nan_ok=True)
    undefined = sum(map(np.isnan, found))
    assert (200 if name == "rmse" else 400) < undefined < 700
    assert {type(value) for value in found} == {float}


def by_double_loop(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> float:
    right = pairs = 0.0
    for i in range(len(x)):
        for j in range(i):
            known = not np.isnan([x[i], x[j], y[i], y[j]]).any()
            if groups[i] != groups[j] or not known or y[i] == y[j]:
                continue
            pairs += 1
            right += 0.5 if x[i] == x[j] else float((x[i] > x[j]) == (y[i] > y[j]))
    return right / pairs if pairs else np.nan


def test_pairwise_accuracy_equals_a_plain_double_loop() -> None:
    for seed in range(150):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(0, 30))
        x, y = np.round(rng.random(n), 1), np.round(rng.random(n), 1)
        x[rng.random(n) < 0.05] = np.nan
        y[rng.random(n) < 0.05] = np.nan
        groups = rng.integers(0, 6, n).astype(str if seed % 2 else int)
        expected = by_double_loop(x, y, groups)
        found = pairwise_accuracy(x, y, groups)
        assert found == pytest.approx(expected, abs=TOLERANCE, nan_ok=True)


@pytest.mark.parametrize(("slope", "expected"), [(2.0, 1.0), (-2.0, 0.0), (0.0, 0.5)])
def test_pairwise_accuracy_of_the_best_the_worst_and_of_one_answer(
    slope: float, expected: float
) -> None:
    y = np.array([1.0, 2.0, 4.0, 3.0, 1.0])
    assert pairwise_accuracy(slope * y, y, np.array(list("aaabb"))) == expected


def test_pairwise_accuracy_earns_nothing_by_telling_prompts_apart() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(300), 4)
    y, x = groups + rng.random(1200), groups + rng.random(1200)
    # 1,800 pairs, of which the six of a group are not independent: a deviation below 0.02.
    assert pairwise_accuracy(x, y, groups) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("opinion", [[1.0, 2.0, 3.0], [2.0, 2.0, 2.0]], ids=["alone", "equal"])
def test_pairwise_accuracy_without_pairs_is_nan(opinion: list[float]) -> None:
    groups = np.zeros(3) if opinion[0] == opinion[1] else np.arange(3.0)
    assert np.isnan(pairwise_accuracy(np.arange(3.0), np.array(opinion), groups))


def spaced(seed: int, n: int = 120) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, n)


LOGISTICS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    4: lambda x: 20 + 60 / (1 + np.exp(-(x - 0.1) / 0.2)),
    5: lambda x: 3 * (0.5 - 1 / (1 + np.exp(6 * (x - 0.2)))) + 0.8 * x + 2,
}


@pytest.mark.parametrize("parameters", [4, 5])
@pytest.mark.parametrize("sign", [1, -1], ids=["rising", "falling"])
def test_logistic_is_fitted_back(parameters: int, sign: int) -> None:
    for seed in range(5):
        x = spaced(seed)
        y = LOGISTICS[parameters](x)
        mapped = logistic_mapped(sign * x, y, 4 if parameters == 4 else 5)
        assert mapped == pytest.approx(y, abs=FITTED * y.std())


MONOTONE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "straight": lambda x: 3 * x + 1,
    "exponential": np.exp,
    "cubic": lambda x: x**3,
    "root": lambda x: np.sqrt(x + 1.01),
    "steep": lambda x: 1 / (1 + np.exp(-10 * x)),
    "bent": lambda x: np.tanh(3 * x) + x,
}


@pytest.mark.parametrize("name", MONOTONE)
@pytest.mark.parametrize("sign", [1, -1], ids=["rising", "falling"])
def test_five_parameters_follow_a_monotone_curve(name: str, sign: int) -> None:
    """Each of these is within 0.1 % of some curve of the family, whichever way it goes."""
    x = spaced(1)
    assert plcc_mapped5(sign * x, MONOTONE[name](x)) > 0.999


@pytest.mark.parametrize("name", ["straight", "exponential", "root", "steep", "bent"])
@pytest.mark.parametrize("sign", [1, -1], ids=["rising", "falling"])
def test_four_parameters_follow_a_monotone_curve(name: str, sign: int) -> None:
    x = spaced(1)
    assert plcc_mapped(sign * x, MONOTONE[name](x)) > 0.995


def test_five_parameters_never_agree_less_than_none() -> None:
    """A straight line is one of their curves."""
    for seed in range(25):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 60))
        y = rng.normal(size=n)
        x = rng.uniform(0, 1) * y + rng.normal(size=n) * rng.uniform(0.05, 1.5)
        plain, mapped = plcc(x, y), plcc_mapped5(x, y)
        assert mapped >= plain - 1e-6, seed


DEGENERATE: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "constant predictions": (np.full(20, 0.1), np.arange(20.0)),
    "constant opinions": (np.arange(20.0), np.full(20, 0.1)),
    "nothing": (np.empty(0), np.empty(0)),
    "one": (np.ones(1), np.ones(1)),
    "as many as parameters": (np.arange(5.0) ** 2, np.arange(5.0)),
    "a missing prediction": (np.append(np.arange(20.0), np.nan), np.arange(21.0)),
    "a missing opinion": (np.arange(21.0), np.append(np.arange(20.0), np.nan)),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_predictions_that_cannot_be_fitted_come_back_unchanged(name: str) -> None:
    x, y = DEGENERATE[name]
    assert np.array_equal(logistic_mapped(x, y, 5), x, equal_nan=True)
    if name != "as many as parameters":
        assert np.array_equal(logistic_mapped(x, y, 4), x, equal_nan=True)


def test_fit_does_not_depend_on_the_units() -> None:
    x = spaced(2)
    y = LOGISTICS[5](x) + np.random.default_rng(0).normal(0, 0.2, len(x))
    plain = logistic_mapped(x, y, 5)
    scaled = logistic_mapped(1e4 * x - 3e5, 1e-3 * y + 7, 5)
    assert (scaled - 7) * 1e3 == pytest.approx(plain, abs=FITTED * y.std())


GROUPS = np.array(["b", "a", "b", "c", "a", "b"])


def test_samples_are_whole_groups_and_as_many_as_there_are() -> None:
    members = {name: np.flatnonzero(name == GROUPS).tolist() for name in "abc"}
    seen = set()
    for rows in redrawn(GROUPS, 200, 0):
        left, drawn = rows.tolist(), []
        while left:
            drawn.append(str(GROUPS[left[0]]))
            size = len(members[drawn[-1]])
            assert left[:size] == members[drawn[-1]]
            left = left[size:]
        assert len(drawn) == 3
        seen.add(tuple(drawn))
    assert len(seen) == 27  # each of 27 is missed by 200 draws once in 2,000 seeds


def test_samples_are_the_same_for_a_seed_and_others_for_another() -> None:
    first, again, other = (
        [rows.tolist() for rows in redrawn(GROUPS, 20, seed)] for seed in (5, 5, 6)
    )
    assert first == again != other
    assert len(first) == 20


@pytest.mark.parametrize("groups", [[], ["a"], ["a", "a", "a"]])
def test_fewer_than_two_groups_give_no_samples(groups: list[str]) -> None:
    assert list(redrawn(np.array(groups, dtype=str), 10, 0)) == []


def runs(groups: int = 40, size: int = 5) -> tuple[np.ndarray, ...]:
    """A good run, a worse one, opinions, and groups that share some of the error."""
    rng = np.random.default_rng(0)
    numbers = np.repeat(np.arange(groups), size)
    y = rng.random(groups * size)
    shared = rng.normal(0, 0.1, groups)[numbers]
    good, worse = (y + shared + rng.normal(0, noise, len(y)) for noise in (0.05, 0.4))
    return good, worse, y, numbers


@pytest.mark.parametrize("metric", [srcc, plcc, rmse])
def test_run_against_itself_differs_by_nothing(metric: Metric) -> None:
    good, _, y, groups = runs()
    found = compare_paired(metric, good, good.copy(), y, groups, draws=100)
    assert (found.difference, found.low, found.high, found.p_bootstrap) == (0, 0, 0, 1)
    assert np.isnan(found.p_wilcoxon)


def test_clearly_better_run_has_the_smallest_p_there_is() -> None:
    good, worse, y, groups = runs()
    found = compare_paired(srcc, good, worse, y, groups, draws=400)
    assert found.difference == srcc(good, y) - srcc(worse, y) > 0.2
    assert 0 < found.low < found.difference < found.high
    assert found.p_bootstrap == 2 / 401
    assert found.p_wilcoxon < 1e-4


def test_swapped_runs_differ_by_the_sign() -> None:
    good, worse, y, groups = runs()
    close = good + 0.3 * (worse - good)
    one = compare_paired(srcc, good, close, y, groups, draws=200)
    other = compare_paired(srcc, close, good, y, groups, draws=200)
    assert other.difference == -one.difference
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low), abs=TOLERANCE)
    assert other.p_bootstrap == one.p_bootstrap
    assert other.p_wilcoxon == pytest.approx(one.p_wilcoxon, abs=TOLERANCE)


def test_equally_good_runs_seldom_have_a_small_p() -> None:
    """Below 0.05 about once in twenty: of 60 comparisons more than 9 would be once in 1,000."""
    small = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        y, groups = rng.random(90), np.repeat(np.arange(30), 3)
        ours, theirs = (y + rng.normal(0, 0.3, 90) for _ in range(2))
        small += compare_paired(plcc, ours, theirs, y, groups, draws=99).p_bootstrap < 0.05
    assert small <= 9


def test_groups_and_not_rows_are_redrawn() -> None:
    good, worse, y, _ = runs(40, 1)
    eight = [np.repeat(values, 8) for values in (good, worse, y)]
    alone = compare_paired(srcc, good, worse, y, np.arange(40), draws=200)
    grouped = compare_paired(srcc, *eight, np.repeat(np.arange(40), 8), draws=200)
    by_row = compare_paired(srcc, *eight, np.arange(320), draws=200)
    for name in ("difference", "low", "high", "p_bootstrap", "p_wilcoxon"):
        assert getattr(grouped, name) == pytest.approx(getattr(alone, name), abs=1e-9)
    # Eight equal rows are one: the interval is sqrt(8) = 2.8 times as wide.
    assert grouped.high - grouped.low > 2 * (by_row.high - by_row.low)


@pytest.mark.parametrize("digits", [16, 1], ids=["all differ", "ties and zeros"])
@pytest.mark.parametrize("groups", [2, 5, 12, 70])
def test_wilcoxon_equals_scipys_on_the_groups_means(groups: int, digits: int) -> None:
    rng = np.random.default_rng(groups)
    n = 3 * groups
    y, ours, theirs = (rng.random(n).round(digits) for _ in range(3))
    numbers = np.append(np.arange(groups), rng.integers(0, groups, n - groups))
    frame = pd.DataFrame({"d": np.abs(ours - y) - np.abs(theirs - y), "g": numbers})
    expected = stats.wilcoxon(frame.groupby("g")["d"].mean().to_numpy()).pvalue
    found = compare_paired(srcc, ours, theirs, y, numbers, draws=0)
    assert found.p_wilcoxon == pytest.approx(expected, abs=1e-9)
    assert np.isnan([found.low, found.high, found.p_bootstrap]).all()


def test_single_group_has_a_difference_and_no_p() -> None:
    good, worse, y, _ = runs(1, 30)
    found = compare_paired(srcc, good, worse, y, np.zeros(30))
    assert found.difference == srcc(good, y) - srcc(worse, y)
    assert np.isnan([found.low, found.high, found.p_bootstrap, found.p_wilcoxon]).all()


def test_comparison_is_the_same_again_and_takes_names_as_groups() -> None:
    good, worse, y, groups = runs()
    names = np.array([f"prompt {g:03}" for g in groups])
    first = compare_paired(srcc, good, worse, y, groups, draws=50)
    assert first == compare_paired(srcc, good, worse, y, groups, draws=50)
    assert first == compare_paired(srcc, good, worse, y, names, draws=50)
