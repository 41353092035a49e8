"""Text to ids: framing, slots, cutting, padding, and files that are no tokenizer."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from conftest import TOKENIZER
from dcmpl.errors import DcmplError, WeightsError
from dcmpl.model.tokenizer import END, START, UNKNOWN, Tokenizer

FILE = TOKENIZER
LENGTH = 12


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(FILE, LENGTH)


def test_a_text_stands_between_start_and_end(tokenizer: Tokenizer) -> None:
    ids = tokenizer(["good photo."]).ids[0].tolist()
    assert (ids[0], ids[-1]) == (tokenizer.start_id, tokenizer.end_id)
    assert len(ids) > 3
    assert not {tokenizer.start_id, tokenizer.end_id} & set(ids[1:-1])


def test_an_empty_text_is_start_and_end(tokenizer: Tokenizer) -> None:
    assert tokenizer([""]).ids.tolist() == [[tokenizer.start_id, tokenizer.end_id]]


def test_blanks_around_and_between_words_say_nothing(tokenizer: Tokenizer) -> None:
    plain, wide = tokenizer.parts("a red circle"), tokenizer.parts("\n a  red\t\r\ncircle ")
    assert wide == plain
    assert tokenizer.parts(" \n ") == tokenizer.parts("")


@pytest.mark.parametrize("n_context", [0, 4, LENGTH - 2])
def test_a_text_too_long_keeps_its_end_token(tokenizer: Tokenizer, n_context: int) -> None:
    tokens = tokenizer(["bad photo " * 20], n_context)
    assert tokens.ids.shape == (1, LENGTH)
    assert tokens.ids[0, -1] == tokenizer.end_id
    assert tokens.end.tolist() == [LENGTH - 1]


def test_a_text_too_long_loses_its_last_words(tokenizer: Tokenizer) -> None:
    text = "bad photo " * 20
    uncut = Tokenizer(FILE, 1000)([text]).ids[0]
    assert np.array_equal(tokenizer([text]).ids[0, :-1], uncut[: LENGTH - 1])


def test_slots_stand_behind_the_start_token(tokenizer: Tokenizer) -> None:
    words = tokenizer(["good"]).ids[0].tolist()
    assert tokenizer(["good"], 4).ids[0].tolist() == [words[0], 0, 0, 0, 0, *words[1:]]


@pytest.mark.parametrize("n_context", [LENGTH - 1, LENGTH])
def test_more_slots_than_the_context_holds_are_refused(
    tokenizer: Tokenizer, n_context: int
) -> None:
    with pytest.raises(DcmplError, match=r"^expected "):
        tokenizer(["good photo."], n_context)


def test_ends_are_the_places_of_the_end_tokens(tokenizer: Tokenizer) -> None:
    tokens = tokenizer(["", "good photo.", "bad"], 2)
    assert tokens.ids[np.arange(3), tokens.end].tolist() == [tokenizer.end_id] * 3
    assert tokens.end[0] == 3


def test_shorter_texts_are_padded_with_zero(tokenizer: Tokenizer) -> None:
    tokens = tokenizer(["", "good photo."])
    assert tokens.ids.shape[1] == tokens.end.max() + 1
    assert tokens.ids[0, 2:].tolist() == [0] * (tokens.ids.shape[1] - 2)


def test_stored_padding_and_truncation_are_ignored(tokenizer: Tokenizer, tmp_path: Path) -> None:
    record = json.loads(FILE.read_text())
    record["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    record["padding"] = {
        "strategy": {"Fixed": 30},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<|pad|>",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(record))
    set_up = Tokenizer(tmp_path / "tokenizer.json", LENGTH)
    assert np.array_equal(set_up(["good photo."]).ids, tokenizer(["good photo."]).ids)


@pytest.mark.parametrize(
    "content",
    [b"", b"no json", b"{}", b"\xff\xfe", b"[]"],
    ids=["empty", "text", "{}", "bytes", "[]"],
)
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"^expected a readable tokenizer at .*tokenizer\.json"):
        Tokenizer(path, LENGTH)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"^expected a readable tokenizer at .*tokenizer\.json"):
        Tokenizer(tmp_path / "tokenizer.json", LENGTH)


@pytest.mark.parametrize("token", [START, END])
def test_a_missing_special_token_is_named(tmp_path: Path, token: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(FILE.read_text().replace(token, "<|other|>"))
    with pytest.raises(WeightsError) as caught:
        Tokenizer(path, LENGTH)
    assert str(caught.value) == f"expected the token {token} in {path}, got none"


def of_pieces(folder: Path) -> Tokenizer:
    """A tokenizer of word pieces, as BERT's, with few words."""
    vocabulary = ["<|pad|>", START, END, UNKNOWN, "a", "fox", "##es", "in", "snow", ","]
    pairs = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({w: i for i, w in enumerate(vocabulary)}, unk_token=UNKNOWN)
    )
    pairs.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    pairs.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    pairs.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder / "tokenizer.json", 12)


@pytest.mark.parametrize(
    ("text", "ids", "unknown"),
    [
        ("A fox in snow", (4, 5, 7, 8), ()),
        ("foxes", (5, 6), ()),
        ("a \u043b\u0438\u0441\u0430 in snow", (4, 3, 7, 8), ("\u043b\u0438\u0441\u0430",)),
        ("\U0001f98a a fox \U0001f98a", (3, 4, 5, 3), ("\U0001f98a",)),
        ("a b c d e f g h i j k l m", (4, *[3] * 9), tuple("bcdefghijklm")),
    ],
)
def test_words_that_a_vocabulary_has_not_are_named(
    tmp_path: Path, text: str, ids: tuple[int, ...], unknown: tuple[str, ...]
) -> None:
    parts = of_pieces(tmp_path).parts(text)
    assert (parts.ids, parts.unknown) == ((ids,), unknown)
    assert parts.dropped == parts.count - len(ids)


def test_byte_pairs_have_every_word(tokenizer: Tokenizer) -> None:
    assert tokenizer.parts("\u043b\u0438\u0441\u0430 \U0001f98a").unknown == ()
