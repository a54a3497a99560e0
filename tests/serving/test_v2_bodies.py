"""Bodies of the V2 protocol: what is taken, what is refused with a reason, and what goes back."""

from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import Signature, admission, v2
from serving.errors import InvalidRequest
from serving.protocol.responder import Responder


def body(amount: Any = (1.5,), carrier: Any = ("AA",), **more: Any) -> dict[str, Any]:
    return {
        "inputs": [
            {"name": "amount", "datatype": "FP32", "shape": [len(amount), 1], "data": list(amount)},
            {"name": "carrier", "datatype": "BYTES", "shape": [len(carrier)], "data": list(carrier)},
        ],
        **more,
    }


def parsed(value: dict[str, Any]) -> v2.InferRequest:
    return v2.parse(json.dumps(value).encode())


def binary(texts: list[str], amounts: np.ndarray[Any, Any]) -> tuple[bytes, int]:
    packed = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)
    raw = amounts.astype("<f4").tobytes()
    header = json.dumps(
        {
            "inputs": [
                {"name": "carrier", "datatype": "BYTES", "shape": [len(texts), 1],
                 "parameters": {"binary_data_size": len(packed)}},
                {"name": "amount", "datatype": "FP32", "shape": [len(amounts), 1],
                 "parameters": {"binary_data_size": len(raw)}},
            ]
        }
    ).encode()  # fmt: skip
    return header + packed + raw, len(header)


@pytest.mark.parametrize("signed", [True, False])
def test_what_a_client_leaves_out_may_be_null_or_empty(signed: bool) -> None:
    left_out: dict[str, Any] = {"id": None, "parameters": None, "outputs": []}
    if signed:
        content, length = binary(["AA"], np.array([1.5]))
        header = json.dumps(json.loads(content[:length]) | left_out).encode()
        request = v2.parse(header + content[length:], len(header))
    else:
        request = parsed(body() | left_out)

    assert (request.id, request.outputs, request.rows) == ("", None, 1)
    assert set(request.tensors) == {"amount", "carrier"}
    assert v2.parse(json.dumps(body() | left_out | {"id": "7", "outputs": None}).encode(), floats=True).id == "7"


@given(
    st.lists(st.tuples(st.text(), st.floats(width=32, allow_nan=False, allow_infinity=False)), min_size=1, max_size=9)
)
def test_binary_and_json_forms_of_a_request_mean_the_same(rows: list[tuple[str, float]]) -> None:
    signature = Signature.of(
        {
            "inputs": [
                {"name": "amount", "datatype": "FP32"},
                {"name": "carrier", "datatype": "BYTES", "categories": ["AA", "UA"]},
            ],
            "outputs": [{"name": "score"}],
        }
    )
    texts, amounts = [text for text, _ in rows], [amount for _, amount in rows]
    content, length = binary(texts, np.array(amounts))
    forms = [v2.parse(content, length), parsed(body(amounts, texts))]

    columns = [signature.columns([form.values(signature)]) for form in forms]
    assert list(forms[0].values(signature)[1]) == texts
    for one, other in zip(*columns, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.flags.writeable, "torch takes no read-only memory"


def test_nested_data_and_null_numbers_are_taken(signature: Signature) -> None:
    request = parsed(
        {"inputs": [
            {"name": "amount", "datatype": "FP32", "shape": [2, 1], "data": [[1], [None]]},
            {"name": "carrier", "datatype": "BYTES", "shape": [2, 1], "data": [["AA"], [None]]},
        ]}
    )  # fmt: skip
    amount, carrier = signature.columns([request.values(signature)])

    assert amount[0] == 1.0
    assert np.isnan(amount[1])
    assert carrier.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda b: b.pop("inputs"), "inputs"),
        (lambda b: b.update(inputs=[]), "no inputs"),
        (lambda b: b["inputs"].pop(), "'carrier' is missing"),
        (lambda b: b["inputs"][0].update(datatype="BYTES"), "has datatype BYTES"),
        (lambda b: b["inputs"][0].update(data=["1.5"]), "holds str"),
        (lambda b: b["inputs"][0].update(data=[1.0, 2.0]), "has 2 values"),
        (lambda b: b["inputs"][0].update(shape=[1, 2]), "has shape"),
        (lambda b: b["inputs"][0].update(shape=[0], data=[]), "has shape"),
        (lambda b: b["inputs"][1].update(shape=[2], data=["AA", "UA"]), "has shape"),
        (lambda b: b["inputs"][0].pop("data"), "neither data nor"),
        (lambda b: b["inputs"][0].update(parameters={"binary_data_size": 4}), "binary_data_size 4, 0 bytes"),
        (lambda b: b["inputs"].append(b["inputs"][0]), "named twice"),
        (lambda b: b.update(outputs=[{"name": "nothing"}]), "output 'nothing' is unknown"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_name(signature: Signature, change: Any, reason: str) -> None:
    value = body()
    change(value)

    with pytest.raises(InvalidRequest, match=reason):
        parsed(value).values(signature)


@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(-5, 300)))
def test_no_body_breaks_the_parser(content: bytes, length: int | None) -> None:
    with contextlib.suppress(InvalidRequest):
        assert v2.parse(content, length).rows >= 1


