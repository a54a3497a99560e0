"""Our store and engine behind the interface that runners of Prometheus' own test scripts drive."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from collectors.query import PROMETHEUS_2, PROMETHEUS_3, Engine, Matrix, Scalar, Semantics, String
from collectors.store import Store

# The scripts load classic histograms as native ones with custom buckets as well (`load_with_nhcb`).
_LOADED = replace(PROMETHEUS_3, native_names=True)
Points = list[tuple[int, float]]


class ScriptedEngine:
    """Loads series into a fresh store and answers with plain tuples."""

    def __init__(self, semantics: Semantics) -> None:
        self._semantics = semantics
        self._store: Store | None = None
        self.clear()

    def clear(self) -> None:
        if self._store is not None:
            self._store.close()
        self._store = Store("sqlite://", clock=lambda: 0.0)
        self._engine = Engine(self._store, semantics=self._semantics)

    def load(self, series: Sequence[tuple[dict[str, str], Points]]) -> None:
        # A series that is loaded twice has its last value.
        by_time: dict[int, dict[tuple[tuple[str, str], ...], float]] = defaultdict(dict)
        for labels, points in series:
            for t_ms, value in points:
                by_time[t_ms][tuple(sorted(labels.items()))] = value
        assert self._store is not None
        for t_ms in sorted(by_time):
            self._store.append("script", t_ms, [(dict(key), v) for key, v in by_time[t_ms].items()], stale=False)

    def instant(self, expr: str, t_ms: int) -> float | str | list[tuple[dict[str, str], object]]:
        result = self._engine.instant(expr, t_ms)
        if isinstance(result, Scalar | String):
            return result.value
        if isinstance(result, Matrix):
            return _points(result)
        return [(dict(element.labels), element.value) for element in result]

    def range(self, expr: str, start_ms: int, end_ms: int, step_ms: int) -> list[tuple[dict[str, str], object]]:
        return _points(self._engine.range(expr, start_ms, end_ms, step_ms))

    def close(self) -> None:
        if self._store is not None:
            self._store.close()


def _points(matrix: Matrix) -> list[tuple[dict[str, str], object]]:
    return [(dict(s.labels), list(zip(s.t.tolist(), s.v.tolist(), strict=True))) for s in matrix]


def engine_v3() -> ScriptedEngine:
    """Prometheus 3 as its scripts run it: metric names are removed at the end of a query."""
    return ScriptedEngine(replace(_LOADED, delayed_names=True))


def engine_v3_defaults() -> ScriptedEngine:
    """Prometheus 3 as it is without feature flags."""
    return ScriptedEngine(_LOADED)


def engine_v2() -> ScriptedEngine:
    """Prometheus 2."""
    return ScriptedEngine(PROMETHEUS_2)
