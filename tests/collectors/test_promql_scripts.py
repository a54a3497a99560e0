"""Prometheus' own test scripts against our engine, where they and their runner lie beside the repository."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
RUNNER = SHARED / "tools" / "promqltest_runner.py"
SCRIPTS = SHARED / "promqltest"


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize(("version", "factory", "least"), [("v3.14", "engine_v3", 942), ("v2.42", "engine_v2", 566)])
def test_prometheus_own_scripts_pass(version: str, factory: str, least: int) -> None:
    if not RUNNER.is_file():
        pytest.skip(f"no runner of Prometheus' test scripts at {RUNNER}")
    runner = _module(RUNNER)
    engine: Any = getattr(_module(ROOT / "tests" / "promql_adapter.py"), factory)()
    functions = runner.FUNCS_STABLE_3 if version.startswith("v3") else runner.FUNCS_2_42
    try:
        results = runner.run_files(
            [str(path) for path in (SCRIPTS / version).glob("*.test")],
            engine,
            functions=functions,
            aggs=runner.AGGS_2_42,
            skip_features=runner.DEFAULT_SKIP,
        )
    finally:
        engine.close()
    failed = {(result.file, result.line): result.detail for result in results if result.status == "fail"}
    passed = sum(result.status == "pass" for result in results)

    assert not failed
    assert passed >= least
