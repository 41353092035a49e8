"""Errors are sentences: what was expected, what came, what to do."""

import ast
from pathlib import Path

import pytest

import dcmpl
from dcmpl.errors import DataError, DcmplError, RunError, UsageError, WeightsError, nearest

SOURCE = Path(dcmpl.__file__).parent
ERRORS = {"DcmplError", "UsageError", "DataError", "WeightsError", "RunError"}


def opening(node: ast.expr) -> str | None:
    """The text that a message begins with, None where it is not written out."""
    if isinstance(node, ast.BinOp):
        return opening(node.left)
    if isinstance(node, ast.JoinedStr):
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def raised() -> list[tuple[str, str]]:
    """Place and opening of every message that is written out where it is raised."""
    found = []
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
                continue
            name, given = node.exc.func, node.exc.args
            is_ours = isinstance(name, ast.Name) and name.id in ERRORS and given
            if is_ours and (text := opening(given[0])) is not None:
                found.append((f"{file.relative_to(SOURCE)}:{node.lineno}", text))
    return found


def test_every_message_begins_with_what_was_expected() -> None:
    """A message that quotes another may begin with a name: it goes on with the sentence."""
    messages = raised()
    assert len(messages) > 150
    assert [place for place, text in messages if not text.startswith("expected ")] == []


@pytest.mark.parametrize(
    ("error", "code"), [(UsageError, 2), (DataError, 1), (WeightsError, 1), (RunError, 1)]
)
def test_exit_code_tells_wrong_requests_from_failures(error: type[DcmplError], code: int) -> None:
    assert error("expected a, got b").exit_code == code


def test_nearest_name_is_suggested_and_nothing_far_off() -> None:
    assert nearest("--epocks", ["--epochs", "--lr"], "see --help") == "did you mean --epochs?"
    assert nearest("xyz", ["--epochs", "--lr"], "see --help") == "see --help"
