"""What one connection may cost, and the refusal of a request that cannot be read or costs more."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one connection may cost."""

    header_bytes: int = 32 * 1024
    body_bytes: int = 16 * 1024 * 1024
    # Bytes of requests from their arrival to their answers and of answers that clients do not read, of all connections
    # together.
    buffered_bytes: int = 256 * 1024 * 1024
    # From a request's first byte to its last.
    request_seconds: float = 30.0
    # An open connection without a request.
    idle_seconds: float = 90.0
    # A client that does not read its answers.
    write_seconds: float = 30.0


class Refusal(Exception):
    """A request is refused, and its connection ends with the answer: where the next one would begin is in doubt."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
