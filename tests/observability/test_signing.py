"""Signatures of control calls."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability.signing import SignatureError, sign, verify

NOW = 1_700_000_000.0


@given(st.text(min_size=1), st.binary(), st.floats(min_value=0, max_value=1e11))
def test_what_is_signed_verifies(secret: str, body: bytes, now: float) -> None:
    verify(secret, sign(secret, body, now), body, now)


def test_the_header_is_the_documented_hmac() -> None:
    digest = hmac.new(b"secret", b"1700000000.{}", hashlib.sha256).hexdigest()

    assert sign("secret", b"{}", NOW) == f"t=1700000000,v1={digest}"


@pytest.mark.parametrize(
    ("secret", "body", "now", "message"),
    [
        ("other", b"{}", NOW, "does not match"),
        ("secret", b"{} ", NOW, "does not match"),
        ("secret", b"{}", NOW + 301, "301 s old"),
        ("secret", b"{}", NOW - 301, "-301 s old"),
    ],
)
def test_another_secret_or_body_or_time_is_refused(secret: str, body: bytes, now: float, message: str) -> None:
    with pytest.raises(SignatureError, match=message):
        verify(secret, sign("secret", b"{}", NOW), body, now)


@pytest.mark.parametrize("header", [None, "", "nonsense", "t=,v1=ab", "t=12", "t=x,v1=ab", "t=1,t=2,v1=ab", "t=²,v1=é"])
def test_a_header_that_is_missing_or_malformed_is_refused(header: str | None) -> None:
    with pytest.raises(SignatureError, match=r"missing|malformed"):
        verify("secret", header, b"", NOW)


def test_a_changed_time_breaks_the_signature() -> None:
    forged = sign("secret", b"{}", NOW).replace("t=1700000000", "t=1700000400")

    with pytest.raises(SignatureError, match="does not match"):
        verify("secret", forged, b"{}", NOW + 400)


def test_one_of_two_signatures_is_enough_while_a_secret_is_replaced() -> None:
    header = sign("new", b"{}", NOW) + "," + sign("old", b"{}", NOW).split(",")[1]

    verify("old", header, b"{}", NOW)
    verify("new", header, b"{}", NOW)


def test_an_empty_secret_is_refused() -> None:
    with pytest.raises(SignatureError, match="empty"):
        sign("", b"{}", NOW)
