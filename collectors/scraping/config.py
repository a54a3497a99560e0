"""One scrape configuration: which targets there are, how they are asked, and what is kept of their pages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from collectors.scraping.client import ClientSettings
from collectors.scraping.relabel import RelabelRule

PROTOCOLS = {
    "PrometheusProto": "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
    "PrometheusText0.0.4": "text/plain;version=0.0.4",
    "PrometheusText1.0.0": "text/plain;version=1.0.0",
    "OpenMetricsText0.0.1": "application/openmetrics-text;version=0.0.1",
    "OpenMetricsText1.0.0": "application/openmetrics-text;version=1.0.0",
}
DEFAULT_PROTOCOLS = ("OpenMetricsText1.0.0", "OpenMetricsText0.0.1", "PrometheusText1.0.0", "PrometheusText0.0.4")
_WITH_ESCAPING = ("PrometheusText1.0.0", "OpenMetricsText1.0.0")


@dataclass(frozen=True, slots=True)
class TargetGroup:
    """Addresses (as label sets with `__address__`) that share labels."""

    targets: tuple[Mapping[str, str], ...]
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDiscovery:
    """`file_sd_configs`: groups from JSON and YAML files, read again when they change. `patterns` are globs."""

    patterns: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpDiscovery:
    """`http_sd_configs`: groups from a URL, asked every `refresh_ms`."""

    url: str
    refresh_ms: int = 60_000
    client: ClientSettings = field(default_factory=ClientSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a page may hold; 0 is no limit. A page beyond a limit is a failed scrape. Lengths are UTF-8 bytes."""

    body_bytes: int = 0
    samples: int = 0
    labels: int = 0
    label_name_length: int = 0
    label_value_length: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrapeConfig:
    """One element of `scrape_configs`; its targets are the scrape pool of this name. Times in milliseconds."""

    job: str
    interval_ms: int = 60_000
    timeout_ms: int = 10_000
    metrics_path: str = "/metrics"
    scheme: str = "http"
    params: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    honor_labels: bool = False
    honor_timestamps: bool = True
    track_timestamps_staleness: bool = False
    protocols: tuple[str, ...] = DEFAULT_PROTOCOLS
    fallback_protocol: str = ""
    escaping: str = "allow-utf-8"
    legacy_names: bool = False
    """Refuse pages with names that are not letters, digits, underscores (and colons), as Prometheus 2 does."""
    compression: bool = True
    limits: Limits = field(default_factory=Limits)
    target_limit: int = 0
    keep_dropped_targets: int = 0
    client: ClientSettings = field(default_factory=ClientSettings)
    groups: tuple[TargetGroup, ...] = ()
    files: tuple[FileDiscovery, ...] = ()
    urls: tuple[HttpDiscovery, ...] = ()
    relabel: tuple[RelabelRule, ...] = ()
    metric_relabel: tuple[RelabelRule, ...] = ()

    @property
    def accept(self) -> str:
        """The `Accept` header: the protocols in their order, with falling weights, as Prometheus 3 sends it."""
        weights = range(len(PROTOCOLS) + 1, 0, -1)
        parts = [
            f"{PROTOCOLS[name]}{f';escaping={self.escaping}' if name in _WITH_ESCAPING else ''};q=0.{weight}"
            for name, weight in zip(self.protocols, weights, strict=False)
        ]
        return ",".join([*parts, f"*/*;q=0.{len(PROTOCOLS) + 1 - len(self.protocols)}"])
