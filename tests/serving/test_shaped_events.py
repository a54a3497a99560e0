"""Events of a model with one vector in and one out: from a real server into a real collector, which judges them."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch
import uvicorn

from collectors.api import Collector, CollectorConfig, build
from observability.embedding import EmbeddingColumn
from observability.profile import Profile
from serving import Input, Output, Registry, Service, ServingConfig, Signature, save_artifact

FEATURES, OUTPUTS = 64, 8
SIGNATURE = Signature((Input("x", "FP32", shape=(FEATURES,)),), (Output("y", shape=(OUTPUTS,)),))
PREDICTIONS = [f"prediction.y.{place}" for place in range(OUTPUTS)]
Rows = np.ndarray[Any, np.dtype[np.float32]]


class Divided(torch.nn.Module):
    """A linear model whose answer is infinite where the first value of a row is 1000 or more."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(FEATURES, OUTPUTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.linear(x) / (x[:, :1] < 1000)
        return out


@dataclass
class Loop:
    """A server, the collector that its events go to, and a clock of the collector that can be put forward."""

    service: Service
    client: httpx.AsyncClient
    collector: Collector
    module: torch.nn.Module
    ahead: list[float]

    async def post(self, rows: Rows, binary: bool = False) -> int:
        """The status of one request of all rows, sent in one piece on a connection of its own.

        The server's shortcut takes requests in one piece whose header it has met twice before.
        """
        shape = [len(rows), FEATURES]
        tensor: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": shape}
        lines = [f"POST /v2/models/vectors/infer HTTP/1.1\r\nHost: 127.0.0.1:{self.service.port}"]
        if binary:
            raw = rows.astype("<f4").tobytes()
            head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(raw)}}]}).encode()
            lines.append(f"Inference-Header-Content-Length: {len(head)}")
            body = head + raw
        else:
            body = json.dumps({"inputs": [tensor | {"data": rows.reshape(-1).tolist()}]}).encode()
        lines.append(f"Content-Length: {len(body)}\r\n\r\n")
        reader, writer = await asyncio.open_connection("127.0.0.1", self.service.port)
        writer.write("\r\n".join(lines).encode() + body)
        status = int((await reader.readline()).split()[1])
        headers = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(headers.partition(b"content-length:")[2].split()[0]))
        writer.close()
        return status

    async def events(self, rows: int) -> pa.Table:
        """All that the collector accepted, once it is so many rows and all are measured."""
        await seen(lambda: self._accepted() >= rows and self.collector.measurer.waiting() == 0)
        tables = [table for _, table, _ in self.collector.log.tail()]
        return pa.concat_tables(tables, promote_options="default")

    async def windows(self, rows: int) -> list[dict[str, Any]]:
        """The judged windows of the model, once they hold so many rows."""
        self.ahead[0] += 7200.0
        transport = httpx.ASGITransport(app=self.collector.query_app)
        async with httpx.AsyncClient(transport=transport, base_url="http://collector") as query:
            found: list[dict[str, Any]] = []

            async def shown() -> bool:
                found[:] = (await query.get("/api/drift/vectors")).json().get("windows", [])
                return sum(int(window["rows"]) for window in found) >= rows

            until = time.monotonic() + 60
            while not await shown():
                assert time.monotonic() < until, f"windows of {rows} rows were not judged: {found}"
                await asyncio.sleep(0.05)
            return found

    def _accepted(self) -> int:
        return sum(table.num_rows for _, table, _ in self.collector.log.tail())


async def seen(condition: Callable[[], bool]) -> None:
    """Returns when the condition is true."""
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, "it did not come to be seen"
        await asyncio.sleep(0.02)


def drawn(rows: int, seed: int, shift: float = 0.0) -> Rows:
    """Normal vectors."""
    return np.random.default_rng(seed).normal(shift, 1.0, (rows, FEATURES)).astype(np.float32)


def training_table(rows: int, module: torch.nn.Module) -> pa.Table:
    """Rows that a reference is made of, with what the model says of them."""
    x = drawn(rows, seed=1)
    y = module(torch.from_numpy(x)).detach().double().numpy()
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), FEATURES)
    return pa.table({"feature.x": vectors} | {name: y[:, place] for place, name in enumerate(PREDICTIONS)})


