"""The command hook: a list of arguments run in a process of its own, never a shell string."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alerts.actions.hook import Call, HookError

_GUARD = str(Path(__file__).with_name("guard.py"))
_OUTPUT_CHARACTERS = 32_000


class CommandHook:
    """Runs `argv` with `{model}`, `{release}`, `{reason}`, `{key}`, `{alert}` and `{action}` filled in.

    The command also finds them as TRIMTAB_MODEL, TRIMTAB_RELEASE, TRIMTAB_REASON, TRIMTAB_IDEMPOTENCY_KEY,
    TRIMTAB_ALERT and TRIMTAB_ACTION. Exit status 0 is success; the end of its output is kept. It ends with its parent.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        timeout_seconds: float = 600.0,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> None:
        if isinstance(argv, str) or not argv:
            raise ValueError(f"a command is a list of arguments, got {argv!r}")
        self._argv = list(argv)
        self._timeout_seconds = timeout_seconds
        self._env = dict(env or {})
        self._cwd = cwd
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()

    def run(self, call: Call) -> Mapping[str, Any]:
        argv = [_filled(argument, call) for argument in self._argv]
        process = subprocess.Popen(
            [sys.executable, "-I", _GUARD, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **self._env, **_environment(call)},
            cwd=self._cwd,
            start_new_session=True,
        )
        with self._lock:
            self._running.add(process)
        try:
            # communicate() would close stdin, which is what the guard watches.
            output, timed_out = _output(process, self._timeout_seconds)
        finally:
            with self._lock:
                self._running.discard(process)
        result = {"argv": argv, "exit_status": process.returncode, "output": output[-_OUTPUT_CHARACTERS:]}
        if timed_out:
            raise HookError(f"{argv[0]} took longer than {self._timeout_seconds:g} s and was ended", result)
        if process.returncode != 0:
            last = output.strip().splitlines()[-1:] or ["no output"]
            raise HookError(f"{argv[0]} ended with status {process.returncode}: {last[0][:300]}", result)
        return result

    def close(self) -> None:
        with self._lock:
            for process in self._running:
                _end(process)


def _output(process: subprocess.Popen[str], timeout_seconds: float) -> tuple[str, bool]:
    timed_out = threading.Event()

    def expire() -> None:
        timed_out.set()
        _end(process)

    timer = threading.Timer(timeout_seconds, expire)
    timer.daemon = True
    timer.start()
    assert process.stdout is not None
    assert process.stdin is not None
    with process.stdout, process.stdin:
        output = process.stdout.read()
        process.wait()
    timer.cancel()
    return output, timed_out.is_set()


def _end(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it ended by itself


def _filled(argument: str, call: Call) -> str:
    for name, value in _placeholders(call).items():
        argument = argument.replace("{" + name + "}", value)
    return argument


def _placeholders(call: Call) -> dict[str, str]:
    return {
        "model": call.model,
        "release": call.release,
        "reason": call.reason,
        "key": call.key,
        "alert": call.alert,
        "action": call.action,
    }


def _environment(call: Call) -> dict[str, str]:
    names = {"key": "IDEMPOTENCY_KEY"}
    return {f"TRIMTAB_{names.get(name, name.upper())}": value for name, value in _placeholders(call).items()}
