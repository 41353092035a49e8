"""Text to token ids, with the end token always kept.

The vocabulary comes from a ``tokenizer.json`` (the file format of the ``tokenizers``
library), which lies beside every backbone, or from OpenAI's own list of merges. Imports no torch.
"""

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int64

from dcmpl.errors import UsageError, WeightsError
from dcmpl.files import read_most

__all__ = ["LONG_PROMPTS", "Ids", "Parts", "Tokenizer", "Tokens"]

LONG_PROMPTS = ("truncate", "window", "error")
"""What may become of a prompt that does not fit the text tower: its end is dropped, parts that
overlap are read and their scores averaged, or its row is an error."""


Ids = tuple[int, ...]
"""Tokens of a text, or of a part of it that fits."""


@dataclass(frozen=True)
class Parts:
    """Token chunks of a text: one, or several that overlap.

    ``count`` tokens are in all of them together and ``dropped`` in none. ``unknown`` are the
    words that the vocabulary has not.
    """

    ids: tuple[Ids, ...]
    dropped: int = 0
    count: int = 0
    unknown: tuple[str, ...] = ()


START, END = "<|startoftext|>", "<|endoftext|>"
UNKNOWN = "[UNK]"
"""Token of words that a vocabulary of word pieces has not; one of byte pairs has all."""

MERGES = 49152 - 256 - 2


MAX_MERGES_CHARACTERS = 16 * 2**20


@dataclass(frozen=True)
class Tokens:
    """``ids`` (texts, length), padded with 0 behind ``end`` (texts,), the end tokens' places."""

    ids: Int64[np.ndarray, "texts length"]
    end: Int64[np.ndarray, " texts"]


def _from_merges(path: Path) -> tokenizers.Tokenizer:
    """CLIP's byte-pair encoding from OpenAI's ``bpe_simple_vocab_16e6.txt.gz``.

    The ids are 256 bytes, the same at the end of a word, the merges that OpenAI's code takes
    of the file, start and end; words are cut as its pattern does, in lower case.
    """
    with gzip.open(path, "rt", encoding="utf-8") as file:
        header, *lines = file.read(MAX_MERGES_CHARACTERS).strip().split("\n")[: 1 + MERGES]
    if not header:
        raise ValueError("an empty file")
    merges = [(first, second) for first, second in (line.split() for line in lines)]
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet(), key=_byte_order)
    entries = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    vocabulary = {entry: index for index, entry in enumerate([*entries, START, END])}
    found = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=END)
    )
    found.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.NFC(),
            tokenizers.normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            tokenizers.normalizers.Lowercase(),
        ]
    )
    found.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(
                tokenizers.Regex(CLIP_WORDS),
                behavior="removed",
                invert=True,
            ),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return found


MAX_JSON_BYTES = 64 * 2**20
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
PATTERNS = (r"\s+", CLIP_WORDS, rf"<\|startoftext\|>|<\|endoftext\|>|{CLIP_WORDS}")
"""Patterns that no text keeps busy for long, of CLIP's own tokenizers."""

STEPS = {
    "normalizer": [
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "Lowercase",
        "Strip",
        "StripAccents",
        "BertNormalizer",
    ],
    "pre_tokenizer": [
        "ByteLevel",
        "Whitespace",
        "WhitespaceSplit",
        "BertPreTokenizer",
        "Metaspace",
        "Digits",
        "Punctuation",
    ],
}
MOST_STEPS = 8
"""What is done to a text before it is cut: what is known to end soon, and to let it grow little."""


def _from_json(content: bytes) -> tokenizers.Tokenizer:
    """Tokenizer of a stranger's ``tokenizer.json``, whose steps are those of ``STEPS``.

    Others could double a text at each step, or take for ever. Raises :class:`ValueError`.
    """
    record = json.loads(content)
    for kind, known in STEPS.items():
        stack, steps, byte_steps = [record.get(kind)], 0, 0
        while stack:
            step = stack.pop()
            if step is None:
                continue
            steps += 1
            if step["type"] == "Sequence":
                stack += step[f"{kind}s" if kind == "normalizer" else "pretokenizers"]
            elif step["type"] not in known and not _is_known_pattern(step):
                raise ValueError(f"a {kind} of the type {step['type']} that CLIP has not")
            byte_steps += step["type"] == "ByteLevel"  # a byte becomes a letter of two
            if steps > MOST_STEPS or byte_steps > 1:
                raise ValueError(f"more than {MOST_STEPS} steps of a {kind}, or bytes of bytes")
    _check_model(record["model"])
    record |= {"post_processor": None, "decoder": None}
    record["model"]["dropout"] = None  # chance, for training alone
    return tokenizers.Tokenizer.from_str(json.dumps(record))


