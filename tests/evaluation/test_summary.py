"""What a protocol is worth is the difference of means, with Welch's interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dcmpl.evaluation.summary import protocol_summary

EXACT = 1e-9
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
) -> dict[str, Any]:
    """A trial's metrics with SRCC as told; ``chosen`` is SRCC of quality epoch by epoch."""
    found: dict[str, Any] = {"protocol": protocol, "repeat": repeat, "quality": numbers(quality)}
    if alignment is not None:
        found["alignment"] = numbers(alignment)
    plain = {n: v["value"] if isinstance(v, dict) else v for n, v in numbers(floor).items()}
    found["floors"] = {"generator": {"quality": plain}} if floor is not None else {}
    history = [{"loss": 0.1, "quality_srcc": value} for value in chosen]
    return {**found, "history": history, "best_epoch": best}


def repeated(protocol: str, values: Sequence[float | None], **more: Any) -> list[dict[str, Any]]:
    return [result(protocol, i, value, **more) for i, value in enumerate(values)]


def row(frame: pd.DataFrame, protocol: str, predictor: str = "model") -> "pd.Series[Any]":
    (found,) = (
        r
        for _, r in frame.iterrows()
        if (r["protocol"], r["predictor"], r["target"]) == (protocol, predictor, "quality")
    )
    return found


def test_mean_median_deviation_and_interval_are_those_of_the_repeats() -> None:
    found = row(protocol_summary(repeated("clean", CLEAN), "model"), "clean")
    half = stats.t.ppf(0.975, 3) * np.std(CLEAN, ddof=1) / 2
    assert found["repeats"] == 4
    assert found["mean"] == pytest.approx(0.72, abs=EXACT)
    assert found["median"] == pytest.approx(0.72, abs=EXACT)
    assert found["deviation"] == pytest.approx(np.std(CLEAN, ddof=1), abs=EXACT)
    assert [found["low"], found["high"]] == pytest.approx([0.72 - half, 0.72 + half], abs=EXACT)


def test_other_metrics_are_means_over_the_repeats() -> None:
    found = row(protocol_summary(repeated("clean", CLEAN), "model"), "clean")
    names = ["plcc", "krcc", "within_generator_srcc", "pairwise_accuracy"]
    assert [found[name] for name in names] == pytest.approx([0.71, 0.52, 0.42, 0.67], abs=EXACT)


def test_optimism_is_the_difference_of_means_with_welchs_interval_by_hand() -> None:
    trials = [*repeated("clean", CLEAN), *repeated("image-level", LEAKY)]
    found = row(protocol_summary(trials, "model"), "image-level")
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
    assert found["p"] == pytest.approx(p, rel=1e-6)


def test_clean_has_no_optimism_over_itself() -> None:
    trials = [*repeated("clean", CLEAN), *repeated("image-level", LEAKY)]
    found = row(protocol_summary(trials, "model"), "clean")
    assert found[["optimism", "optimism low", "optimism high", "p"]].isna().all()


def test_floor_is_compared_with_the_same_floor_and_not_with_the_model() -> None:
    trials = [
        *repeated("clean", CLEAN, floor=0.3),
        *repeated("image-level", LEAKY, floor=0.35),
    ]
    frame = protocol_summary(trials, "model")
    found = row(frame, "image-level", "generator's mean")
    assert found["mean"] == pytest.approx(0.35, abs=EXACT)
    assert found["optimism"] == pytest.approx(0.05, abs=EXACT)
    assert np.isnan(found["selection"])


def test_single_repeats_have_a_difference_and_no_interval() -> None:
    trials = [*repeated("clean", [0.7]), *repeated("image-level", [0.8])]
    frame = protocol_summary(trials, "model").reindex(columns=["optimism low", "p", "low"])
    found = row(protocol_summary(trials, "model"), "image-level")
    assert found["optimism"] == pytest.approx(0.1, abs=EXACT)
    assert frame.isna().all(axis=None)


def test_without_clean_there_is_no_optimism() -> None:
    frame = protocol_summary(repeated("image-level", LEAKY), "model")
    assert "optimism" not in frame or frame["optimism"].isna().all()


@pytest.mark.parametrize("protocol", ["official", "clip-agiqa"])
def test_same_value_in_every_repeat_is_no_warning_and_still_compared(protocol: str) -> None:
    """An official split with a validation of its own is the same in every repeat."""
    trials = [*repeated("clean", CLEAN), *repeated(protocol, [0.8, 0.8, 0.8])]
    found = row(protocol_summary(trials, "model"), protocol)
    half = stats.t.ppf(0.975, 3) * np.std(CLEAN, ddof=1) / 2
    assert found["optimism"] == pytest.approx(0.08, abs=EXACT)
    assert [found["optimism low"], found["optimism high"]] == pytest.approx(
        [0.08 - half, 0.08 + half], abs=EXACT
    )


def test_same_value_under_both_protocols_has_no_interval() -> None:
    trials = [*repeated("clean", [0.7, 0.7]), *repeated("official", [0.8, 0.8])]
    frame = protocol_summary(trials, "model")
    assert row(frame, "official")["optimism"] == pytest.approx(0.1, abs=EXACT)
    assert "optimism low" not in frame or frame["optimism low"].isna().all()


def test_undefined_repeat_counts_in_no_mean_and_in_no_interval() -> None:
    """A run that predicts a constant has no SRCC."""
    whole = protocol_summary([*repeated("clean", CLEAN), *repeated("image-level", LEAKY)], "model")
    holed = protocol_summary(
        [*repeated("clean", CLEAN), *repeated("image-level", [*LEAKY, None])], "model"
    )
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
    found = row(protocol_summary(trials, "model"), "clip-agiqa")
    assert found["selection"] == pytest.approx((0.2 + 0.0) / 2, abs=EXACT)


@pytest.mark.parametrize("chosen", [[], [0.5], [0.5, None]], ids=["none", "one", "undefined"])
def test_selection_without_two_epochs_to_choose_from_is_nan(chosen: list[float | None]) -> None:
    trials = [result("clean", 0, 0.8, chosen=chosen, best=1)]
    assert np.isnan(row(protocol_summary(trials, "model"), "clean")["selection"])


def test_rows_come_by_target_protocol_and_predictor() -> None:
    trials = [
        *repeated("official", [0.6, 0.7], alignment=0.5, floor=0.2),
        *repeated("clean", [0.6, 0.7], alignment=0.4, floor=0.2),
    ]
    frame = protocol_summary(trials[::-1], "tiny")
    assert frame[["target", "protocol", "predictor"]].to_numpy().tolist() == [
        ["quality", "clean", "tiny"],
        ["quality", "clean", "generator's mean"],
        ["quality", "official", "tiny"],
        ["quality", "official", "generator's mean"],
        ["alignment", "clean", "tiny"],
        ["alignment", "clean", "generator's mean"],
        ["alignment", "official", "tiny"],
        ["alignment", "official", "generator's mean"],
    ]


def test_floor_that_has_no_numbers_on_a_target_is_nan() -> None:
    trials = repeated("clean", [0.6, 0.7], alignment=0.4, floor=0.2)
    frame = protocol_summary(trials, "tiny")
    of = frame[(frame["target"] == "alignment") & (frame["predictor"] == "generator's mean")]
    assert of[["mean", "plcc", "krcc"]].isna().all(axis=None)
