"""Rules that change while they run: taken when all files are right, with the states of what stays."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from alerts.api import alerts_app
from alerts.config import AlertsConfig
from alerts.rules import RuleError
from alerts.service import AlertsService

RULES = """
groups:
  - name: g
    interval: 1s
    rules:
      - {record: "m:sum", expr: sum(m)}
      - {alert: High, expr: m > 1, for: 3s, labels: {severity: page}}
"""


@pytest.fixture
def rule_file(tmp_path: Path) -> Path:
    folder = tmp_path / "rules"
    folder.mkdir()
    path = folder / "mine.yml"
    path.write_text(RULES)
    return path


@pytest.fixture
def service(rule_file: Path, database_url: str, metering: Any, clock: Any) -> AlertsService:
    config = AlertsConfig(database_url=database_url, shipped_rules=False, rule_files=(str(rule_file.parent / "*.yml"),))
    return AlertsService(config, querier=metering, writer=metering, clock=clock)


@pytest.fixture
def second(service: AlertsService, metering: Any, clock: Any) -> Callable[[], None]:
    def pass_by() -> None:
        metering.scrape(clock.advance(1.0), {'m{x="1"}': 2.0})
        service.tick(clock.now)

    return pass_by


def write(path: Path, text: str) -> None:
    path.write_text(text)
    os.utime(path, ns=(path.stat().st_mtime_ns, path.stat().st_mtime_ns + 1_000_000))


def ask(service: AlertsService, method: str, path: str) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=alerts_app(service, run=False))
        async with httpx.AsyncClient(transport=transport, base_url="http://alerts") as client:
            return await client.request(method, path)

    return asyncio.run(send())


def rules(service: AlertsService) -> list[str]:
    return [rule.rule.name for group in service.rules.groups for rule in group.rules]


def gauge(service: AlertsService, name: str) -> float | None:
    registry: CollectorRegistry = service.metrics.registry
    return registry.get_sample_value(name)


def test_a_changed_file_is_taken_and_alerts_go_on(
    service: AlertsService, second: Callable[[], None], rule_file: Path, metering: Any, clock: Any
) -> None:
    second()
    second()
    began = clock.now - 1
    write(rule_file, RULES.replace("m:sum", "m:total").replace("  - name: g", "  - name: g\n    limit: 50"))
    second()  # seen, and may still be written
    second()

    (alert,) = service.rules.alerts()
    assert rules(service) == ["m:total", "High"]
    assert (alert.active_at, alert.state) == (began, "firing")
    assert metering.value("m:total", clock.now) == 2.0
    assert metering.value("m:sum", clock.now) is None  # ended, and not after five minutes


def test_a_wrong_file_leaves_the_old_rules_and_is_shown(
    service: AlertsService, second: Callable[[], None], rule_file: Path
) -> None:
    second()
    write(rule_file.with_name("other.yml"), "groups: [{name: h, rules: [{alert: A, expr: 'up =='}]}]")
    write(rule_file, RULES.replace("High", "Higher"))
    second()
    second()

    assert rules(service) == ["m:sum", "High"]
    assert "other.yml:1" in service.rules_error
    assert gauge(service, "prometheus_config_last_reload_successful") == 0.0
    assert "other.yml:1" in ask(service, "GET", "/api/v1/rules").json()["warnings"][0]

    write(rule_file.with_name("other.yml"), "groups: []")
    second()
    second()
    assert rules(service) == ["m:sum", "Higher"]
    assert gauge(service, "prometheus_config_last_reload_successful") == 1.0
    assert "warnings" not in ask(service, "GET", "/api/v1/rules").json()


def test_a_new_file_of_the_pattern_is_found_and_a_lost_one_ends(
    service: AlertsService, second: Callable[[], None], rule_file: Path, metering: Any, clock: Any
) -> None:
    second()
    other = rule_file.with_name("other.yml")
    write(other, 'groups: [{name: h, interval: 1s, rules: [{record: "m:max", expr: max(m)}]}]')
    second()
    second()
    assert metering.value("m:max", clock.now) == 2.0

    other.unlink()
    second()
    second()
    assert metering.value("m:max", clock.now) is None
    assert rules(service) == ["m:sum", "High"]


def test_reloading_on_request_says_what_is_wrong(service: AlertsService, rule_file: Path) -> None:
    assert ask(service, "POST", "/-/reload").status_code == 200
    write(rule_file, RULES.replace("sum(m)", "sum(m"))
    answer = ask(service, "POST", "/-/reload")

    assert answer.status_code == 500
    assert "failed to reload config: " in answer.text
    assert "mine.yml:6:" in answer.text
    assert rules(service) == ["m:sum", "High"]


def test_a_signal_asks_for_a_reload_before_the_next_evaluation(
    service: AlertsService, second: Callable[[], None], rule_file: Path
) -> None:
    second()
    write(rule_file, RULES.replace("High", "Higher"))
    service.ask_to_reload()
    second()

    assert rules(service) == ["m:sum", "Higher"]


def test_the_service_does_not_start_with_wrong_files(rule_file: Path, database_url: str) -> None:
    rule_file.write_text("groups: 3")

    with pytest.raises(RuleError, match=r"mine.yml:1:9: error: groups must be a list"):
        AlertsService(AlertsConfig(database_url=database_url, shipped_rules=False, rule_files=(rule_file,)))
