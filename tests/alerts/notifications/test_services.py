"""What services are sent is what a real Alertmanager sends them; mail and our own URLs go by apprise."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

CONFIGURATION = """
global: {opsgenie_api_key: KEY, victorops_api_key: VKEY}
templates: ["FOLDER/*.tmpl"]
route: {receiver: all, group_by: [alertname], group_wait: 200ms, group_interval: 1s}
receivers:
  - name: all
    slack_configs:
      - {api_url: "SERVER/slack", channel: "#{{ .CommonLabels.team }}", send_resolved: true}
      - api_url: "SERVER/slack2"
        send_resolved: true
        title: '{{ template "our.title" . }}'
        text: |-
          {{ range .Alerts }}{{ .Labels.x }} {{ .Annotations.summary | toUpper }}
          {{ .StartsAt.Format "15:04:05" }};{{ end }}
        fields: [{title: A, value: "{{ len .Alerts }}"}, {title: B, value: b, short: true}]
        short_fields: false
        link_names: true
        color: '{{ if gt (len .Alerts.Firing) 1 }}warning{{ else }}{{ .Status }}{{ end }}'
    pagerduty_configs:
      - routing_key: "R{{ .CommonLabels.team }}"
        url: "SERVER/pagerduty"
        severity: '{{ .CommonLabels.severity }}'
        details: {own: '{{ .CommonAnnotations.SortedPairs.Values | join "|" }}', num_firing: ""}
        links: [{href: "http://x/{{ .GroupLabels.alertname }}", text: t}, {href: "", text: none}]
        class: c
    opsgenie_configs:
      - api_url: "SERVER/opsgenie"
        tags: "a,{{ .CommonLabels.team }},,b"
        details: {extra: "{{ .ExternalURL }}"}
        priority: P1
        responders: [{name: "x,y", type: teams}, {username: "{{ .CommonLabels.nobody }}", type: user},
                     {id: "1", type: team}]
        update_alerts: true
    victorops_configs:
      - {api_url: "SERVER/victorops", routing_key: "{{ .CommonLabels.team }}", custom_fields: {f: "{{ .Status }}"}}
    discord_configs: [{webhook_url: "SERVER/discord"}]
    telegram_configs:
      - {api_url: "SERVER/telegram", bot_token: "1:T", chat_id: -5}
      - {api_url: "SERVER/telegram2", bot_token: "1:T", chat_id: 5, parse_mode: "", disable_notifications: true,
         message: "{{ .CommonAnnotations.summary }}"}
    webex_configs: [{api_url: "SERVER/webex", room_id: r, http_config: {authorization: {credentials: c}}}]
"""
TEMPLATE = """{{ define "our.title" }}[{{ .Receiver }}] {{ template "inner" .GroupLabels }}{{ end }}
{{ define "inner" }}{{ range $k, $v := . }}{{ $k }}={{ $v }}{{ end }}{{ end }}"""


def posted(*ends: float) -> list[dict[str, Any]]:
    now = datetime.now(UTC).replace(microsecond=5000)
    return [
        {
            "labels": {"alertname": "High <& err>", "team": "ml", "severity": "critical", "x": str(number)},
            "annotations": {"summary": 'it\'s <b>"bad"</b> & ünwell', "description": "line\nline"},
            "startsAt": "2026-01-02T03:04:05.006Z",
            "endsAt": (now + timedelta(seconds=end)).isoformat().replace("+00:00", "Z"),
            "generatorURL": "http://prom.example/graph?g0.expr=a%3Db&x=<y>",
        }
        for number, end in enumerate(ends)
    ]


@pytest.mark.slow
def test_services_are_sent_what_alertmanager_sends(
    webhooks: Any, real_alertmanager: Callable[[str], str], our_alertmanager: Callable[[str], str], tmp_path: Path
) -> None:
    (tmp_path / "own.tmpl").write_text(TEMPLATE)
    text = CONFIGURATION.replace("FOLDER", str(tmp_path))
    client = httpx.Client(verify=False)
    sides = {"theirs": real_alertmanager, "ours": our_alertmanager}
    urls = {name: start(text.replace("SERVER", f"{webhooks.url}/{name}")) for name, start in sides.items()}

    def sent(name: str) -> list[tuple[str, Any, str, str]]:
        return sorted(
            (
                (each["path"].removeprefix(f"/{name}"), each["body"], each["headers"].get("Authorization", ""),
                 each["headers"]["Content-Type"])
                for each in list(webhooks.requests)
                if each["path"].startswith(f"/{name}/")
            ),
            key=str,
        )  # fmt: skip

    for count, body in ((11, posted(3600, 3600)), (9, posted(-1, -1))):
        webhooks.requests.clear()
        for url in urls.values():
            assert client.post(f"{url}/api/v2/alerts", json=body).status_code == 200
        deadline = time.monotonic() + 60
        while min(len(sent("theirs")), len(sent("ours"))) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        theirs, ours = sent("theirs"), sent("ours")
        assert [each[0] for each in ours] == [each[0] for each in theirs]
        for mine, other in zip(ours, theirs, strict=True):
            assert mine == other
    client.close()
