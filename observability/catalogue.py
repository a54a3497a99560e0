"""Writes the catalogue of metrics as a Markdown page: `python -m observability.catalogue > docs/metrics.md`."""

from __future__ import annotations

import sys

from observability import names
from observability.names import Metric

_HEAD = """# Metrics

Every metric that Trimtab emits or computes. This page is generated from `observability/names.py` by
`python -m observability.catalogue > docs/metrics.md`; a test holds the two together.

Histograms also have the series `_bucket` (with the label `le`), `_sum` and `_count`.

| name | type | labels | what it says |
|---|---|---|---|
"""


_ALIASES = """
## Names that other servers' dashboards expect

The model server also gives these, from the same counts, where `metric_aliases` is on (`serving/pages/aliases.py`).
They are exposed as untyped, since the names are no counters' by Prometheus' rules; `rate()` does not mind.

"""


def markdown() -> str:
    """The page: one row a family, in the catalogue's order; then the names of others."""
    rows = "".join(_row(metric) for metric in names.CATALOGUE)
    return _HEAD + rows + _ALIASES + "".join(_alias(alias) for alias in names.ALIASES)


def _alias(alias: names.Alias) -> str:
    return f"- `{alias.name}` by {', '.join(f'`{label}`' for label in alias.labels)}: {alias.help}\n"


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    bounds = f" Buckets from {metric.buckets[0]:g} to {metric.buckets[-1]:g}." if metric.buckets else ""
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help}{bounds} |\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
