"""Problems: errors of a request as ``application/problem+json`` (RFC 9457)."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from dcmpl.errors import DcmplError

__all__ = ["Problem", "problem"]

TITLES = {
    400: "Bad request",
    401: "No key",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    408: "Too slow",
    413: "Too large",
    415: "Unsupported media type",
    421: "Misdirected request",
    422: "Not what was expected",
    500: "Internal error",
    501: "Not here",
    503: "Queue full",
    507: "No room",
}


class Problem(Exception):  # noqa: N818  # the word of RFC 9457
    """Error of a request, with the status of its answer."""

    def __init__(
        self, status: int, wanted: str, got: object = "", hint: str = "", **headers: str
    ) -> None:
        self.status, self.headers = status, headers
        self.error = DcmplError(wanted, got, hint)
        super().__init__(str(self.error))


def problem(
    status: int, error: DcmplError, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Answer to a request that failed: the sentence, and its parts."""
    content: dict[str, Any] = {
        "type": "about:blank",
        "title": TITLES.get(status, "Error"),
        "status": status,
        "detail": str(error),
        "expected": error.expected,
        "got": error.got,
        "hint": error.hint,
    }
    return JSONResponse(
        content, status, headers=dict(headers or {}), media_type="application/problem+json"
    )
