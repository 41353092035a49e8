"""Pages of the service: the one to drop images on, and that of the API."""

from pathlib import Path

from starlette.responses import FileResponse, Response

from dcmpl.serve.problems import Problem

__all__ = ["api", "home", "part"]

FOLDER = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
PARTS = {path.name: path for path in FOLDER.iterdir() if path.suffix in KINDS}
"""Files of the page by name: no path of a request is ever opened."""


def home() -> Response:
    """The page that scores images."""
    return part("index.html")


def api() -> Response:
    """The page that describes the API."""
    return part("api.html")


def part(name: str) -> Response:
    """One file of the page; raises :class:`Problem` for other names."""
    if name not in PARTS:
        raise Problem(404, f"a file of the page ({', '.join(sorted(PARTS))})", name)
    return FileResponse(PARTS[name], media_type=KINDS[PARTS[name].suffix])
