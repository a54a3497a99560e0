"""Receivers of `alertmanager.yml`: each section becomes integrations, each with a channel that delivers.

A field or a service that cannot be carried out here is an error that names it: nothing is silently left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from alerts.notifications.apprise_channel import AppriseChannel
from alerts.notifications.channel import Channel
from alerts.notifications.chats import discord, pushover, slack, telegram, webex
from alerts.notifications.http_options import HttpOptions, Secret, read_http_options
from alerts.notifications.mail import email
from alerts.notifications.pagers import opsgenie, pagerduty, victorops
from alerts.notifications.section import Defaults, Section, http_url
from alerts.notifications.templating import Templates
from alerts.notifications.webhook import WebhookChannel
from alerts.notifications.yaml_reader import Value
from alerts.templates import TemplateError

GLOBAL_FIELDS = (
    "http_config", "smtp_from", "smtp_hello", "smtp_smarthost", "smtp_auth_username", "smtp_auth_password",
    "smtp_auth_password_file", "smtp_auth_secret", "smtp_auth_identity", "smtp_require_tls", "slack_api_url",
    "slack_api_url_file", "pagerduty_url", "opsgenie_api_url", "opsgenie_api_key", "opsgenie_api_key_file",
    "wechat_api_url", "wechat_api_secret", "wechat_api_corp_id", "victorops_api_url", "victorops_api_key",
    "victorops_api_key_file", "telegram_api_url", "webex_api_url",
)  # fmt: skip

_Read = Callable[[Value, Defaults], tuple[Channel, bool]]


@dataclass(frozen=True, slots=True)
class Integration:
    """One way in which a receiver is told; `id` is its name in the log of notifications."""

    id: str
    channel: Channel
    send_resolved: bool = True


@dataclass(frozen=True, slots=True)
class Receiver:
    """A name of the routing tree and the ways in which it is told."""

    name: str
    integrations: tuple[Integration, ...] = ()

    @classmethod
    def of(cls, name: str, channels: Sequence[Channel], *, send_resolved: bool = True) -> Receiver:
        """A receiver of channels, numbered by kind."""
        numbers: dict[str, int] = {}
        integrations = []
        for channel in channels:
            number = numbers[channel.kind] = numbers.get(channel.kind, -1) + 1
            integrations.append(Integration(f"{name}/{channel.kind}/{number}", channel, send_resolved))
        return cls(name, tuple(integrations))


def read_defaults(fields: Mapping[str, Value], templates: Sequence[str], folder: Path, whole: Value) -> Defaults:
    """The global section's fields. Raises ConfigurationError."""
    whole.one_of(fields.get("slack_api_url"), fields.get("slack_api_url_file"))
    whole.one_of(fields.get("opsgenie_api_key"), fields.get("opsgenie_api_key_file"))
    whole.one_of(fields.get("victorops_api_key"), fields.get("victorops_api_key_file"))
    whole.one_of(fields.get("smtp_auth_password"), fields.get("smtp_auth_password_file"))
    options = read_http_options(fields["http_config"], folder) if "http_config" in fields else HttpOptions()
    try:
        found = Templates(templates, folder)
    except (TemplateError, OSError, UnicodeDecodeError) as error:
        whole.fail(f"failed to parse templates: {error}")
    return Defaults(fields=fields, folder=folder, options=options, templates=found)


def read_receiver(value: Value, defaults: Defaults, *, build: set[str]) -> Receiver:
    """One receiver; its sections are checked always, and made to channels where a route uses it."""
    for section, item in value.entries():
        if section in _UNSUPPORTED:
            message = f"{section} is not supported here; name it by a URL in apprise_configs if apprise knows it"
            item.file.report(item.node, message)
    fields = value.fields(("name", *_SECTIONS, *_UNSUPPORTED))
    if "name" not in fields or not fields["name"].text():
        value.fail("missing name in receiver")
    name = fields["name"].text()
    found: list[Integration] = []
    for section, read in _SECTIONS.items():
        channels = fields[section].each(partial(_integration, read, defaults)) if section in fields else []
        for number, (channel, send_resolved) in enumerate(channels):
            found.append(Integration(f"{name}/{channel.kind}/{number}", channel, send_resolved))
    return Receiver(name, tuple(found) if name in build else ())


def _integration(read: _Read, defaults: Defaults, value: Value) -> tuple[Channel, bool]:
    return read(value, defaults)


def _webhook(value: Value, defaults: Defaults) -> tuple[Channel, bool]:
    section = Section(value, defaults, ("url", "url_file", "max_alerts", "timeout"))
    fields = section.fields
    value.one_of(fields.get("url"), fields.get("url_file"))
    if "url_file" in fields:
        url = Secret(path=defaults.folder / fields["url_file"].text())
    elif "url" in fields:
        url = Secret(http_url(fields["url"]))
    else:
        value.fail("missing URL in webhook config: give url or url_file")
    most = fields["max_alerts"].whole() if "max_alerts" in fields else 0
    if most < 0:
        fields["max_alerts"].fail(f"max_alerts must be at least 0, got {most}")
    channel = WebhookChannel(
        url,
        max_alerts=most,
        timeout_seconds=fields["timeout"].seconds() if "timeout" in fields else 0.0,
        options=section.options,
    )
    return channel, section.resolved(True)


def _apprise(value: Value, defaults: Defaults) -> tuple[Channel, bool]:
    fields = value.fields(("url", "send_resolved"))
    if "url" not in fields:
        value.fail("missing url in apprise config: give an apprise URL such as mailto://… or slack://…")
    send_resolved = fields["send_resolved"].flag() if "send_resolved" in fields else True
    return fields["url"].read(AppriseChannel), send_resolved


def simple_receiver(name: str, urls: Sequence[str], secret: str = "") -> Receiver:
    """A receiver of URLs: http and https get the webhook, signed if there is a secret; all others are apprise's."""
    return Receiver.of(name, list(_channels(urls, secret)))


def _channels(urls: Sequence[str], secret: str) -> Iterator[Channel]:
    for url in urls:
        webhook = url.startswith(("http://", "https://"))
        yield WebhookChannel(Secret(url), secret=secret) if webhook else AppriseChannel(url)


_SECTIONS: dict[str, _Read] = {
    "webhook_configs": _webhook,
    "email_configs": email,
    "pagerduty_configs": pagerduty,
    "opsgenie_configs": opsgenie,
    "slack_configs": slack,
    "victorops_configs": victorops,
    "pushover_configs": pushover,
    "telegram_configs": telegram,
    "discord_configs": discord,
    "webex_configs": webex,
    "apprise_configs": _apprise,
}
_UNSUPPORTED = ("wechat_configs", "sns_configs", "msteams_configs", "msteamsv2_configs", "jira_configs",
                "rocketchat_configs", "mattermost_configs", "incidentio_configs")  # fmt: skip
