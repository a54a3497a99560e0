"""Reading `alertmanager.yml`: what is wrong is named with its line; matchers, intervals, inhibition, HTTP options."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from alerts.labels import Matcher, labels_of
from alerts.notifications import (
    Alertmanager,
    Configuration,
    ConfigurationError,
    load_configuration,
    read_configuration,
)
from alerts.notifications.inhibition import Inhibitor, InhibitRule
from alerts.notifications.intervals import TimeInterval
from alerts.notifications.matchers import parse_matcher, parse_matchers
from alerts.notifications.message import Message, MessageAlert
from alerts.notifications.route import group_key
from alerts.notifications.times import read_time, rfc3339, rfc3339_millis
from alerts.schema import open_database

MESSAGE = Message(
    id="id-1", receiver="web.hook", group_key="{}:{}", group_labels=(),
    alerts=(MessageAlert(labels=(("alertname", "A"),), annotations=(), starts_at=1.5),),
)  # fmt: skip


def receiver(section: str) -> str:
    return f"route: {{receiver: r}}\nreceivers:\n- name: r\n  {section}\n"


ROUTE = "receivers: [{name: r}]\nroute:\n  receiver: r\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: the file is empty"),
        ("route: [", ":2: not YAML"),
        ("receivers: []", ":1: no routes provided"),
        ("rout: {receiver: r}", ":1: the configuration has no field rout;"),
        ("route: {}", ":1: root route must specify a default receiver"),
        ("route: {receiver: r}", ':1: undefined receiver "r" used in route'),
        ("route: {receiver: r}\nroute: {receiver: r}", ":2: field 'route' appears twice in the configuration"),
        (ROUTE + "  continue: true", ":4: cannot have continue in root route"),
        (ROUTE + "  matchers: [a=b]", ":4: root route must not have any matchers"),
        (ROUTE + "  mute_time_intervals: [x]", ":4: root route must not have any mute time intervals"),
        (ROUTE + "  group_interval: 0s", ":4: group_interval cannot be zero"),
        (ROUTE + "  group_wait: soon", ":4: group_wait: not a duration: 'soon'"),
        (ROUTE + "  group_by: [a-b]", ':4: invalid label name "a-b" in group_by list'),
        (ROUTE + "  group_by: [a, a]", ':4: duplicated label "a" in group_by'),
        (ROUTE + "  group_by: [a, '...']", ":4: cannot have wildcard group_by"),
        (ROUTE + "  routes:\n  - matchers: ['a{b']", ":5: matchers: bad matcher format: a{b"),
        (ROUTE + "  routes:\n  - matchers: ['a=~(']", ":5: matchers: bad regular expression"),
        (ROUTE + "  routes:\n  - match: {a-b: c}", ":5: a-b: 'a-b' is not a label name"),
        (ROUTE + "  routes:\n  - receiver: nobody", ':5: undefined receiver "nobody" used in route'),
        (ROUTE + "  routes:\n  - active_time_intervals: [never]", ':5: undefined time interval "never" used in route'),
        (ROUTE + "time_intervals:\n- time_intervals: []", ":5: missing name in time interval"),
        (ROUTE + "time_intervals:\n- {name: a, time_intervals: [{weekdays: [funday]}]}",
         ":5: weekdays: funday: funday is not a valid weekday"),
        (ROUTE + "time_intervals:\n- {name: a, time_intervals: [{times: [{start_time: '9:00', end_time: '10:00'}]}]}",
         ":5: couldn't parse timestamp 9:00"),
        (ROUTE + "time_intervals:\n- {name: a, time_intervals: [{days_of_month: ['-1:5']}]}",
         ":5: days_of_month: end day must be negative if start day is negative"),
        (ROUTE + "time_intervals:\n- {name: a, time_intervals: [{location: Mars/Base}]}",
         ":5: location: unknown time zone Mars/Base"),
        (ROUTE + "inhibit_rules:\n- {equal: ['a b']}", ':5: "a b" is not a valid label name'),
        (ROUTE + "inhibit_rules:\n- {source_matcher: [a=b]}", ":5: inhibit_rules has no field source_matcher;"),
        ("route: {receiver: r}\nreceivers: [{name: r}, {name: r}]", ':2: notification config name "r" is not unique'),
        (receiver("webhook_configs: [{}]"), ":4: missing URL in webhook config"),
        (receiver("webhook_configs: [{url: 'ftp://x'}]"), ':4: url: unsupported scheme "ftp" for URL'),
        (receiver("webhook_configs: [{url: 'http://x', urll: 5}]"), ":4: webhook_configs has no field urll;"),
        (receiver("webhook_configs: [{url: 'http://x', url_file: y}]"), ":4: at most one of url & url_file"),
        (receiver("webhook_configs: [{url: 'http://x', max_alerts: many}]"), ":4: max_alerts must be a whole number"),
        (receiver("webhook_configs: [{url: 'http://x', send_resolved: maybe}]"), ":4: send_resolved must be true or"),
        (receiver("webhook_configs: [{url: 'http://x', http_config: {oauth2: {}}}]"), "oauth2 is a field of Alertm"),
        (receiver("webhook_configs: [{url: 'http://x', http_config: {tls_config: {ca_file: no}}}]"), "cannot be read"),
        (receiver("webhook_configs: [{url: 'http://x', http_config: {bearer_token: a, basic_auth: {}}}]"), "at most"),
        (receiver("wechat_configs: [{}]"), ":4: wechat_configs is not supported here; name"),
        (receiver("apprise_configs: [{url: 'nosuch://x'}]"), ":4: url: apprise cannot read the notification URL"),
        (receiver("slack_configs: [{api_url: 'http://x', actions: []}]"), ":4: slack_configs has no field actions;"),
        (receiver("slack_configs: [{channel: x}]"), ":4: no global Slack API URL set"),
        (receiver("slack_configs: [{api_url: 'http://x', title: '{{ .A '}]"), ":4: title: template: "),
        (receiver("pagerduty_configs: [{}]"), ":4: missing service or routing key"),
        (receiver("email_configs: [{to: x}]"), ":4: no global SMTP smarthost set"),
        (receiver("email_configs: [{to: x, smarthost: host, from: y}]"), ":4: the smarthost must be HOST:PORT"),
        ("global: {resolve_timeout: -5m}\n" + ROUTE, ":1: resolve_timeout: not a duration"),
        ("global: {smtp_frm: x}\n" + ROUTE, ":1: global has no field smtp_frm;"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # apprise imports it
def test_what_is_wrong_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        read_configuration(text, "am.yml")

    told = re.sub(r":(\d+):\d+: error: ", r":\1: ", str(raised.value))
    assert told.startswith("am.yml:")
    assert message in told
    assert all(problem.column for problem in raised.value.problems)


def test_everything_that_is_wrong_is_named_at_once() -> None:
    text = """
