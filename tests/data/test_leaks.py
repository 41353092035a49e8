"""No clean split gives an image away, and what another gives away is named."""

import hashlib
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import made_table
from dcmpl.data import leaks
from dcmpl.data.datasets import load_table
from dcmpl.data.leaks import (
    ALIKE_BITS,
    ImageFacts,
    Leak,
    check_leaks,
    find_leaks,
    survey,
    tied_units,
)
from dcmpl.data.splits import PARTS, Split, draw_split
from dcmpl.data.table import ImageTable
from dcmpl.errors import DataError, UsageError

REAL = Path(__file__).parents[3] / "shared" / "data" / "agiqa-3k-dev"
BITS = 255
Facts = dict[str, ImageFacts]
Made = tuple[ImageTable, Facts]
Recipe = tuple[list[ImageFacts], dict[str, list[str]]]


def look(base: int, flips: int = 0) -> bytes:
    """The look numbered ``base`` with the first ``flips`` bits turned; others are far away."""
    bits = np.random.default_rng(base).integers(0, 2, BITS)
    bits[:flips] ^= 1
    return np.packbits(bits).tobytes()


def image(number: int, like: int | None = None, flips: int = 0) -> ImageFacts:
    """An image of its own, or one that looks like that numbered ``like``."""
    shown = look(number if like is None else like, flips)
    return ImageFacts(None, f"file {number}", shown, False, 8, 8)


def made(images: list[ImageFacts], **columns: list[str]) -> Made:
    """A table of these images, each under a prompt of its own unless told."""
    table = made_table(name=[f"{i}.png" for i in range(len(images))], mos_quality=3.0, **columns)
    return table, dict(zip(table.frame["image"], images, strict=True))


def of(recipe: Recipe) -> Made:
    return made(recipe[0], **recipe[1])


def folded(prompt: str) -> str:
    return " ".join(prompt.split()).lower()


def records(table: ImageTable) -> list[dict[str, str]]:
    return table.frame.to_dict("records")


def ties(one: dict[str, str], other: dict[str, str], facts: Facts) -> set[str]:
    """By which kinds two rows must not part, said plainly."""
    a, b = facts[one["image"]], facts[other["image"]]
    kinds = set()
    same_prompt = folded(one["prompt"]) == folded(other["prompt"]) != ""
    if same_prompt or one["group"] == other["group"] != "":
        kinds.add("prompt")
    if not a.flat and not b.flat:
        if a.sha256 == b.sha256:
            kinds.add("file")
        elif (int.from_bytes(a.look, "big") ^ int.from_bytes(b.look, "big")).bit_count() <= 28:
            kinds.add("look")
    return kinds


def tied_sets(table: ImageTable, facts: Facts) -> set[frozenset[int]]:
    """Rows that hang together, grown one by one from each row."""
    rows = records(table)
    near = [{j for j, other in enumerate(rows) if ties(one, other, facts)} for one in rows]
    found = set()
    for i in range(len(table)):
        reached: set[int] = set()
        waiting = {i}  # a flat image without a prompt is not even tied to itself
        while waiting:
            reached |= waiting
            waiting = set.union(*(near[j] for j in waiting)) - reached
        found.add(frozenset(reached))
    return found


def as_sets(units: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(units == unit).tolist()) for unit in np.unique(units)}


