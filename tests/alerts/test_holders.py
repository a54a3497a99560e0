"""Who holds a lease: the living are never taken for dead, whatever happens to the clock."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from alerts.holders import is_dead, this_machine, this_process


def test_a_process_lives_on_when_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    holder, booted = this_process(), psutil.boot_time()
    # What the kernel says when the clock was set by a second.
    for name in ("psutil.boot_time", "psutil._pslinux.boot_time"):
        monkeypatch.setattr(name, lambda: booted + 1.0, raising=False)

    assert not is_dead(holder)


def test_who_is_gone_or_has_anothers_id_is_dead_and_others_are_not_judged() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        host, own, began, _ = this_process().rsplit(":", 3)
        assert is_dead(f"{host}:{other.pid}:{began}:1")
        other.kill()

    assert is_dead(f"{this_machine()}:{other.pid}:{began}:1")
    assert not is_dead(f"elsewhere:{other.pid}:{began}:1")
    assert not is_dead(f"{host}:{own}:1700000000.25:1")
    assert not is_dead("nonsense")


def test_no_two_holders_of_a_process_are_one() -> None:
    assert len({this_process() for _ in range(100)}) == 100