def _check_model(model: dict[str, Any]) -> None:
    """Check that a model is of CLIP's byte pairs, or of BERT's word pieces."""
    kind = model.get("type", "BPE")
    if kind not in ("BPE", "WordPiece"):
        raise ValueError(f"a model of the type {kind}, neither BPE nor WordPiece")
    if kind == "BPE" and model.get("continuing_subword_prefix"):
        raise ValueError("byte pairs with a prefix, which CLIP's have not")
    if kind == "WordPiece" and model.get("unk_token") not in model["vocab"]:
        raise ValueError("word pieces without a token for unknown words")


def _is_known_pattern(step: dict[str, Any]) -> bool:
    if step["type"] == "Replace":
        return bool(step["pattern"] == {"Regex": r"\s+"} and step["content"] == " ")
    return bool(step["type"] == "Split" and step["pattern"].get("Regex") in PATTERNS)


def _byte_order(letter: str) -> tuple[bool, int]:
    """Bytes in the order of CLIP's vocabulary: printable ones first."""
    return ord(letter) > 255, ord(letter)


class Tokenizer:
    """CLIP's framing of a text: start token, byte pairs, end token."""

    def __init__(self, path: Path, context_length: int) -> None:
        try:
            if path.suffix == ".gz":
                self._pairs = _from_merges(path)
            else:
                self._pairs = _from_json(read_most(path, MAX_JSON_BYTES))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library's panics are no Exceptions
            raise WeightsError(f"a readable tokenizer at {path}", reason=error) from error
        # A stored setting to pad or cut would act before the end token is placed.
        self._pairs.no_padding()
        self._pairs.no_truncation()
        self.context_length = context_length
        self.start_id, self.end_id = (self._special(token, path) for token in (START, END))
        self.unknown_id = self._pairs.token_to_id(UNKNOWN)
        self.size = 1 + max(self._pairs.get_vocab(with_added_tokens=True).values())

    def _special(self, token: str, path: Path) -> int:
        found = self._pairs.token_to_id(token)
        if found is None:
            raise WeightsError(f"the token {token} in {path}", "none")
        return int(found)

    def __call__(self, texts: Sequence[str], n_context: int = 0) -> Tokens:
        """Ids of ``texts`` with ``n_context`` free slots behind the start token.

        A text too long for the context loses its last words, never its end token. Raises
        :class:`UsageError` where the slots alone are too many.
        """
        return self.framed([self.parts(text, n_context).ids[0] for text in texts], n_context)

    def parts(self, text: str, n_context: int = 0, long: str = "truncate") -> Parts:
        """Split the tokens of ``text`` into chunks that fit beside ``n_context`` slots.

        ``long`` of ``LONG_PROMPTS`` says what becomes of one too long. With ``window`` its parts
        have all the same length, begin at equal distances, and hold every token, so a word more
        changes little. Raises :class:`UsageError` where the slots alone are too many, and, with
        ``error``, for a text too long.
        """
        room = self.context_length - 2 - n_context
        if room < 0:
            raise UsageError(f"at most {self.context_length - 2} prompt tokens", n_context)
        readable = text.encode("utf-8", "replace").decode()  # a file name may be no text
        readable = " ".join(readable.split())  # as CLIP cleans texts, whatever the file says
        encoded = self._pairs.encode(readable, add_special_tokens=False)
        words, unknown = tuple(encoded.ids), self._unknown(readable, encoded)
        if len(words) <= room:
            return Parts((words,), 0, len(words), unknown)
        if long == "error":
            raise UsageError(
                f"a prompt of at most {room} tokens",
                len(words),
                "shorten it, or take --long-prompts truncate or window",
            )
        if long == "truncate" or not room:
            return Parts((words[:room],), len(words) - room, len(words), unknown)
        count = -(-len(words) // room)
        starts = [round(i * (len(words) - room) / (count - 1)) for i in range(count)]
        chunks = tuple(words[start : start + room] for start in starts)
        return Parts(chunks, 0, len(words), unknown)

    def _unknown(self, text: str, encoded: Any) -> tuple[str, ...]:
        """Words of a text that became the token for unknown ones, each once."""
        if self.unknown_id is None or self.unknown_id not in encoded.ids:
            return ()
        pairs = zip(encoded.ids, encoded.offsets, strict=True)
        found = (text[start:end] for index, (start, end) in pairs if index == self.unknown_id)
        return tuple(dict.fromkeys(found))

    def framed(self, parts: Sequence[Sequence[int]], n_context: int = 0) -> Tokens:
        """Frame each of ``parts`` by start and end token, behind the slots."""
        rows = [[self.start_id, *[0] * n_context, *words, self.end_id] for words in parts]
        end = np.array([len(row) - 1 for row in rows], dtype=np.int64)
        ids = np.zeros((len(rows), int(end.max()) + 1), dtype=np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
        return Tokens(ids, end)
