"""What can go wrong in serving, as a tree: each answer's HTTP status, outcome and advice to the client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio


class ServingError(Exception):
    """Anything that serving refuses or fails. `outcome` is one of `names.OUTCOMES`."""

    status = 500
    outcome = "model_error"
    retry_after_seconds: float | None = None
    # Goes into the answer's body beside the message.
    details: Mapping[str, Any] | None = None


class InvalidRequest(ServingError):
    """The request's body, shape or parameters do not fit the model (400)."""

    status = 400
    outcome = "invalid"


class TooLarge(InvalidRequest):
    """The request's header or body is over the limit (413)."""

    status = 413


class NotFound(InvalidRequest):
    """No such model, version or path (404)."""

    status = 404


class Refused(ServingError):
    """The request was turned away before it cost anything (429, with Retry-After). `reason` is a short name for why."""

    status = 429
    outcome = "rejected"

    def __init__(
        self,
        message: str,
        retry_after_seconds: float,
        reason: str = "queue_rows",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.reason = reason
        self.details = details


class Overloaded(Refused):
    """All queues of the server together are full (503, with Retry-After)."""

    status = 503


class Limited(Refused):
    """The caller sends faster than it may (429, with Retry-After)."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message, retry_after_seconds)
        self.reason = "caller_rate"


class Unauthorized(InvalidRequest):
    """The request bears no token, or one that is not known (401)."""

    status = 401


class Forbidden(InvalidRequest):
    """The caller may not ask this model (403)."""

    status = 403


class Unavailable(ServingError):
    """The model is loading, failed to load, or the server drains (503, with Retry-After)."""

    status = 503
    outcome = "unavailable"
    retry_after_seconds = 1.0


class GaveWay(Unavailable):
    """The version gave way to others and is being loaded again; `coming` ends then, with what went wrong if it did."""

    def __init__(self, message: str, coming: asyncio.Future[ServingError | None]) -> None:
        super().__init__(message)
        self.coming = coming


class Expired(ServingError):
    """The request's deadline passed before its answer (504)."""

    status = 504
    outcome = "expired"


class Cancelled(ServingError):
    """The client went away; nobody reads the answer (499 in logs only)."""

    status = 499
    outcome = "cancelled"


class ModelFailed(ServingError):
    """The model raised an exception for this request (500)."""


class NonFinite(ServingError):
    """The model's output for this request holds NaN or infinity (500)."""

    outcome = "non_finite"


class NonFiniteInput(NonFinite):
    """NaN or infinity went in and came out (400): the client's fault.

    A release is charged with it all the same: both arms get such rows, and one that copes worse with them is worse.
    """

    status = 400


class ArtifactError(ServingError):
    """A model artifact is broken, altered, or of a kind that is not loaded (409)."""

    status = 409


class RegistryError(ServingError):
    """The registry does not know the model, version or alias (404)."""

    status = 404


class RegistryUnavailable(RegistryError):
    """The registry's database does not read or write now: its disk is full, it is locked or away (503)."""

    status = 503
    outcome = "unavailable"
    retry_after_seconds = 1.0


class OverBudget(ServingError):
    """A version does not fit into the memory budget (507)."""

    status = 507
    outcome = "unavailable"


class Conflict(ServingError):
    """A control call does not fit the traffic policy in force (409)."""

    status = 409
