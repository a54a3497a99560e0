"""Prometheus' configuration file: its `global` and `scrape_configs`, read strictly, with the line of what is wrong."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from collectors.scraping import config_fields as fields
from collectors.scraping.client import TLS_VERSIONS, ClientSettings, Secret, TlsSettings
from collectors.scraping.config import (
    DEFAULT_PROTOCOLS,
    PROTOCOLS,
    FileDiscovery,
    HttpDiscovery,
    Limits,
    ScrapeConfig,
    TargetGroup,
)
from collectors.scraping.quantities import size_bytes
from collectors.scraping.relabel import BadRule, RelabelRule
from collectors.scraping.yaml_text import Refused, check_keys, line_of, parsed
from observability.durations import duration_ms

# Sections that other parts of Trimtab, or none, have use for: a whole prometheus.yml can be named.
_OTHER_SECTIONS = ("alerting", "rule_files", "remote_write", "remote_read", "storage", "tracing", "runtime", "otlp")
_FILE_PATTERN = re.compile(r"[^*]*(\*[^/]*)?\.(json|yml|yaml|JSON|YML|YAML)")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>[^`]+)`")

logger = logging.getLogger(__name__)
Value = TypeVar("Value")


class BadConfig(ValueError):
    """A configuration that cannot be used; the message has the file, the line, the field and the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrapeFile:
    """What a file says of scraping. `patterns` are the globs of further files that it names."""

    shared: fields.Global
    configs: tuple[ScrapeConfig, ...]
    patterns: tuple[str, ...] = ()


def read_scrape_configs(path: str | Path) -> tuple[ScrapeConfig, ...]:
    """The scrape configurations of a Prometheus file, and of its `scrape_config_files`. BadConfig."""
    return read_scrape_file(path).configs


def read_scrape_file(path: str | Path) -> ScrapeFile:
    """A Prometheus file and its `scrape_config_files`. BadConfig.

    Relative paths in it are relative to its folder. Sections for other work (`rule_files`, `alerting`, …) are left.
    """
    file = _File(Path(path))
    found = file.configs()
    jobs = [config.job for config in found]
    for job in jobs:
        if jobs.count(job) > 1:
            raise BadConfig(f'{path}: found multiple scrape configs with job name "{job}"')
    return ScrapeFile(shared=file.shared, configs=found, patterns=file.patterns)


class _File:
    def __init__(self, path: Path, defaults: fields.Global | None = None) -> None:
        self._path = path
        self._defaults = defaults
        self.shared = defaults or fields.Global()
        self.patterns: tuple[str, ...] = ()
        try:
            body = path.read_text()
            self._root, data = parsed(body)
            self._data = data or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise BadConfig(f"{path}: {error}") from error

    def configs(self) -> tuple[ScrapeConfig, ...]:
        try:
            check_keys(self._root)
            return tuple(self._read())
        except Refused as error:
            line = line_of(self._root, error.where)
            raise BadConfig(f"{self._path}:{line}: {error.where.lstrip('.') or 'the file'}: {error}") from error

    def _read(self) -> Iterable[ScrapeConfig]:
        if not isinstance(self._data, dict):
            raise Refused("", "it is not a mapping: begin with scrape_configs:")
        others = [name for name in _OTHER_SECTIONS if name in self._data]
        if others:
            logger.info("%s: %s are not read from this file", self._path, ", ".join(others))
        own = {name: value for name, value in self._data.items() if name not in _OTHER_SECTIONS}
        document = _converted(own, fields.Document)
        shared = self.shared = self._defaults or document.shared
        self.patterns = tuple(str(self._path.parent / pattern) for pattern in document.scrape_config_files)
        for number, raw in enumerate(document.scrape_configs):
            yield _scrape_config(raw, shared, self._path.parent, f".scrape_configs[{number}]")
        for pattern in self.patterns:
            for other in sorted(glob.glob(pattern)):
                yield from _File(Path(other), shared).configs()


def _converted(data: Any, kind: type[Value]) -> Value:
    try:
        return msgspec.convert(data, kind, strict=False)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$")
        where = where.rstrip("`")
        unknown = _UNKNOWN.match(reason)
        if unknown is None:
            raise Refused(where, reason) from error
        name = unknown["field"]
        if name in fields.NOT_SUPPORTED or name.endswith("_sd_configs"):
            raise Refused(f"{where}.{name}", "Trimtab's collector does not support this field of Prometheus") from error
        raise Refused(f"{where}.{name}", f"unknown field {name!r}") from error