@st.composite
def recipes(draw: st.DrawFn, parts: tuple[str, ...] = ("",), least: int = 2) -> Recipe:
    """Few prompts, written in two ways; few groups; equal files; looks about the threshold."""
    size = draw(st.integers(least, 28))
    numbers = st.integers(0, size)

    def column(values: st.SearchStrategy) -> list:
        return draw(st.lists(values, min_size=size, max_size=size))

    own = [f"prompt {i}" for i in range(size)]
    common = column(st.sampled_from(["", "A red  fox", "a red fox ", "a blue fox", *own, *own]))
    groups = column(st.one_of(st.just(""), numbers.map(lambda i: f"group {i}")))
    flips = column(st.sampled_from([0, 0, 0, 10, 27, 28, 29, 40, 56, 57]))
    bases, shared, flat = column(numbers), column(numbers), column(st.integers(0, 9))
    images = [
        ImageFacts(
            None,
            # One file has one look, as in life.
            f"{base} {turned}" if common_file % 3 else f"copy {i}",
            look(base, turned),
            empty == 0,
            8,
            8,
        )
        for i, (base, turned, common_file, empty) in enumerate(
            zip(bases, flips, shared, flat, strict=True)
        )
    ]
    part = column(st.sampled_from(parts))
    return images, {"prompt": common, "group": groups, "part": part}


def rows_of(split: Split, table: ImageTable) -> dict[str, list[int]]:
    """The rows of every part, by number."""
    place = {name: row for row, name in enumerate(table.frame["name"])}
    return {part: [place[name] for name in getattr(split, part)] for part in (*PARTS, "left_out")}


def check_apart(split: Split, made: Made) -> dict[str, list[int]]:
    """No two rows of different parts are tied, and every row is in just one place."""
    table, facts = made
    rows, row = rows_of(split, table), records(table)
    assert sorted(chain.from_iterable(rows.values())) == list(range(len(table)))
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        for i in rows[first]:
            for j in rows[second]:
                assert not ties(row[i], row[j], facts), (first, i, second, j)
    return rows


@settings(deadline=None, max_examples=25)
@given(recipe=recipes())
def test_units_are_what_hangs_together(recipe: Recipe) -> None:
    some = of(recipe)
    assert as_sets(tied_units(*some)) == tied_sets(*some)


@pytest.mark.parametrize("protocol", ["clean", "clean-folds"])
@settings(deadline=None, max_examples=25)
@given(recipe=recipes(least=8), repeat=st.integers(0, 2**31))
def test_clean_split_shares_nothing_between_its_parts(
    protocol: str, recipe: Recipe, repeat: int
) -> None:
    some = of(recipe)
    units = tied_units(*some)
    if len(tied_sets(*some)) < 5:
        with pytest.raises(DataError, match="expected at least 5 different prompts in made"):
            draw_split(protocol, some[0], units, repeat)
        return
    split = draw_split(protocol, some[0], units, repeat)
    rows = check_apart(split, some)
    assert not rows["left_out"]
    assert all(rows[part] for part in PARTS)
    assert check_leaks(split, *some, frozenset()) == []
    assert draw_split(protocol, some[0], units, repeat) == split


@settings(deadline=None, max_examples=25)
@given(
    recipe=recipes(("train", "train", "train", "val", "test", ""), least=8),
    repeat=st.integers(0, 2**31),
)
def test_official_disjoint_split_shares_nothing_and_keeps_the_test_part(
    recipe: Recipe, repeat: int
) -> None:
    some = of(recipe)
    part = some[0].frame["part"].to_numpy()
    if not {"train", "test"} <= set(part):
        return
    units = tied_units(*some)
    of_part = {name: set(units[part == name].tolist()) for name in ("train", "val", "test")}
    val = of_part["val"] - of_part["test"]
    left = of_part["train"] - of_part["test"] - val
    if len(left) < (1 if val else 2):  # too little to train on, or to train and validate on
        with pytest.raises(UsageError, match="got none: choose another --protocol"):
            draw_split("official-disjoint", some[0], units, repeat)
        return
    split = draw_split("official-disjoint", some[0], units, repeat)
    rows = check_apart(split, some)
    assert sorted(rows["test"]) == np.flatnonzero(part == "test").tolist()
    # What is left out of training and validation is tied to what is in test or validation.
    kept = {units[row] for row in (*rows["test"], *rows["val"])}
    assert all(units[row] in kept for row in rows["left_out"] if part[row])
    assert draw_split("official-disjoint", some[0], units, repeat) == split


