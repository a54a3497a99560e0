"""`trimtab alerts`: what fires and what is silenced, asked of a service; a configuration checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from alerts.api import alerts_app
from alerts.config import AlertsConfig
from alerts.service import AlertsService


class Nothing:
    """A store that holds nothing."""

    def instant(self, expr: str, at: float) -> list[Any]:
        return []

    def range(self, *args: Any) -> list[Any]:
        return []

    def append(self, *args: Any) -> None:
        pass

    replace = append


@pytest.fixture
def service(served: Callable[[Any], str], tmp_path: Path) -> Iterator[tuple[str, Path]]:
    config = AlertsConfig(database_url=f"sqlite:///{tmp_path / 'alerts.db'}", shipped_rules=False)
    service = AlertsService(config, querier=Nothing(), writer=Nothing())
    url = served(alerts_app(service, run=False))
    settings = tmp_path / "trimtab.toml"
    settings.write_text(f"[alerts]\nport = {urlsplit(url).port}")
    yield url, settings
    service.close()


def test_what_fires_is_listed_and_silenced(service: tuple[str, Path], trimtab: Callable[..., Any]) -> None:
    url, settings = service
    ends = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    for name, severity in (("Slow", "page"), ("Odd", "ticket")):
        labels = {"alertname": name, "severity": severity}
        body = [{"labels": labels, "annotations": {"summary": f"{name} it is"}, "endsAt": ends}]
        assert httpx.post(f"{url}/api/v2/alerts", json=body).status_code == 200

    def run(*arguments: str) -> str:
        result = trimtab("alerts", *arguments, "--settings", settings)
        assert result.exit_code == 0, result.output
        return str(result.stdout)

    assert [line.split()[1:3] for line in run("list", "severity=~p.*").splitlines()] == [["page", "Slow"]]
    assert run("list", "--receiver", "nobody") == "nothing fires\n"
    id = run("silence", "alertname=~S.+", "severity!=ticket", "--comment", "why not", "--actor", "ada").strip()
    assert run("list", "severity=page").rstrip().endswith("Slow it is (silenced)")
    assert "Slow" not in run("list", "--audible")
    assert f"{id}  active until" in (listed := run("silences"))
    assert 'alertname=~"S.+" severity!="ticket"  ada: why not' in listed
    assert run("expire", id) == f"{id} has ended\n"
    assert run("silences") == "nothing is silenced\n"
    assert id in run("silences", "--expired", "--json")
    assert trimtab("alerts", "silence", "nothing", "--settings", settings).exit_code == 1


def test_a_configuration_is_checked(tmp_path: Path, trimtab: Callable[..., Any]) -> None:
    good, bad = tmp_path / "good.yml", tmp_path / "bad.yml"
    good.write_text("route: {receiver: r, routes: [{matchers: [a=b]}]}\nreceivers: [{name: r}]\n")
    bad.write_text("route: {receiver: r}\nreceivers:\n- name: r\n  webhook_configs: [{url: 'http://x', nope: 1}]\n")

    right, wrong = trimtab("alerts", "check", good), trimtab("alerts", "check", good, bad)

    assert (right.exit_code, right.stdout) == (
        0, f"{good}: 2 routes, 1 receivers, 0 inhibit rules, 0 time intervals\n"
    )  # fmt: skip
    assert wrong.exit_code == 1
    assert re.search(
        rf"^{re.escape(str(bad))}:4:\d+: error: webhook_configs has no field nope", wrong.output, re.MULTILINE
    )


def test_a_service_does_not_start_with_a_wrong_configuration(tmp_path: Path, trimtab: Callable[..., Any]) -> None:
    (tmp_path / "am.yml").write_text("route: {receiver: r}\n")
    settings = tmp_path / "trimtab.toml"
    settings.write_text(f'[trimtab]\ndata = "{tmp_path}"\n[alerts]\nalertmanager_config = "{tmp_path / "am.yml"}"')

    result = trimtab("alerts", "--settings", settings)

    assert result.exit_code == 1
    assert 'am.yml:1:19: error: undefined receiver "r" used in route' in result.output
