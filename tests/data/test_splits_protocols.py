"""Each protocol deals out what its name says: sizes, folds, chains and official parts."""

import csv
import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from conftest import made_table
from dcmpl.data.datasets import load_table
from dcmpl.data.leaks import ImageFacts, check_leaks, tied_units
from dcmpl.data.splits import PARTS, PROTOCOLS, Split, draw_split
from dcmpl.data.table import ImageTable
from dcmpl.errors import DataError, UsageError

DATA = Path(__file__).parents[3] / "shared" / "data"
AGIQA_3K, AGIQA_1K = DATA / "agiqa-3k-dev", DATA / "agiqa-1k-labels"
AIGCIQA2023, AIGIQA_20K = DATA / "aigciqa2023-labels", DATA / "aigiqa-20k-labels"


def named(table: ImageTable, name: str) -> ImageTable:
    return ImageTable(name, table.scale, table.frame)


def grouped(groups: Sequence[str], parts: Sequence[str] = ("",)) -> ImageTable:
    """A judged table of these groups; ``parts`` go round."""
    part = [parts[i % len(parts)] for i in range(len(groups))]
    return made_table(group=list(groups), part=part, mos_quality=3.0)


def unlike(table: ImageTable) -> dict[str, ImageFacts]:
    """Facts of images that nothing but their prompts ties."""
    digests = {path: hashlib.sha256(path.encode()) for path in table.frame["image"]}
    return {path: ImageFacts(None, d.hexdigest(), d.digest()) for path, d in digests.items()}


def drawn(name: str, table: ImageTable, repeat: int = 0) -> Split:
    return draw_split(name, table, tied_units(table, unlike(table)), repeat)


def groups_of(split: Split, table: ImageTable, part: str) -> set[str]:
    return set(split.rows(table, part).frame["group"])


def sizes(split: Split, table: ImageTable) -> tuple[int, ...]:
    return tuple(len(groups_of(split, table, part)) for part in PARTS)


def real(folder: Path) -> ImageTable:
    if not folder.is_dir():
        pytest.skip(f"{folder} is not beside this repository")
    return load_table(folder)


def chain(names: Sequence[str], rounds: int) -> list[set[str]]:
    """Training of each round, from the description: one index list, shuffled cumulatively
    from seed 10; the first round(0.8 n) of the sorted names it points at are training."""
    ordered = sorted(set(names))
    generator = random.Random(10)
    indices = list(range(len(ordered)))
    found = []
    for _ in range(rounds):
        generator.shuffle(indices)
        found.append({ordered[i] for i in indices[: round(0.8 * len(ordered))]})
    return found


HUNDRED = grouped([f"prompt {i % 100:02}" for i in range(250)])
OWN = grouped([f"prompt {i % 20}" for i in range(60)], ["train", "train", "val", "test"])
HALVES = grouped([f"prompt {i // 2}" for i in range(80)], ["train", "train", "train", "test"])
"""Forty prompts of training, half of them in test too; no validation."""


def test_chain_is_that_of_pythons_mersenne_twister() -> None:
    """Five prompts, by hand: Random(10) makes of 0..4 first 3 2 1 0 4, then 1 2 0 3 4."""
    table = grouped(["a", "b", "c", "d", "e"])
    tested = [groups_of(drawn("clip-agiqa", table, i), table, "test") for i in range(3)]
    assert tested == [{"e"}, {"e"}, {"d"}]


@pytest.mark.parametrize("count", [5, 7, 100, 300, 360])
def test_ten_rounds_of_the_chain_equal_the_plain_transcription(count: int) -> None:
    table = grouped([f"{7919 * i % 1009:04} {i}" for i in range(count)])
    expected = chain(table.frame["group"], 10)
    units = np.arange(count)
    found = [draw_split("clip-agiqa", table, units, i) for i in range(10)]
    assert [groups_of(split, table, "train") for split in found] == expected
    assert {len(split.train) for split in found} == {round(0.8 * count)}


def test_epoch_of_the_chain_is_chosen_on_its_test_part() -> None:
    split = drawn("clip-agiqa", HUNDRED)
    assert split.val == split.test
    assert split.selects_on_test
    assert check_leaks(split, HUNDRED, unlike(HUNDRED), PROTOCOLS["clip-agiqa"].leaks) == [
        "the epoch is chosen on the test part"
    ]


def test_chain_of_agiqa_3k_goes_over_the_exact_prompt_strings() -> None:
    """Its prompts differ in case and blanks here, and still are prompts of their own."""
    prompts = ["a fox", "A fox", "a  fox", "b fox", "c fox", "d fox", "e fox", "f fox", "g", "h"]
    table = named(made_table(prompt=prompts, mos_quality=3.0), "AGIQA-3K")
    units = np.arange(len(prompts))
    for repeat, expected in enumerate(chain(prompts, 4)):
        split = draw_split("clip-agiqa", table, units, repeat)
        assert set(split.rows(table, "train").frame["prompt"]) == expected


