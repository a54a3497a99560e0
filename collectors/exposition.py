"""Pages as samples with labels: of a text that was pushed, and of a registry."""

from __future__ import annotations

from dataclasses import dataclass, field

from prometheus_client.metrics_core import Metric as Family

from collectors.formats import BadExposition, read_lines
from collectors.scraping.samples import with_target_labels
from collectors.store.values import MetricMetadata


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


def read_page(body: str | bytes, content_type: str = "") -> Page:
    """Reads a page by its content type. BadExposition with the reason when it cannot be read."""
    lines = read_lines(body.encode() if isinstance(body, str) else body, content_type)
    if lines.error:
        raise BadExposition(f"the page is not in the Prometheus text format: {lines.error}")
    series = [lines.new[key] for key in lines.keys]
    samples = [(labels, lines.values[index], lines.times.get(index)) for index, labels in enumerate(series)]
    exemplars = [PageExemplar(series[item.index], item.labels, item.value, item.t_ms) for item in lines.exemplars]
    return Page(samples, lines.metadata, exemplars)


def page_of(families: object) -> Page:
    """The page of prometheus_client families of a registry, without the times at which they were created."""
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


__all__ = ["BadExposition", "Page", "PageExemplar", "page_of", "read_page", "with_target_labels"]
