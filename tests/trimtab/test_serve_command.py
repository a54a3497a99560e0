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
    "a budget below nothing": (
        '[trimtab]\ndata = "{folder}"\n[serving]\nmemory_budget_bytes = -1\n',
        ["memory_budget_bytes is -1"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_work_is_said_in_one_line(case: str, tmp_path: Path) -> None:
    text, words = CASES[case]
    (tmp_path / "file").write_text("nothing of use")
    settings = tmp_path / "trimtab.toml"
    settings.write_text(text.format(file=tmp_path / "file", folder=tmp_path / "data"))

    done = subprocess.run(
        [sys.executable, "-m", "trimtab", "serve", "--settings", str(settings)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert all(word in line for word in words), line
