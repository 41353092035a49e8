"""A benchmark summed up: intervals, paired differences, optimism, and what is said of them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dcmpl.errors import DataError
from dcmpl.evaluation.summary import SUMMARY, summarise, trial_rows, verdict, write_summary

EXACT = 1e-9
BASELINE = "baseline: generator's mean"
CLEAN, LEAKY = [0.70, 0.74, 0.69, 0.75], [0.80, 0.83, 0.85]


def numbers(srcc: float | None) -> dict[str, Any]:
    """A target's metrics; all but SRCC lie a known step below it."""
    value = np.nan if srcc is None else srcc
    steps = {"srcc": 0.0, "plcc": 0.01, "krcc": 0.2}
    found: dict[str, Any] = {
        name: {"value": None if srcc is None else value - step, "low": None, "high": None}
        for name, step in steps.items()
    }
    return {
        **found,
        "n": 20,
        "within_generator_srcc": value - 0.3,
        "pairwise_accuracy": value - 0.05,
    }


def result(
    protocol: str,
    repeat: int,
    quality: float | None,
    alignment: float | None = None,
    floor: float | None = None,
    chosen: Sequence[float | None] = (),
    best: int = 1,
    name: str = "model",
) -> dict[str, Any]:
    """A trial's metrics with SRCC as told; ``chosen`` is SRCC of quality epoch by epoch."""
    found: dict[str, Any] = {"protocol": protocol, "repeat": repeat, "quality": numbers(quality)}
    found |= {"name": name, "data": "set", "parameters": 7, "seconds_per_step": 0.5}
    if alignment is not None:
        found["alignment"] = numbers(alignment)
    plain = {n: v["value"] if isinstance(v, dict) else v for n, v in numbers(floor).items()}
    found["baselines"] = {"generator": {"quality": plain}} if floor is not None else {}
    history = [{"loss": 0.1, "quality_srcc": value} for value in chosen]
    return {**found, "history": history, "best_epoch": best}


def repeated(protocol: str, values: Sequence[float | None], **more: Any) -> list[dict[str, Any]]:
    return [result(protocol, i, value, **more) for i, value in enumerate(values)]


def summed(results: Sequence[dict[str, Any]]) -> pd.DataFrame:
    return summarise(pd.DataFrame([row for result in results for row in trial_rows(result)]))


def row(frame: pd.DataFrame, protocol: str, predictor: str = "model") -> "pd.Series[Any]":
    (found,) = (
        r
        for _, r in frame.iterrows()
        if (r["protocol"], r["variant"], r["target"]) == (protocol, predictor, "quality")
    )
    return found


def test_mean_median_deviation_and_interval_are_those_of_the_repeats() -> None:
    found = row(summed(repeated("clean", CLEAN)), "clean")
    half = stats.t.ppf(0.975, 3) * np.std(CLEAN, ddof=1) / 2
    assert found["repeats"] == 4
    assert found["mean"] == pytest.approx(0.72, abs=EXACT)
    assert found["median"] == pytest.approx(0.72, abs=EXACT)
    assert found["deviation"] == pytest.approx(np.std(CLEAN, ddof=1), abs=EXACT)
    assert [found["low"], found["high"]] == pytest.approx([0.72 - half, 0.72 + half], abs=EXACT)


def test_other_metrics_are_means_over_the_repeats() -> None:
    found = row(summed(repeated("clean", CLEAN)), "clean")
    names = ["plcc", "krcc", "within_generator_srcc", "pairwise_accuracy"]
    assert [found[name] for name in names] == pytest.approx([0.71, 0.52, 0.42, 0.67], abs=EXACT)


def test_what_the_prompt_is_worth_is_a_mean_over_the_repeats_of_what_reads() -> None:
    trials = repeated("clean", CLEAN, alignment=0.5, floor=0.3)
    for repeat, trial in enumerate(trials):
        trial["prompts"] = {"alignment": {"own_higher": 0.8 + repeat / 100, "srcc_drop": 0.04}}
    frame = summarise(pd.DataFrame([row for trial in trials for row in trial_rows(trial)]))
    of_model = frame[frame["variant"] == "model"].set_index("target")
    assert of_model.loc["alignment", "own_higher"] == pytest.approx(0.815, abs=EXACT)
    assert of_model.loc["alignment", "srcc_drop"] == pytest.approx(0.04, abs=EXACT)
    assert of_model.loc["quality", ["own_higher", "srcc_drop"]].isna().all()
    assert frame[frame["variant"] != "model"]["own_higher"].isna().all()


