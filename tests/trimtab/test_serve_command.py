"""`trimtab serve` with settings that cannot work: one line that says what is wrong and what to set."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CASES = {
    "a folder that is a file": ('[trimtab]\ndata = "{file}"\n', ["data folder", "[trimtab]"]),
    "a certificate that is not there": (
        '[trimtab]\ndata = "{folder}"\n[serving]\nport = 1024\nssl_certfile = "away.pem"\n',
        ["ssl_certfile away.pem", "PEM"],
    ),
    "a certificate that is none": (
        '[trimtab]\ndata = "{folder}"\n[serving]\nport = 1024\nssl_certfile = "{file}"\nssl_keyfile = "{file}"\n',
        ["ssl_certfile", "ssl_keyfile", "PEM"],
    ),
    "an address of another machine": (
        '[trimtab]\ndata = "{folder}"\nhost = "203.0.113.7"\n[serving]\nport = 1024\n',
        ["no address '203.0.113.7'", "`host` under [trimtab]"],
    ),
    "a registry that is away": (
        '[trimtab]\ndata = "{folder}"\n[serving]\nport = 1024\nregistry = "postgresql://me@127.0.0.1:1/none"\n',
        ["database cannot be used", "refused", "`registry` under [serving]"],
    ),
    "a registry of an unknown kind": (
        '[trimtab]\ndata = "{folder}"\n[serving]\nport = 1024\nregistry = "elsewhere://none"\n',
        ["address is wrong", "elsewhere", "SQLAlchemy URL", "serving.registry"],
    ),
    "a registry that is no database": (
        '[trimtab]\ndata = "{folder}"\n[serving]\nport = 1024\nregistry = "sqlite:///{file}"\n',
        ["registry", "cannot be opened", "not a database"],
    ),
    "a budget below nothing": (
        '[trimtab]\ndata = "{folder}"\n[serving]\nmemory_budget_bytes = -1\n',
        ["memory_budget_bytes is -1"],
    ),
}


# What the other services and commands say of a folder, an address, a level.
OTHERS = {
    "collector": ('[trimtab]\ndata = "{file}"\n', ["data folder", "[trimtab]"]),
    "alerts": ('[trimtab]\ndata = "{file}"\n', ["data folder", "[trimtab]"]),
    "up": ('[trimtab]\ndata = "{file}/below"\n', ["data folder", "[trimtab]"]),
    "models list": ('[trimtab]\ndata = "{file}"\n', ["data folder", "[trimtab]"]),
    "status": ('[query]\nurl = "localhost:9090"\n', ["query.url", "http://"]),
    "doctor": ('[trimtab]\nlog_level = "LOUD"\n', ["trimtab.log_level", "INFO"]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_work_is_said_in_one_line(case: str, tmp_path: Path) -> None:
    _said_in_one_line("serve", *CASES[case], tmp_path)


@pytest.mark.parametrize("command", OTHERS)
def test_what_cannot_work_is_said_in_one_line_by_every_command(command: str, tmp_path: Path) -> None:
    _said_in_one_line(command, *OTHERS[command], tmp_path)


def _said_in_one_line(command: str, text: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("nothing of use")
    settings = tmp_path / "trimtab.toml"
    settings.write_text(text.format(file=tmp_path / "file", folder=tmp_path / "data"))

    done = subprocess.run(
        [sys.executable, "-m", "trimtab", *command.split(), "--settings", str(settings)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert all(word in line for word in words), line
