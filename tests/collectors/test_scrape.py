"""Scraping real pages: labels, staleness, failures, exemplars, and targets from files."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.openmetrics.exposition import generate_latest

from collectors.exposition import BadExposition, read_page
from collectors.query import Engine, Vector
from collectors.scrape import Scraper, ScrapeSettings, next_tick
from collectors.scraping import GroupFiles, Target
from collectors.scraping.client import clients
from collectors.store import Matcher, Store
from collectors.target_views import targets_json
from collectors.targets import ScrapeTarget

T0 = 1_363_000_000.0


class Page:
    """A target: its page, its status, and a lock that holds the answer back while it is held."""

    def __init__(self) -> None:
        self.body = b"a 1\n"
        self.content_type = "text/plain; version=0.0.4"
        self.status = 200
        self.held = threading.Event()
        self.held.set()
        page = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page.held.wait(60)
                self.send_response(page.status)
                self.send_header("Content-Type", page.content_type)
                self.send_header("Content-Length", str(len(page.body)))
                self.end_headers()
                try:
                    self.wfile.write(page.body)
                except OSError:
                    pass  # the scraper's patience ended first

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        self.target = ScrapeTarget(url=f"http://{self.address}/metrics", job="demo")
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def page() -> Iterator[Page]:
    made = Page()
    yield made
    made.held.set()
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def store(clock: Any) -> Iterator[Store]:
    made = Store("sqlite://", clock=clock)
    yield made
    made.close()


def only_target(scraper: Scraper) -> Target:
    ((target, _),) = scraper.look_up().values()
    return target


def scrape(store: Store, target: ScrapeTarget, at: float, timeout: float = 10.0) -> Any:
    settings = ScrapeSettings(targets=[target], interval_seconds=10, timeout_seconds=timeout)

    async def once() -> Any:
        scraper = Scraper(store, settings, lambda: at)
        async with clients() as opened:
            return await scraper.scrape(opened, only_target(scraper), at)

    return asyncio.run(once())


def values(store: Store, expr: str, at: float) -> dict[str, float]:
    found = Engine(store).instant(expr, round(at * 1000))
    assert isinstance(found, Vector)
    return {json.dumps(dict(sorted(item.labels.items()))): float(item.value) for item in found.elements}


def test_series_get_job_and_instance_and_the_scrape_is_told_of(page: Page, store: Store) -> None:
    page.body = b'# HELP a Help.\n# TYPE a gauge\na{x="1"} 2.5\n'
    result = scrape(store, page.target, T0)

    assert result.up
    assert values(store, "a", T0) == {
        json.dumps({"__name__": "a", "instance": page.address, "job": "demo", "x": "1"}): 2.5
    }
    assert list(values(store, "up", T0).values()) == [1]
    assert list(values(store, "scrape_samples_scraped", T0).values()) == [1]
    assert 0 < next(iter(values(store, "scrape_duration_seconds", T0).values())) < 60
    assert store.metadata()["a"].help == "Help."


def test_the_stored_time_is_the_ticks(page: Page, store: Store) -> None:
    scrape(store, page.target, T0)

    (series,) = store.select([Matcher("__name__", "=", "a")], 0, 2**62)
    assert series.t.tolist() == [round(T0 * 1000)]


@pytest.mark.parametrize("failure", ["status", "garbage", "silence", "gone"])
def test_a_target_that_fails_is_down_and_its_series_end(page: Page, store: Store, failure: str) -> None:
    timeout = 2.5 if failure == "silence" else 10.0
    scrape(store, page.target, T0, timeout)
    target = page.target
    if failure == "status":
        page.status = 500
    elif failure == "garbage":
        page.body = b"a{ 1\n"
    elif failure == "silence":
        page.held.clear()
    else:
        page.server.shutdown()
        page.server.server_close()

    result = scrape(store, target, T0 + 1, timeout)

    assert not result.up
    assert result.error
    assert list(values(store, "up", T0 + 1).values()) == [0]
    assert values(store, "a", T0 + 1) == {}
    assert list(values(store, "a", T0 + 0.5).values()) == [1]


def test_a_series_that_vanishes_ends(page: Page, store: Store) -> None:
    scraper_store, target = store, page.target
    page.body = b"a 1\nb 2\n"
    scrape(scraper_store, target, T0)
    page.body = b"a 1\n"
    scrape(scraper_store, target, T0 + 1)

    assert values(store, "b", T0 + 1) == {}
    assert len(values(store, "a", T0 + 1)) == 1


def test_clashing_labels_are_kept_aside_or_honoured(page: Page, store: Store) -> None:
    page.body = b'a{job="pushed"} 1\n'
    scrape(store, page.target, T0)
    honoured = ScrapeTarget(url=page.target.url, job="demo", labels={"how": "honour"}, honor_labels=True)
    scrape(store, honoured, T0)

    found = [json.loads(labels) for labels in values(store, "a", T0)]

    assert {"exported_job": "pushed", "job": "demo"}.items() <= next(f for f in found if "how" not in f).items()
    assert next(f for f in found if "how" in f)["job"] == "pushed"


def test_openmetrics_exemplars_are_kept(page: Page, store: Store) -> None:
    registry = CollectorRegistry()
    counter = Counter("hits", "Hits.", registry=registry)
    counter.inc(1, exemplar={"trace_id": "abc"})
    Gauge("plain", "Plain.", registry=registry).set(4)
    page.body = generate_latest(registry)
    page.content_type = "application/openmetrics-text; version=1.0.0"
    scrape(store, page.target, T0)

    (exemplar,) = store.exemplars([Matcher("__name__", "=", "hits_total")], 0, 2**62)

    assert (exemplar.labels, exemplar.value) == ({"trace_id": "abc"}, 1)
    assert len(values(store, "hits_created", T0)) == 1  # a series of its own, as in Prometheus
    assert list(values(store, "plain", T0).values()) == [4]


def test_targets_of_files_come_and_go(page: Page, store: Store, tmp_path: Path) -> None:
    file = tmp_path / "targets.json"
    file.write_text(json.dumps([{"targets": [page.address], "labels": {"job": "files", "zone": "b"}}]))
    now = [T0]
    scraper = Scraper(store, ScrapeSettings(file_sd=[str(tmp_path / "*.json")], interval_seconds=10), lambda: now[0])

    async def story() -> None:
        async with clients() as opened:
            await scraper.sync(opened)
            await scraper.scrape(opened, only_target(scraper), T0)
            (shown,) = targets_json(scraper)["activeTargets"]
            assert (shown["health"], shown["scrapePool"], shown["labels"]["zone"]) == ("up", "file_sd", "b")
            file.unlink()
            now[0] = T0 + 1
            await scraper.sync(opened)

    asyncio.run(story())
    (labels,) = values(store, "a", T0)
    assert json.loads(labels) == {"__name__": "a", "instance": page.address, "job": "files", "zone": "b"}
    assert values(store, "a", T0 + 1.5) == {}
    assert values(store, "up", T0 + 1.5) == {}
    assert targets_json(scraper)["activeTargets"] == []


def test_half_a_written_file_keeps_the_targets(tmp_path: Path) -> None:
    file = tmp_path / "targets.json"
    file.write_text('[{"targets": ["127.0.0.1:1"], "labels": {"__metrics_path__": "/probe", "__scheme__": "https"}}]')
    files = GroupFiles([str(tmp_path / "*.json")])
    before = files.groups()
    file.write_text('[{"targets": ["127.0.0.1:1"')

    assert before[0].targets == ({"__address__": "127.0.0.1:1"},)
    assert before[0].labels == {
        "__metrics_path__": "/probe",
        "__scheme__": "https",
        "__meta_filepath": str(file),
    }
    assert files.groups() == before


def test_a_target_without_a_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="http://"):
        ScrapeTarget(url="localhost:80/metrics", job="x")


@pytest.mark.parametrize(("now", "tick"), [(10.0, 11.0), (10.2, 11.0), (10.999999, 11.0), (11.0, 12.0)])
def test_ticks_are_multiples_of_the_interval(now: float, tick: float) -> None:
    assert next_tick(now, 1.0) == tick
    assert np.isclose(next_tick(now, 0.5) % 0.5, 0)


def test_a_page_that_is_no_page_says_so() -> None:
    with pytest.raises(BadExposition, match="text format"):
        read_page("a{ 1\n")
    with pytest.raises(BadExposition, match="text format"):
        read_page("a 1\n", "application/openmetrics-text")  # without its # EOF
