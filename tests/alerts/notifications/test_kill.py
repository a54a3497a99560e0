"""The service as a process that is killed at random moments, before a webhook that counts; and beside real servers."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from trimtab.ports import free_port

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]


def wait_until(true: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := true():
                return found
        except httpx.HTTPError:
            pass  # it is not up yet
        time.sleep(0.05)
    return pytest.fail(f"not within {seconds} s")


class Killable:
    """`trimtab alerts` without rules, on one database; `kill` and `start` as often as one likes."""

    def __init__(self, folder: Path, configuration: str, **options: Any) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        (folder / "alertmanager.yml").write_text(configuration)
        fields = {
            "port": self.port, "shipped_rules": False, "database_url": f"sqlite:///{folder / 'alerts.db'}",
            "alertmanager_config": str(folder / "alertmanager.yml"), "query_url": "http://127.0.0.1:9",
            "push_url": "http://127.0.0.1:9", **options,
        }  # fmt: skip
        self.program = textwrap.dedent(f"""
            from alerts import AlertsConfig, serve
            serve(AlertsConfig(**{fields!r}))
        """)
        self.log = folder / "stderr.txt"
        self.client = httpx.Client(base_url=self.url, timeout=60, verify=False)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        def is_ready() -> bool:
            if self.process is None or self.process.poll() is not None:  # somebody else had the port for a moment
                with self.log.open("ab") as log:
                    self.process = subprocess.Popen([sys.executable, "-c", self.program], cwd=ROOT, stderr=log)
            return self.client.get("/-/ready").status_code == 200

        try:
            wait_until(is_ready)
        except pytest.fail.Exception:
            pytest.fail(f"it does not start: {self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.client.close()


@pytest.fixture
def killable(tmp_path: Path) -> Iterator[Callable[..., Killable]]:
    made: list[Killable] = []

    def make(configuration: str, **options: Any) -> Killable:
        made.append(Killable(tmp_path, configuration, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def told(webhooks: Any) -> dict[str, tuple[str, tuple[str, ...]]]:
    """What was told, once for each idempotency key."""
    return {
        request["headers"]["Idempotency-Key"]: (
            request["body"]["status"],
            tuple(alert["labels"]["alertname"] + alert["status"][0] for alert in request["body"]["alerts"]),
        )
        for request in list(webhooks.requests)
        if request["status"] == 200
    }


def hammer(webhooks: Any, service: Killable, *, kills: int, seed: int) -> int:
    """Post alerts one by one, each in a group of its own, and end them, while the process is killed at random.

    Every one must be told firing once and resolved once. Gives the number of messages that came twice, with one id:
    those whose request was under way when the process died.
    """
    rng = random.Random(seed)
    service.start()
    posted: list[str] = []

    def post(name: str, **fields: str) -> None:
        body = [{"labels": {"alertname": name}, **fields}]
        wait_until(lambda: service.client.post("/api/v2/alerts", json=body).status_code == 200)

    for number in range(kills):
        for each in range(3):
            name = f"A{number}-{each}"
            post(name, endsAt="2036-01-01T00:00:00Z")
            posted.append(name)
        if number:
            for name in posted[-6:-3]:
                post(name, startsAt="2020-01-01T00:00:00Z", endsAt="2020-01-01T00:00:01Z")
        webhooks.statuses[:] = [503] * rng.randrange(3)
        time.sleep(rng.uniform(0.0, 1.5))
        service.kill()
        service.start()
    for name in posted[-3:]:
        post(name, startsAt="2020-01-01T00:00:00Z", endsAt="2020-01-01T00:00:01Z")

    def all_told() -> bool:
        found = list(told(webhooks).values())
        return all(("firing", (f"{name}f",)) in found and ("resolved", (f"{name}r",)) in found for name in posted)

    wait_until(all_told, 90)
    counts = list(told(webhooks).values())
    expected = [(status, (f"{name}{status[0]}",)) for name in posted for status in ("firing", "resolved")]
    assert sorted(counts) == sorted(expected)
    return sum(request["status"] == 200 for request in webhooks.requests) - len(counts)


CONFIGURATION = """
route: {receiver: hook, group_by: [alertname], group_wait: 300ms, group_interval: 1s}
receivers: [{name: hook, webhook_configs: [{url: "URL/hook"}]}]
"""


def test_a_process_killed_at_random_loses_no_notification_and_tells_none_twice(
    webhooks: Any, killable: Callable[..., Killable]
) -> None:
    service = killable(CONFIGURATION.replace("URL", webhooks.url))

    # Three are told at a time, and a kill may come between their answers and the record of them; without that record
    # there would be six.
    assert hammer(webhooks, service, kills=2, seed=1) <= 3
