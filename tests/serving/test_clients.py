"""The clients: what they send and read, when they ask again, and that one deadline holds for all of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from observability import names
from observability.metrics import Metrics
from serving import AsyncInferenceClient, InferenceClient, InferenceError, QuickClient, Retries, Service
from serving.clients.bodies import request_body
from serving.clients.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    InvalidInference,
    ModelError,
    NotAllowed,
    NotServed,
    Overloaded,
)
from serving.clients.retries import NO_RETRIES, Budget, Failure
from serving.v2 import parse

Start = Callable[..., Awaitable[Service]]


# --- when it asks again -------------------------------------------------------------------------------------------
@given(
    tries=st.integers(1, 9), remaining=st.floats(0, 10), sent=st.booleans(), idempotent=st.booleans(),
    reason=st.sampled_from(["connect", "reset", "rejected", "unavailable", "timeout", "answered"]),
    retry_after=st.none() | st.floats(0, 5), draw=st.floats(0, 1),
)  # fmt: skip
def test_a_wait_is_within_the_deadline_and_behind_retry_after(
    tries: int, remaining: float, sent: bool, idempotent: bool, reason: str, retry_after: float | None, draw: float
) -> None:
    policy = Retries(attempts=5, first_wait=0.1, max_wait=1.0)
    seconds = Budget(policy, lambda: draw).wait(
        Failure(reason, sent, retry_after), tries, remaining, idempotent=idempotent
    )
    if seconds is not None:
        assert tries < 5
        assert reason not in ("timeout", "answered")
        assert idempotent or not sent
        assert (retry_after or 0.0) <= seconds < remaining
        assert seconds <= (retry_after or 0.0) + min(1.0, 0.1 * 2 ** (tries - 1))
    else:
        longest = (retry_after or 0.0) + 1.0
        assert tries >= 5 or reason in ("timeout", "answered") or (sent and not idempotent) or longest >= remaining


def test_when_everything_fails_the_budget_bounds_what_is_sent_again() -> None:
    budget = Budget(Retries(attempts=10, budget=0.2, reserve=10), lambda: 0.0)
    retried = 0
    for _ in range(1000):
        budget.began()
        for tries in range(1, 10):
            if budget.wait(Failure("unavailable", False), tries, 100.0, idempotent=True) is not None:
                retried += 1
    assert 200 <= retried <= 210


class Script:
    """A server that answers by a list: a status, an exception to raise, or (status, headers)."""

    def __init__(self, *steps: Any) -> None:
        self.steps = list(steps)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        if isinstance(step, Exception):
            raise step
        status, headers = step if isinstance(step, tuple) else (step, {})
        if status == 200:
            id = parse(request.content, int(request.headers["inference-header-content-length"])).id
            outputs = [{"name": "y", "datatype": "FP32", "shape": [2, 1], "data": [1.5, 2.5]}]
            body = {"model_name": "m", "model_version": "3", "id": id, "outputs": outputs}
            return httpx.Response(200, headers={"x-trimtab-arm": "stable", **headers}, json=body)
        return httpx.Response(status, headers=headers, json={"error": f"said {status}"})


QUICK = Retries(attempts=4, first_wait=0.001, max_wait=0.002)
X = {"x": np.zeros((2, 3), np.float32)}


@pytest.fixture(params=["threads", "asyncio"])
def ask(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Asks a script by either client: `ask(script, retries=…, **options of infer)`; gives (result, client)."""

    def run(script: Script, *, inputs: Any = X, client_options: Any = None, **options: Any) -> Any:
        given = {"retries": QUICK, "transport": httpx.MockTransport(script)} | (client_options or {})
        if request.param == "threads":
            with InferenceClient("http://host", **given) as client:
                return client.infer("m", inputs, **options), client

        async def one() -> Any:
            async with AsyncInferenceClient("http://host", **given) as client:
                return await client.infer("m", inputs, **options), client

        return asyncio.run(one())

    return run


def test_a_refused_request_is_sent_again_with_the_same_id(ask: Callable[..., Any]) -> None:
    metrics = Metrics()
    script = Script(httpx.ConnectError("no"), 429, (503, {"retry-after": "0"}), 200)
    result, client = ask(script, client_options={"metrics": metrics})

    assert result["y"].tolist() == [[1.5], [2.5]]
    assert (result.model, result.version, result.arm, result.tries, client.retried) == ("m", "3", "stable", 4, 3)
    ids = {parse(r.content, int(r.headers["inference-header-content-length"])).id for r in script.requests}
    assert len(ids) == 1
    assert len(ids.pop()) == 32
    sample = metrics.registry.get_sample_value
    assert sample(names.CLIENT_REQUESTS.name, {"outcome": "ok"}) == 1
    assert [sample(names.CLIENT_RETRIES.name, {"reason": r}) for r in ("connect", "rejected", "unavailable")] == [1] * 3


