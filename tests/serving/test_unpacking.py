"""Packed bodies are unpacked piece by piece, up to a limit, whatever they are made of."""

from __future__ import annotations

import gzip
import random
import zlib

import pytest

from serving.errors import InvalidRequest, TooLarge
from serving.protocol.unpacking import Unpacking

NOISE = random.Random(1).randbytes(700_000)


def unpacked(packed: bytes, encoding: bytes = b"gzip", limit: int = 10_000_000) -> tuple[bytes, int]:
    """The body and how many steps it took."""
    unpacking, steps = Unpacking(packed, encoding, limit), 1
    while not unpacking.step():
        steps += 1
    return unpacking.plain(), steps


@pytest.mark.parametrize("content", [b"", b"x" * 1000, b"0" * 5_000_000, NOISE, NOISE + b"0" * 1_000_000])
def test_a_body_is_the_same_as_before_it_was_packed(content: bytes) -> None:
    for encoding, pack in ((b"gzip", gzip.compress), (b"x-gzip", gzip.compress), (b"deflate", zlib.compress)):
        body, steps = unpacked(pack(content), encoding)

        assert body == content
        assert steps <= 3 + len(content) // 60_000


def test_a_body_is_as_long_as_the_limit_at_most() -> None:
    for size in (1000, 256 * 1024, 256 * 1024 + 1, 3_000_000):
        assert unpacked(gzip.compress(b"x" * size), limit=size)[0] == b"x" * size
        with pytest.raises(TooLarge):
            unpacked(gzip.compress(b"x" * size), limit=size - 1)


def test_a_bomb_is_refused_when_it_has_given_what_is_allowed() -> None:
    unpacking = Unpacking(gzip.compress(b"\0" * 50_000_000), b"gzip", 1_000_000)

    assert not any(unpacking.step() for _ in range(3))
    with pytest.raises(TooLarge):
        unpacking.step()


def test_members_that_follow_one_another_are_one_body() -> None:
    parts = [b"one", b"", NOISE, b"two" * 100_000, *[b"%d" % n for n in range(500)]]
    packed = b"".join(map(gzip.compress, parts))

    assert unpacked(packed)[0] == b"".join(parts)
    with pytest.raises(TooLarge):
        unpacked(packed, limit=len(b"".join(parts)) - 1)
    with pytest.raises(InvalidRequest, match="over 10000 members"):
        unpacked(gzip.compress(b"") * 10_001)


@pytest.mark.parametrize(
    ("packed", "encoding", "says"),
    [
        (b"", b"gzip", "cut off"),
        (gzip.compress(b"x" * 1000)[:-3], b"gzip", "cut off"),
        (gzip.compress(NOISE)[:-300_000], b"gzip", "cut off"),
        (gzip.compress(b"x" * 1_000_000)[:-9], b"gzip", "cut off"),
        (gzip.compress(b"one") + gzip.compress(b"two")[:-1], b"gzip", "cut off"),
        (gzip.compress(b"one") + b"12345", b"gzip", "5 bytes follow the gzip body"),
        (zlib.compress(b"one") + zlib.compress(b"two"), b"deflate", "11 bytes follow the deflate body"),
        (b"x" * 1000, b"gzip", "not gzip"),
        (gzip.compress(b"one")[:-8] + b"\0" * 8, b"gzip", "not gzip"),
        (b"x", b"br", "not understood"),
        (b"x", b"gzip, gzip", "not understood"),
    ],
)
def test_a_broken_body_is_refused(packed: bytes, encoding: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        unpacked(packed, encoding)