@given(st.data())
def test_a_damaged_binary_request_is_refused_and_nothing_worse(data: st.DataObject) -> None:
    content, length = binary(["AA", "höchst"], np.array([1.0, 2.0]))
    place = data.draw(st.integers(0, len(content) - 1))
    damaged = content[:place] + bytes([data.draw(st.integers(0, 255))]) + content[place + 1 :]
    for form, size in ((damaged, length), (content[:place], min(length, place))):
        with contextlib.suppress(InvalidRequest):
            assert v2.parse(form, size).rows >= 1


def answer(signature: Signature, request: v2.InferRequest, scores: Any) -> tuple[dict[str, Any], bytes]:
    content, length = Responder("fares", 3, signature).body(request, [np.asarray(scores, np.float32)])
    header = json.loads(content if length is None else content[:length])
    return header, b"" if length is None else content[length:]


def test_an_answer_names_model_version_and_id_and_shapes_its_outputs(signature: Signature) -> None:
    header, tail = answer(signature, parsed(body(id='a "b"')), [0.5])

    assert header == {
        "model_name": "fares", "model_version": "3", "id": 'a "b"',
        "outputs": [{"name": "score", "datatype": "FP32", "shape": [1], "data": [0.5]}],
    }  # fmt: skip
    assert tail == b""


def test_a_wide_output_keeps_its_shape(signature: Signature) -> None:
    header, _ = answer(signature, parsed(body()), [[0.5, 0.25]])

    assert header["outputs"][0]["shape"] == [1, 2]
    assert header["outputs"][0]["data"] == [0.5, 0.25]


@pytest.mark.parametrize(
    "asked",
    [
        {"parameters": {"binary_data_output": True}},
        {"outputs": [{"name": "score", "parameters": {"binary_data": True}}]},
    ],
)
def test_a_binary_output_follows_the_json_part(signature: Signature, asked: dict[str, Any]) -> None:
    header, tail = answer(signature, parsed(body((1.0, 2.0), ("AA", "UA"), **asked)), [0.5, 0.25])

    assert header["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert np.frombuffer(tail, "<f4").tolist() == [0.5, 0.25]


def test_the_tightest_deadline_counts() -> None:
    request = parsed(body(parameters={"timeout": 500_000}))

    assert admission.deadline(request, {}, 10.0) == 10.5
    assert admission.deadline(request, {b"x-deadline-ms": b"250"}, 10.0) == 10.25
    assert admission.deadline(request, {b"request-timeout": b"0.125", b"x-deadline-ms": b"250"}, 10.0) == 10.125
    assert admission.deadline(parsed(body(parameters={"timeout": 0})), {}, 10.0) is None
    assert admission.deadline(parsed(body()), {}, 10.0) is None
    # Nothing is left of it: whoever hands on what remains of a deadline does not ask for one without end.
    for header in (b"request-timeout", b"x-deadline-ms"):
        assert admission.deadline(parsed(body(parameters={"timeout": 0})), {header: b"0"}, 10.0) == 10.0
        assert admission.deadline(request, {header: b"0.0"}, 10.0) == 10.0
        assert admission.header_deadline({header: b"0"}, 10.0) == 10.0
    for value in (b"soon", b"-1", b"nan"):
        with pytest.raises(InvalidRequest, match="Request-Timeout"):
            admission.deadline(request, {b"request-timeout": value}, 10.0)


def test_attributes_are_an_object_or_the_text_of_one() -> None:
    as_object = parsed(body(parameters={"attributes": {"day": "2013-03-05"}}))
    as_text = parsed(body(parameters={"attributes": '{"day": "2013-03-05"}'}))

    assert json.loads(admission.attributes(as_object) or "") == json.loads(admission.attributes(as_text) or "")
    with pytest.raises(InvalidRequest, match="not a JSON object"):
        admission.attributes(parsed(body(parameters={"attributes": "[1]"})))


def test_the_sticky_unit_is_the_named_parameter_or_attribute() -> None:
    request = parsed(body(parameters={"attributes": {"user": 7}, "tenant": "t"}))
    attributes = admission.attributes(request)

    assert admission.unit(request, "user", attributes, {}) == "7"
    assert admission.unit(request, "tenant", attributes, {}) == "t"
    assert admission.unit(request, "nobody", attributes, {}) is None
    assert admission.unit(request, None, attributes, {}) is None


def test_a_mark_before_the_json_is_passed_over_once() -> None:
    content = json.dumps(body()).encode()
    packed, length = binary(["AA"], np.array([1.5]))

    assert v2.parse(b"\xef\xbb\xbf" + content, floats=True).rows == 1
    assert v2.parse(b"\xef\xbb\xbf" + packed, length + 3).rows == 1
    with pytest.raises(InvalidRequest, match="malformed"):
        v2.parse(b"\xef\xbb\xbf" * 2 + content)
