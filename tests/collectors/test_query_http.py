"""The query API as clients see it: promtool, our own client, plain HTTP."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from collectors.query import Engine, Matrix, PrometheusClient, QueryError, Scalar, String, Vector, query_app
from collectors.store import MetricMetadata, Store

T0 = 1_700_000_000_000
NOW = T0 / 1000 + 300


async def rules() -> dict[str, Any]:
    return {"groups": [{"name": "g", "rules": []}]}


async def targets() -> dict[str, Any]:
    return {"activeTargets": [{"health": "up"}], "droppedTargets": []}


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    store = Store("sqlite://", clock=lambda: NOW)
    for step in range(20):
        t_ms = T0 + step * 15_000 + 1_500
        samples = [
            ({"__name__": "requests_total", "model": model}, float(step * rate))
            for model, rate in (("a", 15), ("b", 30))
        ]
        store.append("t", t_ms, [*samples, ({"__name__": "odd"}, float("nan")), ({"__name__": "big"}, 1e25)])
    store.set_metadata({"requests_total": MetricMetadata("counter", "Requests.", "")})
    store.add_exemplar({"__name__": "requests_total", "model": "a"}, {"trace_id": "ab12"}, 0.5, T0 + 1000)
    yield store
    store.close()


@pytest.fixture(scope="module")
def url(store: Store) -> Iterator[str]:
    app = query_app(Engine(store), store, rules=rules, targets=targets, clock=lambda: NOW)
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
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{url}/api/v1") as client:
        yield client


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[PrometheusClient]:
    with PrometheusClient(url) as client:
        yield client


def test_an_instant_query_has_prometheus_envelope(http: httpx.Client) -> None:
    answer = http.get("/query", params={"query": 'requests_total{model="a"}', "time": "1700000290.5"})

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "status": "success",
        "data": {
            "resultType": "vector",
            "result": [{"metric": {"__name__": "requests_total", "model": "a"}, "value": [1700000290.5, "285"]}],
        },
    }


def test_a_range_query_takes_a_form_rfc_3339_and_a_duration(http: httpx.Client) -> None:
    form = {
        "query": "sum(requests_total)",
        "start": "2023-11-14T22:15:20Z",
        "end": "2023-11-14T22:16:20.000Z",
        "step": "30s",
    }
    answer = http.post("/query_range", data=form).json()["data"]

    assert answer["resultType"] == "matrix"
    assert answer["result"][0]["metric"] == {}
    assert answer["result"][0]["values"] == [[1700000120, "315"], [1700000150, "405"], [1700000180, "495"]]


def test_numbers_are_written_as_prometheus_writes_them(http: httpx.Client) -> None:
    def value(expr: str) -> str:
        data = http.get("/query", params={"query": expr}).json()["data"]
        return str(data["result"][1] if data["resultType"] == "scalar" else data["result"][0]["value"][1])

    assert [value(expr) for expr in ("odd", "1/0", "-1/0", "big", "1.5", "1e-7")] == [
        "NaN",
        "+Inf",
        "-Inf",
        "1e+25",
        "1.5",
        "1e-07",
    ]


@pytest.mark.parametrize(
    ("path", "parameters", "status", "kind"),
    [
        ("/query", {"query": "sum("}, 400, "bad_data"),
        ("/query", {}, 400, "bad_data"),
        ("/query", {"query": "1", "time": "yesterday"}, 400, "bad_data"),
        ("/query", {"query": "odd / on() requests_total"}, 422, "execution"),
        ("/query", {"query": "holt(x)"}, 400, "bad_data"),
        ("/query", {"query": "odd @ -5"}, 400, "bad_data"),
        ("/query", {"query": "sum(odd)", "timeout": "0.000001"}, 503, "timeout"),
        ("/query_range", {"query": "1", "start": "10", "end": "0", "step": "1"}, 400, "bad_data"),
        ("/query_range", {"query": "1", "start": "0", "end": "10", "step": "0"}, 400, "bad_data"),
        ("/query_range", {"query": "1", "start": "0", "end": "11001", "step": "1"}, 400, "bad_data"),
        ("/query_range", {"query": "odd[5m]", "start": "0", "end": "1", "step": "1"}, 400, "bad_data"),
        ("/series", {}, 400, "bad_data"),
        ("/series", {"match[]": "sum(x)"}, 400, "bad_data"),
    ],
)
def test_errors_have_their_status_and_type(
    http: httpx.Client, path: str, parameters: dict[str, str], status: int, kind: str
) -> None:
    answer = http.get(path, params=parameters)

    assert answer.status_code == status
    assert answer.json()["status"] == "error"
    assert answer.json()["errorType"] == kind
    assert answer.json()["error"]


def test_an_unsupported_function_is_named(http: httpx.Client) -> None:
    answer = http.get("/query", params={"query": "nonsense(odd[5m])"})

    assert answer.status_code == 400
    assert "nonsense" in answer.json()["error"]


def test_raw_strings_and_comments_are_read(client: PrometheusClient) -> None:
    result = client.instant('count(requests_total{model=~`\\w`}) # `not" a string`')

    assert isinstance(result, Vector)
    assert [element.value for element in result] == [2.0]


def test_large_answers_are_compressed_on_request(http: httpx.Client) -> None:
    form = {"query": "requests_total", "start": str(T0 / 1000), "end": str(NOW), "step": "1"}
    answer = http.post("/query_range", data=form)

    assert answer.headers["content-encoding"] == "gzip"
    assert len(answer.json()["data"]["result"]) == 2


def test_series_labels_and_values_take_several_selectors(http: httpx.Client) -> None:
    series = http.get("/series", params={"match[]": ['requests_total{model="a"}', "odd"]}).json()["data"]
    names = http.get("/labels").json()["data"]
    values = http.get("/label/model/values", params={"match[]": "requests_total"}).json()["data"]
    none = http.get("/label/model/values", params={"match[]": "odd"}).json()["data"]
    early = http.get("/series", params={"match[]": "odd", "end": "100"}).json()["data"]

    assert series == [{"__name__": "odd"}, {"__name__": "requests_total", "model": "a"}]
    assert names == ["__name__", "model"]
    assert values == ["a", "b"]
    assert none == []
    assert early == []


def test_what_others_provide_is_passed_on(http: httpx.Client) -> None:
    assert http.get("/rules").json() == {"status": "success", "data": {"groups": [{"name": "g", "rules": []}]}}
    assert http.get("/alerts").json() == {"status": "success", "data": {"alerts": []}}
    assert http.get("/targets").json()["data"]["activeTargets"] == [{"health": "up"}]
    assert http.get("/status/buildinfo").json()["data"]["version"]
    assert http.get("/metadata").json()["data"] == {
        "requests_total": [{"type": "counter", "help": "Requests.", "unit": ""}]
    }
    assert http.get("/metadata", params={"metric": "odd"}).json()["data"] == {}
    assert http.get("/format_query", params={"query": "sum  by(a)(x)"}).json()["data"] == "sum by (a) (x)"


def test_exemplars_come_by_series(client: PrometheusClient) -> None:
    found = client.exemplars("rate(requests_total[5m]) / 2", T0 / 1000, NOW)

    assert found == [
        {
            "seriesLabels": {"__name__": "requests_total", "model": "a"},
            "exemplars": [{"labels": {"trace_id": "ab12"}, "value": "0.5", "timestamp": 1700000001}],
        }
    ]


def test_the_client_gives_the_engines_own_values(client: PrometheusClient, store: Store) -> None:
    engine = Engine(store)
    for expr in ("requests_total", "1 + 1", '"text"', "big"):
        assert client.instant(expr, NOW) == engine.instant(expr, int(NOW * 1000))
    matrix, local = (
        client.range("requests_total", NOW - 60, NOW, 15),
        engine.range("requests_total", T0 + 240_000, T0 + 300_000, 15_000),
    )

    assert isinstance(client.instant("1"), Scalar)
    assert isinstance(client.instant('"x"'), String)
    assert isinstance(matrix, Matrix)
    assert [s.labels for s in matrix] == [s.labels for s in local]
    assert all(
        a.t.tolist() == b.t.tolist() and a.v.tolist() == b.v.tolist() for a, b in zip(matrix, local, strict=True)
    )
    assert client.labels() == ["__name__", "model"]
    assert client.label_values("model") == ["a", "b"]
    assert client.series(["odd"]) == [{"__name__": "odd"}]
    assert client.metadata() == {"requests_total": MetricMetadata("counter", "Requests.", "")}
    assert client.rules()["groups"][0]["name"] == "g"
    assert client.alerts() == []
    assert client.targets()["droppedTargets"] == []


def test_the_client_raises_the_servers_reason_or_says_that_nobody_answers(client: PrometheusClient) -> None:
    with pytest.raises(QueryError, match="parse error") as wrong:
        client.instant("sum(")
    with socket.socket() as held:  # bound and not listening: nobody else comes to answer there
        held.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{held.getsockname()[1]}"
        with PrometheusClient(nobody) as lost, pytest.raises(QueryError, match="running") as away:
            lost.instant("1")

    assert wrong.value.kind == "bad_data"
    assert away.value.kind == "unavailable"


@pytest.mark.slow
def test_promtool_queries_the_server(url: str) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")

    def promtool(*arguments: str) -> str:
        command = ["promtool", "query", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout

    at = "2023-11-14T22:18:20Z"
    instant = promtool("instant", f"--time={at}", url, "max by (model) (requests_total)")
    times = ["--start=1700000120", "--end=1700000180", "--step=30s"]
    matrix = json.loads(promtool("range", "-o", "json", *times, url, "requests_total"))
    series = promtool("series", "--match=requests_total", "--start=1700000000", "--end=1700000300", url)
    labels = promtool("labels", "--start=1700000000", "--end=1700000300", url, "model")

    assert '{model="a"} => 285 @[1700000300' in instant
    assert '{model="b"} => 570 @[1700000300' in instant
    assert [len(item["values"]) for item in matrix] == [3, 3]
    assert series.split() == ['{__name__="requests_total",', 'model="a"}', '{__name__="requests_total",', 'model="b"}']
    assert labels.split() == ["a", "b"]
