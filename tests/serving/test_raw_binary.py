"""Requests whose whole body is the one input's bytes: what they mean, what they are answered, what is refused."""

from __future__ import annotations

from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serving import Input, Output, Registry, Signature, save_artifact
from serving.errors import InvalidRequest
from serving.protocol.raw import raw_request
from serving.protocol.tensors import WIRE_TYPES
from tests.serving.conftest import Start

RAW = {"inference-header-content-length": "0", "content-type": "application/octet-stream"}


def one(*inputs: Input) -> Signature:
    return Signature(inputs, (Output("y"),))


@given(
    st.sampled_from(["FP32", "FP64", "FP16", "INT64", "INT32", "UINT8"]), st.lists(st.integers(1, 4), max_size=2),
    st.integers(1, 5), st.data(),
)  # fmt: skip
def test_the_bytes_are_the_rows_of_a_fixed_shape(kind: str, shape: list[int], rows: int, data: st.DataObject) -> None:
    dtype = WIRE_TYPES[kind]
    values = np.arange(rows * int(np.prod(shape, dtype=int))).astype(dtype)
    signature = one(Input.of("x", kind, shape=shape))
    request = raw_request(values.tobytes(), signature)
    (column,) = signature.columns([request.values(signature)])

    assert (request.rows, request.binary_default) == (rows, True)
    np.testing.assert_array_equal(column, values.reshape(rows, *shape).astype(column.dtype))
    cut = data.draw(st.integers(1, len(values.tobytes())))
    size = values.nbytes // rows
    if (values.nbytes - cut) % size:
        with pytest.raises(InvalidRequest, match=f"takes {size} bytes a row, or a multiple"):
            raw_request(values.tobytes()[:-cut], signature)


def test_one_dimension_that_varies_is_as_long_as_the_bytes_and_two_are_refused() -> None:
    ragged = one(Input.of("x", "FP32", shape=[-1, 2]))
    assert raw_request(np.arange(6, dtype="<f4").tobytes(), ragged).tensors["x"].shape == [1, 3, 2]
    with pytest.raises(InvalidRequest, match=r"20 bytes.*takes 8 bytes in the dimension that varies"):
        raw_request(bytes(20), ragged)
    with pytest.raises(InvalidRequest, match="how long 2 of its dimensions"):
        raw_request(bytes(16), one(Input.of("x", "FP32", shape=[-1, -1])))


def test_a_text_is_the_whole_body_without_a_length() -> None:
    signature = one(Input.of("carrier", "BYTES", ["AA", "ü"]))
    (codes,) = signature.columns([raw_request("ü".encode(), signature).values(signature)])
    assert codes.tolist() == [2]
    with pytest.raises(InvalidRequest, match="not UTF-8"):
        raw_request(b"\xff", signature)


def test_what_has_several_inputs_or_no_bytes_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"the one input; the model takes \['x', 'z'\]"):
        raw_request(bytes(8), one(Input.of("x", "FP32"), Input.of("z", "FP32")))
    with pytest.raises(InvalidRequest, match=r"the body is empty.*input 'x'"):
        raw_request(b"", one(Input.of("x", "FP32")))


class Twice(torch.nn.Module):
    """y = 2 x, [rows, 3]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


async def test_a_server_answers_raw_bytes_with_binary_tensors(start: Start, registry: Registry, tmp_path: Path) -> None:
    save_artifact(tmp_path / "twice", Twice(), one(Input.of("x", "FP32", shape=[3])), {"x": [[1.0, 2.0, 3.0]]})
    registry.register("twice", tmp_path / "twice", lineage={}, profile=None, metrics={})
    registry.set_alias("twice", "stable", 1)
    service = await start()
    values = np.arange(6, dtype="<f4")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", trust_env=False) as client:
        # The header is known from the third time on, and then the request takes another way.
        for path in ["/v2/models/twice/infer"] * 4 + ["/v2/models/twice/versions/1/infer"]:
            answer = await client.post(path, content=values.tobytes(), headers=RAW)
            assert answer.status_code == 200, answer.text
            length = int(answer.headers["inference-header-content-length"])
            assert answer.headers["content-type"] == "application/octet-stream"
            head = httpx.Response(200, content=answer.content[:length]).json()
            assert head["outputs"] == [
                {"name": "y", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}}
            ]
            np.testing.assert_array_equal(np.frombuffer(answer.content[length:], "<f4"), 2 * values)
        cut = await client.post("/v2/models/twice/infer", content=values.tobytes()[:-1], headers=RAW)
        several = await client.post("/v2/models/fares/infer", content=values.tobytes(), headers=RAW)

    assert (cut.status_code, several.status_code) == (400, 400)
    assert "the body has 23 bytes; input 'x' of FP32 and shape [-1, 3] takes 12 bytes a row" in cut.json()["error"]
    assert "the model takes ['amount', 'carrier']" in several.json()["error"]