def test_a_broken_connection_is_tried_again_only_where_that_is_safe(ask: Callable[..., Any]) -> None:
    broken = httpx.RemoteProtocolError("the server closed it")
    assert ask(Script(broken, 200))[0].tries == 2
    script = Script(broken, 200)
    with pytest.raises(ConnectionFailed) as caught:
        ask(script, idempotent=False, id="mine")
    assert (caught.value.request_id, caught.value.tries, len(script.requests)) == ("mine", 1, 1)
    # Nothing of it was sent: that is always safe.
    assert ask(Script(httpx.ConnectError("no"), 200), idempotent=False)[0].tries == 2


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (400, InvalidInference), (404, NotServed), (401, NotAllowed), (403, NotAllowed), (413, InvalidInference),
        (500, ModelError), (504, DeadlineExceeded), (httpx.ReadTimeout("slow"), DeadlineExceeded),
    ],
)  # fmt: skip
def test_what_would_fail_again_is_not_sent_again(
    ask: Callable[..., Any], step: Any, kind: type[InferenceError]
) -> None:
    script = Script(step, 200)
    with pytest.raises(kind) as caught:
        ask(script)
    assert len(script.requests) == 1
    if isinstance(step, int):
        assert (str(caught.value), caught.value.status) == (f"said {step}", step)


def test_one_deadline_holds_for_all_tries_and_is_sent_along(ask: Callable[..., Any]) -> None:
    script = Script((503, {"retry-after": "60"}), 200)
    with pytest.raises(Overloaded):
        # It cannot come back before the deadline: it says so at once, instead of waiting for nothing.
        ask(script, timeout=5.0)
    assert len(script.requests) == 1
    script = Script(429)
    with pytest.raises(Overloaded):
        ask(script, timeout=60.0)
    sent = [float(request.headers["request-timeout"]) for request in script.requests]
    assert len(sent) == 4
    assert all(0 < later < earlier <= 60.0 for earlier, later in pairwise(sent))


def test_without_retries_there_is_one_try(ask: Callable[..., Any]) -> None:
    with pytest.raises(Overloaded):
        ask(script := Script(503), client_options={"retries": NO_RETRIES})
    assert len(script.requests) == 1


def test_tokens_and_headers_are_sent_and_bad_answers_are_named(ask: Callable[..., Any]) -> None:
    script = Script(200)
    ask(script, client_options={"token": "t", "headers": {"x-tenant": "a"}}, traceparent="00-ab", outputs=["y"],
        attributes={"day": 1}, parameters={"priority": 1}, version=7)  # fmt: skip
    (request,) = script.requests
    assert request.headers["authorization"] == "Bearer t"
    assert (request.headers["x-tenant"], request.headers["traceparent"]) == ("a", "00-ab")
    assert request.url.path == "/v2/models/m/versions/7/infer"
    parsed = parse(request.content, int(request.headers["inference-header-content-length"]))
    assert parsed.parameters == {"priority": 1, "attributes": {"day": 1}, "binary_data_output": True}
    assert parsed.outputs == {"y": True}

    def lie(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=b"<html>")

    with pytest.raises(InferenceError, match="not V2"):
        ask(lie)  # type: ignore[arg-type]


def test_inputs_that_no_tensor_holds_are_errors_before_anything_is_sent(ask: Callable[..., Any]) -> None:
    script = Script(200)
    for inputs in ({}, {"x": 3.0}, {"x": []}, {"x": [[1, 2], [3]]}, {"x": np.zeros(2, np.complex64)}):
        with pytest.raises(ValueError, match="input"):
            ask(script, inputs=inputs)
    assert not script.requests
    with pytest.raises(ValueError, match="http"):
        InferenceClient("localhost:8080")


# --- bodies -------------------------------------------------------------------------------------------------------
SHAPES = arrays.array_shapes(min_dims=1, max_dims=3, max_side=4)
ARRAYS = st.one_of(
    *(arrays.arrays(kind, SHAPES) for kind in ("<f4", "<f8", "<f2", "<i8", "<i4", "i1", "u1", "<u8", "?", ">f4", ">i8"))
)


