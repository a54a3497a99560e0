"""The scrape configurations in effect, as `/api/v1/status/config` shows them: defaults filled in, secrets masked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import yaml

from collectors.scraping.client import ClientSettings, Secret, TlsSettings
from collectors.scraping.config import DEFAULT_PROTOCOLS, HttpDiscovery, ScrapeConfig, TargetGroup
from collectors.scraping.config_fields import Global
from collectors.scraping.relabel import RelabelRule
from observability.durations import duration_text

MASK = "<secret>"
_PASSWORD = "xxxxx"


def config_text(shared: Global, configs: Sequence[ScrapeConfig]) -> str:
    """Prometheus' file for these configurations. `read_scrape_configs` reads it to the same ones, but for secrets."""
    document = {"global": _shared(shared), "scrape_configs": [_scrape(config) for config in _gathered(configs)]}
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


def without_password(url: str) -> str:
    """The URL with what stands between `:` and `@` masked."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{parts.username}:{_PASSWORD}@{host}").geturl()


class _Dumper(yaml.SafeDumper):
    """Lists are indented and nothing is an anchor."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _gathered(configs: Iterable[ScrapeConfig]) -> list[ScrapeConfig]:
    """Configurations that differ in their targets alone as one: settings give each target one of its own."""
    found: list[ScrapeConfig] = []
    for config in configs:
        for number, other in enumerate(found):
            if replace(config, groups=()) == replace(other, groups=()) and config.groups and other.groups:
                found[number] = replace(other, groups=(*other.groups, *config.groups))
                break
        else:
            found.append(config)
    return found


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without what has nothing in it."""
    return {name: value for name, value in fields.items() if value not in ("", 0, False, None, [], {})}


def _shared(shared: Global) -> dict[str, Any]:
    own = {
        "scrape_interval": shared.scrape_interval,
        "scrape_timeout": shared.scrape_timeout,
        "evaluation_interval": shared.evaluation_interval,
    }
    return own | _given({"external_labels": dict(sorted(shared.external_labels.items()))})


def _scrape(config: ScrapeConfig) -> dict[str, Any]:
    limits = config.limits
    return {
        "job_name": config.job,
        **_given({"honor_labels": config.honor_labels}),
        "honor_timestamps": config.honor_timestamps,
        **_given({"track_timestamps_staleness": config.track_timestamps_staleness}),
        **_given({"params": {name: list(values) for name, values in config.params.items()}}),
        "scrape_interval": duration_text(config.interval_ms),
        "scrape_timeout": duration_text(config.timeout_ms),
        **({} if config.protocols == DEFAULT_PROTOCOLS else {"scrape_protocols": list(config.protocols)}),
        **_given({"fallback_scrape_protocol": config.fallback_protocol}),
        **({} if config.compression else {"enable_compression": False}),
        "metrics_path": config.metrics_path,
        "scheme": config.scheme,
        **_given(
            {
                "metric_name_validation_scheme": "legacy" if config.legacy_names else "",
                "metric_name_escaping_scheme": "" if config.escaping == _usual_escaping(config) else config.escaping,
                "body_size_limit": f"{limits.body_bytes}B" if limits.body_bytes else "",
                "sample_limit": limits.samples,
                "target_limit": config.target_limit,
                "label_limit": limits.labels,
                "label_name_length_limit": limits.label_name_length,
                "label_value_length_limit": limits.label_value_length,
                "keep_dropped_targets": config.keep_dropped_targets,
            }
        ),
        **_client(config.client),
        **_given(
            {
                "relabel_configs": [_rule(rule) for rule in config.relabel],
                "metric_relabel_configs": [_rule(rule) for rule in config.metric_relabel],
                "static_configs": [_group(group) for group in config.groups],
                "file_sd_configs": [{"files": list(item.patterns)} for item in config.files],
                "http_sd_configs": [_discovery(item) for item in config.urls],
            }
        ),
    }


def _usual_escaping(config: ScrapeConfig) -> str:
    return "underscores" if config.legacy_names else "allow-utf-8"


def _group(group: TargetGroup) -> dict[str, Any]:
    addresses = [target["__address__"] for target in group.targets]
    return {"targets": addresses} | _given({"labels": dict(sorted(group.labels.items()))})


def _discovery(source: HttpDiscovery) -> dict[str, Any]:
    refresh = {"refresh_interval": duration_text(source.refresh_ms)}
    return _client(source.client) | refresh | {"url": without_password(source.url)}


def _client(client: ClientSettings) -> dict[str, Any]:
    credentials = {"type": client.scheme} | _secret("credentials", client.credentials)
    basic = _secret("username", client.username, shown=True) | _secret("password", client.password)
    headers: dict[str, dict[str, list[str]]] = {}
    for name, value in client.headers:
        kind, text = ("files", value.file) if value.file else ("secrets", MASK)
        headers.setdefault(name, {}).setdefault(kind, []).append(text)
    return {
        **_given(
            {
                "basic_auth": basic,
                "authorization": credentials if client.credentials else {},
                "tls_config": _tls(client.tls),
            }
        ),
        "follow_redirects": client.follow_redirects,
        **_given(
            {
                "proxy_url": without_password(client.proxy_url),
                "proxy_from_environment": client.proxy_from_environment,
                "http_headers": headers,
            }
        ),
    }


def _secret(name: str, secret: Secret, *, shown: bool = False) -> dict[str, str]:
    return _given({name: secret.text if shown or not secret.text else MASK, f"{name}_file": secret.file})


def _tls(tls: TlsSettings) -> dict[str, Any]:
    return _given(
        {
            "ca": tls.ca,
            "ca_file": tls.ca_file,
            "cert_file": tls.cert_file,
            "key_file": tls.key_file,
            "server_name": tls.server_name,
            "insecure_skip_verify": tls.insecure_skip_verify,
            "min_version": tls.min_version,
            "max_version": tls.max_version,
        }
    )


def _rule(rule: RelabelRule) -> dict[str, Any]:
    given = {"source_labels": list(rule.source_labels), "separator": rule.separator, "regex": rule.regex}
    target = {"modulus": rule.modulus, "target_label": rule.target_label}
    # An empty separator or replacement is not the default: it is written.
    return (
        {name: value for name, value in given.items() if value != []}
        | _given(target)
        | {"replacement": rule.replacement, "action": rule.action}
    )
