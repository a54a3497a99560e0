"""Targets as Trimtab's own settings name them, as scrape configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from collectors.scraping.config import FileDiscovery, ScrapeConfig, TargetGroup

FILES_JOB = "file_sd"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScrapeTarget:
    """One page to scrape. `labels` are put on every series, besides `job` and `instance` (host:port of the URL)."""

    url: str
    job: str
    labels: Mapping[str, str] = field(default_factory=dict)
    honor_labels: bool = False

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"a scrape target's url begins with http:// or https://, not {self.url!r}")

    @property
    def instance(self) -> str:
        return urlsplit(self.url).netloc

    def config(self, interval_ms: int, timeout_ms: int) -> ScrapeConfig:
        """The configuration that has this target alone."""
        parts = urlsplit(self.url)
        return ScrapeConfig(
            job=self.job,
            interval_ms=interval_ms,
            timeout_ms=timeout_ms,
            metrics_path=parts.path or "/",
            scheme=parts.scheme,
            params={name: tuple(values) for name, values in parse_qs(parts.query, keep_blank_values=True).items()},
            honor_labels=self.honor_labels,
            groups=(TargetGroup(({"__address__": parts.netloc},), self.labels),),
        )


def files_config(patterns: Sequence[str], interval_ms: int, timeout_ms: int) -> ScrapeConfig:
    """The configuration of `file_sd` files outside any other: the label `job` of a group is its job."""
    files = (FileDiscovery(patterns=tuple(patterns)),)
    return ScrapeConfig(job=FILES_JOB, interval_ms=interval_ms, timeout_ms=timeout_ms, files=files)
