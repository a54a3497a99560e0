"""A target: what was discovered of it, relabelled into what is asked and what its series are called."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode

from collectors.scraping.config import ScrapeConfig, TargetGroup
from collectors.scraping.relabel import relabelled
from observability.durations import duration_ms, duration_text

RESERVED, META, PARAMETER = "__", "__meta_", "__param_"


class BadTarget(ValueError):
    """A discovered target that cannot be scraped; the message says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """One page to scrape. `labels` are all that relabelling left, those that begin with `__` among them."""

    config: ScrapeConfig
    discovered: Mapping[str, str]
    labels: Mapping[str, str]
    url: str
    interval_ms: int
    timeout_ms: int
    series_labels: Mapping[str, str]
    """What is put on every series of the page."""
    name: str = field(default="")
    """What tells this target from others in the store: the same after a restart."""


@dataclass(frozen=True, slots=True)
class DroppedTarget:
    """A target that relabelling dropped."""

    config: ScrapeConfig
    discovered: Mapping[str, str]


@dataclass(slots=True)
class Pool:
    """The targets of one configuration: those that are scraped, those that were dropped, and those that cannot be."""

    active: dict[str, Target] = field(default_factory=dict)
    dropped: list[DroppedTarget] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def pool_of(config: ScrapeConfig, groups: Iterable[TargetGroup]) -> Pool:
    """All targets of the groups, relabelled, each once."""
    pool = Pool()
    for discovered in _discovered(config, groups):
        try:
            found = target_of(config, discovered)
        except BadTarget as error:
            pool.errors.append(str(error))
            continue
        if isinstance(found, Target):
            pool.active.setdefault(found.name, found)
        else:
            pool.dropped.append(found)
    return pool


def target_of(config: ScrapeConfig, discovered: Mapping[str, str]) -> Target | DroppedTarget:
    """The target that relabelling makes of a discovered label set. BadTarget when it cannot be scraped.

    The rules are those of Prometheus 3 (scrape/target.go, `PopulateLabels`): no port is added to an address.
    """
    labels = relabelled(discovered, config.relabel)
    if labels is None:
        return DroppedTarget(config, discovered)
    address, scheme = labels.get("__address__", ""), labels.get("__scheme__", "")
    if not address:
        raise BadTarget("no address")
    if "/" in address:
        raise BadTarget(f'"{address}" is not a valid hostname')
    if scheme not in ("http", "https"):
        raise BadTarget(f'invalid scheme: "{scheme}"')
    interval, timeout = _time(labels, "interval"), _time(labels, "timeout")
    if timeout > interval:
        given = f'("{labels["__scrape_timeout__"]}" > "{labels["__scrape_interval__"]}")'
        raise BadTarget(f"scrape timeout cannot be greater than scrape interval {given}")
    labels = {name: value for name, value in labels.items() if not name.startswith(META)}
    labels.setdefault("instance", address)
    url = _url(config, labels)
    series_labels = {name: value for name, value in labels.items() if not name.startswith(RESERVED)}
    return Target(config, discovered, labels, url, interval, timeout, series_labels, _name(config.job, url, labels))


def _discovered(config: ScrapeConfig, groups: Iterable[TargetGroup]) -> Iterator[dict[str, str]]:
    """The labels before relabelling: the target's, its group's, then what the configuration says."""
    configured = {
        "job": config.job,
        "__scrape_interval__": duration_text(config.interval_ms),
        "__scrape_timeout__": duration_text(config.timeout_ms),
        "__metrics_path__": config.metrics_path,
        "__scheme__": config.scheme,
        **{f"{PARAMETER}{name}": values[0] for name, values in config.params.items() if values},
    }
    for group in groups:
        for own in group.targets:
            labels = {**group.labels, **own}
            for name, value in configured.items():
                if not labels.get(name):
                    labels[name] = value
            yield {name: value for name, value in labels.items() if value}


def _time(labels: Mapping[str, str], which: str) -> int:
    text = labels.get(f"__scrape_{which}__", "")
    try:
        found = duration_ms(text)
    except ValueError as error:
        raise BadTarget(f"error parsing scrape {which}: {error}") from error
    if found == 0:
        raise BadTarget(f"scrape {which} cannot be 0")
    return found


def _url(config: ScrapeConfig, labels: Mapping[str, str]) -> str:
    params = {name: list(values) for name, values in config.params.items()}
    for label, value in labels.items():
        if label.startswith(PARAMETER):
            name = label.removeprefix(PARAMETER)
            params[name] = [value, *params.get(name, [])[1:]]
    path = labels.get("__metrics_path__", "")
    path = path if path.startswith("/") or not path else f"/{path}"
    query = urlencode(sorted(params.items()), doseq=True)
    return f"{labels['__scheme__']}://{labels['__address__']}{path}{f'?{query}' if query else ''}"


def _name(job: str, url: str, labels: Mapping[str, str]) -> str:
    digest = hashlib.blake2b(repr(sorted(labels.items())).encode(), digest_size=8).hexdigest()
    return f"scrape:{job}:{url}:{digest}"
