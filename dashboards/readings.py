"""What the pages read out of series and of the services' JSON: shares, objectives, distributions, spans. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from dashboards import format as fmt
from dashboards.sources import Series
from observability import names

Floats = npt.NDArray[np.float64]
# A refused or cancelled request is the client's or the limit's doing: no fault, but no success to count either.
_JUDGED = ("ok", *names.FAULTS)


def total(series: Iterable[Series], keep: Callable[[Mapping[str, str]], bool] = lambda labels: True) -> Series:
    """The sum of the series that `keep` picks, over all their times."""
    picked = [item for item in series if keep(item.labels) and len(item.times)]
    if not picked:
        return Series({}, np.empty(0), np.empty(0))
    times = np.unique(np.concatenate([item.times for item in picked]))
    values = np.zeros(len(times))
    for item in picked:
        values[np.searchsorted(times, item.times)] += np.nan_to_num(item.values)
    return Series({}, times, values)


def by(series: Iterable[Series], label: str) -> dict[str, list[Series]]:
    """Series grouped by a label's value, in the order of versions where they are numbers."""
    groups: dict[str, list[Series]] = {}
    for item in series:
        groups.setdefault(item.labels.get(label, ""), []).append(item)
    return dict(sorted(groups.items(), key=lambda group: _natural(group[0])))


