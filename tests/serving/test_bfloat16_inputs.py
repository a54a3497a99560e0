"""bfloat16 on the wire: what a client sends in it reaches a model of floats as the numbers that it stands for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serving import Input
from serving.errors import InvalidRequest
from serving.protocol.tensors import BinaryTensor, Tensor


@given(st.binary(min_size=2, max_size=64).filter(lambda content: len(content) % 2 == 0))
def test_all_bits_are_read_as_torch_reads_them(content: bytes) -> None:
    tensor = BinaryTensor("x", "BF16", [len(content) // 2, 1], content)
    column = Input("x", "FP32")

    found = column.column([column.bind(tensor)])

    wanted = torch.frombuffer(bytearray(content), dtype=torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(found.view(np.uint32) << 1, wanted.view(np.uint32) << 1)


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_any_float_input_takes_it(datatype: str) -> None:
    column = Input("x", datatype, shape=(3,))
    content = torch.tensor([1.5, -0.75, 3.0]).to(torch.bfloat16).view(torch.uint8).numpy().tobytes()

    found = column.column([column.bind(BinaryTensor("x", "BF16", [1, 3], content))])

    assert found.tolist() == [[1.5, -0.75, 3.0]]


def test_numbers_in_json_may_be_called_so() -> None:
    column = Input("x", "FP32", shape=(2,))

    assert column.column([column.bind(Tensor("x", "BF16", [1, 2], [1.5, 2.0]))]).tolist() == [[1.5, 2.0]]


def test_as_few_bytes_as_there_should_be_and_no_integers() -> None:
    with pytest.raises(InvalidRequest, match="has 3 bytes, its shape \\[1, 2\\] of BF16 says 4"):
        Input("x", "FP32", shape=(2,)).bind(BinaryTensor("x", "BF16", [1, 2], b"abc"))
    with pytest.raises(InvalidRequest, match="datatype BF16, the model takes INT64"):
        Input("x", "INT64").bind(BinaryTensor("x", "BF16", [1, 1], b"ab"))
