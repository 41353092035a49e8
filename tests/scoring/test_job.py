"""What ``dcmpl score`` says beside scores: calibrated columns, ranks and calls, orders by them."""

import csv
import json
import math
import os
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from calibrated import PROMPTS, Brightness, grey, plain_calibration, plain_meaning
from conftest import Capture, refused
from dcmpl.cli.main import main
from dcmpl.errors import UsageError
from dcmpl.runs import read_run, read_split
from dcmpl.scoring import engines, export
from dcmpl.scoring.calibration import LABELS, Calibration, read_calibration
from dcmpl.scoring.engines import Exported, read_export
from dcmpl.scoring.files import COLUMNS, Row, read_manifest, read_scores
from dcmpl.scoring.journal import Journal, journal_of
from dcmpl.scoring.scorer import Scorer, ScoringOptions
from dcmpl.scoring.torch_engine import TorchEngine, load_model

pytest_plugins = ("calibrated",)

KINDS = ("spread", "mos", "low", "high", "percentile", "label")
RANKED = ("rank", "better_than_next", "call")
NO_UNITS = "note: scores without MOS units and labels: "

Rows = list[dict[str, Any]]
Factory = pytest.TempPathFactory


def score(*words: object) -> int:
    return main(["score", *(str(word) for word in words)])


def rows_of(file: Path) -> Rows:
    return [dict(row) for row in read_scores(file)]


def columns_in(file: Path) -> list[str]:
    with file.open(newline="") as handle:
        return next(csv.reader(handle))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "scores.csv"


@pytest.fixture(scope="module")
def listed(judged_data: Path, tmp_path_factory: Factory) -> Path:
    """A list of all images, the third of which is missing."""
    place = tmp_path_factory.mktemp("listed") / "list.csv"
    paths = sorted(judged_data.parent.glob("*.png"))
    paths[2] = Path("gone.png")
    place.write_text("image,prompt\n" + "".join(f"{path},a fox\n" for path in paths))
    return place


@pytest.fixture(scope="module")
def scored(listed: Path, calibrated_run: Path, tmp_path_factory: Factory) -> Path:
    """All scores, with percentiles among generator a."""
    file = tmp_path_factory.mktemp("scored") / "scores.csv"
    assert score(listed, "--model", calibrated_run, "--against", "a", "-o", file) == 3
    return file


@pytest.fixture(scope="module")
def ok(scored: Path) -> Rows:
    return [row for row in rows_of(scored) if row["status"] == "ok"]


@pytest.fixture(scope="module")
def known(calibrated_run: Path) -> Calibration:
    found = read_calibration(calibrated_run, read_run(calibrated_run).weights_sha256)
    assert found is not None
    return found


# Columns


def test_calibrated_columns_stand_behind_the_scores(scored: Path) -> None:
    kinds = [*KINDS[:-1], "percentile_against", "label"]
    own = [f"{target}_{kind}" for target in ("quality", "alignment") for kind in kinds]
    assert columns_in(scored) == [*COLUMNS[:-3], *own, *COLUMNS[-3:]]
    assert read_manifest(scored)["columns"] == columns_in(scored)
    assert read_manifest(scored)["against"] == "a"


@pytest.mark.parametrize("target", ["quality", "alignment"])
def test_columns_agree_with_one_another(ok: Rows, target: str) -> None:
    by_score = sorted(ok, key=lambda row: float(row[target]))
    mos = [row[f"{target}_mos"] for row in by_score]
    assert mos == sorted(mos)
    percentiles = [row[f"{target}_percentile"] for row in by_score]
    assert percentiles == sorted(percentiles)
    for row in ok:
        low, high = row[f"{target}_low"], row[f"{target}_high"]
        assert 1 <= low <= row[f"{target}_mos"] <= high <= 5
        fifth = min(4, math.floor((row[f"{target}_mos"] - 1) / 4 * 5))
        assert row[f"{target}_label"] == LABELS[fifth]
        assert 0 <= row[f"{target}_percentile"] <= 100
        assert row[f"{target}_spread"] > 0


