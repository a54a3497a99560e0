"""Services that page: PagerDuty, Opsgenie and VictorOps, in which the end of an alert ends its incident.

What is sent is what Alertmanager sends. Source: Alertmanager, notify/pagerduty, notify/opsgenie, notify/victorops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import urljoin

from alerts.notifications.channel import Channel
from alerts.notifications.http_options import read_secret
from alerts.notifications.ledger import digest
from alerts.notifications.section import Defaults, Section
from alerts.notifications.service_channel import Filling, ServiceRequest, without_empty
from alerts.notifications.yaml_reader import Value

_PAGERDUTY = ("service_key", "service_key_file", "routing_key", "routing_key_file", "url", "client", "client_url",
              "description", "details", "images", "links", "source", "severity", "class", "component",
              "group")  # fmt: skip
_PAGERDUTY_V1 = "https://events.pagerduty.com/generic/2010-04-15/create_event.json"
_OPSGENIE = ("api_key", "api_key_file", "api_url", "message", "description", "source", "details", "entity",
             "responders", "actions", "tags", "note", "priority", "update_alerts")  # fmt: skip
_VICTOROPS = ("api_key", "api_key_file", "api_url", "routing_key", "message_type", "state_message",
              "entity_display_name", "monitoring_tool", "custom_fields")  # fmt: skip
_FORBIDDEN_FIELDS = frozenset(("routing_key", "message_type", "state_message", "entity_display_name", "monitoring_tool",
                               "entity_id", "entity_state"))  # fmt: skip
_DETAILS = {
    "firing": '{{ template "pagerduty.default.instances" .Alerts.Firing }}',
    "resolved": '{{ template "pagerduty.default.instances" .Alerts.Resolved }}',
    "num_firing": "{{ .Alerts.Firing | len }}",
    "num_resolved": "{{ .Alerts.Resolved | len }}",
}


def pagerduty(value: Value, defaults: Defaults) -> tuple[Channel, bool]:
    """A `pagerduty_configs` item: the Events API v2, or v1 with a service key."""
    section = Section(value, defaults, _PAGERDUTY)
    fields = section.fields
    service = read_secret(value, fields, "service_key", defaults.folder)
    routing = read_secret(value, fields, "routing_key", defaults.folder)
    first = "service_key" in fields or "service_key_file" in fields
    if not first and "routing_key" not in fields and "routing_key_file" not in fields:
        value.fail("missing service or routing key in PagerDuty config")
    url = section.url("url", "pagerduty_url", "https://events.pagerduty.com/v2/enqueue")
    client = section.text("client", '{{ template "pagerduty.default.client" . }}')
    client_url = section.text("client_url", '{{ template "pagerduty.default.clientURL" . }}')
    description = section.text("description", '{{ template "pagerduty.default.description" .}}')
    details = {**_DETAILS, **section.mapping("details")}
    source = section.text("source", client)
    severity = section.text("severity", "error")
    more = {name: section.text(name, "") for name in ("class", "component", "group")}
    images = section.structures("images", ("src", "alt", "href"))
    links = section.structures("links", ("href", "text"))

    def requests(fill: Filling) -> Sequence[ServiceRequest]:
        event = "trigger" if fill.message.status == "firing" else "resolve"
        key, summary = digest(fill.message.group_key), fill.text(description, most=1024)
        if first:
            named = {"client": fill.text(client), "client_url": fill.text(client_url)} if event == "trigger" else {}
            old: dict[str, object] = {
                "service_key": fill.text(service.get()),
                "incident_key": key,
                "event_type": event,
                "description": summary,
                "details": fill.texts(details),
                **named,
            }
            return [ServiceRequest(_PAGERDUTY_V1, {**without_empty(old), "event_action": "", "payload": None})]
        payload = {
            **without_empty(fill.texts(more)),
            "summary": summary,
            "source": fill.text(source),
            "severity": fill.text(severity),
            "custom_details": fill.texts(details),
        }
        body: dict[str, object] = {
            "routing_key": fill.text(routing.get()),
            "dedup_key": key,
            "client": fill.text(client),
            "client_url": fill.text(client_url),
            "images": [image for image in map(fill.texts, images) if image["src"]],
            "links": [link for link in map(fill.texts, links) if link["href"]],
        }
        return [ServiceRequest(url, {**without_empty(body), "event_action": event, "payload": payload})]

    return section.channel("pagerduty", requests, retried=(403,) if first else ()), section.resolved(True)


def opsgenie(value: Value, defaults: Defaults) -> tuple[Channel, bool]:
    """An `opsgenie_configs` item."""
    section = Section(value, defaults, _OPSGENIE)
    key = section.secret("api_key", "opsgenie_api_key")
    if key is None:
        value.fail("no global OpsGenie API Key set either inline or in a file")
    base = section.url("api_url", "opsgenie_api_url", "https://api.opsgenie.com/").rstrip("/") + "/"
    message = section.text("message", '{{ template "opsgenie.default.message" . }}')
    description = section.text("description", '{{ template "opsgenie.default.description" . }}')
    source = section.text("source", '{{ template "opsgenie.default.source" . }}')
    details = section.mapping("details")
    plain = {name: section.text(name, "") for name in ("note", "priority", "entity")}
    lists = {name: section.text(name, "") for name in ("tags", "actions")}
    responders = section.structures("responders", ("id", "name", "username", "type"))
    for responder in responders:
        if not (responder["id"] or responder["name"] or responder["username"]):
            value.fail("an Opsgenie responder has to have at least one of id, username or name specified")
        kind = responder["type"]
        if "{{" not in kind and kind.lower() not in ("team", "teams", "user", "escalation", "schedule"):
            value.fail(f"Opsgenie responder type {kind!r} is none of team, teams, user, escalation, schedule")
    updates = "update_alerts" in section.fields and section.fields["update_alerts"].flag()

    def requests(fill: Filling) -> Sequence[ServiceRequest]:
        alias = digest(fill.message.group_key)
        headers = {"Authorization": f"GenieKey {fill.text(key.get())}"}
        if fill.message.status == "resolved":
            url = urljoin(base, f"v2/alerts/{alias}/close?identifierType=alias")
            return [ServiceRequest(url, {"source": fill.text(source)}, headers=headers)]
        labels = fill.message.to_json()["commonLabels"]
        title, text = fill.text(message, most=130), fill.text(description)
        body = {
            "alias": alias,
            "message": title,
            "details": {**labels, **fill.texts(details)},
            "source": fill.text(source),
            **without_empty(
                {
                    "description": text,
                    "responders": [each for item in responders for each in _responders(fill.texts(item))],
                    **fill.texts(plain),
                    **{name: _split(fill.text(template)) for name, template in lists.items()},
                }
            ),
        }
        made = [ServiceRequest(urljoin(base, "v2/alerts"), body, headers=headers)]
        for name, new in (("message", title), ("description", text)) if updates else ():
            url = urljoin(base, f"v2/alerts/{alias}/{name}?identifierType=alias")
            made.append(ServiceRequest(url, without_empty({name: new}), "PUT", headers))
        return made

    return section.channel("opsgenie", requests), section.resolved(True)


def victorops(value: Value, defaults: Defaults) -> tuple[Channel, bool]:
    """A `victorops_configs` item."""
    section = Section(value, defaults, _VICTOROPS)
    key = section.secret("api_key", "victorops_api_key")
    if key is None:
        value.fail("no global VictorOps API Key set")
    if "routing_key" not in section.fields:
        value.fail("missing Routing key in VictorOps config")
    own = "https://alert.victorops.com/integrations/generic/20131114/alert/"
    base = section.url("api_url", "victorops_api_url", own).rstrip("/") + "/"
    routing = section.text("routing_key", "")
    kind = section.text("message_type", "CRITICAL")
    state = section.text("state_message", '{{ template "victorops.default.state_message" . }}')
    texts = {
        "entity_display_name": section.text(
            "entity_display_name", '{{ template "victorops.default.entity_display_name" . }}'
        ),
        "monitoring_tool": section.text("monitoring_tool", '{{ template "victorops.default.monitoring_tool" . }}'),
        **section.mapping("custom_fields"),
    }
    taken = _FORBIDDEN_FIELDS & set(section.mapping("custom_fields"))
    if taken:
        value.fail(f"victorOps config contains custom field {min(taken)}, which conflicts with a fixed field")

    def requests(fill: Filling) -> Sequence[ServiceRequest]:
        asked = fill.text(kind)
        firing = asked if asked in ("INFO", "WARNING", "CRITICAL") else "CRITICAL"
        body = {
            "message_type": firing if fill.message.status == "firing" else "RECOVERY",
            "entity_id": digest(fill.message.group_key),
            "state_message": fill.text(state, most=20480),
            **fill.texts(texts),
        }
        return [ServiceRequest(f"{base}{key.get()}/{fill.text(routing)}", body)]

    return section.channel("victorops", requests), section.resolved(True)


def _responders(responder: Mapping[str, str]) -> list[dict[str, str]]:
    if not any(responder.values()):
        return []
    if responder["type"] == "teams":
        return [{"name": team, "type": "team"} for team in _split(responder["name"])]
    return [{**without_empty(responder), "type": responder["type"]}]


def _split(text: str) -> list[str]:
    return [part for part in text.strip().split(",") if part]