@settings(deadline=None, max_examples=25)
@given(recipe=recipes(("train", "test"), least=2))
def test_leaks_are_all_tested_images_that_training_gives_away(recipe: Recipe) -> None:
    table, facts = of(recipe)
    training, tested = (table.select(table.frame["part"] == part) for part in ("train", "test"))
    expected = {
        (kind, other["name"])
        for other in records(tested)
        for one in records(training)
        for kind in ties(one, other, facts)
    }
    found = find_leaks(training, tested, facts)
    assert sorted((leak.kind, leak.tested) for leak in found) == sorted(expected)
    by_name = {row["name"]: row for row in records(table)}
    assert all(
        leak.kind in ties(by_name[leak.known], by_name[leak.tested], facts) for leak in found
    )
    assert {leak.known for leak in found} <= set(training.frame["name"])


@pytest.mark.parametrize(("flips", "units"), [(0, 1), (ALIKE_BITS, 1), (ALIKE_BITS + 1, 2)])
def test_looks_are_alike_up_to_28_bits(flips: int, units: int) -> None:
    found = tied_units(*made([image(1), image(2, like=1, flips=flips)]))
    assert len(set(found.tolist())) == units


def test_images_are_tied_through_a_third() -> None:
    three = [image(0), image(1, like=0, flips=20), image(2, like=0, flips=40), image(3)]
    assert as_sets(tied_units(*made(three))) == {frozenset({0, 1, 2}), frozenset({3})}


