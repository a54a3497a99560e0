"""The same configuration, targets and pages to our scraper and to a real Prometheus: the same targets and series."""

from __future__ import annotations

import asyncio
import http.server
import json
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import yaml

from collectors.query import Engine, Vector
from collectors.scrape import Scraper, ScrapeSettings
from collectors.scraping import ScrapeConfig, read_scrape_configs
from collectors.scraping.client import clients
from collectors.store import Store
from collectors.target_views import targets_json
from tests.collectors.real_prometheus import Prometheus

pytestmark = pytest.mark.slow

TEXT = """\
# HELP requests_total Requests.
# TYPE requests_total counter
requests_total{method="get",code="200",job="theirs"} 12
requests_total{code="500",method="post",} 3
requests_total {method="put",instance="inner",exported_instance="taken"} 1e3
# TYPE temperature gauge
temperature{room="a\\\\b\\"c\\nd"} -3.5
temperature{room=""} NaN
temperature{room="é",empty=""} +Inf
# just a comment
untyped_metric{job="",instance=""} 4
latency_bucket{le="0.5"} 1
latency_bucket{le="+Inf"} 2
latency_sum 1.25
latency_count 2
up 77
"""
OPENMETRICS = """\
# TYPE hits counter
# HELP hits Hits.
hits_total{path="/a"} 17 # {trace_id="abc"} 0.5 1700000000.123
hits_created{path="/a"} 1700000000.5
# TYPE build info
build_info{version="1.2"} 1
# TYPE size_bytes gauge
# UNIT size_bytes bytes
size_bytes{disk="x"} 4.5e10
# TYPE mode stateset
mode{mode="on"} 1
mode{mode="off"} 0
# EOF
"""
TAKEN: list[dict[str, str]] = [{}, {"exported_job": "set"}, {"method": "set", "exported_method": "set"}]
NAMES = ["a", "b", "job", "instance", "__address__", "__meta_zone", "__param_target", "__metrics_path__", "tmp"]
METRIC_NAMES = ["__name__", "method", "code", "job", "instance", "room", "le", "path", "new"]
REGEXES = ["(.*)", ".+", "", "a.*", "(.+);(.+)", "(.+)x?", "127.*:(\\d+)", "(?i)A(.)?", "requests_total|up", "[^;]*"]
NAME_REGEXES = ["(.*)", "a|b", "__meta_(.+)", "ro(.)m|code", "job", "__.*|job|instance", "(.).*", "method|__name__"]
REPLACEMENTS = ["$1", "${1}_$2", "x", "", "$$1", "$0", "pre-${1}", "$3", "a$1b"]


def random_rule(rng: random.Random, names: list[str]) -> dict[str, Any]:
    """A rule that Prometheus accepts."""
    action = rng.choice(
        ["replace"] * 6
        + ["keep", "drop", "keepequal", "dropequal", "hashmod", "labelmap", "labeldrop", "labelkeep"]
        + ["lowercase", "uppercase"]
    )
    rule: dict[str, Any] = {"action": action}
    if action in ("labeldrop", "labelkeep", "labelmap"):
        rule["regex"] = rng.choice(NAME_REGEXES[:3] if action == "labelmap" else NAME_REGEXES[1:])
        if action == "labelmap":
            rule["replacement"] = rng.choice(["$1", "copy_$1", "${1}_x"]) if rule["regex"] != "a|b" else "copied"
        if action == "labelkeep":
            rule["regex"] = f"__name__|__address__|__scheme__|__scrape_.*|{rule['regex']}"
        return rule
    rule["source_labels"] = rng.choices(names, k=rng.randint(0, 2))
    target = rng.choice([name for name in names if name not in ("__address__", "__metrics_path__")])
    if action in ("keepequal", "dropequal", "hashmod", "lowercase", "uppercase", "replace"):
        rule["target_label"] = target
    if action in ("keep", "drop", "replace"):
        rule["regex"] = rng.choice(REGEXES)
    if action == "replace":
        rule["replacement"] = rng.choice(REPLACEMENTS)
        rule["target_label"] = rng.choice([target, target, "t_$1", "${1}"])
        if rng.random() < 0.3:
            rule["separator"] = rng.choice(["", "-", "é"])
    if action == "hashmod":
        rule["modulus"] = rng.randint(1, 10)
    return rule


class Target:
    """Serves the two pages."""

    def __init__(self) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                is_text = self.path.startswith("/text")
                body = (TEXT if is_text else OPENMETRICS).encode()
                kind = "text/plain; version=0.0.4" if is_text else "application/openmetrics-text; version=1.0.0"
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


SELECTOR = '{__name__=~".+", instance!~"(127.0.0.1|a-host):[1-9]"}'


def _is_page(item: dict[str, Any]) -> bool:
    return str(item["scrapePool"]).startswith("page")


def targets_of(data: dict[str, Any]) -> tuple[list[str], int]:
    """Active targets, and how many were dropped: of what 2.42 says that it discovered, relabelling has taken labels."""
    active = sorted(
        json.dumps([item["scrapePool"], item["scrapeUrl"], item["labels"]], sort_keys=True)
        for item in data["activeTargets"]
    )
    return active, len(data["droppedTargets"])


@dataclass
class World:
    """One configuration, and what the real Prometheus made of it."""

    configs: tuple[ScrapeConfig, ...]
    targets: tuple[list[str], int]
    health: dict[str, str]
    at: float
    series: dict[str, float]


