"""What every exposition format is read into: one entry a sample, with the labels of series that were not known yet."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from decimal import Decimal
from math import isinf, isnan

from collectors.store.values import MetricMetadata


class BadExposition(ValueError):
    """A page that is not in its format; the message has the reason and the line."""


@dataclass(frozen=True, slots=True)
class LineExemplar:
    """The exemplar of the sample at `index`; `t_ms` is None where the page does not say."""

    index: int
    labels: dict[str, str]
    value: float
    t_ms: int | None


@dataclass(frozen=True, slots=True)
class Layout:
    """A text page but for its numbers: `heads` are its lines up to them, `numbers` where in a line the number is.

    Only a page whose samples all have a known series, and neither times nor exemplars, has one.
    """

    heads: list[bytes]
    numbers: list[slice]
    others: list[tuple[int, bytes]]
    """The lines that are no samples, whole, with their places."""
    keys: list[Hashable]
    metadata: dict[str, MetricMetadata]


@dataclass(slots=True)
class Lines:
    """A page. `keys[i]` names the series of sample i as this page writes it; `new` has the labels of unknown keys.

    `times` holds the milliseconds of the samples that have a time of their own, by index. Empty label values are kept:
    they say that a label must not come from the target.
    """

    keys: list[Hashable] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    numbers: list[bytes] = field(default_factory=list)
    """The values of a text page as it writes them."""
    times: dict[int, int] = field(default_factory=dict)
    new: dict[Hashable, dict[str, str]] = field(default_factory=dict)
    metadata: dict[str, MetricMetadata] = field(default_factory=dict)
    exemplars: list[LineExemplar] = field(default_factory=list)
    error: str | None = None
    """Why reading ended before the end of the page."""
    layout: Layout | None = None
    """For the next page: one that differs in its numbers alone is read much faster, and has the same list of keys."""


def bound_text(value: float) -> str:
    """A bucket bound or quantile as OpenMetrics writes it: `1.0`, `0.005`, `1e+06`, `+Inf` (Go's shortest `%g`)."""
    if isnan(value):
        return "NaN"
    if isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    text = shortest(value)
    return text if "." in text or "e" in text else f"{text}.0"


def shortest(value: float) -> str:
    """A finite number as Go's `FormatFloat(value, 'g', -1, 64)` writes it: with an exponent from a million on."""
    if value == 0:
        return "0"
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    power = len(digits) + exponent - 1
    text = "".join(map(str, digits))
    if power < -4 or power >= 6:
        fraction = f".{text[1:]}" if len(text) > 1 else ""
        return f"{'-' if sign else ''}{text[0]}{fraction}e{'-' if power < 0 else '+'}{abs(power):02d}"
    return f"{'-' if sign else ''}{Decimal((0, digits, exponent)):f}"


def normalized(kind: str, labels: dict[str, str]) -> dict[str, str]:
    """`le` of histograms and `quantile` of summaries in one form, whatever the client writes, as Prometheus 3 does."""
    name = "le" if kind == "histogram" else "quantile" if kind == "summary" else ""
    if name and name in labels:
        try:
            labels[name] = bound_text(float(labels[name]))
        except ValueError:
            pass  # no number: it stays what it is
    return labels
