"""Telling people: routes, groups, repeats, retries, and a restart that tells nothing twice."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from alerts.channels import DeliveryError, Notification, WebhookChannel, channel_of
from alerts.labels import Matcher, fingerprint, labels_of, parse_matcher
from alerts.notify import Notifier
from alerts.route import Route, grouped, matching
from alerts.states import Alert
from observability import signing

ROUTE = Route(group_by=("model",), group_interval_seconds=10, repeat_interval_seconds=100)


class Inline(Executor):
    """Runs at once, in the caller."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class Recorder:
    """A channel that keeps what it is told, or fails as often as asked."""

    name = "recorder"

    def __init__(self, failures: int = 0) -> None:
        self.told: list[tuple[str, list[str]]] = []
        self.failures = failures

    def send(self, notification: Notification) -> None:
        if self.failures:
            self.failures -= 1
            raise DeliveryError("not now")
        self.told.append((notification.status, [alert.name for alert in notification.group.alerts]))


def alert(name: str = "A", state: Any = "firing", **labels: str) -> Alert:
    return Alert(
        labels=labels_of({"alertname": name, "model": "m", **labels}), annotations=(("summary", f"{name} is bad"),),
        value=1.0, state=state, active_at=0.0, fired_at=0.0, resolved_at=5.0 if state == "inactive" else None,
    )  # fmt: skip


def notifier(database: sa.Engine, channel: Any) -> Notifier:
    return Notifier(database, [ROUTE], {"default": [channel]}, executor=Inline(), backoff_seconds=0.0)


def test_a_group_is_told_once_then_when_it_changes_and_after_the_repeat_interval(database: sa.Engine) -> None:
    channel = Recorder()
    one = notifier(database, channel)

    for now in (0.0, 1.0, 20.0):
        one.update([alert("A"), alert("P", state="pending")], now)
    one.update([alert("A"), alert("B")], 21.0)
    one.update([alert("A"), alert("B")], 120.0)
    one.update([alert("A"), alert("B")], 121.0)
    one.update([alert("A", "inactive"), alert("B", "inactive")], 132.0)
    one.update([alert("A", "inactive"), alert("B", "inactive")], 500.0)

    assert channel.told == [
        ("firing", ["A"]), ("firing", ["A", "B"]), ("firing", ["A", "B"]), ("resolved", ["A", "B"]),
    ]  # fmt: skip


def test_a_restart_tells_nothing_twice_and_a_failure_is_tried_again(database: sa.Engine) -> None:
    channel = Recorder(failures=2)

    notifier(database, channel).update([alert()], 0.0)
    notifier(database, channel).update([alert()], 50.0)

    assert channel.told == [("firing", ["A"])]


def test_an_alert_that_resolved_before_anybody_heard_of_it_is_not_told(database: sa.Engine) -> None:
    channel = Recorder()

    notifier(database, channel).update([alert(state="inactive")], 0.0)

    assert channel.told == []


def test_the_first_route_that_matches_is_the_last_unless_it_goes_on() -> None:
    page = Route(receiver="page", matchers=(Matcher("severity", "=", "page"),), goes_on=True)
    model = Route(receiver="team", matchers=(Matcher("model", "=~", "m.*"),))
    rest = Route(receiver="rest")

    assert [r.receiver for r in matching([page, model, rest], alert(severity="page").labels)] == ["page", "team"]
    assert [r.receiver for r in matching([page, model, rest], labels_of({"model": "x"}))] == ["rest"]
    with pytest.raises(ValueError, match="nowhere"):
        Notifier(sa.create_engine("sqlite://"), [Route(receiver="nowhere")], {})


def test_the_webhook_is_alertmanagers_version_4_and_signed(hook_server: Any, clock: Any) -> None:
    (group,) = grouped([ROUTE], [alert("A"), alert("B", "inactive")])

    WebhookChannel(hook_server.url, secret="s", clock=clock).send(Notification(group, "default"))

    (request,) = hook_server.requests
    body = request["body"]
    signing.verify("s", request["headers"][signing.HEADER], request["raw"], clock())
    assert (body["version"], body["status"], body["groupLabels"]) == ("4", "firing", {"model": "m"})
    assert body["commonLabels"] == {"model": "m"}
    assert [(a["status"], a["endsAt"]) for a in body["alerts"]] == [
        ("firing", "0001-01-01T00:00:00Z"), ("resolved", "1970-01-01T00:00:05.000Z"),
    ]  # fmt: skip
    assert body["alerts"][0]["fingerprint"] == alert("A").fingerprint


def test_what_a_receiver_refuses_is_final_and_what_it_cannot_take_is_not(hook_server: Any) -> None:
    (group,) = grouped([ROUTE], [alert()])
    for status, final in ((400, True), (429, True), (503, False)):
        hook_server.status = status
        with pytest.raises(DeliveryError) as raised:
            WebhookChannel(hook_server.url).send(Notification(group, "default"))
        assert raised.value.final is final


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # apprise imports it
def test_apprise_urls_reach_their_service(hook_server: Any) -> None:
    (group,) = grouped([ROUTE], [alert()])

    channel_of(hook_server.url.replace("http://", "json://")).send(Notification(group, "default"))

    (request,) = hook_server.requests
    assert request["body"]["title"] == "[FIRING:1] A (m)"
    assert request["body"]["message"] == "A is bad"
    with pytest.raises(ValueError, match="cannot read the notification URL"):
        channel_of("nosuch-scheme://x")


def test_fingerprints_are_alertmanagers() -> None:
    # From Alertmanager 0.25's API for these labels.
    assert fingerprint(()) == "cbf29ce484222325"
    assert fingerprint(labels_of({"b": "2", "a": "1"})) == fingerprint(labels_of({"a": "1", "b": "2", "c": ""}))


@pytest.mark.parametrize(
    ("text", "value", "matches"),
    [('a="b"', "b", True), ("a=b", "b", True), ('a=~"b|c"', "c", True), ('a=~"b"', "bc", False), ('a!="b"', "", True),
     ('a!~"b.*"', "bc", False), ('a="q\\"\\n"', 'q"\n', True)],
)  # fmt: skip
def test_matchers_read_as_amtool_writes_them(text: str, value: str, matches: bool) -> None:
    matcher = parse_matcher(text)

    assert matcher.matches(labels_of({"a": value})) is matches
    assert parse_matcher(str(matcher)) == matcher
    assert replace(matcher) == matcher
