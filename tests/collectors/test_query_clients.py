"""The requests of Grafana's Prometheus data source and of prometheus-api-client, and promtool, on the query API."""

from __future__ import annotations

import asyncio
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

from collectors.query import Configuration, Engine, query_app
from collectors.store import MetricMetadata, Store

NOW = 1_700_000_300.0
T0_MS = round(NOW * 1000) - 300_000
TARGET = {"job": "serve", "instance": "h:8080"}


async def targets() -> dict[str, Any]:
    active = {"labels": TARGET, "scrapePool": "serve", "health": "up"}
    return {"activeTargets": [active], "droppedTargets": [{"discoveredLabels": {}, "scrapePool": "old"}]}


async def rules() -> dict[str, Any]:
    alerting = {"type": "alerting", "name": "Slow", "alerts": [{"state": "firing"}]}
    recording = {"type": "recording", "name": "a:b"}
    groups = [{"name": "one", "file": "x.yml", "rules": [alerting, recording]}]
    return {"groups": [*groups, {"name": "two", "file": "y.yml", "rules": [recording]}]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    store = Store("sqlite://", clock=lambda: NOW)
    for step in range(20):
        t_ms = int(NOW * 1000) - 300_000 + step * 15_000
        rows = [({"__name__": "requests_total", "model": model, **TARGET}, step * 15.0) for model in "ab"]
        store.append("t", t_ms, [*rows, ({"__name__": "up", **TARGET}, 1.0)])
    store.set_metadata(
        {"requests": MetricMetadata("counter", "Requests.", ""), "away": MetricMetadata("gauge", "", "")}
    )
    store.add_exemplar({"__name__": "requests_total", "model": "a"}, {"trace_id": "ab"}, 2.0, int(NOW * 1000) - 60_500)
    app = query_app(
        Engine(store),
        store,
        rules=rules,
        targets=targets,
        clock=lambda: NOW,
        configuration=lambda: Configuration(text="global: {}\n", external_labels={"region": "eu"}),
    )
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
    store.close()


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


# Method, path, parameters: what Grafana sends to test a data source, to fill its editor, and for its panels.
GRAFANA = [
    ("POST", "/api/v1/query", {"query": "1+1", "time": f"{NOW}"}),
    ("GET", "/api/v1/query", {"query": "1+1", "time": f"{NOW}"}),
    ("GET", "/api/v1/status/buildinfo", {}),
    ("GET", "/api/v1/metadata", {}),
    ("GET", "/api/v1/metadata", {"limit": "5000"}),
    ("GET", "/api/v1/metadata", {"metric": "requests"}),
    ("GET", "/api/v1/label/__name__/values", {"start": f"{NOW - 600}", "end": f"{NOW}"}),
    ("GET", "/api/v1/label/__name__/values", {"match[]": '{__name__=~".*req.*"}', "limit": "40000"}),
    ("GET", "/api/v1/label/model/values", {"match[]": "requests_total", "start": f"{NOW - 600}", "end": f"{NOW}"}),
    ("GET", "/api/v1/labels", {"match[]": "requests_total", "start": f"{NOW - 600}", "end": f"{NOW}"}),
    ("POST", "/api/v1/labels", {"match[]": '{__name__="requests_total"}'}),
    ("GET", "/api/v1/series", {"match[]": "requests_total", "start": f"{NOW - 600}", "end": f"{NOW}"}),
    ("POST", "/api/v1/series", {"match[]": "requests_total"}),
    ("GET", "/api/v1/rules", {}),
    ("GET", "/api/v1/rules", {"type": "alert"}),
    ("GET", "/api/v1/alerts", {}),
    (
        "POST",
        "/api/v1/query_range",
        {"query": "rate(requests_total[1m])", "start": f"{NOW - 600}", "end": f"{NOW}", "step": "15"},
    ),
    ("POST", "/api/v1/query_exemplars", {"query": "requests_total", "start": f"{NOW - 600}", "end": f"{NOW}"}),
    ("GET", "/api/v1/query_exemplars", {"query": "requests_total", "start": f"{NOW - 600}", "end": f"{NOW}"}),
    ("GET", "/api/v1/format_query", {"query": "sum(up)by(job)"}),
    ("POST", "/api/v1/parse_query", {"query": "sum(up)by(job)"}),
    ("GET", "/api/v1/status/flags", {}),
    ("GET", "/api/v1/status/config", {}),
    ("GET", "/api/v1/status/runtimeinfo", {}),
    ("GET", "/api/v1/status/tsdb", {}),
    ("GET", "/api/v1/targets", {"state": "active"}),
    ("GET", "/api/v1/scrape_pools", {}),
    ("GET", "/api/v1/targets/metadata", {"match_target": '{job="serve"}'}),
    ("GET", "/api/v1/alertmanagers", {}),
    ("GET", "/api/v1/notifications", {}),
]


@pytest.mark.parametrize(("method", "path", "parameters"), GRAFANA)
def test_every_request_of_grafana_succeeds(
    method: str, path: str, parameters: dict[str, str], http: httpx.Client
) -> None:
    where = {"params": parameters} if method == "GET" else {"data": parameters}
    answer = http.request(method, path, headers={"Origin": "http://grafana"}, **where)  # type: ignore[arg-type]

    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.json()["status"] == "success"
    assert answer.json()["data"] is not None


def data(http: httpx.Client, path: str, **parameters: str) -> Any:
    return http.get(f"/api/v1/{path}", params=parameters).json()["data"]


def test_exemplars_have_prometheus_form(http: httpx.Client) -> None:
    found = data(http, "query_exemplars", query="rate(requests_total[5m])", start=f"{NOW - 600}", end=f"{NOW}")

    exemplar = {"labels": {"trace_id": "ab"}, "value": "2", "timestamp": NOW - 60.5}
    assert found == [{"seriesLabels": {"__name__": "requests_total", "model": "a"}, "exemplars": [exemplar]}]


def test_limits_cut_lists_with_a_warning(http: httpx.Client) -> None:
    for path in ("labels", "label/model/values", "series"):
        answer = http.get(f"/api/v1/{path}", params={"match[]": "requests_total", "limit": "1"}).json()
        assert len(answer["data"]) == 1
        assert answer["warnings"] == ["results truncated due to limit"]
    cut = http.get("/api/v1/query", params={"query": "requests_total", "limit": "1"}).json()
    assert len(cut["data"]["result"]) == 1
    assert cut["warnings"] == ["results truncated due to limit"]
    whole = http.get("/api/v1/query", params={"query": "requests_total", "limit": "2"}).json()
    assert "warnings" not in whole
    assert http.get("/api/v1/labels", params={"limit": "-1"}).status_code == 400


def test_metadata_is_found_by_the_name_of_the_samples_or_of_the_family() -> None:
    store = Store("sqlite://", clock=lambda: NOW)
    store.set_metadata({"hits_total": MetricMetadata("counter", "Hits.", "")})

    async def asked(name: str) -> Any:
        transport = httpx.ASGITransport(query_app(Engine(store), store))
        async with httpx.AsyncClient(transport=transport, base_url="http://collector") as client:
            return (await client.get("/api/v1/metadata", params={"metric": name})).json()["data"]

    entry = [{"type": "counter", "help": "Hits.", "unit": ""}]
    assert asyncio.run(asked("hits_total")) == {"hits_total": entry}
    assert asyncio.run(asked("hits")) == {"hits": entry}
    assert asyncio.run(asked("hit")) == {}
    store.close()


def test_rules_are_chosen_as_prometheus_chooses_them(http: httpx.Client) -> None:
    def names(**parameters: str) -> list[tuple[str, list[str]]]:
        groups = data(http, "rules", **parameters)["groups"]
        return [(group["name"], [rule["name"] for rule in group["rules"]]) for group in groups]

    assert names() == [("one", ["Slow", "a:b"]), ("two", ["a:b"])]
    assert names(type="alert") == [("one", ["Slow"])]
    assert names(type="record", **{"rule_group[]": "two"}) == [("two", ["a:b"])]
    assert names(**{"file[]": "x.yml", "rule_name[]": "Slow"}) == [("one", ["Slow"])]
    alone = data(http, "rules", type="alert", exclude_alerts="true")["groups"][0]["rules"][0]
    assert alone == {"type": "alerting", "name": "Slow"}


def test_targets_are_chosen_by_state_and_pool(http: httpx.Client) -> None:
    assert data(http, "targets", state="dropped")["activeTargets"] == []
    assert data(http, "targets", state="active")["droppedTargets"] == []
    assert data(http, "targets", scrapePool="old")["activeTargets"] == []
    assert data(http, "scrape_pools") == {"scrapePools": ["old", "serve"]}
    families = data(http, "targets/metadata", match_target='{job="serve"}')
    assert families == [{"target": TARGET, "metric": "requests", "type": "counter", "help": "Requests.", "unit": ""}]
    assert data(http, "targets/metadata", match_target='{job="other"}') == []


def test_a_parsed_query_is_a_tree(http: httpx.Client) -> None:
    tree = data(http, "parse_query", query="sum by (job) (rate(x{a='b'}[5m] offset 1m)) / 2 > bool 1")

    assert tree["type"] == "binaryExpr"
    assert tree["bool"] is True
    assert tree["lhs"]["op"] == "/"
    aggregation = tree["lhs"]["lhs"]
    assert (aggregation["type"], aggregation["grouping"], aggregation["without"]) == ("aggregation", ["job"], False)
    selector = aggregation["expr"]["args"][0]
    assert (selector["type"], selector["range"], selector["offset"]) == ("matrixSelector", 300_000, 60_000)
    assert {"name": "a", "type": "=", "value": "b"} in selector["matchers"]


def test_sizes_name_what_makes_series_many(http: httpx.Client) -> None:
    sizes = data(http, "status/tsdb", limit="1")

    assert sizes["headStats"]["numSeries"] == 3
    assert (sizes["headStats"]["minTime"], sizes["headStats"]["maxTime"]) == (T0_MS, T0_MS + 19 * 15_000)
    assert sizes["seriesCountByMetricName"] == [{"name": "requests_total", "value": 2}]
    assert http.get("/api/v1/status/tsdb", params={"limit": "0"}).status_code == 400


def test_a_browser_may_ask_first_and_somebody_is_there(http: httpx.Client) -> None:
    asked = http.options("/api/v1/query", headers={"Origin": "http://grafana"})

    assert asked.status_code == 204
    assert asked.headers["access-control-allow-methods"] == "GET, POST, OPTIONS"
    assert http.get("/").status_code == 200
    assert http.get("/api/v1/nothing").status_code == 404
    assert http.put("/api/v1/query").status_code == 405


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["instant", "--time", f"{NOW}", "URL", "sum(requests_total)"], "{} => 570"),
        (["range", "--start", f"{NOW - 60}", "--end", f"{NOW}", "--step", "30s", "URL", "up"], "1 @[1700000300]"),
        (["series", "--match", "up", "--start", f"{NOW - 600}", "--end", f"{NOW}", "URL"], '{__name__="up"'),
        (["labels", "--start", f"{NOW - 600}", "--end", f"{NOW}", "URL", "model"], "a\nb"),
    ],
)
def test_promtool_asks_and_understands(command: list[str], words: str, url: str) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    arguments = [url if part == "URL" else part for part in command]
    asked = subprocess.run(["promtool", "query", *arguments], capture_output=True, text=True, timeout=60, check=False)

    assert asked.returncode == 0, asked.stderr
    assert words in asked.stdout