global: {resolve_timeout: often, smtp_frm: x}
route:
  receiver: r
  routes:
    - {receiver: nobody}
    - {receiver: r, group_by: ['a b']}
    - {receiver: r, matchers: ['a'], group_wait: soon}
    - {receiver: r, mute_time_intervals: [nights]}
receivers:
  - name: r
    webhook_configs: [{url: 'ftp://x'}, {urll: x, url: 'http://x'}, {url: 'http://x', send_resolved: maybe}]
    wechat_configs: [{}]
  - {}
inhibit_rules: [{source_matcher: [a=b], equal: ['a b']}, {equal: x}]
time_intervals: [{name: i, time_intervals: [{weekdays: [funday]}, {years: [never]}]}]
"""
    with pytest.raises(ConfigurationError) as raised:
        read_configuration(text, "am.yml")

    found = [problem.line for problem in raised.value.problems]
    assert found == sorted(found)
    assert found == [2, 2, 6, 7, 8, 9, 12, 12, 12, 13, 14, 15, 15, 15, 16, 16]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.yml:0: error: the file cannot be read"):
        load_configuration(tmp_path / "none.yml")


def test_children_inherit_and_keys_name_the_way_to_a_route() -> None:
    found = read_configuration("""
route:
  receiver: a
  group_by: ['...']
  group_wait: 1m
  routes:
    - match_re: {team: "x|y"}
      matchers: ['{zone!="eu", b=~c}']
      routes: [{group_by: [job], receiver: b, repeat_interval: 1d}]
