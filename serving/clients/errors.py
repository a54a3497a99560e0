"""What a client's request can end with, when not with a result."""

from __future__ import annotations


class InferenceError(Exception):
    """A request that got no result. `status` is the HTTP status, 0 where nothing came back; `tries` were made."""

    outcome = "failed"

    def __init__(self, message: str, request_id: str = "", tries: int = 1, status: int = 0) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.tries = tries
        self.status = status


class InvalidInference(InferenceError):
    """The request does not fit the model (400, 413, 422 and other 4xx): it fails again as it is."""

    outcome = "invalid"


class NotServed(InvalidInference):
    """The model or version is not served (404)."""


class NotAllowed(InferenceError):
    """The token is missing or unknown (401), or not for this model (403)."""

    outcome = "invalid"


class Overloaded(InferenceError):
    """The server refused (429: full, or too fast for this caller) or is not ready (503), to the last try."""

    outcome = "overloaded"


class DeadlineExceeded(InferenceError):
    """The time was up, here or at the server (504)."""

    outcome = "deadline"


class ModelError(InferenceError):
    """The model failed for this request, or the server did (5xx)."""


class ConnectionFailed(InferenceError):
    """No connection, or it broke before the answer, to the last try."""

    outcome = "connection"


def error_for(status: int, message: str, request_id: str, tries: int) -> InferenceError:
    """The error of an answer with this HTTP status."""
    kinds: dict[int, type[InferenceError]] = {
        401: NotAllowed, 403: NotAllowed, 404: NotServed, 408: DeadlineExceeded, 429: Overloaded, 503: Overloaded,
        504: DeadlineExceeded,
    }  # fmt: skip
    kind = kinds.get(status, InvalidInference if 400 <= status < 500 else ModelError)
    return kind(message, request_id, tries, status)
