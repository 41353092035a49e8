"""No prompt is in two parts of a clean split, and a split is what its file says."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from conftest import made_table
from dcmpl.data import splits
from dcmpl.data.leaks import ImageFacts, tied_units
from dcmpl.data.splits import Split, draw_split
from dcmpl.data.table import ImageTable
from dcmpl.errors import DataError, RunError
from dcmpl.files import as_json
from dcmpl.runs import SPLIT


def table_of(groups: Sequence[str]) -> ImageTable:
    """A table of which only the groups matter."""
    return made_table(group=list(groups), mos_quality=3.0)


def clean(table: ImageTable, repeat: int) -> Split:
    """The clean split of images that nothing but their prompts ties: no two look alike."""
    digests = {path: hashlib.sha256(path.encode()) for path in table.frame["image"]}
    facts = {path: ImageFacts(None, d.hexdigest(), d.digest()) for path, d in digests.items()}
    return draw_split("clean", table, tied_units(table, facts), repeat)


FORTY = table_of([f"prompt {i % 40}" for i in range(100)])

random_groups = st.lists(st.integers(0, 60).map(lambda i: f"prompt {i}"), min_size=5, max_size=200)


@settings(deadline=None, max_examples=100)
@given(groups=random_groups, repeat=st.integers(0, 2**31))
def test_no_group_is_in_two_parts(groups: list[str], repeat: int) -> None:
    assume(len(set(groups)) >= 5)
    table = table_of(groups)
    split = clean(table, repeat)
    parts = [set(split.rows(table, part).frame["group"]) for part in splits.PARTS]
    assert sum(len(part) for part in parts) == len(set.union(*parts))


@settings(deadline=None, max_examples=100)
@given(groups=random_groups, repeat=st.integers(0, 2**31))
def test_every_row_is_in_one_part(groups: list[str], repeat: int) -> None:
    assume(len(set(groups)) >= 5)
    table = table_of(groups)
    split = clean(table, repeat)
    rows = [name for part in splits.PARTS for name in split.rows(table, part).frame["image"]]
    assert sorted(rows) == sorted(table.frame["image"])


def test_images_that_show_nothing_are_dealt_out_by_their_prompts() -> None:
    facts = {path: ImageFacts(flat=True) for path in FORTY.frame["image"]}
    units = tied_units(FORTY, facts)
    groups = [set(FORTY.frame["group"][units == unit]) for unit in range(units.max() + 1)]
    assert sorted(map(len, groups)) == [1] * 40


@pytest.mark.parametrize(
    ("count", "sizes"), [(5, (3, 1, 1)), (10, (7, 1, 2)), (40, (28, 4, 8)), (240, (168, 24, 48))]
)
def test_parts_are_70_10_and_20_percent_of_the_prompts(
    count: int, sizes: tuple[int, int, int]
) -> None:
    table = table_of([f"prompt {i}" for i in range(count)] * 2)
    split = clean(table, 0)
    parts = [split.rows(table, part).frame["group"] for part in splits.PARTS]
    assert tuple(part.nunique() for part in parts) == sizes


def test_same_repeat_gives_the_same_split() -> None:
    assert clean(FORTY, 3) == clean(FORTY, 3)


def test_split_does_not_depend_on_the_order_of_rows() -> None:
    backwards = replace(FORTY, frame=FORTY.frame.iloc[::-1].reset_index(drop=True))
    assert clean(backwards, 3) == clean(FORTY, 3)


def test_other_repeats_give_other_splits() -> None:
    assert len({clean(FORTY, repeat).digest for repeat in range(10)}) == 10


def test_digest_does_not_depend_on_protocol_and_repeat_that_are_noted() -> None:
    parts = ("a",), ("b",), ("c",)
    assert Split("clean", 1, *parts).digest == Split("official", 2, *parts).digest


def test_digest_changes_where_an_image_changes_its_part() -> None:
    one = Split("clean", 0, ("a", "d"), ("b",), ("c",))
    assert one.digest != Split("clean", 0, ("a",), ("b", "d"), ("c",)).digest


def written(record: object, folder: Path) -> Path:
    file = folder / "split.json"
    file.write_text(record if isinstance(record, str) else json.dumps(record), encoding="utf-8")
    return file


def test_file_gives_the_same_split(tmp_path: Path) -> None:
    names = [f'ein "Füchslein" 狐 {i}.png' for i in range(9)]
    split = replace(clean(made_table(name=names, mos_quality=3.0), 5), left_out=("x.png",))
    assert Split.read(written(split.to_json(), tmp_path)) == split


def test_json_names_its_protocol_and_repeat() -> None:
    record = clean(FORTY, 7).to_json()
    assert (record["protocol"], record["repeat"]) == ("clean", 7)


@pytest.mark.parametrize("source", ["val", "test"])
def test_image_moved_into_training_by_hand_is_noticed(source: str, tmp_path: Path) -> None:
    record = clean(FORTY, 0).to_json()
    record["train"].append(record[source].pop())
    file = written(record, tmp_path)
    with pytest.raises(RunError, match=r"got a changed one") as caught:
        Split.read(file)
    assert str(caught.value) == f"expected the split its digest names at {file}, got a changed one"


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "5", "null", "{}", "[" * 100_000),
        '{"protocol": "clean", "repeat": 0, "train": 1, "val": 2, "test": 3, "left_out": 4}',
    ],
    ids=lambda text: text[:10],
)
def test_file_that_is_no_split_is_a_run_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"expected a split at .*split\.json, got: "):
        Split.read(written(text, tmp_path))


def test_split_that_is_not_there_is_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"expected a split at .*nowhere\.json, got: "):
        Split.read(tmp_path / "nowhere.json")


@pytest.mark.parametrize("count", [1, 4])
def test_too_few_prompts_are_refused(count: int) -> None:
    with pytest.raises(DataError) as caught:
        clean(table_of([f"prompt {i}" for i in range(count)] * 10), 0)
    assert str(caught.value) == (
        "expected at least 5 different prompts in made to split into training, "
        f"validation and test, got {count}"
    )


@pytest.mark.parametrize("part", splits.PARTS)
def test_images_that_the_split_does_not_know_are_refused(part: str) -> None:
    more = table_of([*FORTY.frame["group"], "a new one"])
    with pytest.raises(DataError) as caught:
        clean(FORTY, 0).rows(more, part)
    assert str(caught.value) == (
        "expected just the 100 images of the split in made, got 1 others and 0 fewer, "
        "100.png among them: the data changed since the split was made"
    )


@pytest.mark.parametrize("part", splits.PARTS)
def test_table_without_an_image_of_the_split_is_refused(part: str) -> None:
    fewer = FORTY.select(FORTY.frame["name"] != "7.png")
    with pytest.raises(DataError) as caught:
        clean(FORTY, 0).rows(fewer, part)
    assert str(caught.value) == (
        "expected just the 100 images of the split in made, got 0 others and 1 fewer, "
        "7.png among them: the data changed since the split was made"
    )


def test_part_without_rows_is_refused() -> None:
    split = clean(FORTY, 0)
    untrained = replace(split, train=(), left_out=split.train)
    with pytest.raises(DataError, match="expected rows in the train part of made, got none"):
        untrained.rows(FORTY, "train")


def test_parts_are_three_types() -> None:
    split = clean(FORTY, 0)
    parts = [split.train_part(FORTY), split.validation_part(FORTY), split.test_part(FORTY)]
    assert [type(part) for part in parts] == [
        splits.TrainPart,
        splits.ValidationPart,
        splits.TestPart,
    ]


def test_each_part_holds_its_own_images() -> None:
    split = clean(FORTY, 0)
    parts = [split.train_part(FORTY), split.validation_part(FORTY), split.test_part(FORTY)]
    found = [tuple(sorted(part.table.frame["name"])) for part in parts]
    assert found == [split.train, split.val, split.test]


def test_a_split_has_one_layout_wherever_it_is_written(trained_run: Path) -> None:
    file = trained_run / SPLIT
    assert file.read_bytes() == as_json(Split.read(file).to_json())