def _scrape_config(raw: fields.Scrape, shared: fields.Global, folder: Path, where: str) -> ScrapeConfig:
    if not raw.job_name:
        raise Refused(f"{where}.job_name", "job_name is empty")
    interval = _checked(duration_ms, raw.scrape_interval or shared.scrape_interval, f"{where}.scrape_interval")
    if raw.scrape_timeout:
        timeout = _checked(duration_ms, raw.scrape_timeout, f"{where}.scrape_timeout")
    else:
        timeout = min(interval, _checked(duration_ms, shared.scrape_timeout, ".global.scrape_timeout"))
    if timeout > interval:
        reason = f'scrape timeout greater than scrape interval for scrape config with job name "{raw.job_name}"'
        raise Refused(f"{where}.scrape_timeout", reason)
    if interval == 0 or timeout == 0:
        raise Refused(f"{where}.scrape_interval", "the scrape interval and timeout must be above 0")
    if raw.scheme not in ("http", "https"):
        raise Refused(f"{where}.scheme", f"{raw.scheme!r} is neither http nor https")
    scheme_of_names = raw.metric_name_validation_scheme or shared.metric_name_validation_scheme
    escaping = raw.metric_name_escaping_scheme or shared.metric_name_escaping_scheme
    protocols = raw.scrape_protocols or shared.scrape_protocols
    return ScrapeConfig(
        job=raw.job_name,
        interval_ms=interval,
        timeout_ms=timeout,
        metrics_path=raw.metrics_path,
        scheme=raw.scheme,
        params={name: tuple(values) for name, values in raw.params.items()},
        honor_labels=raw.honor_labels,
        honor_timestamps=raw.honor_timestamps,
        track_timestamps_staleness=raw.track_timestamps_staleness,
        protocols=_protocols(protocols, f"{where}.scrape_protocols") if protocols else DEFAULT_PROTOCOLS,
        fallback_protocol="".join(
            _protocols([raw.fallback_scrape_protocol], f"{where}.fallback_scrape_protocol")
            if raw.fallback_scrape_protocol
            else []
        ),
        escaping=escaping or ("underscores" if scheme_of_names == "legacy" else "allow-utf-8"),
        legacy_names=scheme_of_names == "legacy",
        compression=raw.enable_compression,
        limits=Limits(
            body_bytes=_checked(size_bytes, raw.body_size_limit or shared.body_size_limit, f"{where}.body_size_limit"),
            samples=raw.sample_limit or shared.sample_limit,
            labels=raw.label_limit or shared.label_limit,
            label_name_length=raw.label_name_length_limit or shared.label_name_length_limit,
            label_value_length=raw.label_value_length_limit or shared.label_value_length_limit,
        ),
        target_limit=raw.target_limit or shared.target_limit,
        keep_dropped_targets=raw.keep_dropped_targets or shared.keep_dropped_targets,
        client=_client(raw, folder, where),
        groups=_groups(raw.static_configs, where),
        files=tuple(
            FileDiscovery(patterns=_file_patterns(item.files, folder, f"{where}.file_sd_configs[{number}]"))
            for number, item in enumerate(raw.file_sd_configs)
        ),
        urls=tuple(
            _http_discovery(item, folder, f"{where}.http_sd_configs[{number}]")
            for number, item in enumerate(raw.http_sd_configs)
        ),
        relabel=_rules(raw.relabel_configs, f"{where}.relabel_configs"),
        metric_relabel=_rules(raw.metric_relabel_configs, f"{where}.metric_relabel_configs"),
    )


def _groups(raw: list[fields.StaticGroup], where: str) -> tuple[TargetGroup, ...]:
    for number, group in enumerate(raw):
        for address in group.targets:
            if "/" in address:
                raise Refused(f"{where}.static_configs[{number}].targets", f'"{address}" is not a valid hostname')
    return tuple(TargetGroup(tuple({"__address__": item} for item in group.targets), group.labels) for group in raw)


def _file_patterns(patterns: list[str], folder: Path, where: str) -> tuple[str, ...]:
    if not patterns:
        raise Refused(f"{where}.files", "file service discovery config must contain at least one path name")
    for pattern in patterns:
        if not _FILE_PATTERN.fullmatch(pattern):
            raise Refused(f"{where}.files", f'path name "{pattern}" is not valid for file discovery')
    return tuple(str(folder / pattern) for pattern in patterns)


