"""The same alerts to ours and to the real Alertmanager, on the same configuration: the same webhooks and answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.slow

CONFIGURATION = """
global: {resolve_timeout: 1h}
route:
  receiver: root
  group_by: [alertname]
  group_wait: WAIT
  group_interval: 1s
  repeat_interval: 1h
  routes:
    - match_re: {severity: "page|ticket"}
      match: {team: ml}
      receiver: web.hook
      group_by: [alertname, model]
      continue: true
    - matchers: ['model=~"m.*"', severity!="none"]
      receiver: "two hooks"
      group_by: ['...']
    - matchers: [team="quiet"]
      receiver: firing-only
inhibit_rules:
  - source_matchers: [alertname="Down"]
    target_match_re: {alertname: "Slow|Down"}
    equal: [model]
receivers:
  - name: root
    webhook_configs: [{url: "URL/NAME/root"}]
  - name: web.hook
    webhook_configs: [{url: "URL/NAME/ml", max_alerts: 2}]
  - name: two hooks
    webhook_configs: [{url: "URL/NAME/one"}, {url: "URL/NAME/two", send_resolved: false}]
  - name: firing-only
    webhook_configs: [{url: "URL/NAME/firing", send_resolved: false}]
"""


def alert(
    began: datetime, name: str, *, ends: float = 3600, annotations: dict[str, str] | None = None, **labels: str
) -> dict[str, Any]:
    """One that `began`, not long before it is posted: an older one is sent at once, without the rest of its group."""
    return {
        "labels": {"alertname": name, **labels},
        "annotations": annotations or {"summary": f'{name} "is" <bad>', "empty": ""},
        "startsAt": began.isoformat().replace("+00:00", "Z"),
        "endsAt": (began + timedelta(seconds=ends)).isoformat().replace("+00:00", "Z"),
        "generatorURL": "http://prom.example/graph?g0.expr=up%3D%3D1",
    }


def rounds(began: datetime) -> list[list[dict[str, Any]]]:
    one, over = partial(alert, began), partial(alert, began, ends=0.01)
    return [
        [
            one("Slow", model="m1", severity="page", team="ml"),
            one("Slow", model="m2", severity="page", team="ml", instance="b"),
            one("Slow", model="m2", severity="page", team="ml", instance="a"),
            one("Slow", model="m2", severity="ticket", team="ml", job="z"),
            one("Down", model="m1", severity="page", team="ops"),
            one("Odd", path='a"b\\c\nd', note="naïve ✓"),
            one("Quiet", team="quiet", model="x"),
            one("Nobody"),
        ],
        [
            over("Slow", model="m2", severity="page", team="ml", instance="a"),
            over("Quiet", team="quiet", model="x"),
            one("Odd", path="new", note="naïve ✓"),
        ],
        [over("Nobody"), one("Odd", path="new", note="naïve ✓", annotations={"summary": "changed"})],
    ]


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(verify=False) as client:  # making one takes longer than a request
        yield client


def statuses(client: httpx.Client, url: str, **params: str) -> Any:
    found = client.get(f"{url}/api/v2/alerts", params=params).json()
    return [{key: value for key, value in each.items() if key != "updatedAt"} for each in found]


def groups(client: httpx.Client, url: str) -> Any:
    found = client.get(f"{url}/api/v2/alerts/groups").json()
    for group in found:
        for each in group["alerts"]:
            del each["updatedAt"]
    return found


def settle(webhooks: Any, group_wait: float) -> None:
    """Wait until two group intervals have brought no more webhooks, and longer for one side that is behind."""
    count, since = len(webhooks.requests), time.monotonic()
    limit, place = since + group_wait + 10, f"/{group_wait:g}"

    def behind() -> bool:
        return (
            len(webhooks.bodies(f"{place}/theirs/")) != len(webhooks.bodies(f"{place}/ours/"))
            and time.monotonic() < limit
        )

    while time.monotonic() - since < group_wait + 2.0 or behind():
        time.sleep(0.05)
        if len(webhooks.requests) != count:
            count, since = len(webhooks.requests), time.monotonic()


# Seconds to wait for the rest of a group. Alertmanager takes in one alert after the other: where the machine is so busy
# that the first wait is over before all are in, what it sends is not what it sends elsewhere, and a longer one decides.
GROUP_WAITS = (1.0, 4.0, 15.0)


def test_the_same_alerts_give_the_same_webhooks_and_statuses(
    client: httpx.Client, webhooks: Any, real_alertmanager: Callable[[str], str], our_alertmanager: Callable[[str], str]
) -> None:
    for group_wait in GROUP_WAITS:
        webhooks.requests.clear()
        text = CONFIGURATION.replace("URL", f"{webhooks.url}/{group_wait:g}").replace(
            "WAIT", f"{group_wait * 1000:g}ms"
        )
        theirs, ours = real_alertmanager(text.replace("NAME", "theirs")), our_alertmanager(text.replace("NAME", "ours"))
        try:
            assert_alike(client, webhooks, theirs, ours, group_wait)
            return
        except AssertionError:
            if group_wait == GROUP_WAITS[-1]:
                raise


def assert_alike(client: httpx.Client, webhooks: Any, theirs: str, ours: str, group_wait: float) -> None:
    for number, posted in enumerate(rounds(datetime.now(UTC).replace(microsecond=123000))):
        for url in (theirs, ours):
            assert client.post(f"{url}/api/v2/alerts", json=posted).status_code == 200
        settle(webhooks, group_wait)
        for path in ("root", "ml", "one", "two", "firing"):
            left, right = (
                sorted(
                    webhooks.bodies(f"/{group_wait:g}/{name}/{path}"), key=lambda body: (body["groupKey"], str(body))
                )
                for name in ("theirs", "ours")
            )
            assert right == left, (number, path)
        assert statuses(client, ours) == statuses(client, theirs)
        assert groups(client, ours) == groups(client, theirs)
    assert len(webhooks.bodies(f"/{group_wait:g}/ours/")) >= 10

    for params in (
        {"active": "false"}, {"inhibited": "false"}, {"silenced": "false"}, {"receiver": "two.*"},
        {"filter": 'alertname=~"S.*"'}, {"filter": 'team=""'}, {"filter": 'team!=""'}, {"receiver": "two"},
        {"receiver": ""}, {"active": "maybe"}, {"silenced": "on", "inhibited": "no"},
    ):  # fmt: skip
        assert statuses(client, ours, **params) == statuses(client, theirs, **params), params
    assert client.get(f"{ours}/api/v2/receivers").json() == client.get(f"{theirs}/api/v2/receivers").json()


SILENCE = {
    "matchers": [{"name": "a", "value": "b", "isRegex": False}], "startsAt": "2020-01-01T00:00:00Z",
    "endsAt": "2036-01-01T00:00:00Z", "createdBy": "ada", "comment": "c",
}  # fmt: skip
UNKNOWN = "7d8d5e5e-0000-4000-8000-000000000000"


def matchers(*items: dict[str, Any]) -> dict[str, Any]:
    return {**SILENCE, "matchers": list(items)}


REQUESTS: list[tuple[str, str, Any]] = [
    ("POST", "alerts", [{}]),
    ("POST", "alerts", [{"labels": {}}]),
    ("POST", "alerts", [{"labels": {"a-b": "c"}}, {"labels": {"ok": "1"}, "annotations": {"y-z": "1"}}]),
    ("POST", "alerts", [{"labels": {"ok": "3"}, "startsAt": "2026-01-02T00:00:00Z", "endsAt": "2026-01-01T00:00:00Z"}]),
    ("POST", "alerts", [{"labels": {"ok": "4"}, "generatorURL": "not a url"}]),
    ("POST", "alerts", [{"labels": {"ok": "5"}, "extra": 1}]),
    ("GET", "alerts?filter=%7B", None),
    ("GET", "alerts/groups?receiver=none", None),
    *(("POST", "silences", {key: value for key, value in SILENCE.items() if key != name}) for name in SILENCE),
    ("POST", "silences", matchers()),
    ("POST", "silences", matchers({"name": "a", "value": "b"})),
    ("POST", "silences", matchers({"name": "a", "isRegex": True})),
    ("POST", "silences", {**SILENCE, "endsAt": "2020-01-01T00:00:00Z"}),
    ("POST", "silences", {**SILENCE, "startsAt": "2020-01-01T00:00:00Z", "endsAt": "2020-01-02T00:00:00Z"}),
    ("GET", "silences?filter=a%3D%22x", None),
    ("GET", "silence/none", None),
    ("DELETE", "silence/none", None),
    ("DELETE", f"silence/{UNKNOWN}", None),
]
# Where the words are Go's own, the status is what counts.
SAME_STATUS: list[tuple[str, str, Any]] = [
    ("POST", "alerts", {}),
    ("POST", "alerts", [{"labels": {"a": 5}}]),
    ("POST", "alerts", [{"labels": {"a": "b"}, "startsAt": "soon"}]),
    ("GET", "alerts?receiver=%28", None),
    ("POST", "silences", {**SILENCE, "startsAt": "soon"}),
    ("POST", "silences", {**SILENCE, "id": UNKNOWN}),
    ("POST", "silences", {**SILENCE, "id": "nope"}),
    ("POST", "silences", matchers({"name": "a", "value": "", "isRegex": False})),
    ("POST", "silences", matchers({"name": "a", "value": ".*", "isRegex": True})),
    ("POST", "silences", matchers({"name": "a", "value": "(", "isRegex": True})),
    ("POST", "silences", matchers({"name": "a-b", "value": "x", "isRegex": False})),
    ("POST", "silences", matchers({"name": "a", "value": "x", "isRegex": False, "isEqual": False})),
    ("GET", f"silence/{UNKNOWN}", None),
]


def test_requests_that_are_wrong_are_refused_in_the_same_words(
    client: httpx.Client, real_alertmanager: Callable[[str], str], our_alertmanager: Callable[[str], str]
) -> None:
    text = "route: {receiver: d}\nreceivers: [{name: d}]"
    urls = [real_alertmanager(text), our_alertmanager(text)]

    for method, path, body in (*REQUESTS, *SAME_STATUS):
        left, right = (client.request(method, f"{url}/api/v2/{path}", json=body) for url in urls)
        assert right.status_code == left.status_code, (method, path, body, left.text, right.text)
        if (method, path, body) in REQUESTS:
            assert right.text.strip() == left.text.strip(), (method, path, body)
    for path, kind in (("alerts", "text/plain"), ("silences", "application/x-www-form-urlencoded")):
        headers = {"Content-Type": kind}
        left, right = (client.post(f"{url}/api/v2/{path}", content=b"[]", headers=headers) for url in urls)
        assert (right.status_code, right.json()) == (left.status_code, left.json()) == (415, right.json())


def test_silences_live_the_same_life(
    real_alertmanager: Callable[[str], str], our_alertmanager: Callable[[str], str]
) -> None:
    text = "route: {receiver: d}\nreceivers: [{name: d}]"
    soon = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    lives = []
    for url in (real_alertmanager(text), our_alertmanager(text)):
        with httpx.Client(base_url=f"{url}/api/v2", verify=False) as client:
            client.post("/alerts", json=[{"labels": {"a": "b"}}, {"labels": {"a": "c"}}])
            first = client.post("/silences", json=SILENCE).json()["silenceID"]
            shown = client.get(f"/silence/{first}").json()
            longer = {**SILENCE, "id": first, "startsAt": shown["startsAt"], "endsAt": "2037-01-01T00:00:00Z"}
            same = client.post("/silences", json=longer).json()["silenceID"]
            wider = matchers({"name": "a", "value": "b|c", "isRegex": True})
            other = client.post("/silences", json={**wider, "id": first}).json()["silenceID"]
            pending = client.post("/silences", json={**SILENCE, "startsAt": soon}).json()["silenceID"]
            moved = client.post("/silences", json={**SILENCE, "id": pending, "startsAt": soon}).json()["silenceID"]
            gone = [client.delete(f"/silence/{pending}").status_code for _ in range(2)]
            found = client.get("/silences").json()
            ids = {first: "first", other: "other", pending: "pending"}
            lives.append(
                (
                    same == first, other != first, moved == pending, gone,
                    [(ids[each["id"]], each["status"]["state"], each["matchers"]) for each in found],
                    [(a["labels"], a["status"]["state"], [ids[id] for id in a["status"]["silencedBy"]])
                     for a in client.get("/alerts").json()],
                    [ids[each["id"]] for each in client.get("/silences", params={"filter": "a=b"}).json()],
                )
            )  # fmt: skip

    assert lives[1] == lives[0]
    assert lives[0][:4] == (True, True, True, [200, 200])
