"""Debian's amtool: alerts, silences, configuration and routes asked of ours; routes on random trees agree with it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alerts.labels import labels_of
from alerts.notifications import load_configuration, read_configuration

pytestmark = pytest.mark.slow

CONFIGURATION = """
global:
  slack_api_url: https://hooks.slack.com/services/T/B/XSECRETX
route:
  receiver: people
  group_by: [alertname]
  routes:
    - {matchers: ['team="ml"'], receiver: ml, continue: true}
    - {match_re: {team: "ml|ops"}, receiver: on-call, active_time_intervals: [office]}
time_intervals:
  - name: office
    time_intervals: [{weekdays: ["monday:friday"], times: [{start_time: "09:00", end_time: "17:00"}]}]
receivers:
  - name: people
  - name: ml
    webhook_configs: [{url: "http://ada:SECRET@127.0.0.1:1/x", http_config: {authorization: {credentials: SECRET}}}]
    apprise_configs: [{url: "json://127.0.0.1:1/SECRET"}]
  - name: on-call
"""


def amtool(*args: str) -> str:
    done = subprocess.run(["amtool", *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # apprise imports it
def test_amtool_works_as_with_an_alertmanager(our_alertmanager: Callable[[str], str]) -> None:
    url = our_alertmanager(CONFIGURATION)

    def am(*args: str) -> str:
        return amtool(f"--alertmanager.url={url}", *args)

    def found(*args: str) -> Any:
        return json.loads(am(*args, "-o", "json"))

    am("alert", "add", "alertname=Up", "team=ml", "--annotation=summary=it is up", "--end=2036-01-01T00:00:00Z")
    am("alert", "add", "Other", "node=b")
    assert [alert["labels"] for alert in found("alert", "query", "Up")] == [{"alertname": "Up", "team": "ml"}]
    assert [[r["name"] for r in a["receivers"]] for a in found("alert", "query", "team=~m.")] == [["ml", "on-call"]]
    assert "Other" in am("alert", "query", "-o", "extended")

    first = am("silence", "add", "alertname=Up", "--author=ada", "--comment=c", "--duration=1h").strip()
    assert [alert["labels"]["alertname"] for alert in found("alert", "query")] == ["Other"]
    assert [alert["status"]["silencedBy"] for alert in found("alert", "query", "--silenced")] == [[first]]
    assert found("silence", "query", "alertname=Up")[0]["createdBy"] == "ada"
    updated = found("silence", "update", "--duration=2h", "--comment=longer", first)
    assert [each["comment"] for each in updated] == ["longer"]
    am("silence", "expire", *(each["id"] for each in found("silence", "query")))
    assert found("silence", "query") == []
    assert len(found("silence", "query", "--expired")) >= 1

    assert "disabled" in am("cluster", "show")
    shown = am("config", "show")
    assert "SECRET" not in shown
    assert "on-call" in am("config", "routes", "show")
    assert am("config", "routes", "test", "team=ml").strip() == "ml,on-call"
    assert httpx.get(f"{url}/api/v2/status").json()["cluster"]["status"] == "disabled"


def test_what_is_shown_is_a_configuration_that_amtool_accepts(tmp_path: Path) -> None:
    text = CONFIGURATION.replace('    apprise_configs: [{url: "json://127.0.0.1:1/SECRET"}]\n', "")
    path = tmp_path / "alertmanager.yml"
    for number, content in enumerate((text, read_configuration(text).original)):
        path.write_text(content)
        assert "SUCCESS" in amtool("check-config", str(path)), number
        assert len(load_configuration(path).receivers) == 3


NAMES, VALUES = st.sampled_from(["a", "b", "c"]), st.sampled_from(["1", "2", "12", ""])
PATTERNS = st.sampled_from(["1", "1|2", ".+", "1.*", "(?i)a|2", "", "[12]{2}"])
MATCHER = st.one_of(
    st.builds(lambda name, op, value: f'{name}{op}"{value}"', NAMES, st.sampled_from(["=", "!="]), VALUES),
    st.builds(lambda name, op, value: f'{name}{op}"{value}"', NAMES, st.sampled_from(["=~", "!~"]), PATTERNS),
    st.builds(lambda name, value: f"{name} = {value}", NAMES, st.sampled_from(["1", "2"])),
)


@st.composite
def routes(draw: Any, depth: int = 0) -> dict[str, Any]:
    route: dict[str, Any] = {"receiver": f"r{draw(st.integers(0, 9))}"} if depth == 0 or draw(st.booleans()) else {}
    if depth:
        route["matchers"] = draw(st.lists(MATCHER, max_size=2))
        route["continue"] = draw(st.booleans())
        if draw(st.booleans()):
            route["match"] = draw(st.dictionaries(NAMES, VALUES, max_size=1))
        if draw(st.booleans()):
            route["match_re"] = draw(st.dictionaries(NAMES, PATTERNS, max_size=1))
    if depth < 3:
        route["routes"] = draw(st.lists(routes(depth=depth + 1), max_size=3))
    return route


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(routes(), st.lists(st.dictionaries(NAMES, VALUES.filter(bool), min_size=1), min_size=1, max_size=3))
def test_routes_on_random_trees_are_those_of_amtool(
    tmp_path: Path, tree: dict[str, Any], label_sets: list[dict[str, str]]
) -> None:
    path = tmp_path / "alertmanager.yml"
    path.write_text(yaml.safe_dump({"route": tree, "receivers": [{"name": f"r{n}"} for n in range(10)]}))
    root = load_configuration(path).route

    for labels in label_sets:
        pairs = [f"{name}={value}" for name, value in labels.items()]
        theirs = amtool("config", "routes", "test", f"--config.file={path}", *pairs).strip()
        assert ",".join(route.receiver for route in root.match(labels_of(labels))) == theirs
