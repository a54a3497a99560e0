"""The scrape configuration in effect: shown with its secrets masked, and read again while everything else goes on."""

from __future__ import annotations

import asyncio
import dataclasses
import http.server
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from starlette.applications import Starlette

from collectors.query import Engine, Vector
from collectors.reloading import Reloads
from collectors.scrape import Scraper, ScrapeSettings
from collectors.scraping import BadConfig, ScrapeConfig, Secret, config_text, read_scrape_file
from collectors.scraping.client import clients
from collectors.signals import Signals
from collectors.store import Store
from collectors.targets import ScrapeTarget
from observability import names

T0 = 1_363_000_000.0
SECRETS = """
global: {scrape_interval: 7s, scrape_timeout: 3s, external_labels: {region: eu, replica: "1"}}
scrape_configs:
  - job_name: basic
    basic_auth: {username: ann, password: hush-1}
    params: {module: [a, "01"]}
    honor_labels: true
    honor_timestamps: false
    body_size_limit: 10MB
    sample_limit: 5
    tls_config: {ca_file: /ca.pem, insecure_skip_verify: true}
    static_configs: [{targets: ['a:1', 'b:1'], labels: {zone: "01"}}, {targets: ['c:1']}]
    relabel_configs:
      - {source_labels: [__address__], separator: '', target_label: x, replacement: ''}
      - {action: hashmod, source_labels: [__address__], modulus: 4, target_label: __tmp}
    metric_relabel_configs: [{action: labeldrop, regex: 'le.*'}]
  - job_name: bearer
    bearer_token: hush-2
    proxy_url: http://u:hush-3@proxy:1
    file_sd_configs: [{files: [/t/*.json]}]
    http_sd_configs: [{url: 'http://localhost:1/x', refresh_interval: 90s, authorization: {credentials: hush-4}}]
"""
NEWER = """
  - job_name: newer
    enable_compression: false
    scrape_protocols: [PrometheusProto]
    fallback_scrape_protocol: PrometheusText0.0.4
    metric_name_validation_scheme: legacy
    keep_dropped_targets: 3
    http_headers: {X-Key: {secrets: [hush-5], values: [hush-6]}, X-File: {files: [/key]}}
"""


def without_secrets(config: ScrapeConfig) -> ScrapeConfig:
    client = config.client

    def kept(secret: Secret) -> Secret:
        return Secret(file=secret.file) if secret.file or secret else secret

    client = dataclasses.replace(
        client,
        password=kept(client.password),
        credentials=kept(client.credentials),
        proxy_url="",
        headers=tuple((name, kept(secret)) for name, secret in client.headers),
    )
    urls = tuple(dataclasses.replace(item, client=dataclasses.replace(client)) for item in config.urls)
    return dataclasses.replace(config, client=client, urls=urls)


def test_what_is_shown_is_what_is_in_effect_without_the_secrets(tmp_path: Path) -> None:
    path, shown = tmp_path / "p.yml", tmp_path / "shown.yml"
    path.write_text(SECRETS + NEWER)
    found = read_scrape_file(path)

    text = config_text(found.shared, found.configs)
    shown.write_text(text)
    again = read_scrape_file(shown)

    assert "hush" not in text
    assert text.count("<secret>") == 5
    assert [without_secrets(config) for config in again.configs] == [
        without_secrets(config) for config in found.configs
    ]
    assert again.shared.external_labels == {"region": "eu", "replica": "1"}
    assert (again.shared.scrape_interval, again.shared.scrape_timeout) == ("7s", "3s")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_what_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "p.yml"
    path.write_text(SECRETS)
    found = read_scrape_file(path)
    own = [ScrapeTarget(url=f"http://h:{port}/m", job="own").config(1000, 1000) for port in (1, 2)]
    path.write_text(config_text(found.shared, [*own, *found.configs]))

    done = subprocess.run(["promtool", "check", "config", "--syntax-only", path], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    jobs = yaml.safe_load(path.read_text())["scrape_configs"]
    assert [job["job_name"] for job in jobs] == ["own", "basic", "bearer"]
    assert jobs[0]["static_configs"] == [{"targets": ["h:1"]}, {"targets": ["h:2"]}]


@pytest.fixture
def address() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'a{x="1"} 1\n')

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def scraping(address: str, *jobs: str, relabel: str = "[]") -> str:
    written = [
        f"  - {{job_name: {job}, scrape_interval: 1h, metric_relabel_configs: {relabel if job == 'one' else '[]'},"
        f" static_configs: [{{targets: ['{address}']}}]}}"
        for job in jobs
    ]
    return "\n".join(["scrape_configs:", *written, ""])