def _http_discovery(raw: fields.HttpGroups, folder: Path, where: str) -> HttpDiscovery:
    if not raw.url:
        raise Refused(f"{where}.url", "URL is missing")
    if not raw.url.startswith(("http://", "https://")):
        raise Refused(f"{where}.url", "URL scheme must be 'http' or 'https'")
    refresh = _checked(duration_ms, raw.refresh_interval, f"{where}.refresh_interval")
    if refresh == 0:
        raise Refused(f"{where}.refresh_interval", "it must be above 0")
    return HttpDiscovery(url=raw.url, refresh_ms=refresh, client=_client(raw, folder, where))


def _rules(raw: list[fields.Relabel], where: str) -> tuple[RelabelRule, ...]:
    rules = []
    for number, item in enumerate(raw):
        try:
            rules.append(
                RelabelRule(
                    action=item.action.lower(),  # type: ignore[arg-type]
                    source_labels=tuple(item.source_labels),
                    separator=item.separator,
                    regex=item.regex,
                    modulus=item.modulus,
                    target_label=item.target_label,
                    replacement=item.replacement,
                )
            )
        except BadRule as error:
            raise Refused(f"{where}[{number}]", str(error)) from error
    return tuple(rules)


def _protocols(named: list[str], where: str) -> tuple[str, ...]:
    for number, name in enumerate(named):
        if name not in PROTOCOLS:
            raise Refused(where, f"unknown scrape protocol {name!r}: there are {', '.join(PROTOCOLS)}")
        if name in named[:number]:
            raise Refused(where, f"duplicated protocol {name!r}")
    return tuple(named)


def _client(raw: fields.Client, folder: Path, where: str) -> ClientSettings:
    basic, given = raw.basic_auth, raw.authorization
    bearer = fields.Authorization(credentials=raw.bearer_token, credentials_file=raw.bearer_token_file)
    if given is None and (bearer.credentials or bearer.credentials_file):
        given = bearer
    if basic is not None and given is not None:
        raise Refused(where, "at most one of basic_auth, authorization & bearer_token must be configured")
    if given is not None and given.type.lower() == "basic":
        reason = 'authorization type cannot be set to "basic", use "basic_auth" instead'
        raise Refused(f"{where}.authorization.type", reason)
    settings = ClientSettings(
        tls=_tls(raw.tls_config, folder, f"{where}.tls_config"),
        follow_redirects=raw.follow_redirects,
        proxy_url=raw.proxy_url,
        proxy_from_environment=raw.proxy_from_environment,
        headers=_headers(raw.http_headers, folder),
    )
    if basic is not None:
        return replace(
            settings,
            username=_secret(basic.username, basic.username_file, folder, f"{where}.basic_auth.username"),
            password=_secret(basic.password, basic.password_file, folder, f"{where}.basic_auth.password"),
        )
    if given is not None:
        secret = _secret(given.credentials, given.credentials_file, folder, f"{where}.authorization.credentials")
        return replace(settings, scheme=given.type, credentials=secret)
    return settings


def _headers(raw: Mapping[str, fields.Header], folder: Path) -> tuple[tuple[str, Secret], ...]:
    return tuple(
        (name, secret)
        for name, header in raw.items()
        for secret in (
            *(Secret(text=text) for text in (*header.values, *header.secrets)),
            *(Secret(file=str(folder / file)) for file in header.files),
        )
    )


def _tls(raw: fields.Tls, folder: Path, where: str) -> TlsSettings:
    if bool(raw.cert_file) != bool(raw.key_file):
        raise Refused(where, "cert_file and key_file go together: a client's certificate needs its key")
    for name, version in (("min_version", raw.min_version), ("max_version", raw.max_version)):
        if version and version not in TLS_VERSIONS:
            raise Refused(f"{where}.{name}", f"unknown TLS version {version!r}: there are {', '.join(TLS_VERSIONS)}")
    return TlsSettings(
        ca=raw.ca,
        ca_file=_beside(folder, raw.ca_file),
        cert_file=_beside(folder, raw.cert_file),
        key_file=_beside(folder, raw.key_file),
        server_name=raw.server_name,
        insecure_skip_verify=raw.insecure_skip_verify,
        min_version=raw.min_version,
        max_version=raw.max_version,
    )


def _secret(text: str, file: str, folder: Path, where: str) -> Secret:
    if text and file:
        name = where.rsplit(".", 1)[1]
        raise Refused(where, f"at most one of {name} & {name}_file must be configured")
    return Secret(text=text, file=_beside(folder, file))


def _beside(folder: Path, name: str) -> str:
    return str(folder / name) if name else ""


def _checked(parse: Callable[[str], int], text: str, where: str) -> int:
    try:
        return parse(text)
    except ValueError as error:
        raise Refused(where, str(error)) from error
