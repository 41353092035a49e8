"""Errors of a request: one sentence and its parts, as RFC 9457 has them."""

import json

import pytest

from dcmpl.errors import DcmplError, UsageError
from dcmpl.serve.problems import Problem, problem
from dcmpl.serve.queue import FullError


def test_problem_has_the_sentence_and_its_parts() -> None:
    answer = problem(422, UsageError("one prompt", "3", "send one"))
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert json.loads(bytes(answer.body)) == {
        "type": "about:blank",
        "title": "Not what was expected",
        "status": 422,
        "detail": "expected one prompt, got 3: send one",
        "expected": "one prompt",
        "got": "3",
        "hint": "send one",
    }


def test_problem_without_more_has_empty_parts() -> None:
    found = json.loads(bytes(problem(404, DcmplError("a path")).body))
    assert (found["got"], found["hint"]) == ("", "")
    assert found["detail"] == "expected a path, got"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 415, 421, 422, 500, 503, 507])
def test_status_in_use_has_a_title(status: int) -> None:
    title = json.loads(bytes(problem(status, DcmplError("a path")).body))["title"]
    assert title not in ("", "Error")


def test_other_status_is_an_error() -> None:
    assert json.loads(bytes(problem(418, DcmplError("tea")).body))["title"] == "Error"


def test_problem_may_have_headers() -> None:
    answer = problem(503, FullError("1 request that waits", 7), {"Retry-After": "7"})
    assert answer.headers["retry-after"] == "7"
    assert json.loads(bytes(answer.body))["hint"] == "send it again in 7 s"


def test_problem_to_raise_keeps_its_parts() -> None:
    found = Problem(401, "a key", "none", "bring one", **{"WWW-Authenticate": "Bearer"})
    assert str(found) == str(found.error) == "expected a key, got none: bring one"
    assert (found.status, found.headers) == (401, {"WWW-Authenticate": "Bearer"})


def test_lines_in_what_came_do_not_break_the_sentence() -> None:
    found = json.loads(bytes(problem(422, UsageError("a name", "a\nb")).body))
    assert "\n" not in found["detail"]
    assert found["got"] == "a\nb"
