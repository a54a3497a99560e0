"""Benchmarks are run by hand, and a name that one imports may go unnoticed: each is imported here."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = sorted(ROOT.joinpath("benchmarks").glob("*.py"))
IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    print(name, flush=True)
"""


def imported(tree: ast.Module) -> set[str]:
    """Top-level names of the packages that a module imports."""
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


@pytest.mark.slow
def test_every_benchmark_can_be_imported() -> None:
    names = [f"benchmarks.{path.stem}" for path in BENCHMARKS]

    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *names], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == names


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_run_as_a_file_finds_the_packages(path: Path) -> None:
    text = path.read_text()
    # Beside the file lie others that have the names of packages: it must put the path right first.
    hidden = {"benchmarks", "tests", *(other.stem for other in BENCHMARKS)}

    if "__main__" in text and imported(ast.parse(text)) & hidden:
        assert "sys.path" in text
