"""Tables as Markdown and HTML: digits, missing values, and nothing of a data set as markup."""

import pandas as pd
import pytest

from dcmpl.pages import embedded, html_page, html_table, markdown_table, number_cell

HOSTILE = "<script>alert(1)</script>"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12349, "0.123"), (None, ""), (float("nan"), ""), (2982, "2,982"), ("a|b", "a|b")],
)
def test_cell_has_three_digits_and_nothing_for_what_is_missing(value: object, text: str) -> None:
    assert number_cell(value) == text


def test_markdown_leaves_out_empty_columns_signs_and_escapes_bars() -> None:
    frame = pd.DataFrame({"name": ["a|b"], "gain": [0.5], "nothing": [float("nan")]})
    head, _, row = markdown_table(frame, signed=["gain"]).splitlines()
    assert [cell.strip() for cell in head.split("|")] == ["", "name", "gain", ""]
    assert "a\\|b" in row
    assert "+0.500" in row


def test_html_is_escaped_wherever_a_data_set_is_quoted() -> None:
    table = html_table(pd.DataFrame({HOSTILE: [HOSTILE]}))
    page = html_page(HOSTILE, [table, embedded(b"1", "png", HOSTILE)]).decode()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 5  # title twice, column, cell, caption
    assert "default-src 'none'" in page
