"""What versions are given and answer, counted in the server: each row once, equal to what its events would say."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch

from observability.events import from_ipc
from observability.profile import Profile
from serving import Input, Output, Registry, Service, ServingConfig, Signature, save_artifact
from serving.batching.padding import Padded
from serving.telemetry.counting import Counted, Counter
from serving.telemetry.tally import Columns

SIGNATURE = Signature(
    (
        Input.of("amount", "FP32"),
        Input.of("carrier", "BYTES", ["AA", "UA"]),
        Input.of("flag", "BOOL"),
        Input.of("v", "FP32", shape=(3,)),
    ),
    (Output("score"), Output("both", shape=(2,))),
)


class Model(torch.nn.Module):
    def forward(
        self, amount: torch.Tensor, carrier: torch.Tensor, flag: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return amount * 2 + carrier + flag, v[:, :2] + 1


def rows(count: int, seed: int, carriers: Sequence[str] = ("AA", "UA", "ZZ")) -> dict[str, Any]:
    draw = np.random.default_rng(seed)
    return {
        "amount": draw.normal(10, 3, count).astype(np.float32),
        "carrier": draw.choice(list(carriers), count).tolist(),
        "flag": (draw.random(count) < 0.3).tolist(),
        "v": draw.normal(size=(count, 3)).astype(np.float32),
    }


def table(given: dict[str, Any]) -> pa.Table:
    """As events have them."""
    codes = np.array([{"AA": 1, "UA": 2}.get(text, 0) for text in given["carrier"]])
    score = given["amount"] * 2 + codes + np.array(given["flag"], np.float32)
    return pa.table(
        {
            "feature.amount": given["amount"].astype(float),
            "feature.carrier": given["carrier"],
            "feature.flag": given["flag"],
            "feature.v": pa.FixedSizeListArray.from_arrays(pa.array(given["v"].reshape(-1)), 3),
            "prediction.score": score.astype(float),
            "prediction.both.0": (given["v"][:, 0] + 1).astype(float),
            "prediction.both.1": (given["v"][:, 1] + 1).astype(float),
        }
    )


def counts(profile: Profile) -> dict[str, Any]:
    """All integers of a profile."""
    return {
        name: (column.counts.tolist(), column.rows, column.missing) for name, column in sorted(profile.columns.items())
    }


def without_vectors(profile: Profile) -> Profile:
    return Profile({name: column for name, column in profile.columns.items() if column.kind != "embedding"})


def columns_of(given: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    codes = np.array([{"AA": 1, "UA": 2}.get(text, 0) for text in given["carrier"]], np.int64)
    return [given["amount"], codes, np.array(given["flag"], np.float32), given["v"]]


class Plain:
    signature = SIGNATURE

    def run(self, columns: Any) -> Any:
        amount, codes, flag, v = columns
        if (amount == 666).any():
            raise ValueError("666")
        return [amount * 2 + codes + flag, v[:, :2] + 1]


def test_batches_are_counted_as_their_rows_would_be_and_padding_is_not() -> None:
    reference = Profile.of(table(rows(2000, 0, ["AA", "UA"])))
    counter = Counter(threading.Event())
    model = Counted(Padded(Plain(), [8]), counter)
    parts = [rows(size, seed) for seed, size in enumerate([5, 1, 8, 3, 20], start=1)]
    for given in parts[:3]:
        model.run(columns_of(given))

    # What came before the reference waits for it.
    assert counter.take() is None
    for given in parts[:3]:
        model.run(columns_of(given))
    counter.expect(reference, Columns.of(reference, SIGNATURE))
    for given in parts[3:]:
        model.run(columns_of(given))
    bad = columns_of(parts[0])
    bad[0] = np.full(5, 666, np.float32)
    with pytest.raises(ValueError, match="666"):
        model.run(bad)

    found = counter.take()
    assert found is not None
    wanted = reference.empty().updated(pa.concat_tables([table(given) for given in parts]))
    assert counts(found) == counts(without_vectors(wanted))
    assert found.rows == 37
    assert counter.take() is None


def test_outputs_are_counted_alike_in_whatever_type_a_model_gives_them() -> None:
    reference = Profile.of(table(rows(2000, 0, ["AA", "UA"])))
    counter = Counter(threading.Event())
    counter.expect(reference, Columns.of(reference, SIGNATURE))
    parts = [rows(size, seed) for seed, size in enumerate([5, 9, 4], start=1)]
    for given, kind in zip(parts, (np.float32, np.float64, np.float32), strict=True):
        columns = columns_of(given)
        counter.add(columns, [output.astype(kind) for output in Plain().run(columns)])
        counter.count()

    found = counter.take()
    assert found is not None
    wanted = reference.empty().updated(pa.concat_tables([table(given) for given in parts]))
    assert counts(found) == counts(without_vectors(wanted))
    assert counter.take() is None


def test_inputs_of_which_nothing_is_counted_are_let_go_at_once() -> None:
    made = table(rows(2000, 0)).select(["prediction.score", "prediction.both.0"])
    reference = Profile.of(made)
    counter = Counter(threading.Event())
    counter.expect(reference, Columns.of(reference, SIGNATURE))
    columns = columns_of(rows(5, 1))
    outputs = Plain().run(columns)
    counter.add(columns, outputs)
    gone = weakref.ref(columns[0])
    del columns

    assert gone() is None
    found = counter.take()
    assert found is not None
    assert found.rows == 5
    # Another reference may count inputs: of batches that were kept without them nothing can be said.
    counter.add(columns_of(rows(3, 2)), outputs)
    whole = Profile.of(table(rows(2000, 0, ["AA", "UA"])))
    counter.expect(whole, Columns.of(whole, SIGNATURE))
    counter.add(columns_of(rows(5, 1)), outputs)
    found = counter.take()
    assert found is not None
    assert found.rows == 5


def test_only_columns_that_tensors_can_hold_are_counted() -> None:
    made = table(rows(2000, 0))
    reference = Profile.of(
        made.drop_columns(["feature.carrier", "prediction.both.1"]).append_column("feature.carrier", made.column(0))
    )

    columns = Columns.of(reference, SIGNATURE)

    assert columns.names == ["feature.amount", "feature.flag", "prediction.score", "prediction.both.0"]
    # The model has no code for ZZ, which the reference knows: only events say it.
    assert "feature.carrier" not in Columns.of(Profile.of(made), SIGNATURE).names
    counter = Counter(threading.Event())
    counter.expect(Profile({}), Columns.of(Profile({}), SIGNATURE))
    assert not counter.active


def test_a_server_that_counts_nothing_and_tells_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nobody would count"):
        ServingConfig(registry_url="sqlite://", artifacts_dir=tmp_path, event_features=False)
    with pytest.raises(ValueError, match="probe_seconds"):
        ServingConfig(registry_url="sqlite://", artifacts_dir=tmp_path, probe_seconds=0)


class Taken(ThreadingHTTPServer):
    """Takes everything in, but profiles only once it has a reference."""

    def __init__(self) -> None:
        self.references: list[Any] = []
        self.profiles: dict[str, tuple[Profile, float, float]] = {}
        self.events: list[pa.Table] = []
        self.early = 0
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Taken
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_PUT(self) -> None:
        self.server.references.append(json.loads(self._body()))
        self._answer(200)

    def do_POST(self) -> None:
        body = self._body()
        if self.path.startswith("/v1/profiles/"):
            if not self.server.references or not self.server.early:
                self.server.early += 1
                return self._answer(404)
            span = float(self.headers["X-Profile-Start"]), float(self.headers["X-Profile-End"])
            self.server.profiles[self.headers["X-Batch-Id"]] = (Profile.from_json(body), *span)
        elif self.path == "/v1/events":
            self.server.events.append(from_ipc(body))
        return self._answer(200)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def taken() -> Iterator[Taken]:
    server = Taken()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come"
        await asyncio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("event_features", [True, False])
async def test_a_server_posts_what_its_events_would_say(taken: Taken, tmp_path: Path, event_features: bool) -> None:
    example = {"amount": [1.0], "carrier": ["AA"], "flag": [True], "v": [[0, 0, 1]]}
    save_artifact(tmp_path / "made", Model(), SIGNATURE, example)
    registry = Registry(f"sqlite:///{tmp_path}/registry.db", tmp_path / "artifacts")
    reference = Profile.of(table(rows(2000, 0, ["AA", "UA"])))
    registry.register("m", tmp_path / "made", lineage={}, profile=reference.to_json(), metrics={})
    registry.set_alias("m", "stable", 1)
    registry.close()
    config = ServingConfig(
        registry_url=f"sqlite:///{tmp_path}/registry.db", artifacts_dir=tmp_path / "artifacts", port=0,
        drain_notice=0.0, collector_url=f"http://127.0.0.1:{taken.server_port}", probe=True, probe_seconds=0.3,
        event_features=event_features,
    )  # fmt: skip
    begun = time.time()
    service = Service(config)
    await service.start()
    sent = [rows(size, seed) for seed, size in enumerate([1, 4, 30, 2] * 5, start=1)]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", timeout=60) as client:
        await until(lambda: bool(taken.references))
        for given in sent:
            count, values = len(given["flag"]), {**given, "amount": given["amount"].tolist()}
            values["v"] = given["v"].reshape(-1).tolist()
            shapes = {one.name: [count, *(one.shape or (1,))] for one in SIGNATURE.inputs}
            inputs = [
                {"name": one.name, "datatype": one.datatype, "shape": shapes[one.name], "data": values[one.name]}
                for one in SIGNATURE.inputs
            ]
            answer = await client.post("/v2/models/m/infer", json={"inputs": inputs})
            assert answer.status_code == 200, answer.text
    await service.drain()

    total = sum(len(given["flag"]) for given in sent)
    wanted = reference.empty().updated(pa.concat_tables([table(given) for given in sent]))
    found = sum((profile for profile, _, _ in taken.profiles.values()), start=without_vectors(reference).empty())
    assert counts(found) == counts(without_vectors(wanted))
    assert taken.early == 1
    assert taken.references[0]["from_profiles"] == list(without_vectors(reference).columns)
    for _, start, end in taken.profiles.values():
        assert begun - 1 <= start < end <= time.time()
        assert end - start <= 0.6 + 1e-6
    events = pa.concat_tables(taken.events)
    assert events.num_rows == total
    features = [name for name in events.schema.names if name.startswith("feature.")]
    every = ["feature.amount", "feature.carrier", "feature.flag", "feature.v"]
    assert features == (every if event_features else ["feature.v"])
    assert "prediction.score" in events.schema.names
