"""What stands around answers written in bulk is kept, and never for longer than it holds."""

from __future__ import annotations

import json

import numpy as np
import pytest

from serving import Input, Output, Signature
from serving.protocol.frames import Asked, Frames
from serving.protocol.outputs import Outputs
from serving.protocol.responder import Responder

SIGNATURE = Signature((Input("x", "FP32", shape=(2,)),), (Output("y", "FP32", shape=(-1,)),))


class Heads:
    """Header lines that change when told to."""

    def __init__(self) -> None:
        self.name = b"a"
        self.made: dict[tuple[bytes, int | None], bytes] = {}

    def __call__(self, header_length: int | None) -> bytes:
        key = (self.name, header_length)
        return self.made.setdefault(key, b"x-head: %b %d\r\n" % (self.name, header_length or 0))


@pytest.fixture
def heads() -> Heads:
    return Heads()


@pytest.fixture
def frames(heads: Heads) -> Frames:
    return Frames(Responder("m", 1, SIGNATURE), heads)


def batch(rows: int, width: int) -> Outputs:
    return Outputs([np.arange(rows * width, dtype=np.float32).reshape(rows, width)], rows)


def bodies(frames: Frames, outputs: Outputs, *kinds: Asked) -> list[bytes]:
    """The bodies for the first request of each kind, the batch's first rows."""
    written = []
    for kind, how in zip(kinds, frames.hows(outputs, kinds) or (), strict=True):
        _, before, after, values, width = how
        part = values[: kind[0] * width] if isinstance(values, bytes) else b",".join(values[: kind[0]])
        written.append(before + part + after)
    return written


def test_answers_are_those_of_the_general_way_batch_after_batch(frames: Frames) -> None:
    responder = Responder("m", 1, SIGNATURE)
    kinds: list[Asked] = [(1, None, False), (2, None, False), (1, None, True), (2, {"y": True}, False)]

    for rows, width in ((4, 3), (3, 3), (4, 5), (4, 3)):  # the output's shape changes, and changes back
        outputs = batch(rows, width)
        wanted = [responder.answer(outputs, 0, count, asked, default)[0] for count, asked, default in kinds]
        assert bodies(frames, outputs, *kinds) == wanted
        assert json.loads(wanted[1])["outputs"][0]["shape"] == [2, width]


def test_the_header_is_that_of_the_moment(frames: Frames, heads: Heads) -> None:
    kind: Asked = (1, None, False)

    lines = []
    for heads.name in (b"a", b"a", b"b", b"a"):
        found = frames.hows(batch(1, 2), [kind])
        assert found is not None
        lines.append(found[0][0])

    assert lines == [b"HTTP/1.1 200 OK\r\nx-head: %b 0\r\ncontent-length: " % name for name in (b"a", b"a", b"b", b"a")]


def test_a_kind_with_the_identity_of_one_that_is_gone_is_another(frames: Frames) -> None:
    # More kinds than are kept, each gone before the next: many of them lie where another lay.
    for number in range(500):
        kind: Asked = (1 + number % 3, None, bool(number % 2))
        outputs = batch(3, 2)
        body = bodies(frames, outputs, kind)[0]
        assert body == Responder("m", 1, SIGNATURE).answer(outputs, 0, *kind)[0]


def test_a_request_for_no_output_is_not_answered_in_bulk(frames: Frames) -> None:
    assert frames.hows(batch(1, 2), [(1, {}, False)]) is None
