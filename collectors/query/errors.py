"""What can go wrong with a query, by the kind that the HTTP API reports."""

from __future__ import annotations

from typing import Literal

ErrorKind = Literal["bad_data", "execution", "timeout", "canceled", "internal", "unavailable", "not_found"]


class QueryError(Exception):
    """A query that has no answer. `kind` is Prometheus' errorType: `bad_data` when the text is wrong."""

    def __init__(self, message: str, kind: ErrorKind = "execution") -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind


class ParseError(QueryError):
    """A text that is not PromQL; the message says where, as `line:column: parse error: …`."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "bad_data")
