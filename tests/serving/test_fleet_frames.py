"""Frames: whatever the reads look like, what was written comes out; what is no frame is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.fleet import frames
from serving.fleet.frames import FrameError, FrameReader, Request

texts = st.binary(max_size=40).map(lambda content: content.replace(b"\0", b""))
requests = st.builds(
    Request, st.floats(allow_nan=False), st.builds(
        lambda method, target, peer, pairs: frames.pack_head(method, target, peer, pairs),
        texts, texts, texts, st.lists(st.tuples(texts, texts), max_size=4),
    ), st.binary(max_size=3000),
)  # fmt: skip


@given(
    st.lists(st.tuples(st.sampled_from(sorted(frames.KINDS)), st.integers(0, 2**64 - 1), st.binary(max_size=400))),
    st.lists(st.integers(1, 60), min_size=1),
)
def test_a_stream_cut_anywhere_gives_the_frames_that_were_written(
    written: list[tuple[int, int, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(frames.frame(*one) for one in written)
    reader, read, at, turn = FrameReader(), [], 0, 0
    while at < len(stream):
        size = cuts[turn % len(cuts)]
        read += reader.feed(stream[at : at + size])
        at, turn = at + size, turn + 1

    assert read == written


@given(requests, st.integers(0, 2**64 - 1))
def test_a_request_comes_out_as_it_went_in(request: Request, sequence: int) -> None:
    ((kind, number, payload),) = FrameReader().feed(frames.request_frame(sequence, request))

    assert (kind, number) == (frames.REQUEST, sequence)
    assert frames.parse_request(payload) == request


@given(texts, texts, texts, st.lists(st.tuples(texts, texts), max_size=5))
def test_a_head_keeps_its_fields_in_order(
    method: bytes, target: bytes, peer: bytes, pairs: list[tuple[bytes, bytes]]
) -> None:
    assert frames.parse_head(frames.pack_head(method, target, peer, pairs)) == (method, target, peer, pairs)


@given(st.integers(100, 999), st.binary(max_size=100), st.binary(max_size=1000))
def test_an_answer_comes_out_as_it_went_in(status: int, head: bytes, body: bytes) -> None:
    ((kind, number, payload),) = FrameReader().feed(frames.answer_frame(7, status, head, body))

    assert (kind, number) == (frames.ANSWER, 7)
    assert frames.parse_answer(payload) == (status, head, body)


@given(st.binary(max_size=60))
def test_payloads_that_lie_about_their_length_are_refused(payload: bytes) -> None:
    for parse in (frames.parse_request, frames.parse_answer, frames.parse_load, frames.parse_head):
        try:
            parse(payload)
        except FrameError:
            continue


def test_a_field_with_nul_is_refused_not_split() -> None:
    with pytest.raises(ValueError, match="NUL"):
        frames.pack_head(b"POST", b"/v2", b"", [(b"x", b"a\0b: injected")])


@pytest.mark.parametrize("stream", [b"\xff" * 13, frames.HEADER.pack(1 << 31 | 1, frames.REQUEST, 1)])
def test_a_stream_without_sense_ends_the_connection(stream: bytes) -> None:
    with pytest.raises(FrameError, match="a frame of kind"):
        list(FrameReader().feed(stream))
