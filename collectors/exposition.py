"""Prometheus text and OpenMetrics pages read into samples, metadata and exemplars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from collectors.store.values import MetricMetadata


class BadExposition(ValueError):
    """A page that is not in the text format; the message has the parser's reason."""


@dataclass(frozen=True, slots=True)
class PageExemplar:
    """An exemplar of one sample of a page; `t_ms` is None where the page does not say."""

    series: dict[str, str]
    labels: dict[str, str]
    value: float
    t_ms: int | None


@dataclass(frozen=True, slots=True)
class Page:
    """What a page says. Samples are (labels with `__name__`, value, time in ms or None)."""

    samples: list[tuple[dict[str, str], float, int | None]]
    metadata: dict[str, MetricMetadata] = field(default_factory=dict)
    exemplars: list[PageExemplar] = field(default_factory=list)


def read_page(body: str, content_type: str = "") -> Page:
    """Parses a page by its content type. BadExposition with the reason when it cannot be read."""
    try:
        parse = parse_openmetrics if "openmetrics" in content_type else parse_text
        return page_of(parse(body))
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise BadExposition(f"the page is not in the Prometheus text format: {error}") from error


def page_of(families: object) -> Page:
    """The page of prometheus_client families, from a parser or a registry."""
    page = Page([])
    for family in families:  # type: ignore[attr-defined]
        _add_family(page, family)
    return page


def _add_family(page: Page, family: Family) -> None:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    page.metadata[name] = MetricMetadata(family.type, family.documentation, family.unit)
    for sample in family.samples:
        if sample.name.endswith("_created") and family.type in ("counter", "histogram", "summary"):
            continue
        labels = {"__name__": sample.name, **sample.labels}
        t_ms = None if sample.timestamp is None else round(float(sample.timestamp) * 1000)
        page.samples.append((labels, float(sample.value), t_ms))
        if sample.exemplar is not None:
            at = sample.exemplar.timestamp
            exemplar_ms = None if at is None else round(float(at) * 1000)
            page.exemplars.append(
                PageExemplar(labels, dict(sample.exemplar.labels), float(sample.exemplar.value), exemplar_ms)
            )


def with_target_labels(labels: Mapping[str, str], target: Mapping[str, str], honor: bool) -> dict[str, str]:
    """A series' labels with its target's: on a clash the page's win if `honor`, else they become `exported_…`."""
    merged = dict(labels)
    for name, value in target.items():
        if name in merged and merged[name] != "":
            if honor:
                continue
            merged[f"exported_{name}"] = merged[name]
        merged[name] = value
    return merged