def test_optimism_is_the_difference_of_means_with_welchs_interval_by_hand() -> None:
    trials = [*repeated("clean", CLEAN), *repeated("image-level", LEAKY)]
    found = row(summed(trials), "image-level")
    a, b = np.array(LEAKY), np.array(CLEAN)
    difference = a.mean() - b.mean()
    parts = [x.var(ddof=1) / len(x) for x in (a, b)]
    error = sum(parts) ** 0.5
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 3)
    half = stats.t.ppf(0.975, freedom) * error
    assert found["optimism"] == pytest.approx(difference, abs=EXACT)
    assert [found["optimism low"], found["optimism high"]] == pytest.approx(
        [difference - half, difference + half], abs=EXACT
    )
    p = 2 * stats.t.sf(difference / error, freedom)
    assert found["optimism p"] == pytest.approx(p, rel=1e-6)


def test_clean_has_no_optimism_over_itself() -> None:
    trials = [*repeated("clean", CLEAN), *repeated("image-level", LEAKY)]
    found = row(summed(trials), "clean")
    assert found[["optimism", "optimism low", "optimism high", "optimism p"]].isna().all()


def test_floor_is_compared_with_the_same_floor_and_not_with_the_model() -> None:
    trials = [
        *repeated("clean", CLEAN, floor=0.3),
        *repeated("image-level", LEAKY, floor=0.35),
    ]
    frame = summed(trials)
    found = row(frame, "image-level", BASELINE)
    assert found["mean"] == pytest.approx(0.35, abs=EXACT)
    assert found["optimism"] == pytest.approx(0.05, abs=EXACT)
    assert np.isnan(found["selection"])


def test_single_repeats_have_a_difference_and_no_interval() -> None:
    trials = [*repeated("clean", [0.7]), *repeated("image-level", [0.8])]
    frame = summed(trials).reindex(columns=["optimism low", "optimism p", "low"])
    found = row(summed(trials), "image-level")
    assert found["optimism"] == pytest.approx(0.1, abs=EXACT)
    assert frame.isna().all(axis=None)


def test_without_clean_there_is_no_optimism() -> None:
    frame = summed(repeated("image-level", LEAKY))
    assert "optimism" not in frame or frame["optimism"].isna().all()


@pytest.mark.parametrize("protocol", ["official", "clip-agiqa"])
def test_same_value_in_every_repeat_is_no_warning_and_still_compared(protocol: str) -> None:
    """An official split with a validation of its own is the same in every repeat."""
    trials = [*repeated("clean", CLEAN), *repeated(protocol, [0.8, 0.8, 0.8])]
    found = row(summed(trials), protocol)
    half = stats.t.ppf(0.975, 3) * np.std(CLEAN, ddof=1) / 2
    assert found["optimism"] == pytest.approx(0.08, abs=EXACT)
    assert [found["optimism low"], found["optimism high"]] == pytest.approx(
        [0.08 - half, 0.08 + half], abs=EXACT
    )


def test_same_value_under_both_protocols_has_no_interval() -> None:
    trials = [*repeated("clean", [0.7, 0.7]), *repeated("official", [0.8, 0.8])]
    frame = summed(trials)
    assert row(frame, "official")["optimism"] == pytest.approx(0.1, abs=EXACT)
    assert "optimism low" not in frame or frame["optimism low"].isna().all()


def test_undefined_repeat_counts_in_no_mean_and_in_no_interval() -> None:
    """A run that predicts a constant has no SRCC."""
    whole = summed([*repeated("clean", CLEAN), *repeated("image-level", LEAKY)])
    holed = summed([*repeated("clean", CLEAN), *repeated("image-level", [*LEAKY, None])])
    expected, found = (row(frame, "image-level") for frame in (whole, holed))
    names = ["mean", "deviation", "low", "high", "optimism", "optimism low", "optimism high"]
    assert [found[name] for name in names] == pytest.approx(
        [expected[name] for name in names], abs=EXACT
    )


def test_selection_is_the_chosen_epochs_srcc_less_the_lasts() -> None:
    trials = [
        result("clip-agiqa", 0, 0.8, chosen=[0.5, 0.9, 0.7], best=2),
        result("clip-agiqa", 1, 0.8, chosen=[0.5, 0.6, 0.8], best=3),
    ]
    found = row(summed(trials), "clip-agiqa")
    assert found["selection"] == pytest.approx((0.2 + 0.0) / 2, abs=EXACT)


@pytest.mark.parametrize("chosen", [[], [0.5], [0.5, None]], ids=["none", "one", "undefined"])
def test_selection_without_two_epochs_to_choose_from_is_nan(chosen: list[float | None]) -> None:
    trials = [result("clean", 0, 0.8, chosen=chosen, best=1)]
    assert np.isnan(row(summed(trials), "clean")["selection"])