def test_chain_gives_the_train_sizes_of_the_240_prompts_of_agiqa_3k_that_are_here() -> None:
    table = real(AGIQA_3K)
    with (AGIQA_3K / "data.csv").open(newline="", encoding="utf-8") as file:
        prompts = [row["prompt"] for row in csv.DictReader(file)]
    expected = [sum(p in training for p in prompts) for training in chain(prompts, 10)]
    assert expected == [1906, 1905, 1910, 1906, 1909, 1911, 1907, 1906, 1907, 1906]
    units = np.arange(len(table))  # the chain does not ask for them
    found = [draw_split("clip-agiqa", table, units, i) for i in range(10)]
    assert [len(split.train) for split in found] == expected
    assert [len(split.test) for split in found] == [2384 - size for size in expected]
    facts = unlike(table)
    for split in found[:3]:
        notes = check_leaks(split, table, facts, PROTOCOLS["clip-agiqa"].leaks)
        assert notes == ["the epoch is chosen on the test part"]


@pytest.mark.parametrize(
    ("folder", "prompts", "training"), [(AGIQA_1K, 360, 288), (AIGCIQA2023, 100, 80)]
)
def test_chain_deals_out_80_percent_of_the_published_groups(
    folder: Path, prompts: int, training: int
) -> None:
    table = real(folder)
    assert table.frame["group"].nunique() == prompts
    units, facts = np.arange(len(table)), unlike(table)
    for repeat, expected in enumerate(chain(table.frame["group"], 10)):
        split = draw_split("clip-agiqa", table, units, repeat)
        assert groups_of(split, table, "train") == expected
        assert (len(expected), len(groups_of(split, table, "test"))) == (
            training,
            prompts - training,
        )
        if repeat < 3:  # no prompt is shared, however it is written
            notes = check_leaks(split, table, facts, PROTOCOLS["clip-agiqa"].leaks)
            assert notes == ["the epoch is chosen on the test part"]


@pytest.mark.parametrize("count", [1, 2])
def test_chain_of_too_few_prompts_is_a_data_error(count: int) -> None:
    """Of two prompts, 80 % are two."""
    with pytest.raises(DataError, match="expected at least"):
        drawn("clip-agiqa", grouped([f"prompt {i % count}" for i in range(20)]))


def test_clean_parts_are_70_10_and_20_percent_of_the_units() -> None:
    split = drawn("clean", HUNDRED)
    assert sizes(split, HUNDRED) == (70, 10, 20)
    assert not split.selects_on_test


def test_folds_test_every_prompt_once_in_five_repeats() -> None:
    units = tied_units(HUNDRED, unlike(HUNDRED))
    splits = [draw_split("clean-folds", HUNDRED, units, repeat) for repeat in range(5)]
    tested = [groups_of(split, HUNDRED, "test") for split in splits]
    assert sum(map(len, tested)) == len(set.union(*tested)) == 100
    assert {sizes(split, HUNDRED) for split in splits} == {(70, 10, 20)}
    assert not any(split.selects_on_test for split in splits)


def test_sixth_repeat_begins_another_round_of_folds() -> None:
    units = tied_units(HUNDRED, unlike(HUNDRED))
    splits = [draw_split("clean-folds", HUNDRED, units, repeat) for repeat in range(10)]
    tested = [groups_of(split, HUNDRED, "test") for split in splits]
    assert len(set.union(*tested[5:])) == 100
    assert not any(fold in tested[:5] for fold in tested[5:])


def test_folds_of_a_count_that_five_does_not_divide_differ_by_one() -> None:
    table = grouped([f"prompt {i}" for i in range(43)])
    found = sorted(sizes(drawn("clean-folds", table, repeat), table) for repeat in range(5))
    assert found == [(30, 4, 9)] * 3 + [(31, 4, 8)] * 2


@pytest.mark.parametrize("name", ["clean", "clean-folds"])
@pytest.mark.parametrize("count", [1, 4])
def test_fewer_than_five_prompts_are_a_data_error(name: str, count: int) -> None:
    with pytest.raises(DataError) as caught:
        drawn(name, grouped([f"prompt {i % count}" for i in range(20)]))
    assert str(caught.value) == (
        "expected at least 5 different prompts in made to split into training, validation and "
        f"test, got {count}"
    )


def test_image_level_parts_are_70_10_and_20_percent_of_the_rows_and_share_prompts() -> None:
    split = drawn("image-level", HUNDRED)
    assert tuple(len(getattr(split, part)) for part in PARTS) == (175, 25, 50)
    assert groups_of(split, HUNDRED, "train") & groups_of(split, HUNDRED, "test")
    with pytest.raises(DataError, match="test images share a prompt with one of train"):
        check_leaks(split, HUNDRED, unlike(HUNDRED), frozenset())