@pytest.fixture
async def loop(tmp_path: Path) -> AsyncIterator[Loop]:
    """A server of `vectors`, every third request traced, beside its collector."""
    torch.manual_seed(0)
    module = Divided()
    ahead = [0.0]
    config = CollectorConfig(
        lake=tmp_path / "lake", store_url=f"sqlite:///{tmp_path}/store.db", window_seconds=3600.0,
        allowed_lateness_seconds=1.0,
    )  # fmt: skip
    collector = build(config, lambda: time.time() + ahead[0])
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(collector.intake_app, log_level="error", lifespan="off", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    save_artifact(tmp_path / "made", module, SIGNATURE, {"x": [[0.1] * FEATURES]})
    url = f"sqlite:///{tmp_path}/registry.db"
    registry = Registry(url, tmp_path / "artifacts")
    reference = Profile.of(training_table(3_000, module))
    registry.register("vectors", tmp_path / "made", lineage={}, profile=reference.to_json(), metrics={})
    registry.set_alias("vectors", "stable", 1)
    registry.close()
    config_of_service = ServingConfig(
        registry_url=url, artifacts_dir=tmp_path / "artifacts", port=0, drain_notice=0.0, trace_sample_ratio=0.3,
        collector_url=f"http://127.0.0.1:{listening.getsockname()[1]}",
    )  # fmt: skip
    service = Service(config_of_service)
    try:
        await service.start()
        served = f"http://127.0.0.1:{service.port}"
        async with httpx.AsyncClient(base_url=served, timeout=60) as client:
            yield Loop(service, client, collector, module, ahead)
        await service.drain()
    finally:
        server.should_exit = True
        await asyncio.to_thread(thread.join)
        listening.close()
        collector.close()


@pytest.mark.slow
async def test_events_hold_each_row_as_it_was_sent_and_answered(loop: Loop) -> None:
    x = drawn(90, seed=2)
    sent = [(x[place : place + size], binary) for place, size, binary in _requests()]
    for rows, binary in sent:
        assert await loop.post(rows, binary) == 200

    table = await loop.events(90)

    field = table.schema.field("feature.x")
    assert field.type == pa.list_(pa.float32(), FEATURES)
    assert [name for name in table.schema.names if name.startswith("prediction.")] == PREDICTIONS
    assert {table.schema.field(name).type for name in PREDICTIONS} == {pa.float64()}
    assert len(set(table.column("id").to_pylist())) == len(table) == 90
    assert set(table.column("outcome").to_pylist()) == {"ok"}
    assert 0 < table.column("trace_id").null_count < 90  # both ways of a request: the shortcut and the usual one
    # The order of groups is not that of the requests: rows are found again by their first value.
    vectors = np.array(table.column("feature.x").to_pylist(), np.float32)
    order = np.argsort(vectors[:, 0])
    wanted = x[np.argsort(x[:, 0])]
    np.testing.assert_array_equal(vectors[order], wanted)
    answered = np.column_stack([table.column(name).to_numpy() for name in PREDICTIONS])[order]
    np.testing.assert_allclose(answered, loop.module(torch.from_numpy(wanted)).detach().numpy(), rtol=1e-4, atol=1e-5)

    profile = Profile.of(table)
    column = profile.columns["feature.x"]
    assert isinstance(column, EmbeddingColumn)
    assert (column.kind, column.dimensions, column.count, column.misshapen) == ("embedding", FEATURES, 90, 0)
    np.testing.assert_allclose(column.mean, x.mean(axis=0), atol=1e-6)
    reference = Profile.of(training_table(500, loop.module))
    assert set(reference.columns) <= set(profile.columns)
    assert reference.updated(table).columns["feature.x"].count == 590
    assert {kind.kind for name, kind in profile.columns.items() if name in PREDICTIONS} == {"numeric"}


def _requests() -> list[tuple[int, int, bool]]:
    """First row, rows and form of requests over 90 rows: alone and several, JSON and binary.

    The headers of the binary ones of one size are the same each time: from the third on they take the shortcut.
    """
    sizes = [1, 2, 7, 5] * 6
    firsts = np.concatenate([[0], np.cumsum(sizes)])
    return [(int(first), size, place % 2 == 0) for place, (first, size) in enumerate(zip(firsts, sizes, strict=False))]


@pytest.mark.slow
async def test_rows_that_fail_have_the_columns_of_those_that_do_not(loop: Loop) -> None:
    bad = drawn(3, seed=3)
    bad[1, 0] = 2000.0
    assert await loop.post(bad) >= 400

    failed = await loop.events(3)
    assert [name for name in failed.schema.names if name.startswith("prediction.")] == PREDICTIONS
    assert {failed.column(name).null_count for name in PREDICTIONS} == {3}
    assert "ok" not in failed.column("outcome").to_pylist()
    np.testing.assert_array_equal(np.array(failed.column("feature.x").to_pylist(), np.float32), bad)

    assert await loop.post(drawn(2, seed=4)) == 200
    both = await loop.events(5)
    assert [name for name in both.schema.names if name.startswith("prediction.")] == PREDICTIONS


@pytest.mark.slow
async def test_events_outlive_the_version_that_answered(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.front._SETTLE_SECONDS", 3600.0)  # nothing is recorded before somebody asks
    x = drawn(24, seed=6)
    answers = await asyncio.gather(*(loop.post(x[row : row + 1], binary=True) for row in range(24)))
    assert set(answers) == {200}

    assert loop.service.deployments["vectors"].drop(1)
    assert (await loop.client.get("/metrics")).status_code == 200

    assert len(await loop.events(24)) == 24


@pytest.mark.slow
async def test_answers_are_counted_often_and_recorded_together(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.front._SETTLE_SECONDS", 3600.0)
    monkeypatch.setattr("serving.front._SETTLE_CALLS", 4)
    served: list[Any] = []
    monkeypatch.setattr(loop.service._recorder, "put_served", lambda *given: served.append(given))
    x = drawn(24, seed=6)
    assert [await loop.post(x[row : row + 1], binary=True) for row in range(24)] == [200] * 24

    assert not served
    loop.service._front.settle()
    ((_, _, (run,), _),) = served
    # The others went the general way.
    assert 8 < run.requests <= 24


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 0.3])
async def test_the_collector_compares_vectors_with_the_reference_of_their_version(loop: Loop, shift: float) -> None:
    await seen(lambda: loop.collector.measures.against("vectors", "1") is not None)
    x = drawn(640, seed=5, shift=shift)
    answers = await asyncio.gather(*(loop.post(x[first : first + 16], first % 32 == 0) for first in range(0, 640, 16)))
    assert set(answers) == {200}
    await loop.events(640)

    windows = await loop.windows(640)

    largest = max(windows, key=lambda window: int(window["rows"]))
    column = largest["columns"]["feature.x"]
    assert (column["kind"], column["dimensions"]) == ("embedding", FEATURES)
    assert column["score_threshold"] > 0
    assert column["drifted"] is (shift > 0)
    assert (column["score"] > column["score_threshold"]) is (shift > 0)
    assert set(PREDICTIONS) <= set(largest["columns"])
