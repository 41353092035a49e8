"""OpenAI's list of merges as a tokenizer; the words are made up, the rules are CLIP's."""

import gzip
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import golden_open_clip
from dcmpl.errors import WeightsError
from dcmpl.model.tokenizer import Tokenizer

Make = Callable[[Sequence[str]], Tokenizer]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A tokenizer of some merges."""

    def make(merges: Sequence[str]) -> Tokenizer:
        path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.write("\n".join(["#version: 0.2", *merges]))
        return Tokenizer(path, 77)

    return make


def words(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer([text]).ids[0].tolist()[1:-1]


PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = [*PRINTED, *sorted(set(range(256)) - set(PRINTED))]
"""The bytes in the order of their ids: what prints as one sign of Latin-1, then the others."""


def letters(word: str) -> list[int]:
    """Ids of a word without merges; its last byte is one at the end of a word."""
    ids = [BYTES.index(byte) for byte in word.encode()]
    return [*ids[:-1], 256 + ids[-1]]


def test_without_merges_every_byte_is_a_token(make: Make) -> None:
    tokenizer = make([])
    for word in [
        "!",
        "~",
        "a",
        "photo",
        "é",
        "ñandú",
        "中文",
        "✨",
        "\u00a1",
        "\u00ad",
        "\x07",
        "я",
    ]:
        assert words(tokenizer, word) == letters(word), word
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.size) == (512, 513, 514)


def test_merges_are_numbered_behind_the_bytes(make: Make) -> None:
    tokenizer = make(["a b", "ab c</w>", "b c</w>"])
    assert words(tokenizer, "abc") == [513]
    assert words(tokenizer, "bc") == [514]
    assert words(tokenizer, "abd") == [512, *letters("d")]
    assert (tokenizer.start_id, tokenizer.end_id) == (515, 516)


def test_a_merge_of_the_end_of_a_word_joins_no_others(make: Make) -> None:
    tokenizer = make(["a b</w>"])
    assert words(tokenizer, "ab") == [512]
    assert words(tokenizer, "abc") == letters("abc")
    assert words(tokenizer, "cab") == [*letters("c x")[:1], 512]


def test_earlier_merges_come_first(make: Make) -> None:
    assert words(make(["b c", "a b"]), "abcd") == [*letters("a x")[:1], 512, *letters("d")]
    assert words(make(["a b", "b c"]), "abcd") == [512, *letters("x cd")[2:]]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("A Photo", ["a", "photo"]),
        ("ÀÉ", ["àé"]),
        ("  two\n\t words  ", ["two", "words"]),
        ("photo.", ["photo", "."]),
        ("12a3", ["1", "2", "a", "3"]),
        ("what?!...", ["what", "?!..."]),
        ("a-b_c", ["a", "-", "b", "_", "c"]),
        ("don't we'll I'M he's", ["don", "'t", "we", "'ll", "i", "'m", "he", "'s"]),
        ("'quoted'", ["'", "quoted", "'"]),
        ("\u00bd\u0663", ["\u00bd", "\u0663"]),
        ("cafe\u0301", ["caf\u00e9"]),
        ("a\u3000b\u00a0c", ["a", "b", "c"]),
    ],
)
def test_texts_are_cut_as_clip_cuts_them(make: Make, text: str, parts: list[str]) -> None:
    assert words(make([]), text) == [index for part in parts for index in letters(part)]


def test_ids_equal_those_of_open_clip(tmp_path: Path) -> None:
    golden_open_clip.write_merges(tmp_path / "merges.txt.gz")
    tokenizer = Tokenizer(tmp_path / "merges.txt.gz", 40)
    with np.load(golden_open_clip.GOLDEN) as numbers:
        expected = numbers["ids"]
        ids = tokenizer([str(sentence) for sentence in numbers["sentences"]]).ids
    assert (expected[:, : ids.shape[1]] == ids).all()
    assert not expected[:, ids.shape[1] :].any()


def test_only_the_merges_that_clip_takes_count(make: Make) -> None:
    """Of OpenAI's 262,144 lines the first 48,894, so that there are 49,408 entries in all."""
    signs = [chr(code) for code in PRINTED]
    pairs = itertools.product(signs, [*signs, *(f"{sign}</w>" for sign in signs)])
    lines = [f"{first} {second}" for first, second in itertools.islice(pairs, 50_000)]
    tokenizer = make(lines)
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.size) == (49406, 49407, 49408)


def test_a_line_at_the_end_may_be_empty(make: Make) -> None:
    assert words(make(["a b</w>", ""]), "ab") == [512]


@pytest.mark.parametrize("line", ["a", "a b c", "ab cd", "a \u4e2d"])
def test_a_line_that_is_no_merge_is_refused(make: Make, line: str) -> None:
    with pytest.raises(WeightsError, match=r"^expected a readable tokenizer at .*\.txt\.gz"):
        make(["a b", line, "b c"])


@pytest.mark.parametrize(
    "content",
    [b"", b"a b\n", gzip.compress(b"v\na b\n" * 99)[:-9], gzip.compress(b"v\n\xff \xfe")],
    ids=["empty", "not compressed", "truncated", "not text"],
)
def test_an_unreadable_list_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"^expected a readable tokenizer at [^\n]*$"):
        Tokenizer(path, 77)


def test_a_compressed_list_is_read_only_so_far(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand bytes may be a million letters."""
    monkeypatch.setattr("dcmpl.model.tokenizer.MAX_MERGES_CHARACTERS", len("#version: 0.2\na b"))
    assert make(["a b", "c d"]).size == 515
