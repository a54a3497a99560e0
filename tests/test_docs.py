"""The documents agree with the code: their Python compiles and imports, their settings load, their map is the tree."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pytest
import torch

from collectors.references import Reference
from serving import Registry
from training import Encoding
from trimtab.cli import COMMANDS
from trimtab.settings import Settings

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "ARCHITECTURE.md", *DOCS]
PACKAGES = ("observability", "collectors", "alerts", "serving", "training", "dashboards", "trimtab")


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_python_in_a_document_compiles_and_what_it_imports_exists(page: Path) -> None:
    missing = []
    for block in _blocks(page, "python"):
        compile(block, page.name, "exec")
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                module = importlib.import_module(node.module)
                missing += [f"{node.module}.{name.name}" for name in node.names if not hasattr(module, name.name)]
            elif isinstance(node, ast.Import):
                for name in node.names:
                    importlib.import_module(name.name)

    assert missing == []


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_settings_in_a_document_are_settings(page: Path) -> None:
    for block in _blocks(page, "toml"):
        msgspec.convert(tomllib.loads(block), Settings)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_commands_in_a_document_exist(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", text)

    assert [link for link in links if not (page.parent / link).exists()] == []
    assert set(re.findall(r"`trimtab ([a-z]+)", text)) <= set(COMMANDS)


def test_the_folders_on_the_map_are_the_folders_of_the_project() -> None:
    section = (ROOT / "ARCHITECTURE.md").read_text().split("## The folders", 1)[1].split("\n## ", 1)[0]
    (tree,) = re.findall(r"^```\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    written: dict[str, set[str]] = {}
    for line in tree.splitlines():
        if not line.startswith(" ") and line.strip():
            package = line.split("/")[0]
        for name in re.findall(r"[\w/]+\.py\b", line.split("(to come")[0]):
            written.setdefault(package, set()).add(name)

    for package in PACKAGES:
        there = {str(path.relative_to(ROOT / package)) for path in (ROOT / package).rglob("*.py")}
        named = {
            path for name in written.get(package, set()) for path in there if path == name or path.endswith(f"/{name}")
        }
        absent = {
            name for name in written.get(package, set()) if not any(p == name or p.endswith(f"/{name}") for p in there)
        }
        assert absent == set(), f"{package}: on the map, but not in the tree"
        assert named, f"{package} has no file on the map"


def _defined(page: str, containing: str) -> dict[str, Any]:
    """What a page's one block of Python with these words defines."""
    (block,) = (block for block in _blocks(ROOT / "docs" / page, "python") if containing in block)
    names: dict[str, Any] = {}
    exec(compile(block, page, "exec"), names)
    return names


class _Churn(torch.nn.Module):
    def forward(self, tenure: torch.Tensor, plan: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(plan - tenure / 12)


def test_the_model_of_ones_own_on_the_page_is_registered_with_its_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = pd.DataFrame({"tenure": [1.0, 20.0] * 50, "plan": ["basic", "pro"] * 50})

    _defined("serving.md", "save_artifact")["register"](_Churn(), rows)

    registry = Registry("sqlite:///registry.db", "artifacts")
    assert registry.alias("churn", "stable") == 1
    Reference.given(registry.profile("churn", 1) or b"")
    registry.close()


def test_the_task_of_ones_own_on_the_page_can_be_trained() -> None:
    task = _defined("training.md", "def task()")["task"]()
    encoding = Encoding({"plan": ("basic",)}, {"tenure": 1.0, "spend": 2.0}, {"tenure": 1.0, "spend": 2.0})
    network = task.network(encoding)

    odds = network.logits(torch.tensor([0, 1]), torch.tensor([1.0, torch.nan]), torch.tensor([3.0, 4.0]))

    assert odds.shape == (2,)
    assert odds.isfinite().all()
    assert (network(torch.tensor([1]), torch.ones(1), torch.ones(1)) < 1).all()
