"""Tables as Markdown and HTML: digits, missing values, and nothing of a data set as markup."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dcmpl.pages import embedded, figure_png, html_page, html_table, markdown_table, number_cell

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


def test_figure_holds_what_stands_at_its_edges() -> None:
    """As half of the last tick's number; none of the outermost pixels is drawn on."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1), dpi=50)
    figure.text(1, 0.5, "0.675", ha="center")
    pixels = np.asarray(Image.open(io.BytesIO(figure_png(figure))).convert("L"))
    assert pixels.min() < 128
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert edge.min() == 255
