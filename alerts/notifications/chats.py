"""Services that people read: Slack, Discord, Telegram, Webex over HTTP; Pushover by apprise.

What is sent over HTTP is what Alertmanager sends. Source: Alertmanager, notify/slack and its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from alerts.notifications.apprise_channel import AppriseChannel
from alerts.notifications.channel import Channel
from alerts.notifications.section import Defaults, Section, http_url
from alerts.notifications.service_channel import Filling, ServiceRequest, without_empty
from alerts.notifications.yaml_reader import Value

_SLACK_TEXTS = {
    "title_link": '{{ template "slack.default.titlelink" . }}',
    "pretext": '{{ template "slack.default.pretext" . }}',
    "text": '{{ template "slack.default.text" . }}',
    "fallback": '{{ template "slack.default.fallback" . }}',
    "callback_id": '{{ template "slack.default.callbackid" . }}',
    "image_url": "",
    "thumb_url": "",
    "footer": '{{ template "slack.default.footer" . }}',
    "color": '{{ if eq .Status "firing" }}danger{{ else }}good{{ end }}',
}
_SLACK_ALWAYS = ("text", "fallback", "callback_id", "footer")
_SLACK_TOP = {
    "channel": "",
    "username": '{{ template "slack.default.username" . }}',
    "icon_emoji": '{{ template "slack.default.iconemoji" . }}',
    "icon_url": '{{ template "slack.default.iconurl" . }}',
}
_COLOURS = {"firing": 0x992D22, "resolved": 0x2ECC71}


def slack(value: Value, defaults: Defaults) -> tuple[Channel, bool]:
    """A `slack_configs` item; `actions` are not supported, since nothing here would answer them."""
    known = ("api_url", "api_url_file", "title", "fields", "short_fields", "link_names", "mrkdwn_in")
    section = Section(value, defaults, (*known, *_SLACK_TEXTS, *_SLACK_TOP))
    url = section.secret("api_url", "slack_api_url")
    if url is None:
        value.fail("no global Slack API URL set either inline or in a file")
    if url.path is None:
        http_url(section.fields.get("api_url") or defaults.fields["slack_api_url"])
    title = section.text("title", '{{ template "slack.default.title" . }}')
    texts = {name: section.text(name, default) for name, default in _SLACK_TEXTS.items()}
    top = {name: section.text(name, default) for name, default in _SLACK_TOP.items()}
    columns = section.structures("fields", ("title", "value", "short"))
    for column in columns:
        if not column["title"] or not column["value"]:
            value.fail(f"missing {'value' if column['title'] else 'title'} in Slack field configuration")
    short, link_names = section.flag("short_fields"), section.flag("link_names")
    markdown = section.fields["mrkdwn_in"].texts() if "mrkdwn_in" in section.fields else []

    def requests(fill: Filling) -> Sequence[ServiceRequest]:
        filled = fill.texts(texts)
        attachment: dict[str, Any] = {
            **without_empty({"title": fill.text(title, most=1024), **filled}),
            **{name: filled[name] for name in _SLACK_ALWAYS},
            "mrkdwn_in": markdown or ["fallback", "pretext", "text"],
        }
        if columns:
            attachment["fields"] = [
                {
                    **without_empty({"title": fill.text(column["title"]), "value": fill.text(column["value"])}),
                    "short": column["short"].lower() == "true" if column["short"] else short,
                }
                for column in columns
            ]
        body = without_empty({**fill.texts(top), "link_names": link_names})
        return [ServiceRequest(url.get(), {**body, "attachments": [attachment]})]

    return section.channel("slack", requests), section.resolved(False)


def discord(value: Value, defaults: Defaults) -> tuple[Channel, bool]:
    """A `discord_configs` item."""
    section = Section(value, defaults, ("webhook_url", "webhook_url_file", "title", "message"))
    url = section.secret("webhook_url", "")
    if url is None:
        value.fail("no discord webhook URL provided")
    title = section.text("title", '{{ template "discord.default.title" . }}')
    message = section.text("message", '{{ template "discord.default.message" . }}')

    def requests(fill: Filling) -> Sequence[ServiceRequest]:
        embed = {
            "title": fill.text(title, most=256),
            "description": fill.text(message, most=4096),
            "color": _COLOURS[fill.message.status],
        }
        return [ServiceRequest(url.get(), {"content": "", "embeds": [embed]})]

    return section.channel("discord", requests), section.resolved(True)


def telegram(value: Value, defaults: Defaults) -> tuple[Channel, bool]:
    """A `telegram_configs` item."""
    known = ("api_url", "bot_token", "bot_token_file", "chat_id", "message", "disable_notifications", "parse_mode")
    section = Section(value, defaults, known)
    token = section.secret("bot_token", "")
    if token is None:
        value.fail("missing bot_token on telegram_config")
    chat = section.fields["chat_id"].whole() if "chat_id" in section.fields else 0
    if not chat:
        value.fail("missing chat_id on telegram_config")
    base = section.url("api_url", "telegram_api_url", "https://api.telegram.org").rstrip("/")
    message = section.text("message", '{{ template "telegram.default.message" . }}')
    mode = section.fields["parse_mode"].text() if "parse_mode" in section.fields else "HTML"
    if mode not in ("", "Markdown", "MarkdownV2", "HTML"):
        value.fail("unknown parse_mode on telegram_config, must be Markdown, MarkdownV2, HTML or empty string")
    quiet = section.flag("disable_notifications")

    def requests(fill: Filling) -> Sequence[ServiceRequest]:
        body = {
            "chat_id": str(chat),
            "text": fill.text(message, most=4096, escaped=mode == "HTML"),
            "disable_web_page_preview": "true",
            **without_empty({"parse_mode": mode, "disable_notification": "true" if quiet else ""}),
        }
        return [ServiceRequest(f"{base}/bot{token.get()}/sendMessage", body)]

    return section.channel("telegram", requests), section.resolved(True)


def webex(value: Value, defaults: Defaults) -> tuple[Channel, bool]:
    """A `webex_configs` item."""
    section = Section(value, defaults, ("api_url", "message", "room_id"))
    if "room_id" not in section.fields:
        value.fail("missing room_id on webex_config")
    if not section.options.scheme:
        value.fail("missing webex_configs.http_config.authorization")
    url = section.url("api_url", "webex_api_url", "https://webexapis.com/v1/messages")
    message = section.text("message", '{{ template "webex.default.message" . }}')
    room = section.fields["room_id"].text()

    def requests(fill: Filling) -> Sequence[ServiceRequest]:
        return [ServiceRequest(url, {"markdown": fill.text(message, most=7439), "roomId": room})]

    return section.channel("webex", requests), section.resolved(True)


def pushover(value: Value, defaults: Defaults) -> tuple[Channel, bool]:
    """A `pushover_configs` item, by apprise."""
    fields = value.fields(
        ("send_resolved", "user_key", "token", "title", "message", "sound"),
        ("http_config", "url", "url_title", "priority", "retry", "expire", "html", "user_key_file", "token_file",
         "device", "ttl", "monospace"),
    )  # fmt: skip
    for name in ("user_key", "token"):
        if name not in fields:
            value.fail(f"missing {name.replace('_', ' ')} in Pushover config")
    check = defaults.templates.check
    title = fields["title"].read(check) if "title" in fields else '{{ template "pushover.default.title" . }}'
    message = fields["message"].read(check) if "message" in fields else '{{ template "pushover.default.message" . }}'
    sound = f"?sound={quote(fields['sound'].text())}" if "sound" in fields else ""
    channel = AppriseChannel(
        f"pover://{quote(fields['user_key'].text())}@{quote(fields['token'].text())}{sound}",
        kind="pushover",
        title=lambda each: defaults.templates.expand(title, each),
        text=lambda each: defaults.templates.expand(message, each).strip() or "(no details)",
    )
    return channel, fields["send_resolved"].flag() if "send_resolved" in fields else True
