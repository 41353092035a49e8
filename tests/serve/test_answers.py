"""Rows of answers are those of files of scores, at once or line by line."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from pydantic import ValidationError

from dcmpl.scoring.files import columns_of, row_of
from dcmpl.scoring.results import Score
from dcmpl.serve.answers import LINES, Compared, Fault, Ranked, Row, Rows, as_lines, rows_of

GOOD = Score(
    "a.png", "a fox\nand <b>", quality=1 / 3, note="small", more={"quality_mos": 3.25}, index=4
)
BAD = Score("b.png", "", reason="expected an image", more={"quality_mos": None}, index=5)


def test_rows_have_the_columns_of_a_file() -> None:
    found = rows_of([GOOD, BAD])
    assert found == [row_of(GOOD), row_of(BAD)]
    assert [tuple(row) for row in found] == [columns_of(("quality_mos",))] * 2
    assert (found[0]["quality"], found[0]["status"]) == (1 / 3, "ok")
    assert (found[1]["quality"], found[1]["status"]) == (None, "error")


def test_rows_may_have_their_place() -> None:
    assert [row["index"] for row in rows_of([BAD, GOOD], index=True)] == [5, 4]
    assert "index" not in rows_of([GOOD])[0]


def test_no_scores_are_no_rows() -> None:
    assert rows_of([]) == []


async def scores() -> AsyncIterator[Score]:
    for score in (GOOD, BAD):
        yield score


def test_lines_are_one_row_each() -> None:
    async def ask() -> list[str]:
        answer = as_lines(scores(), {})
        assert answer.media_type == LINES
        return [str(chunk) async for chunk in answer.body_iterator]

    lines = asyncio.run(ask())
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in lines)
    assert [json.loads(line) for line in lines] == rows_of([GOOD, BAD])


def test_line_is_there_before_the_next_score_is() -> None:
    taken: list[str] = []

    async def slow() -> AsyncIterator[Score]:
        async for score in scores():
            taken.append(score.image)
            yield score

    async def ask() -> None:
        lines = aiter(as_lines(slow(), {}).body_iterator)
        assert json.loads(await anext(lines))["image"] == "a.png"
        assert taken == ["a.png"]
        await lines.aclose()  # type: ignore[attr-defined]

    asyncio.run(ask())


def test_rows_fit_their_schema() -> None:
    rows = rows_of([GOOD, BAD], index=True)
    assert Rows(rows=rows).model_dump()["rows"] == rows
    assert Ranked(by="quality", rows=rows).by == "quality"
    assert Compared(by="quality", rows=rows, first_is_better=None, call=None).call is None


@pytest.mark.parametrize("wrong", [{"status": "fine"}, {"quality": "high"}, {"image": None}])
def test_other_rows_do_not(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Row(**{**row_of(GOOD), **wrong})


def test_schema_of_problems_names_their_parts() -> None:
    assert set(Fault.model_fields) == {
        *("type", "title", "status", "detail", "expected", "got", "hint")
    }
