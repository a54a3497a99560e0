"""HMAC-SHA256 signatures of control calls: `t=<unix seconds>,v1=<hex digest of "t.body">`."""

from __future__ import annotations

import hashlib
import hmac

HEADER = "X-Trimtab-Signature"
TOLERANCE_SECONDS = 300.0


class SignatureError(ValueError):
    """A signature that is missing, malformed, too old, or made with another secret or body."""


def sign(secret: str | bytes, body: bytes, now: float) -> str:
    """The header value for `body` at unix time `now` (seconds)."""
    timestamp = int(now)
    return f"t={timestamp},v1={_digest(secret, timestamp, body)}"


def verify(
    secret: str | bytes, header: str | None, body: bytes, now: float, tolerance: float = TOLERANCE_SECONDS
) -> None:
    """Raises SignatureError unless `header` signs `body` with `secret`, at most `tolerance` seconds from `now`."""
    timestamp, digests = _parse(header)
    expected = _digest(secret, timestamp, body).encode()
    # Every digest is compared, and before the age is looked at: the time taken tells nothing about the secret.
    matches = [hmac.compare_digest(expected, digest.encode()) for digest in digests]
    if not any(matches):
        raise SignatureError("the signature does not match: check that both sides have the same secret")
    if abs(now - timestamp) > tolerance:
        raise SignatureError(
            f"the signature is {now - timestamp:.0f} s old, allowed are {tolerance:.0f} s: check the clocks"
        )


def _digest(secret: str | bytes, timestamp: int, body: bytes) -> str:
    key = secret.encode() if isinstance(secret, str) else secret
    if not key:
        raise SignatureError("the secret is empty: an empty secret signs nothing")
    return hmac.new(key, f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


def _parse(header: str | None) -> tuple[int, list[str]]:
    if not header:
        raise SignatureError(f"the {HEADER} header is missing")
    parts = [part.strip().partition("=") for part in header.split(",")]
    timestamps = [value for key, _, value in parts if key == "t"]
    digests = [value for key, _, value in parts if key == "v1"]
    if len(timestamps) != 1 or not digests or not timestamps[0].isascii() or not timestamps[0].isdigit():
        raise SignatureError(
            f"the {HEADER} header is malformed: expected t=<unix seconds>,v1=<hex>, got {header[:80]!r}"
        )
    return int(timestamps[0][:18]), digests