@pytest.mark.parametrize("name", PROTOCOLS)
def test_same_inputs_give_the_same_split_and_another_repeat_another(name: str) -> None:
    table = HALVES if name.startswith("official") else HUNDRED
    units = tied_units(table, unlike(table))
    first, again = ([draw_split(name, table, units, i) for i in range(6)] for _ in range(2))
    assert first == again
    assert len({split.digest for split in first}) == 6
    assert [(split.protocol, split.repeat) for split in first] == [(name, i) for i in range(6)]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_split_does_not_depend_on_the_order_of_rows(name: str) -> None:
    table = HALVES if name.startswith("official") else HUNDRED
    order = np.random.default_rng(0).permutation(len(table))
    other = ImageTable("made", table.scale, table.frame.iloc[order].reset_index(drop=True))
    assert drawn(name, other, 2) == drawn(name, table, 2)


def test_official_split_is_the_data_sets_own() -> None:
    split = drawn("official", OWN)
    for part in PARTS:
        rows = OWN.frame["name"][OWN.frame["part"] == part]
        assert getattr(split, part) == tuple(sorted(rows))
    assert split.left_out == ()
    assert split.digest == drawn("official", OWN, 7).digest


def test_official_split_without_validation_takes_a_tenth_of_trainings_prompts() -> None:
    split = drawn("official", HALVES)
    in_training = HALVES.frame["part"] == "train"
    inside = HALVES.frame["group"][in_training].nunique()
    validation = groups_of(split, HALVES, "val")
    assert len(validation) == round(0.1 * inside) == 4
    assert not validation & groups_of(split, HALVES, "train")
    assert {*split.train, *split.val} == set(HALVES.frame["name"][in_training])
    assert set(split.test) == set(HALVES.frame["name"][~in_training])


def test_prompts_that_the_official_split_shares_are_told_with_their_number() -> None:
    groups = ["a", "b", "c", "d", "e", "a", "f", "b"]
    table = made_table(group=groups, part=["train"] * 4 + ["val"] + ["test"] * 3, mos_quality=3.0)
    split = drawn("official", table)
    assert check_leaks(split, table, unlike(table), PROTOCOLS["official"].leaks) == [
        "2 of 3 test images share a prompt with one of train (5.png and 0.png; 7.png and 1.png)"
    ]


def test_official_disjoint_leaves_out_what_the_test_part_shares() -> None:
    groups = ["a", "b", "c", "d", "e", "a", "f", "g", "c", "d"]
    parts = ["train"] * 4 + ["val"] * 2 + ["test"] * 3 + ["val"]
    table = made_table(group=groups, part=parts, mos_quality=3.0)
    split = drawn("official-disjoint", table)
    assert split.test == ("6.png", "7.png", "8.png")
    assert split.val == ("4.png", "5.png", "9.png")
    assert split.train == ("1.png",)
    assert split.left_out == ("0.png", "2.png", "3.png")
    assert check_leaks(split, table, unlike(table), frozenset()) == []


def test_official_disjoint_finds_validation_wherever_training_has_a_prompt_of_its_own() -> None:
    """Ten of its twenty prompts are in test too, ten are not."""
    groups = [f"prompt {i}" for i in range(20)] + [f"prompt {i}" for i in range(10)]
    table = made_table(group=groups, part=["train"] * 20 + ["test"] * 10, mos_quality=3.0)
    for repeat in range(20):
        split = drawn("official-disjoint", table, repeat)
        assert split.val
        assert split.train


@pytest.mark.parametrize("name", ["official", "official-disjoint"])
def test_data_set_without_a_split_of_its_own_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="expected a split of made's own") as caught:
        drawn(name, HUNDRED)
    assert "choose another --protocol" in str(caught.value)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_images_that_nobody_judged_are_left_out(name: str) -> None:
    table = HALVES if name.startswith("official") else HUNDRED
    mos = np.where(np.arange(len(table)) % 9 == 4, np.nan, 3.0)
    table = ImageTable("made", table.scale, table.frame.assign(mos_quality=mos))
    unjudged = set(table.frame["name"][np.isnan(mos)])
    split = drawn(name, table)
    assert unjudged <= set(split.left_out)
    assert not unjudged & {*split.train, *split.val, *split.test}


def test_official_split_of_aigiqa_20k_has_the_published_shared_prompts() -> None:
    """As measured on the released files: 83 of 2,000 and 220 of 4,000 share one with train."""
    table = real(AIGIQA_20K)  # whose copies need not have the opinions on the test part
    table = ImageTable(table.name, table.scale, table.frame.assign(mos_quality=3.0))
    split = draw_split("official", table, np.arange(len(table)), 0)
    assert tuple(len(getattr(split, part)) for part in PARTS) == (14_000, 2_000, 4_000)
    prompts = {part: split.rows(table, part).frame["prompt"] for part in PARTS}
    shared = [int(prompts[part].isin(set(prompts["train"])).sum()) for part in ("val", "test")]
    assert shared == [83, 220]


def test_only_clean_protocols_name_no_leak() -> None:
    assert {name for name, protocol in PROTOCOLS.items() if not protocol.leaks} == {
        "clean",
        "clean-folds",
        "official-disjoint",
    }
