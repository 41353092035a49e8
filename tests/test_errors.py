"""Errors in three parts: what was expected, what came, what to do; the wording of the sentence."""

import ast
import pickle
from copy import copy
from pathlib import Path

import pytest

import dcmpl
from dcmpl.errors import DataError, DcmplError, RunError, UsageError, WeightsError, nearest

SOURCE = Path(dcmpl.__file__).parent
ERRORS = {"DcmplError", "UsageError", "DataError", "WeightsError", "RunError"}


def raised() -> list[tuple[str, ast.Call]]:
    """Place and call of every error of ours that is made in the source."""
    found = []
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            is_ours = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if is_ours and node.func.id in ERRORS:
                found.append((f"{file.relative_to(SOURCE)}:{node.lineno}", node))
    return found


def test_every_error_says_what_was_expected_and_what_came() -> None:
    errors = raised()
    assert len(errors) > 250
    errors = [(p, e) for p, e in errors if not isinstance(e.args[0], ast.Starred)]  # another's
    parts = [(place, len(e.args), {k.arg for k in e.keywords}) for place, e in errors]
    assert [place for place, given, named in parts if given < 2 and "reason" not in named] == []


def test_what_was_expected_stands_without_the_word_for_it() -> None:
    texts = [(place, ast.unparse(error.args[0])) for place, error in raised()]
    assert [place for place, text in texts if text.lstrip("f'\"").startswith("expected")] == []


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        (("an image", "a folder"), "expected an image, got a folder"),
        (("an image", 3), "expected an image, got 3"),
        (("an image", "a folder", "name one"), "expected an image, got a folder: name one"),
        (("an image", "", "", "no room"), "expected an image, got: no room"),
        (("an image", "", "make room", "no room"), "expected an image, got: no room: make room"),
        (("an image", "", "", OSError("no room")), "expected an image, got: no room"),
    ],
)
@pytest.mark.parametrize("error", [UsageError, DataError, WeightsError, RunError])
def test_error_is_one_sentence_of_its_parts_after_pickling_too(
    error: type[DcmplError], parts: tuple[object, ...], sentence: str
) -> None:
    made = error(*parts)  # type: ignore[arg-type]
    for one in (made, pickle.loads(pickle.dumps(made)), copy(made)):
        assert str(one) == sentence
        assert (one.expected, one.got) == ("an image", str(parts[1]))


@pytest.mark.parametrize(
    ("error", "code"), [(UsageError, 2), (DataError, 1), (WeightsError, 1), (RunError, 1)]
)
def test_exit_code_tells_wrong_requests_from_failures(error: type[DcmplError], code: int) -> None:
    assert error("a", "b").exit_code == code


def test_nearest_name_is_suggested_and_nothing_far_off() -> None:
    assert nearest("--epocks", ["--epochs", "--lr"], "see --help") == "did you mean --epochs?"
    assert nearest("xyz", ["--epochs", "--lr"], "see --help") == "see --help"