receivers: [{name: a}, {name: b}]
""")
    (child,) = found.route.routes
    (leaf,) = child.routes

    assert (child.receiver, child.group_by, child.group_wait_seconds) == ("a", ("...",), 60.0)
    assert (leaf.group_wait_seconds, leaf.group_interval_seconds, leaf.repeat_interval_seconds) == (60, 300, 86400)
    assert group_key(leaf, labels_of({"job": 'x"\n✓'})) == (
        '{}/{b=~"c",team=~"^(?:x|y)$",zone!="eu"}/{}:{job="x\\"\\n✓"}'
    )
    assert child.group_labels(labels_of({"p": "1", "q": "2"})) == (("p", "1"), ("q", "2"))
    assert (found.route.place, leaf.place) == ("0", "0.0.0")


@pytest.mark.parametrize(
    ("text", "name", "op", "value"),
    [
        ("a=b", "a", "=", "b"), (' a != "b" ', "a", "!=", "b"), ('a=~"b|c"', "a", "=~", "b|c"), ("a!~", "a", "!~", ""),
        (r'a="\"x\n\\\q"', "a", "=", '"x\n\\\\q'), ("a=b c,d", "a", "=", "b c,d"), ("a=b\\", "a", "=", "b\\"),
    ],
)  # fmt: skip
def test_matchers_read_as_alertmanager_reads_them(text: str, name: str, op: str, value: str) -> None:
    found = parse_matcher(text)

    assert (found.name, found.op, found.value) == (name, op, value)
    assert parse_matcher(str(found)) == found


@pytest.mark.parametrize("text", ["", "a", "=b", 'a="b', 'a=b"', 'a="b"c"', "a-b=c"])
def test_matchers_that_are_wrong_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"matcher"):
        parse_matcher(text)


def test_lists_of_matchers_are_cut_outside_quotes() -> None:
    found = parse_matchers('{foo = "bar, \\"baz", dings != bums, }')

    assert list(map(str, found)) == ['foo="bar, \\"baz"', 'dings!="bums"']


def at(text: str, zone: Any = UTC) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("times: [{start_time: '09:00', end_time: '17:00'}]", ["2026-11-23T09:00", "2026-11-23T16:59"],
         ["2026-11-23T08:59", "2026-11-23T17:00"]),
        ("times: [{start_time: '23:00', end_time: '24:00'}]", ["2026-11-23T23:59"], ["2026-11-23T00:00"]),
        ("weekdays: ['monday:friday', sunday]", ["2026-11-23T00:00", "2026-11-22T00:00"], ["2026-11-28T00:00"]),
        ("days_of_month: ['-3:-1']", ["2028-02-27T00:00", "2026-02-28T00:00"], ["2028-02-26T00:00"]),
        ("days_of_month: ['30:31']", ["2026-04-30T00:00", "2026-01-31T00:00"], ["2026-02-28T00:00"]),
        ("days_of_month: ['1', '27:-1']", ["2026-02-01T00:00", "2026-02-28T00:00"], ["2026-02-26T00:00"]),
        ("months: ['november:december', '1']", ["2026-11-01T00:00", "2026-01-01T00:00"], ["2026-10-31T00:00"]),
        ("years: ['2026:2027', '2030']", ["2027-12-31T23:59", "2030-01-01T00:00"], ["2028-01-01T00:00"]),
        ("times: []", [], ["2026-01-01T00:00"]),
        ("{}", ["2026-01-01T00:00"], []),
    ],
)  # fmt: skip
def test_intervals_hold_their_times(interval: str, inside: list[str], outside: list[str]) -> None:
    text = f"{ROUTE}time_intervals:\n- name: i\n  time_intervals:\n  - {interval}\n"
    (found,) = read_configuration(text).intervals["i"]

    assert all(found.contains(at(time)) for time in inside)
    assert not any(found.contains(at(time)) for time in outside)


def test_intervals_know_their_place() -> None:
    sydney = ZoneInfo("Australia/Sydney")
    found = TimeInterval(times=((540, 1020),), weekdays=((1, 1),), location=sydney)

    assert found.contains(at("2026-11-23T09:00", sydney))
    assert not found.contains(at("2026-11-23T09:00"))


def test_inhibition_spares_the_source_itself_and_needs_equal_labels() -> None:
    rule = InhibitRule(
        source=(Matcher("severity", "=", "page"),), target=(Matcher("severity", "=~", "page|warn"),), equal=("m", "z")
    )
    page, other = labels_of({"severity": "page", "m": "1"}), labels_of({"severity": "page", "m": "2"})
    warn, far = labels_of({"severity": "warn", "m": "1"}), labels_of({"severity": "warn", "m": "1", "z": "a"})
    inhibitor = Inhibitor([rule], [page, other, warn])

    assert [bool(inhibitor.inhibited_by(labels)) for labels in (page, other, warn, far)] == [False, False, True, False]


def one_channel(configuration: Configuration) -> Any:
    (integration,) = configuration.receivers["r"].integrations
    return integration.channel


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("authorization: {credentials: SECRET}", "Bearer SECRET"),
        ("authorization: {type: Token, credentials_file: secret.txt}", "Token from-file"),
        ("bearer_token_file: secret.txt", "Bearer from-file"),
        ("basic_auth: {username: ada, password: pw}", "Basic " + base64.b64encode(b"ada:pw").decode()),
        ("http_headers: {Authorization: {values: [own]}}", "own"),
    ],
)
def test_webhooks_carry_credentials_and_come_from_files(
    webhooks: Any, tmp_path: Path, options: str, expected: str
) -> None:
    (tmp_path / "secret.txt").write_text("from-file\n")
    (tmp_path / "url.txt").write_text(f"{webhooks.url}/path\n")
    (tmp_path / "am.yml").write_text(receiver(f"webhook_configs: [{{url_file: url.txt, http_config: {{{options}}}}}]"))

    configuration = load_configuration(tmp_path / "am.yml")
    channel = one_channel(configuration)
    channel.send(MESSAGE, 5.0)
    channel.close()

    (request,) = webhooks.requests
    assert (request["path"], request["headers"]["Authorization"]) == ("/path", expected)
    assert (request["headers"]["Idempotency-Key"], request["body"]["receiver"]) == ("id-1", "web\\.hook")
    assert "SECRET" not in configuration.original


def test_times_are_written_and_read_as_go_does() -> None:
    assert rfc3339(None) == "0001-01-01T00:00:00Z"
    assert [rfc3339(time) for time in (0.0, 1.5, 1.000001)] == [
        "1970-01-01T00:00:00Z", "1970-01-01T00:00:01.5Z", "1970-01-01T00:00:01.000001Z",
    ]  # fmt: skip
    assert rfc3339_millis(1.5) == "1970-01-01T00:00:01.500Z"
    for text in ("1970-01-01T00:00:01.123456789Z", "1970-01-01T01:00:01.123456+01:00"):
        assert read_time(text, "t", 0.0) == pytest.approx(1.123456)
    assert read_time("0001-01-01T00:00:00Z", "t", 7.0) == read_time(None, "t", 7.0) == 7.0


def test_the_page_of_metrics_says_whether_the_last_file_was_taken(tmp_path: Path) -> None:
    path = tmp_path / "am.yml"
    path.write_text(ROUTE)
    engine = open_database(f"sqlite:///{tmp_path / 'alerts.db'}")
    manager = Alertmanager(engine, path=path)

    def taken() -> float | None:
        return manager.metrics.registry.get_sample_value("alertmanager_config_last_reload_successful")

    assert taken() == 1.0
    path.write_text("route: [")
    with pytest.raises(ConfigurationError):
        manager.reload()
    assert taken() == 0.0
    path.write_text(ROUTE)
    manager.reload()
    assert taken() == 1.0
    manager.close()
    engine.dispose()