def test_percentiles_count_training_images_of_all_and_of_the_generator(
    ok: Rows, calibrated_run: Path
) -> None:
    split = read_split(calibrated_run, read_run(calibrated_run))
    assert split is not None
    own = {Path(row["image"]).name: row["quality"] for row in ok}
    train = {name: own[name] for name in split.train if name in own}
    of_a = [s for name, s in train.items() if int(name[:3]) // PROMPTS % 2 == 0]
    for row in ok:
        # Half an image of those that tie with itself, one that is missing, and interpolation.
        for column, scores in (("percentile", [*train.values()]), ("percentile_against", of_a)):
            expected = 100 * np.mean([s < row["quality"] for s in scores])
            assert row[f"quality_{column}"] == pytest.approx(expected, abs=250 / len(scores))
    assert len({row["quality_percentile"] for row in ok}) > 50
    differ = [abs(row["quality_percentile"] - row["quality_percentile_against"]) for row in ok]
    assert max(differ) > 1


def test_spread_is_the_deviation_over_windows(calibrated_run: Path, judged_data: Path) -> None:
    image = np.asarray(Image.open(judged_data.parent / "000.png"))
    whole = Scorer.from_pretrained(calibrated_run).score([image])[0]
    center = Scorer.from_pretrained(calibrated_run, views="center")
    corners = [(top, left) for top in (0, 8) for left in (0, 8)]
    windows = [image[top : top + 32, left : left + 32] for top, left in corners]
    found = [float(s.quality or 0) for s in center.score(windows)]
    assert whole.quality == pytest.approx(np.mean(found), abs=1e-6)
    assert whole.quality_spread == pytest.approx(np.std(found), abs=1e-6)


def test_image_that_cannot_be_read_has_nothing_in_any_column(scored: Path) -> None:
    row = rows_of(scored)[2]
    assert row["status"] == "error"
    own = {name: row[name] for name in columns_in(scored) if name not in COLUMNS}
    assert not any(own.values())


def test_one_target_has_its_own_columns_alone(
    calibrated_run: Path, judged_data: Path, out: Path
) -> None:
    words = [judged_data.parent / "000.png", "--model", calibrated_run, "-o", out]
    assert score(*words, "--targets", "alignment") == 0
    own = [name for name in columns_in(out) if name not in COLUMNS]
    assert own == [f"alignment_{kind}" for kind in KINDS]


@pytest.fixture(scope="module")
def many(listed: Path) -> Path:
    """A chunk of the list and a part of one."""
    place = listed.with_name("many.csv")
    place.write_text("".join(f"{line}\n" for line in listed.read_text().splitlines()[:81]))
    return place


@pytest.fixture(scope="module")
def some(listed: Path) -> Path:
    """The first of the list, the third of which is missing."""
    place = listed.with_name("some.csv")
    place.write_text("".join(f"{line}\n" for line in listed.read_text().splitlines()[:8]))
    return place


@pytest.mark.parametrize("rank", [[], ["--rank"]], ids=["as they came", "ranked"])
def test_every_format_holds_the_same_rows(
    some: Path, calibrated_run: Path, tmp_path: Path, rank: list[str]
) -> None:
    files = [tmp_path / f"x{suffix}" for suffix in (".csv", ".jsonl", ".parquet")]
    for file in files:
        assert score(some, "--model", calibrated_run, "-o", file, *rank) == 3
    with files[0].open(newline="") as handle:
        plain = list(csv.DictReader(handle))
    lines = [json.loads(line) for line in files[1].read_text().splitlines()]
    frame = pd.read_parquet(files[2]).astype(object)
    for found in (lines, frame.where(frame.notna(), None).to_dict("records")):
        assert len(found) == 7
        assert list(found[0]) == list(plain[0])
        for row, text in zip(found, plain, strict=True):
            for name, value in row.items():
                if isinstance(value, (int, float)):
                    assert float(text[name]) == value
                else:
                    assert text[name] == (value or "")


def test_shards_in_csv_merge_to_the_bytes_of_the_whole_job_in_json_lines(
    some: Path, calibrated_run: Path, tmp_path: Path
) -> None:
    whole, shard, merged = (tmp_path / name for name in ("whole.jsonl", "1.csv", "merged.jsonl"))
    assert score(some, "--model", calibrated_run, "-o", whole) == 3
    assert score(some, "--model", calibrated_run, "-o", shard, "--shard", "1/1") == 3
    assert main(["merge", str(shard), "-o", str(merged)]) == 3
    assert merged.read_bytes() == whole.read_bytes()


def test_other_views_leave_the_columns_out_and_say_so(
    capsys: Capture, calibrated_run: Path, judged_data: Path, out: Path
) -> None:
    words = [judged_data.parent / "000.png", "--model", calibrated_run, "-o", out]
    assert score(*words, "--views", "center") == 0
    assert columns_in(out) == [*COLUMNS]
    told = f"{NO_UNITS}it was calibrated for the views grid-2 only"
    assert told in capsys.readouterr().err.splitlines()


def test_own_views_by_their_name_keep_the_columns(
    capsys: Capture, calibrated_run: Path, judged_data: Path, out: Path
) -> None:
    words = [judged_data.parent / "000.png", "--model", calibrated_run, "-o", out]
    assert score(*words, "--views", "grid-2") == 0
    assert "quality_mos" in columns_in(out)
    assert NO_UNITS not in capsys.readouterr().err


def test_other_views_are_said_with_standard_output_as_well(
    capsys: Capture, calibrated_run: Path, judged_data: Path
) -> None:
    words = [judged_data.parent / "000.png", "--model", calibrated_run, "-o", "-"]
    assert score(*words, "--views", "center") == 0
    assert NO_UNITS in capsys.readouterr().err


def test_uncalibrated_run_has_the_plain_columns_and_says_why(
    capsys: Capture, uncalibrated_run: Path, judged_data: Path, out: Path
) -> None:
    assert score(judged_data.parent / "000.png", "--model", uncalibrated_run, "-o", out) == 0
    assert columns_in(out) == [*COLUMNS]
    told = f"{NO_UNITS}it was not calibrated (dcmpl train --resume does that)"
    assert told in capsys.readouterr().err.splitlines()


def test_standard_output_has_the_calibrated_columns(
    capsys: Capture, calibrated_run: Path, judged_data: Path, ok: Rows
) -> None:
    words = [judged_data.parent / "000.png", "--model", calibrated_run, "--against", "a"]
    assert score(*words, "-o", "-") == 0
    (line,) = capsys.readouterr().out.splitlines()
    row = json.loads(line)
    assert set(row) == set(ok[0])
    assert row["quality_mos"] == pytest.approx(ok[0]["quality_mos"], abs=1e-3)


# --against


def test_percentiles_against_an_unknown_generator_are_wrong_usage(
    capsys: Capture, calibrated_run: Path, judged_data: Path, out: Path
) -> None:
    words = [judged_data.parent / "000.png", "--model", calibrated_run, "-o", out]
    assert refused(capsys, 2, "score", *words, "--against", "c") == (
        "expected a generator of the training images (a, b), got c"
    )
    assert not journal_of(out).exists()


def test_percentiles_against_a_generator_need_a_calibrated_run(
    capsys: Capture, calibrated_run: Path, uncalibrated_run: Path, judged_data: Path, out: Path
) -> None:
    words = ["score", judged_data.parent / "000.png", "-o", out, "--against", "a", "--model"]
    start = "expected a calibrated model for percentiles, got"
    assert refused(capsys, 2, *words, uncalibrated_run) == (
        f"{start} uncalibrated: it was not calibrated (dcmpl train --resume does that)"
    )
    assert refused(capsys, 2, *words, calibrated_run, "--views", "center") == (
        f"{start} calibrated: it was calibrated for the views grid-2 only"
    )


# --by


@pytest.mark.parametrize("flag", [["--rank"]])
def test_order_by_mos_needs_a_calibrated_run(
    capsys: Capture, uncalibrated_run: Path, judged_data: Path, out: Path, flag: list[object]
) -> None:
    words = [judged_data.parent / "000.png", "--model", uncalibrated_run, "-o", out]
    assert refused(capsys, 2, "score", *words, "--by", "quality_mos", *flag) == (
        "expected a calibrated model for quality_mos, got uncalibrated: it was not calibrated "
        "(dcmpl train --resume does that)"
    )
    assert not journal_of(out).exists()


@pytest.mark.parametrize("by", ["quality_mos", "authenticity_mos", "nothing"])
def test_order_without_a_flag_that_takes_it_is_wrong_usage_as_well(
    capsys: Capture, uncalibrated_run: Path, judged_data: Path, out: Path, by: str
) -> None:
    words = [judged_data.parent / "000.png", "--model", uncalibrated_run, "-o", out]
    refused(capsys, 2, "score", *words, "--by", by)
    assert not journal_of(out).exists()


@pytest.mark.parametrize("by", ["quality_label", "quality_rank", "quality_percentile_against"])
def test_order_by_what_a_calibrated_run_has_not_is_not_blamed_on_calibration(
    capsys: Capture, calibrated_run: Path, judged_data: Path, out: Path, by: str
) -> None:
    words = [judged_data.parent / "000.png", "--model", calibrated_run, "-o", out, "--rank"]
    told = refused(capsys, 2, "score", *words, "--by", by)
    assert by in told
    assert "not calibrated" not in told


@pytest.mark.parametrize("by", ["quality_mos", "alignment_low", "quality_spread", "alignment"])
def test_order_is_by_the_number_that_was_named(
    calibrated_run: Path, judged_data: Path, out: Path, by: str
) -> None:
    paths = [judged_data.parent / f"{i:03}.png" for i in range(12)]
    assert score(*paths, "--model", calibrated_run, "-o", out, "--rank", "--by", by) == 0
    values = [row[by] for row in rows_of(out)]
    assert values == sorted(values, reverse=True)
    assert read_manifest(out)["rank"] == by


def test_files_are_moved_by_their_mos(
    calibrated_run: Path, judged_data: Path, ok: Rows, tmp_path: Path, out: Path
) -> None:
    own = {Path(row["image"]).name: row["quality_mos"] for row in ok[:8]}
    for name in own:
        shutil.copy(judged_data.parent / name, tmp_path / name)
    middle = float(np.median([*own.values()]))
    assert score(*(tmp_path / name for name in own), "--model", calibrated_run, "-o", out) == 0
    words = [out, "--by", "quality_mos", "--below", middle, "--move", tmp_path / "below"]
    assert main(["select", *map(str, words)]) == 0
    moved = {path.name for path in (tmp_path / "below").iterdir()}
    assert moved == {name for name, mos in own.items() if mos < middle}


# --rank


@pytest.fixture(scope="module")
def ranks(listed: Path, calibrated_run: Path, tmp_path_factory: Factory) -> Path:
    file = tmp_path_factory.mktemp("ranks") / "ranks.csv"
    assert score(listed, "--model", calibrated_run, "-o", file, "--rank") == 3
    return file


def test_ranks_number_the_best_first_and_what_fails_has_none(ranks: Path) -> None:
    rows = rows_of(ranks)
    assert columns_in(ranks)[-6:] == [*RANKED, *COLUMNS[-3:]]
    values = [row["quality"] for row in rows[:-1]]
    assert values == sorted(values, reverse=True)
    assert [row["rank"] for row in rows] == [*range(1, len(rows)), None]
    assert (rows[-1]["status"], rows[-1]["better_than_next"]) == ("error", None)
    assert not rows[-2]["call"]
    manifest = read_manifest(ranks)
    assert manifest["rank"] == "quality"


def test_rows_of_a_ranking_are_those_of_a_scoring(ranks: Path, ok: Rows) -> None:
    found = {row["image"]: row for row in rows_of(ranks)}
    for row in ok:
        same = {n: v for n, v in row.items() if not n.endswith("_against")}
        assert {name: found[row["image"]][name] for name in same} == same


def test_calls_are_by_the_chance_that_people_prefer_the_first(
    ranks: Path, known: Calibration
) -> None:
    rows, meaning = rows_of(ranks)[:-1], known.targets["quality"]
    for ours, theirs in pairwise(rows):
        both = ours, theirs
        variance = sum(
            meaning.deviation(np.array([r["quality"]]), np.array([r["quality_spread"]]))[0] ** 2
            for r in both
        )
        apart = ours["quality_mos"] - theirs["quality_mos"]
        chance = NormalDist().cdf(apart / (meaning.pairs * variance**0.5))
        assert ours["better_than_next"] == pytest.approx(chance, abs=1e-9)
        is_close = ours["better_than_next"] < 0.8
        assert ours["call"] == ("too close to call" if is_close else "better than the next")


def test_the_first_is_said_and_how_sure_that_is(
    capsys: Capture, calibrated_run: Path, judged_data: Path, out: Path
) -> None:
    paths = [judged_data.parent / f"{i:03}.png" for i in range(6)]
    assert score(*paths, "--model", calibrated_run, "-o", out, "--rank") == 0
    first = rows_of(out)[0]
    assert (
        f"{first['image']} is ranked first; the chance that people prefer it to the next is "
        f"{first['better_than_next']:.0%}: {first['call']}"
    ) in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_best_of_a_ranking_are_kept_with_their_ranks(
    ranks: Path, tmp_path: Path, suffix: str
) -> None:
    best = tmp_path / f"best{suffix}"
    assert main(["select", str(ranks), "--top", "3", "-o", str(best)]) == 0
    kept = [*read_scores(best)]
    assert kept == rows_of(ranks)[:3]
    assert [row["rank"] for row in kept] == [1, 2, 3]


def test_uncalibrated_run_ranks_and_calls_nothing(
    capsys: Capture, uncalibrated_run: Path, judged_data: Path, out: Path
) -> None:
    paths = [judged_data.parent / f"{i:03}.png" for i in range(4)]
    assert score(*paths, "--model", uncalibrated_run, "-o", out, "--rank") == 0
    rows = rows_of(out)
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    assert not any(row["better_than_next"] or row["call"] for row in rows)
    assert "is ranked first" not in capsys.readouterr().err


def test_one_image_is_the_first_of_one(
    capsys: Capture, calibrated_run: Path, judged_data: Path, out: Path
) -> None:
    words = [judged_data.parent / "000.png", "--model", calibrated_run, "-o", out, "--rank"]
    assert score(*words) == 0
    (row,) = rows_of(out)
    assert (row["rank"], row["better_than_next"]) == (1, None)
    assert not row["call"]


def test_ranking_of_parts_is_wrong_usage(
    capsys: Capture, calibrated_run: Path, listed: Path, out: Path
) -> None:
    words = ["score", listed, "--model", calibrated_run, "-o", out, "--rank", "--shard", "1/2"]
    assert "--rank" in refused(capsys, 2, *words)


@pytest.mark.parametrize("way", ["list", "--prompts"])
def test_images_are_ranked_within_their_prompt(
    calibrated_run: Path, ranks: Path, out: Path, way: str
) -> None:
    good = [row["image"] for row in rows_of(ranks)[:3]]
    rows = zip(good, ["a fox", "a dog", "a fox"], strict=False)
    table = out.with_name("prompts.csv")
    table.write_text("image,prompt\n" + "".join(f"{image},{text}\n" for image, text in rows))
    inputs = [table] if way == "list" else [*good[:3], "--prompts", table]
    assert score(*inputs, "--model", calibrated_run, "-o", out, "--rank") == 0
    found = rows_of(out)
    assert [(row["prompt"], row["rank"]) for row in found] == [
        ("a fox", 1),
        ("a fox", 2),
        ("a dog", 1),
    ]
    assert float(found[0]["quality"]) >= float(found[1]["quality"])
    assert [row["better_than_next"] is not None for row in found] == [True, False, False]


# The scorer


def test_scorer_ranks_as_the_command_does(calibrated_run: Path, ranks: Path) -> None:
    paths = [Path(row["image"]) for row in rows_of(ranks)[:5]]
    found = Scorer.from_pretrained(calibrated_run).rank(paths[::-1])
    assert [score.index for score in found] == [4, 3, 2, 1, 0]
    assert [score.rank for score in found] == [1, 2, 3, 4, 5]
    expected = [row["better_than_next"] for row in rows_of(ranks)[:4]]
    assert [score.better_than_next for score in found[:4]] == pytest.approx(expected, abs=1e-3)
    assert list(found.to_dataframe()["rank"]) == [1, 2, 3, 4, 5]


def scorer(*tasks: str, **fields: Any) -> Scorer:
    """A scorer of brightness with a calibration made by hand, over two windows of an image."""
    calibration = plain_calibration(*tasks, meaning=plain_meaning(**fields))
    calibration = Calibration(calibration.data, "grid-2", "", calibration.targets)
    return Scorer(Brightness(*tasks), "grid-2", ScoringOptions(workers=1), calibration=calibration)


def test_equal_images_stay_as_they_came_and_are_even() -> None:
    found = scorer().rank([grey(100), grey(200), grey(100), grey(200)])
    assert [score.index for score in found] == [1, 3, 0, 2]
    assert found[0].better_than_next == found[2].better_than_next == 0.5
    assert [score.call for score in found][:3] == [
        "too close to call",
        "better than the next",
        "too close to call",
    ]


def test_images_whose_windows_disagree_are_harder_to_call() -> None:
    sure, unsure = [grey(153, 153), grey(102, 102)], [grey(102, 204), grey(51, 153)]
    chances = [scorer(spread=(0.1, 16.0, 0.0)).rank(p)[0].better_than_next for p in (sure, unsure)]
    # 0.6 against 0.4, a MOS of 0.8 apart; the windows of the second pair are 0.2 off their mean.
    variances = 2 * 0.1, 2 * (0.1 + 16 * 0.04)
    expected = [NormalDist(0, variance**0.5).cdf(0.8) for variance in variances]
    assert chances == pytest.approx(expected, abs=1e-9)


def test_scorer_of_other_views_is_not_calibrated() -> None:
    made = Scorer(Brightness(), "resize", calibration=plain_calibration())
    assert made.calibration is None
    assert made.score([grey(100)])[0].more == {}
    with pytest.raises(UsageError, match="it was calibrated for the views center only"):
        made.rank([grey(100)], by="quality_mos")


def test_scorer_knows_the_columns_by_their_names() -> None:
    (found,) = scorer().score([grey(153)])
    assert found.quality_mos == found["quality_mos"] == pytest.approx(1 + 4 * 0.6)
    assert (found.quality_label, found.quality_percentile) == ("good", pytest.approx(60))
    with pytest.raises(AttributeError):
        _ = found.quality_rank


@pytest.mark.parametrize("by", ["look_feel", "look_feel_mos"])
def test_target_of_two_words_can_be_ranked_by(by: str) -> None:
    found = scorer("quality", "look_feel").rank([grey(100), grey(200)], by=by)
    assert [score.index for score in found] == [0, 1]
    assert found[0].better_than_next == pytest.approx(
        NormalDist(0, 0.5**0.5).cdf(4 * 100 / 255), abs=1e-9
    )


@pytest.fixture
def two_images(tmp_path: Path) -> list[Path]:
    """A dark and a bright one."""
    paths = [tmp_path / "dark.png", tmp_path / "bright.png"]
    for path, level in zip(paths, (100, 200), strict=True):
        Image.fromarray(grey(level)).save(path)
    return paths


def opens(patch: pytest.MonkeyPatch, made: Scorer) -> None:
    """Any folder is the model of that scorer."""
    made.about = {"model": "made", "backbone": "made"}
    patch.setattr(Scorer, "from_pretrained", lambda *_, **__: made)


def test_command_ranks_by_a_target_of_two_words(
    two_images: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens(monkeypatch, scorer("quality", "look_feel"))
    words = [*two_images[::-1], "--model", out.parent, "-o", out]
    assert score(*words, "--rank", "--by", "look_feel") == 0
    assert [Path(row["image"]).stem for row in rows_of(out)] == ["dark", "bright"]


@pytest.mark.parametrize("flag", ["--rank"])
def test_order_by_quality_that_is_not_predicted_is_wrong_usage(
    capsys: Capture,
    two_images: list[Path],
    out: Path,
    flag: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opens(monkeypatch, scorer("alignment"))
    told = refused(capsys, 2, "score", *two_images, "--model", out.parent, "-o", out, flag)
    assert told == "expected targets that made predicts (alignment), got quality"


def test_image_that_is_worse_than_the_one_behind_it_is_not_too_close_to_call() -> None:
    """In the order of another number the better image may come second."""
    found = scorer().rank([grey(255, 255), grey(0, 50)], by="quality_spread")
    assert [score.index for score in found] == [1, 0]
    assert found[0].better_than_next < 0.01
    assert found[0].call == "worse than the next"


# Going on


def break_off(words: list[object], patch: pytest.MonkeyPatch, after: int) -> None:
    """Score until the disk is full."""
    write, count = Journal.write, iter(range(after))

    def failing(self: Journal, row: Row) -> None:
        if next(count, None) is None:
            raise OSError(28, "No space left on device")
        write(self, row)

    with patch.context() as patched:
        patched.setattr(Journal, "write", failing)
        assert score(*words) == 1


@pytest.mark.parametrize(("suffix", "rank"), [(".csv", ["--rank"]), (".parquet", [])])
def test_scoring_that_was_broken_off_ends_with_the_same_bytes(
    capsys: Capture,
    many: Path,
    calibrated_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    rank: list[str],
) -> None:
    words = [many, "--model", calibrated_run, "--against", "b", "--targets=quality", *rank]
    whole, broken = tmp_path / f"whole{suffix}", tmp_path / f"broken{suffix}"
    assert score(*words, "-o", whole) == 3
    break_off([*words, "-o", broken], monkeypatch, 70)
    assert journal_of(broken).exists()
    assert score(*words, "-o", broken, "--resume") == 3
    assert "64 of 80 images were scored before" in capsys.readouterr().err
    assert broken.read_bytes() == whole.read_bytes()
    assert score(*words, "-o", broken, "--resume") == 3
    assert f"{broken} is finished" in capsys.readouterr().err
    assert broken.read_bytes() == whole.read_bytes()


def test_rows_without_ranks_are_not_gone_on_with_for_ranks(
    capsys: Capture, some: Path, calibrated_run: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [some, "--model", calibrated_run, "-o", out]
    break_off(words, monkeypatch, 0)
    capsys.readouterr()
    told = refused(capsys, 1, "score", *words, "--rank", "--resume")
    assert "differs in columns, rank" in told


def test_rows_of_another_calibration_are_not_gone_on_with(
    capsys: Capture, some: Path, copied: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [some, "--model", copied, "-o", out]
    break_off(words, monkeypatch, 4)
    known = read_calibration(copied, read_run(copied).weights_sha256)
    assert known is not None
    targets = {name: replace(known.targets[name], curve=()) for name in known.targets}
    replace(known, targets=targets).write(copied)
    capsys.readouterr()
    assert "differs in" in refused(capsys, 1, "score", *words, "--resume")


# Exports


class _Torch(TorchEngine):
    """Scores as the run does, under the name of an engine for exports."""

    name, run = "onnx", Path()

    def __init__(self, exported: Exported, variant: dict[str, Any], lanes: int) -> None:
        _, model = load_model(self.run, device="cpu")
        super().__init__(model, exported.tasks)


@pytest.fixture
def exported(calibrated_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run as ``dcmpl export`` makes it, but that torch computes what it stands for."""

    def write(_: object, folder: Path, *__: object) -> tuple[list[Path], list[object], dict]:
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"stands for a model")
        return [folder / "model.onnx"], [export._variant("onnx", "fp32", Path("model.onnx"))], {}

    monkeypatch.setattr(_Torch, "run", calibrated_run)
    monkeypatch.setattr(export, "_write_models", write)
    monkeypatch.setitem(engines.KINDS, "onnx", _Torch)
    assert main(["export", str(calibrated_run), "-o", str(tmp_path / "exported")]) == 0
    return tmp_path / "exported"


def test_export_carries_the_calibration(
    exported: Path, calibrated_run: Path, judged_data: Path, known: Calibration
) -> None:
    assert read_export(exported).calibration == known
    paths = [judged_data.parent / f"{i:03}.png" for i in range(4)]
    ours, theirs = (
        Scorer.from_pretrained(folder, engine=engine, against="b").rank(paths, by="quality_mos")
        for folder, engine in ((exported, "onnx"), (calibrated_run, "torch"))
    )
    assert [score.index for score in ours] == [score.index for score in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert list(our.more) == list(their.more)
        numbers = [v for v in their.more.values() if isinstance(v, float)]
        found = [v for v in our.more.values() if isinstance(v, float)]
        assert found == pytest.approx(numbers, abs=1e-3)
        assert our.call == their.call


def test_export_of_an_uncalibrated_run_says_so(
    capsys: Capture, exported: Path, uncalibrated_run: Path, judged_data: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    assert main(["export", str(uncalibrated_run), "-o", str(made)]) == 0
    capsys.readouterr()
    words = [judged_data.parent / "000.png", "--model", made, "-o", tmp_path / "x.csv"]
    assert score(*words) == 0
    told = f"{NO_UNITS}its run was not calibrated when it was exported"
    assert told in capsys.readouterr().err.splitlines()
    assert refused(capsys, 2, "score", *words, "--rank", "--by", "quality_mos").endswith(
        "its run was not calibrated when it was exported"
    )


def test_changed_calibration_of_an_export_is_refused(
    capsys: Capture, exported: Path, judged_data: Path, out: Path
) -> None:
    capsys.readouterr()
    record = exported / "export.json"
    record.write_text(record.read_text().replace('"pairs": ', '"pairs": 1'))
    words = [judged_data.parent / "000.png", "--model", exported, "-o", out]
    assert "got one that its digest says was changed since" in refused(capsys, 1, "score", *words)


def test_job_is_what_decides_the_rows_and_not_where_it_ran(
    trained_run: Path, tmp_path: Path, image_data: Path
) -> None:
    out = tmp_path / "s.csv"
    image = str(image_data.parent / "00.png")
    assert main(["score", image, "--model", str(trained_run), "-o", str(out)]) == 0
    assert {"python", "model"}.isdisjoint(read_manifest(out))


def test_shards_of_a_run_that_was_renamed_fit_together(
    trained_run: Path, tmp_path: Path, image_data: Path
) -> None:
    shards = []
    for number, name in ((1, "here"), (2, "there")):
        os.symlink(trained_run, tmp_path / name)
        shards.append(str(tmp_path / f"{name}.csv"))
        words = ["score", str(image_data.parent), "--model", str(tmp_path / name)]
        assert main([*words, "--shard", f"{number}/2", "-o", shards[-1]]) == 0
    assert main(["merge", *shards, "-o", str(tmp_path / "whole.csv")]) == 0
