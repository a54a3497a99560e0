"""A section of a receiver while it is read: its fields, with the global ones behind them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from alerts.notifications.http_options import HttpOptions, Secret, read_http_options, read_secret
from alerts.notifications.service_channel import Filling, ServiceChannel, ServiceRequest
from alerts.notifications.templating import Templates
from alerts.notifications.yaml_reader import Value


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What `global` and `templates` give to all receivers."""

    fields: Mapping[str, Value]
    folder: Path
    options: HttpOptions
    templates: Templates


class Section:
    """The fields of a section; all methods raise ConfigurationError, with the line. An unknown field is one."""

    def __init__(self, value: Value, defaults: Defaults, known: Collection[str]) -> None:
        self.value = value
        self.fields = value.fields(("send_resolved", "http_config", *known))
        self.defaults = defaults

    @property
    def options(self) -> HttpOptions:
        """The section's own `http_config`, else the global one."""
        if "http_config" in self.fields:
            return read_http_options(self.fields["http_config"], self.defaults.folder)
        return self.defaults.options

    def resolved(self, default: bool) -> bool:
        """Whether the receiver hears of the end of alerts."""
        return self.flag("send_resolved", default)

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        return self.fields[name].flag() if name in self.fields else default

    def text(self, name: str, default: str) -> str:
        """A template."""
        return self.fields[name].read(self.defaults.templates.check) if name in self.fields else default

    def mapping(self, name: str) -> dict[str, str]:
        """Templates by name."""
        if name not in self.fields:
            return {}
        return {key: value.read(self.defaults.templates.check) for key, value in self.fields[name].entries()}

    def structures(self, name: str, known: Sequence[str]) -> list[dict[str, str]]:
        """A list of mappings of templates; what is not there is empty."""
        items = self.fields[name].items() if name in self.fields else []
        found = []
        for item in items:
            own = item.fields(known)
            found.append({key: own[key].read(self.defaults.templates.check) if key in own else "" for key in known})
        return found

    def secret(self, name: str, shared: str) -> Secret | None:
        """The field or the file that NAME_file names, else the global one of the name `shared`."""
        for fields, own in ((self.fields, name), (self.defaults.fields, shared)):
            if own in fields or f"{own}_file" in fields:
                return read_secret(self.value, fields, own, self.defaults.folder)
        return None

    def url(self, name: str, shared: str, default: str) -> str:
        """The field, else the global one, else the service's own."""
        for fields, own in ((self.fields, name), (self.defaults.fields, shared)):
            if own in fields:
                return http_url(fields[own])
        return default

    def channel(
        self, kind: str, requests: Callable[[Filling], Sequence[ServiceRequest]], *, retried: Collection[int] = ()
    ) -> ServiceChannel:
        """The channel of the section."""
        return ServiceChannel(kind, requests, templates=self.defaults.templates, options=self.options, retried=retried)


def http_url(value: Value) -> str:
    """An http or https URL; raises ConfigurationError."""
    text = value.text()
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https"):
        value.fail(f'{value.what}: unsupported scheme "{parts.scheme}" for URL')
    if not parts.netloc:
        value.fail(f"{value.what}: missing host for URL")
    return text