def test_a_new_configuration_changes_what_it_changes(address: str, tmp_path: Path) -> None:
    now, path = [T0], tmp_path / "p.yml"
    path.write_text(scraping(address, "one", "two", "three"))
    store = Store("sqlite://", clock=lambda: now[0])
    scraper = Scraper(store, ScrapeSettings(), lambda: now[0])
    reloads = Reloads(path, scraper, Signals(), lambda: now[0])

    def pages(at: float) -> set[tuple[str, str]]:
        found = Engine(store).instant("a", round(at * 1000))
        assert isinstance(found, Vector)
        return {(element.labels["job"], element.labels.get("x", "")) for element in found}

    async def story() -> None:
        async with clients() as opened:

            async def round_of_scrapes() -> None:
                await scraper.sync(opened)
                for target, _ in scraper.look_up().values():
                    await scraper.scrape(opened, target, now[0])

            await round_of_scrapes()
            before = dict(scraper._loops)
            now[0] = T0 + 10
            path.write_text(scraping(address, "one", "two", "four", relabel="[{action: labeldrop, regex: x}]"))
            reloads.look()
            await round_of_scrapes()
            (undisturbed,) = (name for name in before if name.startswith("scrape:two"))
            assert scraper._loops[undisturbed] is before[undisturbed]
            assert all(not loop.task.done() for loop in scraper._loops.values())
            assert sum(loop.task.done() for loop in before.values()) == 2
            for loop in scraper._loops.values():
                loop.task.cancel()

    asyncio.run(story())
    assert pages(T0) == {("one", "1"), ("two", "1"), ("three", "1")}
    assert pages(T0 + 11) == {("one", ""), ("two", "1"), ("four", "1")}
    store.close()


def test_a_wrong_file_changes_nothing_and_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "p.yml"
    path.write_text("scrape_configs: [{job_name: x}]\nscrape_config_files: [more/*.yml]\n")
    clock, signals = [T0], Signals()
    store = Store("sqlite://", clock=lambda: clock[0])
    reloads = Reloads(path, Scraper(store, ScrapeSettings(), lambda: clock[0]), signals, lambda: clock[0])

    def asked() -> httpx.Response:
        transport = httpx.ASGITransport(Starlette(routes=[reloads.route()]))

        async def post() -> httpx.Response:
            async with httpx.AsyncClient(transport=transport, base_url="http://collector") as client:
                return await client.post("/-/reload")

        return asyncio.run(post())

    def told() -> tuple[float, float]:
        values = signals.registry.get_sample_value
        loaded, at = values(names.CONFIG_LOADED.name), values(names.CONFIG_LOADED_AT.name)
        assert loaded is not None
        assert at is not None
        return loaded, at

    assert told() == (1, T0)
    clock[0] = T0 + 1
    path.write_text(path.read_text().replace("job_name", "jobname"))
    reloads.look()
    assert told() == (0, T0)
    assert not reloads.configuration().loaded
    assert yaml.safe_load(reloads.configuration().text)["scrape_configs"][0]["job_name"] == "x"
    refused = asked()
    assert refused.status_code == 500
    assert "p.yml:1: scrape_configs[0].jobname: unknown field" in refused.text
    clock[0] = T0 + 2
    path.write_text(path.read_text().replace("jobname", "job_name").replace("x}", "y}"))
    assert asked().status_code == 200
    assert told() == (1, T0 + 2)
    clock[0] = T0 + 3
    reloads.look()
    assert told() == (1, T0 + 2)  # it has not changed since
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "z.yml").write_text("scrape_configs: [{job_name: z}]\n")
    reloads.look()
    shown = yaml.safe_load(reloads.configuration().text)
    assert [job["job_name"] for job in shown["scrape_configs"]] == ["y", "z"]
    store.close()


def test_a_start_needs_a_file_that_is_right(tmp_path: Path) -> None:
    store = Store("sqlite://", clock=lambda: T0)
    with pytest.raises(BadConfig, match=r"missing\.yml"):
        Reloads(tmp_path / "missing.yml", Scraper(store, ScrapeSettings(), lambda: T0), Signals(), lambda: T0)
    store.close()
