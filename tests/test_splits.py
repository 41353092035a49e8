"""No prompt is in two parts, and a split is what its file says."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dcmpl import splits
from dcmpl.errors import DataError, RunError
from dcmpl.splits import Split, make_split
from dcmpl.table import ImageTable, MosScale


def table_of(groups: Sequence[str]) -> ImageTable:
    """A table of which only the groups matter."""
    names = [f"{i}.png" for i in range(len(groups))]
    return ImageTable("made", MosScale(0, 1), pd.DataFrame({"image": names, "group": groups}))


FORTY = table_of([f"prompt {i % 40}" for i in range(100)])

random_groups = st.lists(st.integers(0, 60).map(lambda i: f"prompt {i}"), min_size=5, max_size=200)


@settings(deadline=None, max_examples=100)
@given(groups=random_groups, seed=st.integers(0, 2**31))
def test_no_group_is_in_two_parts(groups: list[str], seed: int) -> None:
    assume(len(set(groups)) >= 5)
    table = table_of(groups)
    split = make_split(table, seed)
    parts = [set(split.rows(table, part).frame["group"]) for part in splits.PARTS]
    assert sum(len(part) for part in parts) == len(set.union(*parts))


@settings(deadline=None, max_examples=100)
@given(groups=random_groups, seed=st.integers(0, 2**31))
def test_every_row_is_in_one_part(groups: list[str], seed: int) -> None:
    assume(len(set(groups)) >= 5)
    table = table_of(groups)
    split = make_split(table, seed)
    rows = [name for part in splits.PARTS for name in split.rows(table, part).frame["image"]]
    assert sorted(rows) == sorted(table.frame["image"])


@pytest.mark.parametrize(
    ("count", "sizes"), [(5, (3, 1, 1)), (10, (7, 1, 2)), (40, (28, 4, 8)), (240, (168, 24, 48))]
)
def test_parts_are_70_10_and_20_percent_of_the_prompts(
    count: int, sizes: tuple[int, int, int]
) -> None:
    split = make_split(table_of([f"prompt {i}" for i in range(count)]), 0)
    assert (len(split.train), len(split.val), len(split.test)) == sizes


def test_same_seed_gives_the_same_split() -> None:
    assert make_split(FORTY, 3) == make_split(FORTY, 3)


def test_split_does_not_depend_on_the_order_of_rows() -> None:
    backwards = FORTY.frame.iloc[::-1].reset_index(drop=True)
    assert make_split(ImageTable("made", FORTY.scale, backwards), 3) == make_split(FORTY, 3)


def test_other_seeds_give_other_splits() -> None:
    assert len({make_split(FORTY, seed).digest for seed in range(10)}) == 10


def test_digest_does_not_depend_on_the_seed_that_is_noted() -> None:
    assert Split(1, ("a",), ("b",), ("c",)).digest == Split(2, ("a",), ("b",), ("c",)).digest


def test_digest_changes_where_a_prompt_changes_its_part() -> None:
    assert (
        Split(0, ("a", "d"), ("b",), ("c",)).digest != Split(0, ("a",), ("b", "d"), ("c",)).digest
    )


def test_json_round_trip_gives_the_same_split() -> None:
    split = make_split(table_of([f'ein "Füchslein" 狐 {i}' for i in range(9)]), 5)
    assert Split.from_json(json.dumps(split.to_json()), Path("split.json")) == split


def test_json_names_its_protocol() -> None:
    assert make_split(FORTY, 0).to_json()["protocol"] == "clean"


@pytest.mark.parametrize("source", ["val", "test"])
def test_prompt_moved_into_training_by_hand_is_noticed(source: str) -> None:
    record = make_split(FORTY, 0).to_json()
    record["train"].append(record[source].pop())
    with pytest.raises(RunError, match=r"got a changed one") as caught:
        Split.from_json(json.dumps(record), Path("split.json"))
    assert str(caught.value) == (
        "expected the split its digest names at split.json, got a changed one"
    )


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", "null", "{}", '{"seed": 0, "train": 1, "val": 2, "test": 3}']
)
def test_file_that_is_no_split_is_a_run_error(text: str) -> None:
    with pytest.raises(RunError, match=r"expected a split at split\.json"):
        Split.from_json(text, Path("split.json"))


@pytest.mark.parametrize("count", [1, 4])
def test_too_few_prompts_are_refused(count: int) -> None:
    with pytest.raises(DataError) as caught:
        make_split(table_of([f"prompt {i}" for i in range(count)] * 10), 0)
    assert str(caught.value) == (
        "expected at least 5 different prompts in made to split into training, "
        f"validation and test, got {count}"
    )


@pytest.mark.parametrize("part", splits.PARTS)
def test_prompts_that_the_split_does_not_know_are_refused(part: str) -> None:
    more = table_of([*FORTY.frame["group"], "a new one"])
    with pytest.raises(DataError) as caught:
        make_split(FORTY, 0).rows(more, part)
    assert str(caught.value) == (
        "expected only prompts of the split, got 1 others such as 'a new one': "
        "the data changed since the split was made"
    )


def test_part_without_rows_is_refused() -> None:
    split = make_split(FORTY, 0)
    only_test = FORTY.select(FORTY.frame["group"].isin(split.test))
    with pytest.raises(DataError, match="expected rows in the train part of made, found none"):
        split.rows(only_test, "train")


def test_parts_are_three_types() -> None:
    split = make_split(FORTY, 0)
    parts = [split.train_part(FORTY), split.validation_part(FORTY), split.test_part(FORTY)]
    assert [type(part) for part in parts] == [
        splits.TrainPart,
        splits.ValidationPart,
        splits.TestPart,
    ]


def test_each_part_holds_its_own_prompts() -> None:
    split = make_split(FORTY, 0)
    parts = [split.train_part(FORTY), split.validation_part(FORTY), split.test_part(FORTY)]
    found = [tuple(sorted(set(part.table.frame["group"]))) for part in parts]
    assert found == [split.train, split.val, split.test]