def relabelling_jobs(rng: random.Random) -> list[dict[str, Any]]:
    """Jobs of targets that nobody scrapes."""
    return [
        {
            "job_name": f"targets{number}",
            "scrape_interval": "1h",
            "params": {"target": ["first", "second"], "q": ["a b&c"]},
            "static_configs": [{"targets": ["127.0.0.1:4"], "labels": {"a": "A", "__meta_zone": "z"}}],
            "file_sd_configs": [{"files": ["hosts.json", "*.yml"]}],
            "relabel_configs": [random_rule(rng, NAMES) for _ in range(rng.randint(1, 5))],
        }
        for number in range(150)
    ]


def page_jobs(rng: random.Random, address: str) -> list[dict[str, Any]]:
    """Jobs of one target each, whose pages are relabelled and limited."""
    return [
        {
            "job_name": f"page{number}",
            "scrape_interval": "3s",
            "metrics_path": rng.choice(["/text", "/openmetrics"]),
            "honor_labels": rng.random() < 0.4,
            "static_configs": [
                {
                    "targets": [address],
                    "labels": {"page": str(number), **({"exported_job": "set"} if number % 3 else {})},
                }
            ],
            "metric_relabel_configs": [random_rule(rng, METRIC_NAMES) for _ in range(rng.randint(0, 3))],
            **({"sample_limit": 11} if number % 7 == 0 else {}),
            **({"label_limit": 6} if number % 5 == 0 else {}),
            **({"label_value_length_limit": 14} if number % 11 == 0 else {}),
        }
        for number in range(80)
    ]


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    made = Target()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, target: Target) -> World:
    folder, rng = tmp_path_factory.mktemp("world"), random.Random(20)
    hosts = [
        {"targets": [f"127.0.0.1:{port}", f"a-host:{port}"], "labels": {"__meta_zone": zone, "a": zone, "b": "Two"}}
        for port, zone in ((1, "a1"), (2, "B"), (3, ""))
    ]
    (folder / "hosts.json").write_text(json.dumps(hosts))
    more = [{"targets": ["127.0.0.1:9"], "labels": {"a": "x", "job": "own"}}]
    (folder / "more.yml").write_text(yaml.safe_dump(more))
    config = folder / "prometheus.conf"
    pages = page_jobs(rng, target.address)
    config.write_text(yaml.safe_dump({"scrape_configs": [*relabelling_jobs(rng), *pages]}))

    configs = read_scrape_configs(config)
    scraper = Scraper(Store("sqlite://"), ScrapeSettings(configs=configs), time.time)
    scraper.look_up()
    ours = targets_of(targets_json(scraper))
    scraper.store.close()
    prometheus = Prometheus(folder, config)
    try:

        def settled() -> Any:
            data = prometheus.get("targets")
            active, dropped = targets_of(data)
            read = [item for item in data["activeTargets"] if _is_page(item)]
            health = {item["scrapePool"]: item["health"] for item in read}
            late = any("deadline" in item["lastError"] for item in read)  # the machine was busy: the next will do
            whole = len(active) + dropped >= len(ours[0]) + ours[1] and len(health) == len(pages) and not late
            return ((active, dropped), health) if whole and "unknown" not in health.values() else None

        targets, health = prometheus.until(settled)
        at = time.time()
        series = {
            json.dumps(item["metric"], sort_keys=True): float(item["value"][1])
            for item in prometheus.get("query", query=SELECTOR, time=at)["result"]
        }
        for item in prometheus.get("query", query="scrape_series_added[1h]", time=at)["result"]:
            # Those of the first scrape that came in time: later ones add none.
            series[json.dumps(item["metric"], sort_keys=True)] = max(float(value) for _, value in item["values"])
    finally:
        prometheus.close()
    return World(configs, targets, health, at, series)


def test_targets_are_relabelled_as_prometheus_relabels_them(world: World) -> None:
    store = Store("sqlite://")
    scraper = Scraper(store, ScrapeSettings(configs=world.configs), time.time)
    scraper.look_up()
    ours = targets_of(targets_json(scraper))
    store.close()

    assert ours == world.targets
    assert len(ours[0]) > 300
    assert ours[1] > 100


def test_pages_become_the_series_that_prometheus_makes_of_them(world: World) -> None:
    store = Store("sqlite://")
    configs = [
        replace(config, legacy_names=True)  # Prometheus 2 takes no others
        for config in world.configs
        if config.job.startswith("page")
    ]
    scraper = Scraper(store, ScrapeSettings(configs=configs), time.time)

    async def once() -> None:
        async with clients() as opened:
            for found, _ in scraper.look_up().values():
                await scraper.scrape(opened, found, world.at)

    asyncio.run(once())
    assert {item.target.config.job: "up" if item.up else "down" for item in scraper.results.values()} == world.health
    assert set(world.health.values()) == {"up", "down"}
    answer = Engine(store).instant(SELECTOR, round(world.at * 1000))
    store.close()
    assert isinstance(answer, Vector)
    ours = {json.dumps(dict(item.labels), sort_keys=True): float(item.value) for item in answer.elements}
    # Where relabelling took off what tells the jobs from each other, who comes first has the series.
    alone = [key for key in {**ours, **world.series} if "page" in json.loads(key)]
    differing = {
        key: (ours.get(key), world.series.get(key))
        for key in alone
        if "scrape_duration_seconds" not in key and repr(ours.get(key)) != repr(world.series.get(key))
    }
    assert differing == {}
    assert len(alone) > 500