@pytest.mark.parametrize(
    ("query", "name", "note"),
    [
        (
            "sum(\n  rate(up[5m]))",
            "infos",
            'PromQL info: metric might not be a counter, name does not end in _total/_sum/_count/_bucket: "up" (2:8)',
        ),
        ("quantile(1.5, up)", "warnings", "PromQL warning: quantile value should be between 0 and 1, got 1.5 (1:10)"),
    ],
)
def test_what_is_probably_not_meant_is_told_beside_the_answer(
    http: httpx.Client, query: str, name: str, note: str
) -> None:
    told = http.get("/api/v1/query", params={"query": query}).json()

    assert told[name] == [note]
    assert len(told["data"]["result"]) == 1
    of_nothing = http.get("/api/v1/query", params={"query": query.replace("up", "away")}).json()
    assert name not in of_nothing
    sound = http.get("/api/v1/query", params={"query": "quantile(0.5, rate(requests_total[5m]))"}).json()
    assert sound.keys() == {"status", "data"}


def test_what_a_query_costs_is_told_to_who_asks(http: httpx.Client) -> None:
    def cost(path: str, **parameters: str) -> Any:
        return http.get(f"/api/v1/{path}", params={"stats": "all", **parameters}).json()["data"]["stats"]

    instant = cost("query", query="rate(requests_total[61s])")
    ranged = cost("query_range", query="up", start=f"{NOW - 60}", end=f"{NOW}", step="15")

    assert instant["samples"]["totalQueryableSamples"] == 2 * 4  # the last was 15 s ago
    assert ranged["samples"]["totalQueryableSamples"] == 5
    assert instant["samples"]["peakSamples"] > 0
    assert instant["timings"].keys() == ranged["timings"].keys()
    assert instant["timings"]["execTotalTime"] >= instant["timings"]["evalTotalTime"] > 0
    assert "stats" not in data(http, "query", query="up")
    limited = http.get("/api/v1/query", params={"query": "requests_total", "limit": "1", "stats": "1"}).json()
    assert limited["warnings"] == ["results truncated due to limit"]
    assert limited["data"]["stats"]["samples"]["totalQueryableSamples"] == 2


