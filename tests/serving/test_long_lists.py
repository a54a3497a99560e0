"""Long lists of a JSON body mean the same read in pieces as at once, or they are left to the usual way."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import v2
from serving.errors import InvalidRequest
from serving.protocol.inputs import Input
from serving.protocol.long_lists import parse_long
from serving.protocol.signature import Output, Signature

RNG = np.random.default_rng(3)


def x(datatype: str, *shape: int) -> Signature:
    return Signature((Input.of("x", datatype, shape=shape),), (Output("y"),))


def tensor(data: Any, shape: list[int], datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": datatype, "shape": shape, "data": data} | more


def body(*inputs: Any, indent: int | None = None, **more: Any) -> bytes:
    return json.dumps({"inputs": inputs, **more}, indent=indent).encode()


def long(text: bytes) -> tuple[v2.InferRequest | None, int]:
    """The request, and in how many pieces it was read."""
    pieces: list[None] = []
    return parse_long(text, lambda: pieces.append(None)), len(pieces)


def same(text: bytes, signature: Signature) -> v2.InferRequest:
    found, pieces = long(text)
    usual = v2.parse(text, None, signature.floats)

    assert found is not None
    assert pieces >= len(text) // 200_000
    for one, other in zip(found.values(signature), usual.values(signature), strict=True):
        one, other = (
            np.frombuffer(v, signature.inputs[0]._dtype) if isinstance(v, bytes) else np.asarray(v)
            for v in (one, other)
        )
        assert one.dtype == other.dtype
        assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    assert (found.id, found.rows, found.parameters) == (usual.id, usual.rows, usual.parameters)
    assert (found.outputs, found.binary_default) == (usual.outputs, usual.binary_default)
    return found


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_numbers_are_the_same_flat_and_nested(datatype: str, indent: int | None) -> None:
    rows: list[list[Any]] = RNG.normal(size=(400, 50)).tolist()
    rows[3][4], rows[7][1] = None, 5
    for data in (rows, list(chain.from_iterable(rows))):
        text = body(
            tensor(data, [400, 50], datatype), indent=indent, id="a", parameters={"timeout": 5},
            outputs=[{"name": "y", "parameters": {"binary_data": True}}],
        )  # fmt: skip

        assert same(text, x(datatype, 50)).id == "a"


def test_whole_numbers_keep_their_digits() -> None:
    numbers = [2**53 + 1, -(2**63), 2**63 - 1, *range(30_000)]

    for data in (numbers, [[number] for number in numbers]):
        same(body(tensor(data, [len(numbers), 1], "INT64")), x("INT64"))
    small = [number % 100 for number in range(30_000)]
    same(body(tensor(small, [30_000], "INT64")), x("INT8"))
    same(body(tensor(small, [30_000], "INT32")), x("FP32"))


def test_several_inputs_and_what_lies_between_them() -> None:
    columns = (Input.of("x", "FP32", shape=[2]), Input.of("c", "BYTES", ["a"]), Input.of("n", "INT64"))
    signature = Signature(columns, (Output("y"),))
    many = RNG.normal(size=40_000).tolist()
    text = body(
        tensor(many, [20_000, 2], parameters={"note": "data"}),
        {"name": "c", "datatype": "BYTES", "shape": [20_000], "data": ["a", "]}"] * 10_000},
        {"data": list(range(20_000)), "name": "n", "shape": [20_000, 1], "datatype": "INT64"},
    )
    found, pieces = long(text)

    assert found is not None
    assert pieces > 10
    values = found.values(signature)
    assert np.array_equal(values[0], np.array(many, np.float32))
    assert (values[1], list(values[2])) == (["a", "]}"] * 10_000, list(range(20_000)))


def test_of_a_list_that_comes_twice_the_last_counts() -> None:
    same(body(tensor([0.5] * 30_000, [30_000])).replace(b'"data"', b'"data": [], "data"'), x("FP32"))


@pytest.mark.parametrize("wrong", [1e300, 1e39])
def test_a_number_beyond_the_datatype_is_refused(wrong: float) -> None:
    found, _ = long(body(tensor([wrong, *[0.5] * 30_000], [30_001])))

    assert found is not None
    with pytest.raises(InvalidRequest, match="outside FP32"):
        found.values(x("FP32"))
    found, _ = long(body(tensor([300, *[0] * 50_000], [50_001], "INT64")))
    assert found is not None
    with pytest.raises(InvalidRequest, match="outside INT8"):
        found.values(x("INT8"))


def refused(read: Callable[[], Any]) -> tuple[Any, str | None]:
    """What was read, or the error."""
    try:
        return read(), None
    except InvalidRequest as error:
        return None, str(error)


HALVES = [0.5] * 30_000
ODD = {
    "too few": body(tensor(HALVES, [30_001])),
    "too many": body(tensor(HALVES, [29_999])),
    "a shape that lies": body(tensor(HALVES, [10**15])),
    "an empty shape": body(tensor(HALVES, [])),
    "a text among them": body(tensor([*HALVES, "1"], [30_001])),
    "flags": body(tensor([*HALVES, True], [30_001])),
    "fractions of whole numbers": body(tensor(HALVES, [30_000], "INT64")),
    "whole numbers without end": body(tensor([10**30, *[1] * 40_000], [40_001], "INT64")),
    "an unknown datatype": body(tensor(HALVES, [30_000], "FP99")),
    "texts": body(tensor(["0.5"] * 30_000, [30_000], "BYTES")),
    "rows of other lengths": body(tensor([*[[0.5, 1.0]] * 20_000, [1.0], [1.0, 2.0, 3.0]], [20_002, 2])),
    "nested deeper": body(tensor([[[0.5, 1.0]]] * 20_000, [20_000, 1, 2])),
    "nested for a flat shape": body(tensor([[0.5, 1.0]] * 20_000, [40_000])),
    "a list twice, the first long": body(tensor(HALVES, [30_000])).replace(b"]}]", b'], "data": [1.0]}]'),
    "a list in the parameters": body(tensor([1.0], [1], parameters={"data": HALVES})),
    "a list in a text": body(tensor(['"data": [' + ",".join(["1"] * 50_000) + "]"], [1], "BYTES")),
    "binary data": body(tensor(HALVES, [30_000], parameters={"binary_data_size": 4})),
    "a comma behind the last": body(tensor(HALVES, [30_000])).replace(b"]}]", b",]}]"),
    "a comma in front": body(tensor(HALVES, [30_000])).replace(b"[0.5,", b"[,0.5,"),
    "two commas": body(tensor(HALVES, [30_000])).replace(b"0.5, 0.5, 0.5]", b"0.5,, 0.5, 0.5]"),
    "commas everywhere": body(tensor(HALVES, [30_000])).replace(b"0.5,", b"0.5,,"),
    "rows without a comma": body(tensor([[0.5]] * 30_000, [30_000, 1])).replace(b"],", b"]"),
    "no end": body(tensor(HALVES, [30_000]))[:-3],
    "no bracket": body(tensor(HALVES, [30_000]))[:-4] + b"}]}",
    "spaces in numbers": body(tensor([15.5] * 30_000, [30_000])).replace(b"15", b"1 5"),
    "NaN": body(tensor([*HALVES, float("nan")], [30_001])),
    "not UTF-8": body(tensor(HALVES, [30_000])).replace(b"[0.5", b"[\xff0.5"),
    "short": body(tensor([0.5] * 100, [100])),
    "nothing": b"",
    "no JSON": b'"data": [' * 30_000,
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_not_as_expected_is_left_to_the_usual_way_or_refused_alike(name: str) -> None:
    found, said = refused(lambda: long(ODD[name])[0])

    assert found is None
    assert said is None or said == refused(lambda: v2.parse(ODD[name]))[1]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_body_with_a_byte_changed_is_read_as_usual_or_not_at_all(data: st.DataObject) -> None:
    text = bytearray(body(tensor([[1.25, -2e3]] * 7_000, [7_000, 2]), id="a"))
    place = data.draw(st.integers(0, len(text) - 1))
    text[place] = data.draw(st.sampled_from(b'[]{},:"0129.-eE \nx\xff'))
    signature = x("FP32", 2)
    read = refused(lambda: long(bytes(text))[0])[0]
    found = None if read is None else refused(lambda: read.values(signature)[0])[0]
    usual = refused(lambda: v2.parse(bytes(text)).values(signature)[0])[0]

    assert found is None or (usual is not None and np.array_equal(found, usual))


def test_whole_numbers_of_a_usual_body_keep_their_digits_and_take_no_fractions() -> None:
    text = body(tensor([2**53 + 1, 7], [2], "INT64"))
    signature = x("INT64")

    (values,) = v2.parse(text, None, signature.floats).values(signature)
    assert np.frombuffer(values, np.int64).tolist() == [2**53 + 1, 7]
    with pytest.raises(InvalidRequest, match="holds float, the model takes INT64"):
        v2.parse(text.replace(b" 7]", b" 7.5]"), None, signature.floats).values(signature)
