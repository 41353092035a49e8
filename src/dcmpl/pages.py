"""Tables as Markdown and HTML, plots as PNG, and self-contained HTML pages.

Whatever comes from a data set is escaped; the pages run no script and load nothing.
"""

import base64
import html
import importlib.util
import io
from collections.abc import Sequence
from typing import Any

import pandas as pd

from dcmpl.files import MADE_BY

__all__ = [
    "embedded",
    "figure_png",
    "has_matplotlib",
    "html_page",
    "html_table",
    "markdown_table",
    "number_cell",
]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; color: #222;
       padding: 0 1rem }
h1, h2 { line-height: 1.2 }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right }
th { background: #f5f5f5 } td:first-child, th:first-child { text-align: left }
img { max-width: 100% }
.images { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .8rem }
figure { margin: 0 } figcaption { font-size: 12px; overflow-wrap: anywhere }
"""


def has_matplotlib() -> bool:
    """Whether matplotlib is installed (extra ``plots``)."""
    return importlib.util.find_spec("matplotlib") is not None


def figure_png(figure: Any) -> bytes:
    """A matplotlib figure as PNG, without any window system."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    file = io.BytesIO()
    made = {"Software": MADE_BY}
    # Whole: a layout that fits moves ticks, and the last may then stand half outside.
    FigureCanvasAgg(figure).print_figure(file, format="png", bbox_inches="tight", metadata=made)
    return file.getvalue()


def number_cell(value: Any, signed: bool = False) -> str:
    """Text of a cell: three digits for a fraction, empty for a missing value."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float):
        return f"{value:+.3f}" if signed else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cells(frame: pd.DataFrame, signed: Sequence[str]) -> pd.DataFrame:
    """Copy of ``frame`` with every value as text."""
    columns = {
        str(name): [number_cell(value, name in signed) for value in frame[name].tolist()]
        for name in frame
    }
    return pd.DataFrame(columns, dtype=str)


def markdown_table(frame: pd.DataFrame, signed: Sequence[str] = ()) -> str:
    """``frame`` as a Markdown table; columns that are empty throughout are left out."""
    cells = _cells(frame, signed)
    cells = cells.loc[:, (cells != "").any()].map(lambda cell: cell.replace("|", "\\|"))
    return str(cells.to_markdown(index=False, disable_numparse=True))


def html_table(frame: pd.DataFrame, signed: Sequence[str] = ()) -> str:
    """``frame`` as an HTML table, escaped."""
    return str(_cells(frame, signed).to_html(index=False, border=0))


def embedded(image: bytes, kind: str, caption: str = "") -> str:
    """An image inside the page; ``kind`` is png or jpeg."""
    data = base64.b64encode(image).decode("ascii")
    return f'<img alt="{html.escape(caption)}" src="data:image/{kind};base64,{data}">'


def html_page(title: str, parts: Sequence[str]) -> bytes:
    """Self-contained HTML page of ``parts``, which are HTML."""
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="generator" content="{MADE_BY}">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
    )
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", *parts])
    return f"{head}<body>\n{body}\n</body></html>\n".encode()