def test_rows_come_by_target_protocol_and_predictor() -> None:
    trials = [
        *repeated("official", [0.6, 0.7], alignment=0.5, floor=0.2),
        *repeated("clean", [0.6, 0.7], alignment=0.4, floor=0.2),
    ]
    frame = summed(trials[::-1])
    assert frame[["target", "protocol", "variant"]].to_numpy().tolist() == [
        ["quality", "clean", "model"],
        ["quality", "clean", BASELINE],
        ["quality", "official", "model"],
        ["quality", "official", BASELINE],
        ["alignment", "clean", "model"],
        ["alignment", "official", "model"],
    ]


def test_baseline_that_has_no_numbers_on_a_target_has_no_row() -> None:
    frame = summed(repeated("clean", [0.6, 0.7], alignment=0.4, floor=0.2))
    of = frame[frame["target"] == "alignment"]
    assert of["variant"].tolist() == ["model"]


BASE, OTHER = [0.70, 0.72, 0.77], [0.71, 0.76, 0.78]


def test_difference_is_that_of_the_paired_test() -> None:
    results = repeated("clean", BASE) + repeated("clean", OTHER, name="b")[::-1]  # any order
    frame = summed(results)
    first, second = row(frame, "clean"), row(frame, "clean", "b")
    assert [first["low"], first["high"]] == pytest.approx(
        stats.t.interval(0.95, 2, np.mean(BASE), stats.sem(BASE))
    )
    assert (second["mean"], second["median"]) == (pytest.approx(0.75), 0.76)
    assert second["difference"] == pytest.approx(0.02)
    test = stats.ttest_rel(OTHER, BASE)
    assert second["p"] == pytest.approx(test.pvalue)
    ends = test.confidence_interval(0.95)
    assert [second["difference low"], second["difference high"]] == pytest.approx(list(ends))
    assert np.isnan(first["p"])
    assert np.isnan(first["difference"])


def test_differences_that_are_equal_but_for_rounding_have_no_test() -> None:
    first, *others = (value + 0.1 for value in BASE)
    others = [float(np.nextafter(first, 1)), *others]
    found = row(summed(repeated("clean", BASE) + repeated("clean", others, name="b")), "clean", "b")
    assert found["difference"] == pytest.approx(0.1)
    assert np.isnan(found["p"])


def test_baselines_are_compared_with_the_first_variant_and_stand_once() -> None:
    results = repeated("clean", BASE, floor=0.2) + repeated("clean", OTHER, floor=0.2, name="b")
    frame = summed(results)
    assert frame["variant"].tolist() == ["model", BASELINE, "b"]
    found = row(frame, "clean", BASELINE)
    assert found["repeats"] == 3
    assert found["difference"] == pytest.approx(0.2 - 0.73)
    assert np.isnan(found["parameters"])


@pytest.mark.parametrize(
    ("difference", "p", "told"),
    [
        (0.1, 0.2, "no difference shown"),
        (0.1, 0.04, "higher, if it were the only test"),
        (-0.1, 0.001, "lower"),
        (float("nan"), float("nan"), ""),
    ],
)
def test_verdict_bounds_all_tests_at_once(difference: float, p: float, told: str) -> None:
    assert verdict(difference, p, 10) == told


def test_summary_is_written_in_all_forms(tmp_path: Path) -> None:
    results = repeated("clean", BASE, floor=0.9) + repeated("image-level", LEAKY, floor=0.9)
    trials = pd.DataFrame([row for result in results for row in trial_rows(result)])
    names = write_summary(trials, tmp_path, "Title", "small")
    assert names[:4] == ["trials.csv", "summary.csv", "summary.md", SUMMARY]
    assert len(pd.read_csv(tmp_path / "trials.csv")) == 12
    told = (tmp_path / "summary.md").read_text()
    assert "- `image-level`, model: +0.097, shown." in told
    assert f"- `clean`, below the {BASELINE}: model." in told
    assert "## quality: set" in told
    assert json.loads((tmp_path / SUMMARY).read_text())["backbone"] == "small"


def test_several_data_sets_have_a_matrix(tmp_path: Path) -> None:
    results = []
    for trained, tested in (("a", "a"), ("a", "b"), ("b", "b"), ("b", "a")):
        entry = result("clean", 0, 0.5 + 0.1 * (trained == tested))
        results.append({**entry, "data": tested, "trained_on": trained})
    trials = pd.DataFrame([row for result in results for row in trial_rows(result)])
    write_summary(trials, tmp_path, "Title", "small")
    told = (tmp_path / "summary.md").read_text()
    matrix = told[told.index("rows are trained on") :]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in matrix.splitlines()[2:]]
    assert cells[2:4] == [
        ["a", "0.600 / 0.590", "0.500 / 0.490"],
        ["b", "0.500 / 0.490", "0.600 / 0.590"],
    ]


def test_no_results_are_refused() -> None:
    with pytest.raises(DataError, match="expected results to sum up, got none"):
        summarise(pd.DataFrame())
