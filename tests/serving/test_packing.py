"""Answers packed for who asks for it, and for nobody else."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Awaitable, Callable

import httpx
import pytest

from serving import Service
from serving.protocol.packing import packed

Start = Callable[..., Awaitable[Service]]


def test_only_one_named_encoding_packs_and_only_what_gains_by_it() -> None:
    body = b"[1.5,2.5]" * 1000
    for encoding, unpack in ((b"gzip", gzip.decompress), (b"deflate", zlib.decompress)):
        head, content = packed({b"accept-encoding": encoding}, body)
        assert head == b"content-encoding: %b\r\nvary: accept-encoding\r\n" % encoding
        assert len(content) < len(body) / 10
        assert unpack(content) == body
        assert packed({b"accept-encoding": encoding}, b"x" * 100) == (b"", b"x" * 100)
    for accepted in (b"gzip, deflate", b"*", b"identity", b"br", b"gzip;q=0"):
        assert packed({b"accept-encoding": accepted}, body) == (b"", body)
    assert packed({}, body) == (b"", body)


@pytest.mark.slow
async def test_a_client_unpacks_what_it_asked_for(start: Start) -> None:
    service = await start()
    rows = 300
    inputs = [
        {"name": "amount", "datatype": "FP32", "shape": [rows], "data": [2.5] * rows},
        {"name": "carrier", "datatype": "BYTES", "shape": [rows], "data": ["AA"] * rows},
    ]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}") as client:
        answers = {}
        for accepted in ("identity", "gzip", "deflate", "gzip, deflate"):
            answer = await client.post(
                "/v2/models/fares/infer", json={"inputs": inputs}, headers={"accept-encoding": accepted}
            )
            answers[accepted] = answer.headers.get("content-encoding"), answer.json()["outputs"], len(answer.content)
        wrong = await client.post("/v2/models/fares/infer", json={}, headers={"accept-encoding": "gzip"})
    assert [answers[accepted][0] for accepted in answers] == [None, "gzip", "deflate", None]
    assert len({json.dumps(outputs) for _, outputs, _ in answers.values()}) == 1
    assert wrong.json()["error"]