@given(values=ARRAYS)
def test_an_array_arrives_as_it_is(values: Any) -> None:
    body, headers = request_body({"x": values}, id="1", outputs=None, parameters={}, binary=True)
    tensor = parse(body, int(headers["inference-header-content-length"])).tensors["x"]
    assert tensor.shape == list(values.shape)
    np.testing.assert_array_equal(tensor.array().reshape(values.shape), values)  # type: ignore[union-attr]


@given(texts=st.lists(st.text(), min_size=1, max_size=5), binary=st.booleans())
def test_texts_arrive_as_they_are(texts: list[str], binary: bool) -> None:
    body, headers = request_body({"x": texts}, id="1", outputs=None, parameters={}, binary=binary)
    length = headers.get("inference-header-content-length")
    tensor = parse(body, None if length is None else int(length)).tensors["x"]
    # numpy's own texts end at their last character that is not NUL.
    assert tensor.texts() == [text.rstrip("\0") for text in texts]


def test_missing_values_are_null_or_nan() -> None:
    body, _ = request_body({"x": [1.5, None], "name": ["a", None]}, id="1", outputs=None, parameters={}, binary=False)
    assert [tensor["data"] for tensor in json.loads(body)["inputs"]] == [[1.5, None], ["a", None]]
    body, headers = request_body({"x": [1.5, None]}, id="1", outputs=None, parameters={}, binary=True)
    values = parse(body, int(headers["inference-header-content-length"])).tensors["x"].array()  # type: ignore[union-attr]
    assert (values[0], np.isnan(values[1])) == (1.5, True)


# --- a real server ------------------------------------------------------------------------------------------------
@pytest.mark.slow
async def test_both_clients_ask_a_real_server(start: Start) -> None:
    service = await start()
    url = f"http://127.0.0.1:{service.port}"
    inputs = {"amount": np.array([1.0, np.e], np.float32), "carrier": ["AA", "UA"]}
    for binary in (True, False):
        async with AsyncInferenceClient(url, binary=binary) as client:
            assert await client.live()
            assert await client.ready()
            assert await client.ready("fares", 1)
            assert not await client.ready("fares", 9)
            result = await client.infer("fares", inputs, id="r", timeout=60)
            np.testing.assert_allclose(result["score"], [10.0, 21.0], rtol=1e-5)
            assert (result.id, result.tries) == ("r", 1)
            with pytest.raises(NotServed, match="loaded are"):
                await client.infer("fares", inputs, version=9)
            with pytest.raises(InvalidInference, match="'carrier' is missing"):
                await client.infer("fares", {"amount": [1.0]})
            with pytest.raises(DeadlineExceeded):
                await client.infer("fares", inputs, parameters={"timeout": 1})
            assert (await client.metadata("fares"))["name"] == "fares"
            assert (await client.load())["state"] == "ready"
            (stats,) = (await client.statistics("fares", 1))["model_stats"]
            assert stats["inference_stats"]["success"]["count"] >= 1
            with pytest.raises(NotServed):
                await client.metadata("nowhere")

    def by_thread() -> None:
        with InferenceClient(url) as client:
            assert client.live()
            assert client.ready("fares")
            np.testing.assert_allclose(client.infer("fares", inputs)["score"], [10.0, 21.0], rtol=1e-5)
            assert client.metadata()["name"] == "trimtab"
            assert client.load()["models"]
            assert client.statistics()["model_stats"]

    await asyncio.to_thread(by_thread)
    # The name's earlier meaning.
    async with InferenceClient(url) as quick:
        assert isinstance(quick, QuickClient)
        assert (await quick.infer("fares", {"amount": [1.0], "carrier": ["AA"]})).outputs["score"] == [10.0]


@pytest.mark.slow
async def test_what_a_lost_server_held_can_be_asked_again(start: Start) -> None:
    """A first server that dies with the request in its hands, then a real one behind the same port."""
    service = await start()
    seen = []

    async def die_or_forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.readuntil(b"\r\n\r\n")
        seen.append(data)
        if len(seen) == 1:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection("127.0.0.1", service.port)
        back.write(data + await reader.read(65536))
        writer.write(await there.read(65536))
        back.close()
        writer.close()

    proxy = await asyncio.start_server(die_or_forward, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    async with AsyncInferenceClient(f"http://127.0.0.1:{port}", retries=QUICK) as client:
        result = await client.infer("fares", {"amount": [1.0], "carrier": ["AA"]})
    assert (result["score"].tolist(), result.tries) == ([10.0], 2)
    proxy.close()
    await proxy.wait_closed()
