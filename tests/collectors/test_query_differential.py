"""Random expressions and a corpus of requests to our engine and API, and to a real Prometheus with the same samples."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
import uvicorn

from alerts.querier import ClientQuerier
from collectors.query import PROMETHEUS_2, Engine, PrometheusClient, query_app
from collectors.store import MetricMetadata, Store
from trimtab.settings import load

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parents[1]
SEED = 1
EXPRESSIONS = 300


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


generator = _module("promql_random")
differential = _module("promql_differential")
AT = f"{(generator.START + 100 * generator.STEP) / 1000}"
START = f"{(generator.START + 80 * generator.STEP) / 1000}"

# Path and parameters; None as time or range where the request has one of its own.
REQUESTS: list[tuple[str, list[tuple[str, str]]]] = [
    ("query", [("query", "1"), ("time", AT)]),
    ("query", [("query", '"text <&>"'), ("time", AT)]),
    ("query", [("query", "temperature"), ("time", AT)]),
    ("query", [("query", "sort(temperature)"), ("time", "2023-11-14T22:40:00.123Z")]),
    ("query", [("query", "temperature"), ("time", "2023-11-15T00:40:00+02:00")]),
    ("query", [("query", "temperature[1m]"), ("time", AT)]),
    ("query", [("query", "sum(temperature) * 1e21"), ("time", AT)]),
    ("query", [("query", "vector(1e-7)"), ("time", AT)]),
    ("query", [("query", "vector(123456789012345680000)"), ("time", AT)]),
    ("query", [("query", "vector(-1/0)"), ("time", AT)]),
    ("query", [("query", "vector(0/0)"), ("time", AT)]),
    ("query", [("query", "1/0"), ("time", "1700000000.5")]),
    ("query", [("query", "-0"), ("time", "0")]),
    ("query", [("query", 'label_replace(vector(1), "x", "<a>&\\"é", "", "")'), ("time", AT)]),
    ("query", [("query", "nothing"), ("time", AT)]),
    ("query", [("query", "build_info"), ("time", AT), ("lookback_delta", "1s")]),
    ("query", [("query", "build_info"), ("time", "yesterday")]),
    ("query", [("query", "build_info"), ("time", AT), ("timeout", "soon")]),
    ("query", [("query", "sum("), ("time", AT)]),
    ("query", [("query", "1 > 2"), ("time", AT)]),
    ("query", [("time", AT)]),
    ("query", [("query", "requests_total / on(model) requests_total"), ("time", AT)]),
    ("query", [("query", 'label_replace(temperature, "room", "x", "", "")'), ("time", AT)]),
    ("query_range", [("query", "temperature"), ("start", START), ("end", AT), ("step", "60")]),
    ("query_range", [("query", "temperature"), ("start", START), ("end", AT), ("step", "37.5s")]),
    ("query_range", [("query", "time()"), ("start", "1700000000.25"), ("end", "1700000010"), ("step", "2.5")]),
    ("query_range", [("query", "rate(requests_total[2m])"), ("start", START), ("end", AT), ("step", "1m")]),
    ("query_range", [("query", "temperature > 20"), ("start", START), ("end", AT), ("step", "15s")]),
    ("query_range", [("query", "nothing"), ("start", START), ("end", AT), ("step", "15s")]),
    ("query_range", [("query", "temperature[1m]"), ("start", START), ("end", AT), ("step", "15s")]),
    ("query_range", [("query", '"text"'), ("start", START), ("end", AT), ("step", "15s")]),
    ("query_range", [("query", "1"), ("start", AT), ("end", START), ("step", "15s")]),
    ("query_range", [("query", "1"), ("start", START), ("end", AT), ("step", "0")]),
    ("query_range", [("query", "1"), ("start", START), ("end", AT), ("step", "-5")]),
    ("query_range", [("query", "1"), ("start", START), ("end", AT), ("step", "x")]),
    ("query_range", [("query", "1"), ("start", START), ("end", AT)]),
    ("query_range", [("query", "1"), ("start", "0"), ("end", "100000"), ("step", "1")]),
    ("query_range", [("query", "1"), ("end", AT), ("step", "1")]),
    ("series", [("match[]", "temperature")]),
    ("series", [("match[]", "temperature"), ("match[]", '{room="r1"}'), ("start", START), ("end", AT)]),
    ("series", [("match[]", "temperature"), ("start", "1"), ("end", "2")]),
    ("series", [("match[]", "sum(x)")]),
    ("series", [("match[]", '{x=""}')]),
    ("series", [("match[]", "temperature"), ("start", "x")]),
    ("series", []),
    ("labels", []),
    ("labels", [("match[]", "build_info")]),
    ("labels", [("match[]", "{}")]),
    ("labels", [("start", "x")]),
    ("label/room/values", []),
    ("label/__name__/values", []),
    ("label/__name__/values", [("match[]", '{room="r1"}')]),
    ("label/nothing/values", []),
    ("label/room/values", [("match[]", "x{")]),
    ("metadata", [("limit", "x")]),
    ("query_exemplars", [("query", "requests_total"), ("start", START), ("end", AT)]),
    ("query_exemplars", [("query", "requests_total"), ("start", AT), ("end", START)]),
    ("query_exemplars", [("query", "1"), ("start", START), ("end", AT)]),
    ("format_query", [("query", "sum(rate(x[5m]))by(a)/on(b)group_left(c)y")]),
    ("format_query", [("query", "sum(")]),
    ("targets", [("state", "active")]),
    ("scrape_pools", []),
    ("rules", []),
    ("rules", [("type", "alert")]),
    ("rules", [("type", "other")]),
    ("alerts", []),
    ("alertmanagers", []),
    ("status/walreplay", []),
    ("nothing", []),
]


@pytest.fixture(scope="module")
def series() -> list[Any]:
    return list(generator.random_series(SEED))


@pytest.fixture(scope="module")
def store(series: list[Any]) -> Iterator[Store]:
    found: Store = differential.filled_store(series)
    found.set_metadata({"temperature": MetricMetadata("gauge", "Degrees.", "")})
    yield found
    found.close()


@pytest.fixture(scope="module")
def prometheus(series: list[Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusClient]:
    if shutil.which("prometheus") is None or shutil.which("promtool") is None:
        pytest.skip("prometheus and promtool are not installed (Debian: prometheus)")
    with differential.running_prometheus(tmp_path_factory.mktemp("prometheus"), series) as client:
        yield client


def test_random_expressions_give_what_prometheus_gives(store: Store, prometheus: PrometheusClient) -> None:
    comparison = differential.Comparison(Engine(store, semantics=PROMETHEUS_2), prometheus)
    grammar = generator.Grammar(SEED)
    queries = [grammar.query() for _ in range(EXPRESSIONS)]
    verdicts = [(query, comparison.verdict(query)) for query in queries]
    kinds = Counter(verdict.kind for _, verdict in verdicts)

    assert not [(query, verdict.detail) for query, verdict in verdicts if verdict.kind == "different"]
    assert kinds["same"] > 0.9 * EXPRESSIONS


@pytest.fixture(scope="module")
def api(store: Store) -> Iterator[str]:
    app = query_app(Engine(store, semantics=PROMETHEUS_2), store, clock=lambda: generator.END / 1000)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=60) as client:
        yield client


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("path", "parameters"), REQUESTS, ids=[f"{path}?{urlencode(parameters)}"[:70] for path, parameters in REQUESTS]
)
def test_a_request_is_answered_as_prometheus_answers_it(
    path: str,
    parameters: list[tuple[str, str]],
    method: str,
    api: str,
    prometheus: PrometheusClient,
    http: httpx.Client,
) -> None:
    ours = _asked(http, f"{api}/api/v1/{path}", parameters, method)
    theirs = _asked(http, f"{prometheus.base_url}/api/v1/{path}", parameters, method)

    assert ours.status_code == theirs.status_code
    if theirs.headers.get("content-type") != "application/json":
        return
    assert ours.headers["content-type"] == "application/json"
    if ours.content == theirs.content:
        return
    mine, other = ours.json(), theirs.json()
    if other["status"] == "error":
        assert mine["errorType"] == other["errorType"]
        assert _reason(mine["error"]) == _reason(other["error"])
    else:
        assert _unordered(mine) == _unordered(other)


def _asked(http: httpx.Client, url: str, parameters: list[tuple[str, str]], method: str) -> httpx.Response:
    if method == "GET":
        return http.get(f"{url}?{urlencode(parameters)}")
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    return http.post(url, content=urlencode(parameters).encode(), headers=headers)


def _reason(text: str) -> str:
    """The error without what version 3 puts in front of it, and without the series that it gives as examples."""
    for prefix in ('invalid parameter "query": ', 'invalid parameter "match[]": '):
        text = text.removeprefix(prefix)
    return re.sub(r"match group \{.*\} on the .*\];", "match group;", text)


def _unordered(body: Any) -> Any:
    """A vector and a list of series have no order; a number is the same however it is written."""
    data = body["data"]
    if isinstance(data, list):
        return sorted(json.dumps(item, sort_keys=True) for item in data)
    if data.get("resultType") == "vector":
        return sorted(
            json.dumps([item["metric"], _rounded([item["value"]])], sort_keys=True) for item in data["result"]
        )
    if data.get("resultType") == "matrix":
        return [(item["metric"], _rounded(item["values"])) for item in data["result"]]
    return data


def _rounded(points: list[Any]) -> list[Any]:
    return [[time, f"{float(value):.9g}"] for time, value in points]


def test_rules_and_dashboards_read_a_prometheus_that_the_settings_name(
    prometheus: PrometheusClient, api: str, tmp_path: Path
) -> None:
    """`[query] url`: no batches there, so the expressions of a group go one by one, and give what ours give."""
    (tmp_path / "trimtab.toml").write_text(f'[query]\nurl = "{prometheus.base_url}"\n')
    settings = load(tmp_path / "trimtab.toml")
    at = float(AT)
    exprs = ["sum by (model) (rate(requests_total[5m]))", "sum(", "max(temperature)"]
    with PrometheusClient(settings.query_url) as named, PrometheusClient(api) as own:
        theirs, ours = ClientQuerier(named).instants(exprs, at), ClientQuerier(own).instants(exprs, at)
        # What pages of the dashboard and the status commands ask besides.
        assert named.labels() == own.labels()
        assert named.label_values("room") == own.label_values("room")
        assert named.series(["build_info"]) == own.series(["build_info"])
        assert named.batch(exprs, at) is None
        assert len(own.batch(exprs, at) or []) == len(exprs)

    assert str(ours[1]) in str(theirs[1])
    for position in (0, 2):
        mine, other = ours[position], theirs[position]
        assert not isinstance(mine, Exception)
        assert not isinstance(other, Exception)
        values = {sample.labels: sample.value for sample in other}
        assert {sample.labels: pytest.approx(sample.value, rel=1e-9) for sample in mine} == values
