"""One query to our engine and to a real Prometheus, and whether the answers are the same."""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from promql_random import END, Labels, Points, Query, open_metrics

from collectors.query import Engine, Matrix, PrometheusClient, QueryError, Result, Scalar, String
from collectors.store import Store
from trimtab.ports import free_port

RELATIVE = 1e-9
# The variance of large numbers, taken along as 2.42 does, depends on the order of the series.
RUNNING_VARIANCE = 1e-6

# Differences that are known: a name, and the expressions and form of query that have it.
_PINNED_PREDICTION = re.compile(r"predict_linear\(.*@", re.S)
_VARIANCE = re.compile(r"\bstd(dev|var)\b")

Elements = dict[tuple[tuple[str, str], ...], list[tuple[int, float]]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """`kind`: same, both fail, different, or the name of a known difference between versions."""

    kind: str
    detail: str = ""


def filled_store(series: Sequence[tuple[Labels, Points]]) -> Store:
    """The samples in a store of ours."""
    store = Store("sqlite://", clock=lambda: END / 1000)
    by_time: dict[int, list[tuple[Labels, float]]] = {}
    for labels, points in series:
        for t_ms, value in points:
            by_time.setdefault(t_ms, []).append((labels, value))
    for t_ms in sorted(by_time):
        store.append("t", t_ms, by_time[t_ms], stale=False)
    return store


@contextlib.contextmanager
def running_prometheus(folder: Path, series: Sequence[tuple[Labels, Points]]) -> Iterator[PrometheusClient]:
    """A client of a Prometheus that holds the samples."""
    (folder / "samples.txt").write_text(open_metrics(series))
    (folder / "p.yml").write_text("global: {scrape_interval: 1h}\n")
    make_blocks = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "samples.txt", "data"]
    subprocess.run(make_blocks, cwd=folder, check=True, capture_output=True, timeout=120)
    port = free_port()
    command = [
        "prometheus", "--config.file=p.yml", "--storage.tsdb.path=data", "--storage.tsdb.retention.time=100y",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    client = PrometheusClient(f"http://127.0.0.1:{port}")
    try:
        for _ in range(600):
            with contextlib.suppress(QueryError):
                client.instant("1")
                break
            if server.poll() is not None:
                raise RuntimeError(f"prometheus did not start: {(folder / 'log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield client
    finally:
        client.close()
        server.terminate()
        server.wait(60)


class Comparison:
    """Asks both and compares."""

    def __init__(self, engine: Engine, client: PrometheusClient) -> None:
        self._engine = engine
        self._client = client

    def verdict(self, query: Query) -> Verdict:
        """Whether the two agree on a query."""
        verdict = self._compared(query)
        # Prometheus lets the window of a pinned range move with the steps, but reads only the samples of the first.
        several_steps = query.step_ms is not None or ":" in query.expr
        if verdict.kind == "different" and several_steps and _PINNED_PREDICTION.search(query.expr):
            return Verdict("predict_linear of a pinned range moves", verdict.detail)
        return verdict

    def _compared(self, query: Query) -> Verdict:
        ours, theirs = _asked(self._ours, query), _asked(self._theirs, query)
        if isinstance(ours, QueryError) or isinstance(theirs, QueryError):
            if isinstance(ours, QueryError) and isinstance(theirs, QueryError):
                agree = ours.kind == theirs.kind
                return Verdict("both fail" if agree else "different", f"{ours.kind} {ours} | {theirs.kind} {theirs}")
            return Verdict("different", f"ours: {_brief(ours)} | theirs: {_brief(theirs)}")
        ours_found, theirs_found = _elements(ours, query), _elements(theirs, query)
        detail = difference(ours_found, theirs_found, RELATIVE)
        if detail and _VARIANCE.search(query.expr) and not difference(ours_found, theirs_found, RUNNING_VARIANCE):
            return Verdict("2.42's running variance loses digits", detail)
        return Verdict("different", detail) if detail else Verdict("same")

    def _ours(self, query: Query) -> Result:
        if query.step_ms is None:
            return self._engine.instant(query.expr, query.start_ms)
        return self._engine.range(query.expr, query.start_ms, query.end_ms, query.step_ms)

    def _theirs(self, query: Query) -> Result:
        if query.step_ms is None:
            return self._client.instant(query.expr, query.start_ms / 1000)
        return self._client.range(query.expr, query.start_ms / 1000, query.end_ms / 1000, query.step_ms / 1000)


def _asked(ask: object, query: Query) -> Result | QueryError:
    assert callable(ask)
    try:
        result: Result = ask(query)
    except QueryError as error:
        return error
    return result


def _brief(result: Result | QueryError) -> str:
    return f"error {result}" if isinstance(result, QueryError) else f"{result}"[:300]


def _elements(result: Result, query: Query) -> Elements:
    if isinstance(result, Scalar):
        return {(): [(result.t_ms, result.value)]}
    if isinstance(result, String):
        return {(("string", result.value),): []}
    if isinstance(result, Matrix):
        return {tuple(sorted(s.labels.items())): list(zip(s.t.tolist(), s.v.tolist(), strict=True)) for s in result}
    return {tuple(sorted(element.labels.items())): [(element.t_ms, element.value)] for element in result}


def difference(ours: Elements, theirs: Elements, relative: float = RELATIVE) -> str:
    """What differs by more than a share, or nothing."""
    if ours.keys() != theirs.keys():
        only = [sorted(one - other)[:3] for one, other in ((ours.keys(), theirs.keys()), (theirs.keys(), ours.keys()))]
        return f"only ours: {only[0]}, only theirs: {only[1]}"
    for key, points in theirs.items():
        mine = ours[key]
        if [t for t, _ in mine] != [t for t, _ in points]:
            return f"{dict(key)}: times {[t for t, _ in mine][:8]} but {[t for t, _ in points][:8]}"
        for (t_ms, own), (_, other) in zip(mine, points, strict=True):
            if not equal(own, other, relative):
                return f"{dict(key)} at {t_ms}: {own!r} but {other!r}"
    return ""


def equal(own: float, other: float, relative: float = RELATIVE) -> bool:
    """Whether two values are the same but for a share."""
    if math.isnan(own) or math.isnan(other):
        return math.isnan(own) and math.isnan(other)
    if math.isinf(own) or math.isinf(other):
        return own == other
    return abs(own - other) <= relative * max(abs(own), abs(other))