@pytest.mark.parametrize("rows", [1, 3, 7])
def test_units_do_not_depend_on_the_size_of_a_block(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    some = made([image(i, like=i % 11) for i in range(20)])
    monkeypatch.setattr(leaks, "ROWS", rows)
    assert as_sets(tied_units(*some)) == {
        frozenset(i for i in range(20) if i % 11 == base) for base in range(11)
    }


def nothing(number: int) -> ImageFacts:
    """A flat image: all are one file and look the same."""
    return ImageFacts(None, "flat", look(0), True, 8, 8)


def test_flat_images_tie_nothing_though_they_are_one_file() -> None:
    some = made([nothing(0), nothing(1), image(5), image(6, like=0)])
    assert as_sets(tied_units(*some)) == {frozenset({i}) for i in range(4)}
    table, facts = some
    assert find_leaks(table, table.select(table.frame["name"] == "x"), facts) == []
    first, second = (table.select(table.frame["name"] == f"{i}.png") for i in (0, 1))
    assert find_leaks(first, second, facts) == []


def test_flat_images_of_one_prompt_are_tied_by_it() -> None:
    some = made([nothing(i) for i in range(3)], prompt=["a fox", "a  Fox", "a hen"])
    assert as_sets(tied_units(*some)) == {frozenset({0, 1}), frozenset({2})}


def test_images_without_prompts_are_not_tied_by_having_none() -> None:
    some = made([image(0), nothing(1), nothing(2)], prompt=["", "", ""], group=["", "", ""])
    assert as_sets(tied_units(*some)) == {frozenset({i}) for i in range(3)}


def test_flat_images_without_prompts_are_units_of_their_own() -> None:
    some = made([nothing(i) for i in range(3)], prompt=["", "", ""], group=["", "", ""])
    assert as_sets(tied_units(*some)) == {frozenset({i}) for i in range(3)}


@pytest.mark.parametrize("count", [3, 4, 32])
def test_units_of_an_unreadable_image_are_a_data_error(count: int) -> None:
    bad = ImageFacts(fault=DataError("an image at /made/0.png", "no file"))
    with pytest.raises(DataError, match=r"/made/0\.png"):
        tied_units(*made([bad, *map(image, range(1, count))]))


BOTH: dict[str, Callable[[], Made]] = {
    "prompt": lambda: made([image(0), image(1), image(2)], prompt=["a", "b", " A "]),
    "file": lambda: made([image(0), image(1), image(0)]),
    "look": lambda: made([image(0), image(1), image(2, like=0, flips=20)]),
}
TOLD = {"prompt": "share a prompt", "file": "are the same file", "look": "look the same"}
SPLITS = {
    ("train", "test"): Split("clean", 0, ("0.png",), ("1.png",), ("2.png",)),
    ("train", "val"): Split("clean", 0, ("0.png",), ("2.png",), ("1.png",)),
    ("val", "test"): Split("clean", 0, ("1.png",), ("0.png",), ("2.png",)),
}


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("pair", SPLITS, ids="-".join)
def test_leak_that_no_protocol_names_is_an_error_with_both_images(
    kind: str, pair: tuple[str, str]
) -> None:
    with pytest.raises(DataError) as caught:
        check_leaks(SPLITS[pair], *BOTH[kind](), frozenset(TOLD) - {kind})
    assert str(caught.value) == (
        f"expected no leak between {pair[0]} and {pair[1]}, got 1 of 1 {pair[1]} images "
        f"{TOLD[kind]} with one of {pair[0]} (2.png and 0.png): mend the split, or name a "
        "protocol that commits it"
    )


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("pair", SPLITS, ids="-".join)
def test_leak_that_the_protocol_names_is_told(kind: str, pair: tuple[str, str]) -> None:
    assert check_leaks(SPLITS[pair], *BOTH[kind](), frozenset({kind})) == [
        f"1 of 1 {pair[1]} images {TOLD[kind]} with one of {pair[0]} (2.png and 0.png)"
    ]


def test_many_leaks_show_three_and_count_the_rest() -> None:
    some = made([image(i) for i in range(8)], prompt=["x"] * 7 + ["y"])
    names = [f"{i}.png" for i in range(8)]
    split = Split("image-level", 0, (names[0],), (names[7],), tuple(names[1:7]))
    assert check_leaks(split, *some, frozenset({"prompt"})) == [
        "6 of 6 test images share a prompt with one of train (1.png and 0.png; 2.png and 0.png; "
        "3.png and 0.png and 3 more)"
    ]


def test_choosing_the_epoch_on_test_is_told_and_not_held_against_itself() -> None:
    split = Split("clip-agiqa", 0, ("0.png",), ("1.png", "2.png"), ("1.png", "2.png"))
    some = made([image(0), image(1), image(1)])
    assert check_leaks(split, *some, frozenset()) == ["the epoch is chosen on the test part"]


def test_leak_names_the_kind_and_the_first_image_that_gives_it_away() -> None:
    table, facts = made([image(0), image(0), image(0)])
    training, tested = table.select(table.frame.index < 2), table.select(table.frame.index == 2)
    assert find_leaks(training, tested, facts) == [Leak("file", "0.png", "2.png")]


def test_five_pairs_of_agiqa_3k_are_tied_across_their_prompts() -> None:
    if not REAL.is_dir():
        pytest.skip(f"{REAL} is not beside this repository")
    by_bytes: dict[str, list[str]] = {}
    for path in sorted((REAL / "img").glob("midjourney_*")):
        by_bytes.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), []).append(path.name)
    pairs = [names for names in by_bytes.values() if len(names) > 1]
    assert ["midjourney_normal_120.jpg", "midjourney_normal_185.jpg"] in pairs
    assert [len(pair) for pair in pairs] == [2] * 5
    whole = load_table(REAL)
    table = whole.select(whole.frame["name"].isin(list(chain.from_iterable(pairs))))
    assert table.frame["prompt"].nunique() == 10
    facts = survey(table.frame["image"])
    units = dict(zip(table.frame["name"], tied_units(table, facts).tolist(), strict=True))
    assert [units[one] == units[other] for one, other in pairs] == [True] * 5
    assert len(set(units.values())) == 5
    firsts = table.frame["name"].isin([pair[0] for pair in pairs])
    found = find_leaks(table.select(firsts), table.select(~firsts), facts)
    assert sorted((leak.kind, leak.known, leak.tested) for leak in found) == sorted(
        ("file", one, other) for one, other in pairs
    )
