"""The import table of ARCHITECTURE.md, held for every package by reading the sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from observability import names

ROOT = Path(__file__).parents[1]

# Who may import whom (of ours). The same table is in ARCHITECTURE.md.
MAY_IMPORT: dict[str, set[str]] = {
    "observability": set(),
    "collectors": {"observability"},
    "alerts": {"observability", "collectors"},
    "serving": {"observability"},
    "training": {"observability"},
    "dashboards": {"observability", "collectors"},
    "trimtab": {"observability", "collectors", "alerts", "serving", "training", "dashboards"},
}
WORD = re.compile(r"\w+")
# Names that say nothing about what is in the file.
NAMELESS = {"utils", "util", "common", "helpers", "helper", "manager", "misc", "base"}


Nodes = Sequence[ast.AST]


@dataclass(frozen=True)
class Source:
    path: Path
    package: str
    tree: ast.Module
    nodes: tuple[ast.AST, ...]  # all of the tree's: walking it takes longer than looking at them

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))


@cache
def sources() -> tuple[Source, ...]:
    found = []
    for package in MAY_IMPORT:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(), str(path))
            found.append(Source(path, package, tree, tuple(ast.walk(tree))))
    return tuple(found)


def of(package: str) -> Iterator[Source]:
    return (source for source in sources() if source.package == package)


def imported(node: ast.AST, package: str) -> Iterator[str]:
    """The top-level names that one import statement brings in; a relative import brings in its own package."""
    if isinstance(node, ast.Import):
        yield from (alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield package if node.level else (node.module or "").partition(".")[0]


def hidden(nodes: Nodes) -> Iterator[ast.AST]:
    """Everything that is inside a function's body."""
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from ast.walk(node)


def docstrings(nodes: Nodes) -> set[int]:
    """The ids of the constants that are documentation."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                found.add(id(first.value))
    return found


def keys(nodes: Nodes) -> set[int]:
    """The ids of the constants that only name an entry of a dictionary."""
    written = {id(key) for node in nodes if isinstance(node, ast.Dict) for key in node.keys}
    return written | {id(node.slice) for node in nodes if isinstance(node, ast.Subscript)}


def examples(nodes: Nodes) -> set[int]:
    """The ids of the constants that a command shows as help."""
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    return {id(word.value) for call in calls for word in call.keywords if word.arg in ("help", "epilog", "short_help")}


def passed_whole(nodes: Nodes) -> set[int]:
    """The ids of what is not read but handed on to a child process (`{**os.environ, …}`) or set for a library."""
    spread = {
        id(value)
        for node in nodes
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if key is None
    }
    stored = [node for node in nodes if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)]
    return spread | {id(node.value) for node in stored}


def test_the_table_is_that_of_the_map() -> None:
    written = {}
    for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = cells[0].strip("`/")
        if len(cells) == 4 and cells[0].endswith("/`") and name in MAY_IMPORT:
            others = set(MAY_IMPORT) - {name} if cells[2] == "all" else set(cells[2].split(", ")) - {"nothing"}
            written[name] = others

    assert written == MAY_IMPORT, "ARCHITECTURE.md and this test must say the same: change both in one commit"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_the_table_allows(package: str) -> None:
    forbidden = set(MAY_IMPORT) - MAY_IMPORT[package] - {package}
    wrong = [
        f"{source.name}:{node.lineno} imports {name}"
        for source in of(package)
        for node in source.nodes
        for name in imported(node, package)
        if name in forbidden
    ]

    allowed = ", ".join(sorted(MAY_IMPORT[package])) or "nothing"
    assert not wrong, f"{package} may import {allowed} of ours (ARCHITECTURE.md):\n" + "\n".join(wrong)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_own_import_hides_in_a_function(package: str) -> None:
    wrong = {
        f"{source.name}:{node.lineno} imports {name}"
        for source in of(package)
        for node in hidden(source.nodes)
        for name in imported(node, package)
        if name in MAY_IMPORT
    }

    assert not wrong, "own imports stand at the top of a file, where a cycle shows:\n" + "\n".join(sorted(wrong))


@pytest.mark.parametrize("package", sorted(set(MAY_IMPORT) - {"trimtab"}))
def test_only_the_front_door_reads_the_environment_and_toml(package: str) -> None:
    wrong = []
    for source in of(package):
        handed_on = passed_whole(source.nodes)
        for node in source.nodes:
            if isinstance(node, ast.Import | ast.ImportFrom) and "tomllib" in imported(node, package):
                wrong.append(f"{source.name}:{node.lineno} imports tomllib")
            reads_os = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
            if reads_os and id(node) not in handed_on and node.attr in ("environ", "getenv", "environb"):
                wrong.append(f"{source.name}:{node.lineno} reads os.{node.attr}")
            if isinstance(node, ast.ImportFrom) and node.module == "os":
                taken = {alias.name for alias in node.names} & {"environ", "getenv", "environb"}
                wrong += [f"{source.name}:{node.lineno} imports os.{name}" for name in taken]

    assert not wrong, "a service gets what it needs as arguments; only trimtab/ reads settings:\n" + "\n".join(wrong)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_metric_name_is_spelled_outside_the_catalogue(package: str) -> None:
    spelled = {metric.name for metric in names.CATALOGUE}
    assert all(WORD.fullmatch(name) for name in spelled)
    wrong = []
    for source in of(package):
        if source.path == ROOT / "observability" / "names.py":
            continue
        documentation = docstrings(source.nodes) | keys(source.nodes) | examples(source.nodes)
        for node in source.nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                # As a name of its own, not as a part of a longer one.
                found = spelled.intersection(WORD.findall(node.value))
                wrong += [f"{source.name}:{node.lineno} spells {name!r}" for name in sorted(found)]

    assert not wrong, "use observability/names.py, or a typo makes a dead alert:\n" + "\n".join(wrong)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_files_are_named_for_what_they_hold(package: str) -> None:
    wrong = [
        source.name for source in of(package) if NAMELESS & set(source.path.relative_to(ROOT).with_suffix("").parts)
    ]

    assert not wrong, f"these names say nothing: {wrong}"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_every_package_says_what_it_is_and_what_is_public(package: str) -> None:
    (init,) = [source for source in of(package) if source.path == ROOT / package / "__init__.py"]
    assigned = {
        target.id
        for node in init.tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }

    assert ast.get_docstring(init.tree), f"{init.name} needs a docstring: what the package is"
    assert "__all__" in assigned, f"{init.name} needs __all__: what is public"
    undocumented = [source.name for source in of(package) if not ast.get_docstring(source.tree) and source.tree.body]
    assert not undocumented, f"these files do not say what they are: {undocumented}"
