"""What services are sent is what a real Alertmanager sends them; mail and our own URLs go by apprise."""

from __future__ import annotations

import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

import httpx
import pytest

from alerts.notifications.channel import DeliveryError
from alerts.notifications.mail import MailChannel
from alerts.notifications.message import Message, MessageAlert
from alerts.notifications.templating import Templates

CONFIGURATION = """
global: {opsgenie_api_key: KEY, victorops_api_key: VKEY}
templates: ["FOLDER/*.tmpl"]
route: {receiver: all, group_by: [alertname], group_wait: 3s, group_interval: 1s}
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


def posted(starts: datetime, *ends: float) -> list[dict[str, Any]]:
    """Alerts young enough to wait out their group's wait: an older one is sent at once, without its neighbours."""
    now = datetime.now(UTC).replace(microsecond=5000)
    return [
        {
            "labels": {"alertname": "High <& err>", "team": "ml", "severity": "critical", "x": str(number)},
            "annotations": {"summary": 'it\'s <b>"bad"</b> & ünwell', "description": "line\nline"},
            "startsAt": starts.isoformat().replace("+00:00", "Z"),
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

    with httpx.Client(verify=False) as client:
        starts = datetime.now(UTC).replace(microsecond=6000)
        for count, end in ((11, 3600.0), (9, -1.0)):
            webhooks.requests.clear()
            body = posted(starts, end, end)
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


class MailServer(socketserver.ThreadingTCPServer):
    """Takes mail; `answers` are given to MAIL in turn, then 250."""

    daemon_threads = True

    def __init__(self) -> None:
        self.mails: list[tuple[str, EmailMessage]] = []
        self.answers: list[str] = []
        super().__init__(("127.0.0.1", 0), _Mail)


class _Mail(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, MailServer)
        to = ""
        self.wfile.write(b"220 hello\r\n")
        while line := self.rfile.readline().decode().strip():
            word = line.split(":")[0].split(" ")[0].upper()
            answer = "250 ok"
            if word == "EHLO":
                answer = "250-hello\r\n250 8BITMIME"
            elif word == "MAIL" and self.server.answers:
                answer = self.server.answers.pop(0)
            elif word == "RCPT":
                to = line.partition("<")[2]
            elif word == "DATA":
                self.wfile.write(b"354 go on\r\n")
                lines = []
                while (part := self.rfile.readline()) not in (b".\r\n", b""):
                    lines.append(part[1:] if part.startswith(b"..") else part)
                mail = message_from_bytes(b"".join(lines), policy=default)
                self.server.mails.append((to, mail))
            elif word == "QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            self.wfile.write(f"{answer}\r\n".encode())


@pytest.fixture
def mail_server() -> Iterator[MailServer]:
    server = MailServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.slow
def test_mail_is_what_alertmanager_sends(
    mail_server: MailServer, real_alertmanager: Callable[[str], str], our_alertmanager: Callable[[str], str]
) -> None:
    text = f"""
global:
  {{smtp_smarthost: "127.0.0.1:{mail_server.server_address[1]}", smtp_from: am@example.org, smtp_require_tls: false}}
route: {{receiver: m, group_by: [alertname], group_wait: 3s}}
receivers:
  - name: m
    email_configs:
      - {{to: WHO-one@example.org}}
      - to: "WHO-two@example.org"
        headers: {{subject: "{{{{ .Status }}}} {{{{ .CommonLabels.team }}}}", X-Own: own}}
        text: "{{{{ .CommonAnnotations.summary }}}}"
        html: "<p>{{{{ .CommonAnnotations.summary }}}}</p>"
"""
    for who, start in (("theirs", real_alertmanager), ("ours", our_alertmanager)):
        url = start(text.replace("WHO", who))
        body = posted(datetime.now(UTC), 3600, 3600)
        assert httpx.post(f"{url}/api/v2/alerts", json=body).status_code == 200
    deadline = time.monotonic() + 60
    while len(mail_server.mails) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)

    def sent(who: str) -> list[Any]:
        return sorted(
            (
                to.replace(who, ""), mail["Subject"], mail["From"], str(mail["To"]).replace(who, ""), mail["X-Own"],
                [(part.get_content_type(), part.get_content().split()) for part in mail.walk()
                 if not part.is_multipart()],
            )
            for to, mail in mail_server.mails if who in to
        )  # fmt: skip

    theirs, ours = sent("theirs"), sent("ours")
    assert len(ours) == 2
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == other


def test_a_mail_server_that_is_busy_is_tried_again_and_one_that_refuses_is_not(mail_server: MailServer) -> None:
    channel = MailChannel(
        templates=Templates(), host="127.0.0.1", port=mail_server.server_address[1], sender="a@b.c", to="d@e.f",
        text="{{ .Status }}", require_tls=False,
    )  # fmt: skip
    alert = MessageAlert(labels=(("alertname", "A"),), annotations=(), starts_at=1.0)
    message = Message(id="1", receiver="r", group_key="k", group_labels=(), alerts=(alert,))
    mail_server.answers = ["451 later", "550 never"]

    for final in (False, True):
        with pytest.raises(DeliveryError) as raised:
            channel.send(message, 5.0)
        assert raised.value.final is final
    channel.send(message, 5.0)
    assert [mail.get_content().strip() for _, mail in mail_server.mails] == ["firing"]