def _natural(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdigit() else (1 << 62, text)


def share(part: Series, whole: Series) -> Series:
    """`part / whole` at the times of the whole; where nothing came there is no share."""
    values = np.zeros(len(whole.times))
    values[np.isin(whole.times, part.times)] = part.values[np.isin(part.times, whole.times)]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(whole.values > 0, values / whole.values, np.nan)
    return Series(whole.labels, whole.times, ratio)


def is_fault(labels: Mapping[str, str]) -> bool:
    """True for outcomes that are the version's fault."""
    return labels.get("outcome") in names.FAULTS


def is_judged(labels: Mapping[str, str]) -> bool:
    """True for outcomes that availability counts."""
    return labels.get("outcome") in _JUDGED


def latest(series: Iterable[Series]) -> float | None:
    """The newest value among the series; of several equally new ones the greatest."""
    best: tuple[float, float] | None = None
    for item in series:
        finite = np.flatnonzero(np.isfinite(item.values))
        if len(finite):
            point = (float(item.times[finite[-1]]), float(item.values[finite[-1]]))
            best = max(best, point) if best else point
    return best[1] if best else None


@dataclass(frozen=True, slots=True)
class Availability:
    """An availability objective over a span: what was promised, what was kept, what may still fail."""

    objective: float
    requests: float
    faults: float

    @property
    def ratio(self) -> float | None:
        """Share of judged requests without a fault; None without requests."""
        return None if self.requests <= 0 else 1 - self.faults / self.requests

    @property
    def budget_left(self) -> float | None:
        """Share of the error budget that is left: 1 untouched, 0 spent, below 0 overdrawn; None without requests."""
        return None if self.requests <= 0 else 1 - self.faults / (self.requests * (1 - self.objective))


def availability(outcomes: Iterable[Series], objective: float) -> Availability:
    """The objective's state from counts by outcome."""
    counts = [(item.labels, item.last or 0.0) for item in outcomes]
    requests = sum(count for labels, count in counts if is_judged(labels))
    return Availability(objective, requests, sum(count for labels, count in counts if is_fault(labels)))


@dataclass(frozen=True, slots=True)
class Comparison:
    """A column's distribution in the reference and in a window, as shares over the same labelled cells."""

    labels: tuple[str, ...]
    reference: Floats
    current: Floats


def compare(reference: Mapping[str, Any], window: Mapping[str, Any], most: int = 18) -> Comparison | None:
    """Reference and window side by side; many categories become the `most` weightiest and the rest. None: not alike."""
    before = np.asarray(reference.get("counts") or (), dtype=np.float64)
    after = np.asarray(window.get("counts") or (), dtype=np.float64)
    same = all(reference.get(key) == window.get(key, reference.get(key)) for key in ("edges", "categories"))
    if not same or len(before) != len(after) or not len(before):
        return None
    cells = _cells(reference, len(before))
    before, after = before / max(before.sum(), 1), after / max(after.sum(), 1)
    kept = [i for i in range(len(cells)) if before[i] or after[i] or reference.get("edges") is None]
    if reference.get("edges") is None:
        kept = [i for i in kept if before[i] or after[i]]
        weight = np.maximum(before, after)
        kept = sorted(kept, key=lambda i: -weight[i])
        kept, rest = kept[:most], kept[most:]
    else:
        rest = []
    labels = [cells[i] for i in kept] + ([f"{len(rest)} more"] if rest else [])
    columns = [np.append(x[kept], x[rest].sum()) if rest else x[kept] for x in (before, after)]
    return Comparison(tuple(labels), *columns)


def _cells(layout: Mapping[str, Any], size: int) -> list[str]:
    categories = layout.get("categories")
    if categories is not None:
        extra = ["unseen", "other"][: max(0, size - len(categories))]
        return [*map(str, categories), *extra][:size]
    edges = layout.get("edges")
    if edges is None:
        return ["false", "true"] if size == 2 else [str(i) for i in range(size)]
    inner = [f"{_edge(a)} – {_edge(b)}" for a, b in pairwise(edges)]
    if size == len(edges) + 1 and len(edges):
        return [f"< {_edge(edges[0])}", *inner, f"> {_edge(edges[-1])}"]
    return inner if len(inner) == size else [str(i) for i in range(size)]


def _edge(value: float) -> str:
    return f"{value:.4g}"


@dataclass(frozen=True, slots=True)
class TraceRow:
    """A trace as one line of a table: its first span."""

    trace_id: str
    name: str
    service: str
    start: float
    duration: float
    failed: bool
    version: str
    outcome: str
    num_spans: int


def trace_rows(traces: Iterable[Mapping[str, Any]]) -> list[TraceRow]:
    """Traces that failed, newest first, and then the others, slowest first."""
    found = [_trace_row(trace) for trace in traces if trace.get("spans")]
    return sorted(found, key=lambda row: (not row.failed, -row.start if row.failed else -row.duration))


def _trace_row(trace: Mapping[str, Any]) -> TraceRow:
    spans = trace["spans"]
    known = {span["spanID"] for span in spans}
    roots = [span for span in spans if _parent(span) not in known]
    root = min(roots or spans, key=lambda span: span["startTime"])
    tags: dict[str, Any] = {}
    for span in (*spans, root):
        tags |= _tags(span)
    return TraceRow(
        str(trace.get("traceID", root.get("traceID", ""))),
        root["operationName"],
        _service(trace, root),
        root["startTime"] / 1e6,
        max(s["startTime"] + s["duration"] for s in spans) / 1e6 - root["startTime"] / 1e6,
        any(_failed(span) for span in spans),
        _first(tags, "version"),
        _first(tags, "outcome"),
        len(spans),
    )


def waterfall_spans(trace: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The spans of a trace, parents before children, as `charts.waterfall` wants them."""
    spans = sorted(trace["spans"], key=lambda span: span["startTime"])
    known = {span["spanID"] for span in spans}
    begin = min(span["startTime"] for span in spans)
    children: dict[str | None, list[Mapping[str, Any]]] = {}
    for span in spans:
        parent = _parent(span)
        children.setdefault(parent if parent in known else None, []).append(span)
    out: list[dict[str, Any]] = []
    pending = [(span, 0) for span in reversed(children.get(None, []))]
    while pending:
        span, depth = pending.pop()
        detail = "<br>".join(f"{key}: {str(value)[:80]}" for key, value in list(_tags(span).items())[:10])
        out.append(
            {
                "name": span["operationName"],
                "service": _service(trace, span),
                "depth": depth,
                "failed": _failed(span),
                "offset": (span["startTime"] - begin) / 1e6,
                "duration": span["duration"] / 1e6,
                "detail": detail,
            }
        )
        pending += [(child, depth + 1) for child in reversed(children.get(span["spanID"], []))]
    return out


def _tags(span: Mapping[str, Any]) -> dict[str, Any]:
    return {tag["key"]: tag.get("value") for tag in span.get("tags") or ()}


def _parent(span: Mapping[str, Any]) -> str | None:
    references = span.get("references") or ()
    return next((ref["spanID"] for ref in references if ref.get("refType", "CHILD_OF") == "CHILD_OF"), None)


def _service(trace: Mapping[str, Any], span: Mapping[str, Any]) -> str:
    process = (trace.get("processes") or {}).get(span.get("processID"), {})
    return str(process.get("serviceName", ""))


def _failed(span: Mapping[str, Any]) -> bool:
    tags = _tags(span)
    if str(tags.get("error", "")).lower() == "true" or str(tags.get("otel.status_code", "")).upper() == "ERROR":
        return True
    return any(key.endswith("outcome") and value in names.FAULTS for key, value in tags.items())


def _first(tags: Mapping[str, Any], word: str) -> str:
    """The value of the first tag whose name is or ends with the word."""
    return next((str(value) for key, value in tags.items() if key == word or key.endswith(f".{word}")), "")


def drift_matrix(
    windows: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[float], Floats, npt.NDArray[np.bool_]]:
    """Predictions and then features, the most drifted first; window starts; PSI; and which cells count as drifted."""
    ordered = sorted(windows, key=lambda window: seconds_of(window["start"]))
    found: dict[str, float] = {}
    for window in ordered:
        for name, scores in window["columns"].items():
            found[name] = max(found.get(name, 0.0), scores.get("psi") or 0.0)
    columns = sorted(found, key=lambda name: (not name.startswith("prediction."), -found[name]))
    values = np.full((len(columns), len(ordered)), np.nan)
    drifted = np.zeros(values.shape, dtype=bool)
    for j, window in enumerate(ordered):
        for i, name in enumerate(columns):
            scores = window["columns"].get(name) or {}
            values[i, j] = np.nan if scores.get("psi") is None else scores["psi"]
            drifted[i, j] = bool(scores.get("drifted"))
    return columns, [seconds_of(window["start"]) for window in ordered], values, drifted


def busiest(windows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One window a start, in order of time: that of the version with the most rows."""
    best: dict[float, Mapping[str, Any]] = {}
    for window in windows:
        start = seconds_of(window["start"])
        if start not in best or (window.get("rows") or 0) > (best[start].get("rows") or 0):
            best[start] = window
    return [best[start] for start in sorted(best)]


def seconds_of(value: Any) -> float:
    """Unix seconds of a number or of an RFC 3339 text."""
    if isinstance(value, int | float):
        return float(value)
    stamp = datetime.fromisoformat(str(value))
    return (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp()


def lineage_words(lineage: Mapping[str, Any] | None) -> dict[str, str]:
    """Where a version comes from, in words."""
    lineage = lineage or {}
    data = lineage.get("data") or {}
    window = data.get("window") or ()
    parent = lineage.get("parent")
    return {
        "window": " – ".join(str(day)[:10] for day in window) or fmt.DASH,
        "rows": fmt.number(data.get("rows")),
        "source": str(data.get("source") or fmt.DASH),
        "revision": str(lineage.get("code_revision") or fmt.DASH)[:10],
        "parent": fmt.version(str(parent)) if parent else fmt.DASH,
        "run": str(lineage.get("run") or fmt.DASH),
    }
