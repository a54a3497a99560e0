"""The scripts under tests/scenarios on our engine, and their runner on wrong answers."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[1]
SCRIPTS = sorted((TESTS / "scenarios").glob("*.test"))


def module(name: str) -> ModuleType:
    """A module that lies in tests/."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[name] = loaded
        spec.loader.exec_module(loaded)
    return sys.modules[name]


scenarios = module("promql_scenarios")
adapter = module("promql_adapter")

# What version 2 answers in another way on purpose: its ranges are closed, and it has no experimental functions.
ONLY_VERSION_3 = ("edges.test", "enrichment.test")


@pytest.mark.parametrize("factory", ["engine_v3", "engine_v3_defaults", "engine_v2"])
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_statement_of_a_script_holds(path: Path, factory: str) -> None:
    if factory == "engine_v2" and path.name in ONLY_VERSION_3:
        return
    engine = getattr(adapter, factory)()
    try:
        results = list(scenarios.run(path, engine))
    finally:
        engine.close()

    assert len(results) >= 8
    assert not [f"{statement}: {wrong}" for statement, wrong in results if wrong]


class Spoiled:
    """An engine whose answers are changed before the runner sees them."""

    def __init__(self, engine: Any, change: str) -> None:
        self._engine = engine
        self._change = change

    def clear(self) -> None:
        self._engine.clear()

    def load(self, series: Any) -> None:
        self._engine.load(series)

    def instant(self, expr: str, t_ms: int) -> Any:
        return self._spoiled(self._engine.instant(expr, t_ms))

    def range(self, expr: str, start_ms: int, end_ms: int, step_ms: int) -> Any:
        return self._spoiled(self._engine.range(expr, start_ms, end_ms, step_ms))

    def _spoiled(self, found: Any) -> Any:
        if isinstance(found, float):
            return found + 1 if math.isfinite(found) else 0.0
        if self._change == "value":
            return [(labels, self._other(value)) for labels, value in found]
        if self._change == "label":
            return [({**labels, "more": "x"}, value) for labels, value in found]
        return found[1:] if self._change == "missing" else [*found, ({"more": "x"}, 1.0)]

    def _other(self, value: Any) -> Any:
        if isinstance(value, list):
            return [(t_ms, self._other(one)) for t_ms, one in value]
        return value * (1 + 1e-5) if value not in (0.0, float("inf")) and value == value else 7.0


@pytest.mark.parametrize("change", ["value", "label", "missing", "extra"])
def test_the_runner_refuses_wrong_answers(change: str) -> None:
    engine = adapter.engine_v3()
    results = [result for path in SCRIPTS for result in scenarios.run(path, Spoiled(engine, change))]
    engine.close()

    expecting = [
        (statement, wrong)
        for statement, wrong in results
        if statement.kind not in ("_fail", "_range") and (statement.series or change == "extra")
    ]
    assert len(expecting) > 60
    assert not [str(statement) for statement, wrong in expecting if not wrong]