def test_a_form_of_several_parts_is_a_form(http: httpx.Client) -> None:
    fields = {"query": (None, "vector(7) # ü"), "time": (None, "1")}

    answer = http.post("/api/v1/query", files=fields).json()

    assert answer["data"]["result"] == [{"metric": {}, "value": [1, "7"]}]


@pytest.mark.parametrize("text", ["2023-11-14", "2023-11-14T22:13:20", "2023-11-14 22:13:20Z", " 5"])
def test_times_that_prometheus_refuses_are_refused(http: httpx.Client, text: str) -> None:
    answer = http.get("/api/v1/query", params={"query": "1", "time": text})

    assert (answer.status_code, answer.json()["errorType"]) == (400, "bad_data")
    assert f'cannot parse "{text}" to a valid timestamp' in answer.json()["error"]


def test_durations_that_are_no_numbers_or_too_large_are_refused(http: httpx.Client) -> None:
    def refusal(**parameters: str) -> str:
        answer = http.get("/api/v1/query", params={"query": "1", **parameters})
        assert answer.status_code == 400
        return str(answer.json()["error"])

    assert refusal(timeout="NaN") == 'invalid parameter "timeout": cannot parse "NaN" to a valid duration'
    assert refusal(timeout="1e20").endswith("It overflows int64")
    assert "lookback delta" in refusal(lookback_delta="NaN")


def test_what_another_takes_over_bears_the_external_labels(http: httpx.Client) -> None:
    page = http.get("/federate", params={"match[]": "requests_total"}).text.splitlines()

    assert page[0] == "# TYPE requests_total untyped"
    assert page[1].startswith('requests_total{instance="h:8080",job="serve",model="a",region="eu"} ')
