"""`/federate`: the newest samples of chosen series as text; a Prometheus takes over what is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from collectors.query.encode import sample_text
from collectors.query.engine import Engine
from collectors.query.errors import QueryError
from collectors.query.parse import parse_selector
from collectors.query.values import Vector
from collectors.store import MetricMetadata

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TYPES = ("counter", "gauge", "histogram", "summary")


def federated(
    engine: Engine,
    metadata: Mapping[str, MetricMetadata],
    selectors: Sequence[str],
    at_ms: int,
    external_labels: Mapping[str, str] | None = None,
) -> str:
    """The series that any of the selectors matches, with their times. QueryError for a bad selector or none.

    `external_labels` are put on those that have no such label. A series without `instance` is given an empty one, so
    that the scraper that honours labels does not put its own there.
    """
    added = {"instance": "", **(external_labels or {})}
    if not selectors:
        raise QueryError("no match[] parameter provided", "bad_data")
    families: dict[str, set[str]] = {}
    for selector in selectors:
        parse_selector(selector)
        result = engine.instant(selector, at_ms)
        assert isinstance(result, Vector)
        for element in result:
            labels = {**added, **element.labels}
            name = labels.pop("__name__", "")
            line = f"{_series(name, labels)} {sample_text(element.value)} {element.t_ms}"
            families.setdefault(name, set()).add(line)
    lines: list[str] = []
    for name, samples in sorted(families.items()):
        lines.append(f"# TYPE {name} {_kind(metadata.get(name))}")
        lines += sorted(samples)
    return "\n".join([*lines, ""])


def _kind(metadata: MetricMetadata | None) -> str:
    # OpenMetrics' types, such as `unknown`, are errors in this format: one of them fails the whole scrape.
    return metadata.type if metadata is not None and metadata.type in _TYPES else "untyped"


def _series(name: str, labels: Mapping[str, str]) -> str:
    if not labels:
        return name
    pairs = ",".join(f'{key}="{_escaped(value)}"' for key, value in sorted(labels.items()))
    return f"{name}{{{pairs}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
