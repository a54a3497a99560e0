"""A real Prometheus writes what it scrapes into our collector: both then have the same samples."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server

from collectors.api import CollectorConfig
from collectors.store import Matcher
from tests.collectors.real_prometheus import Prometheus

pytestmark = pytest.mark.slow


def test_what_prometheus_writes_is_what_it_has(tmp_path: Path, start: Any) -> None:
    registry = CollectorRegistry()
    hits = Counter("hits", "Hits.", ["path"], registry=registry)
    lag = Histogram("lag_seconds", "Lag.", registry=registry)
    server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
    target = f"127.0.0.1:{server.server_port}"
    settings = CollectorConfig(lake=tmp_path / "lake", store_url=f"sqlite:///{tmp_path / 'store.db'}")
    with start(settings, time.time) as running:
        config = {
            "scrape_configs": [
                {"job_name": "demo", "scrape_interval": "500ms", "static_configs": [{"targets": [target]}]}
            ],
            "remote_write": [
                {
                    "url": f"{running.query.base_url}/api/v1/write".replace("//api", "/api"),
                    "send_exemplars": True,
                    "queue_config": {"batch_send_deadline": "200ms"},
                    "metadata_config": {"send_interval": "1s"},
                }
            ],
        }
        path = tmp_path / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        prometheus = Prometheus(tmp_path, path, "--enable-feature=exemplar-storage")
        try:
            store = running.collector.store
            hits.labels("/a").inc(exemplar={"trace_id": "abc"})

            def written() -> bool:
                hits.labels("/a").inc()
                lag.observe(0.3)
                seen = store.select([Matcher("__name__", "=", "hits_total")], 0, 2**62)
                return bool(seen) and len(seen[0].t) >= 6 and "lag_seconds" in store.metadata()

            prometheus.until(written)
            assert [item.labels for item in store.exemplars([Matcher("__name__", "=", "hits_total")], 0, 2**62)]
            until = min(int(block.t[-1]) for block in store.select([Matcher("job", "=", "demo")], 0, 2**62)) / 1000
            for expr in ('{job="demo"}[1m]', 'up{job="demo"}[1m]'):
                ours, theirs = (
                    {
                        json.dumps(item["metric"], sort_keys=True): item["values"]
                        for item in client.get("/api/v1/query", params={"query": expr, "time": until}).json()["data"][
                            "result"
                        ]
                    }
                    for client in (running.query, prometheus.client)
                )
                assert ours == theirs
                assert len(ours) >= 1
            assert store.metadata()["lag_seconds"].type == "histogram"

            server.shutdown()
            server.server_close()
            prometheus.until(lambda: not running.values("hits_total", time.time()))
            assert list(running.values("up", time.time()).values()) == [0]
        finally:
            prometheus.close()
            thread.join()
