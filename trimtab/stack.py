"""The stack on one machine: each service a process of its own, started, health-checked, restarted, stopped.

Not a cluster manager: at scale the same commands run under systemd or Kubernetes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import psutil

from trimtab.ports import free_port, is_free
from trimtab.settings import Settings, dump

PID_FILE = "stack.pid"
SERVICES = ("collector", "alerts", "serving", "dashboard")
# A service that dies again and again is restarted ever later, up to this many seconds.
MAX_RESTART_DELAY_SECONDS = 15.0


class StackError(Exception):
    """A service did not come up; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Service:
    """How one service is started and how one sees that it is ready."""

    name: str
    argv: tuple[str, ...]
    ready_url: str
    log: Path


@dataclass(slots=True)
class _Running:
    service: Service
    process: subprocess.Popen[bytes]
    started_at: float
    restarts: int = 0
    restart_at: float | None = None


@dataclass(frozen=True, slots=True)
class State:
    """What `trimtab status` shows of a service."""

    name: str
    url: str
    ready: bool
    detail: str


@dataclass(slots=True)
class Stack:
    """The running services. `start` them in any order and number; `stop` ends all."""

    settings: Settings
    settings_file: Path
    _running: dict[str, _Running] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _supervisor: threading.Thread | None = None

    @classmethod
    def prepare(cls, settings: Settings) -> Stack:
        """Create the data folder and the settings file that the services are started with."""
        settings.data.mkdir(parents=True, exist_ok=True)
        (settings.data / "logs").mkdir(exist_ok=True)
        path = settings.data / "stack.toml"
        path.write_text(dump(settings))
        path.chmod(0o600)  # it may hold the secret
        (settings.data / PID_FILE).write_text(str(os.getpid()))
        return cls(settings, path)

    def service(self, name: str) -> Service:
        command = {"serving": "serve"}.get(name, name)
        argv = (sys.executable, "-m", "trimtab", command, "--settings", str(self.settings_file))
        return Service(name, argv, ready_url(self.settings, name), self.settings.data / "logs" / f"{name}.log")

    def start(self, names: Iterable[str] = SERVICES) -> None:
        """Start the services that are not running; does not wait for them."""
        with self._lock:
            for name in names:
                if name not in self._running:
                    service = self.service(name)
                    self._running[name] = _Running(service, _spawn(service), time.monotonic())
            if self._supervisor is None:
                self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
                self._supervisor.start()

    def wait_ready(self, names: Iterable[str] = SERVICES, timeout: float = 120.0) -> None:
        """Return when each of the services answers its readiness probe; raise StackError otherwise."""
        deadline = time.monotonic() + timeout
        with httpx.Client(timeout=2.0) as client:
            for name in names:
                while not _is_ready(client, self._running[name].service.ready_url):
                    process = self._running[name].process
                    if process.poll() not in (None, 0) and self._running[name].restarts >= 2:
                        raise StackError(self._failure(name, f"ended with exit status {process.returncode}"))
                    if time.monotonic() > deadline:
                        raise StackError(self._failure(name, f"was not ready within {timeout:.0f} s"))
                    time.sleep(0.1)

    def _failure(self, name: str, what: str) -> str:
        service = self._running[name].service
        lines = service.log.read_text(errors="replace").splitlines()[-15:] if service.log.exists() else []
        if not lines:
            free = shutil.disk_usage(self.settings.data).free
            return f"{name} {what}, and {service.log} is empty; its disk has {free / 1024**2:,.1f} MiB free"
        return f"{name} {what}; the end of {service.log}:\n" + "\n".join(lines)

    def pid(self, name: str) -> int:
        with self._lock:
            return self._running[name].process.pid

    def kill(self, name: str) -> None:
        """SIGKILL the service; the supervisor starts it again. A fault to inject."""
        with self._lock:
            self._running[name].process.kill()
            self._running[name].process.wait()

    def stop(self, grace_seconds: float = 10.0) -> dict[str, int]:
        """SIGTERM all services, SIGKILL after the grace; the exit status of each."""
        self._stopping.set()
        if self._supervisor is not None:
            self._supervisor.join()
        with self._lock:
            # Producers before the collector, so that what they send last still arrives.
            order = [name for name in reversed(SERVICES) if name in self._running]
            (self.settings.data / PID_FILE).unlink(missing_ok=True)
            for name in order:
                process = self._running[name].process
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    try:
                        process.wait(grace_seconds)
                    except subprocess.TimeoutExpired:
                        process.kill()
                        process.wait()
            return {name: self._running[name].process.returncode for name in order}

    def _supervise(self) -> None:
        while not self._stopping.wait(0.2):
            with self._lock:
                for running in self._running.values():
                    self._restart_if_dead(running, time.monotonic())

    def _restart_if_dead(self, running: _Running, now: float) -> None:
        if running.process.poll() is None:
            if now - running.started_at > 60.0:
                running.restarts = 0
            return
        if running.restart_at is None:
            delay = 0.0 if running.restarts == 0 else min(2.0 ** (running.restarts - 1), MAX_RESTART_DELAY_SECONDS)
            running.restart_at = now + delay
        if now >= running.restart_at:
            running.process = _spawn(running.service)
            running.started_at, running.restart_at = now, None
            running.restarts += 1


def _spawn(service: Service) -> subprocess.Popen[bytes]:
    service.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with service.log.open("ab") as log:
        # A session of its own keeps Ctrl-C from reaching the service before the stack stops it in order.
        return subprocess.Popen(
            service.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def ready_url(settings: Settings, name: str) -> str:
    """The readiness probe of a service."""
    return {
        "collector": f"{settings.collector_url}/-/ready",
        "alerts": f"{settings.alerts_url}/-/ready",
        "serving": f"{settings.serving_url}/v2/health/ready",
        "dashboard": f"{settings.dashboard_url}/_stcore/health",
    }[name]


def _is_ready(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).status_code == 200
    except httpx.HTTPError:
        return False


def states(settings: Settings) -> list[State]:
    """Ask each service whether it is ready."""
    found = []
    with httpx.Client(timeout=2.0) as client:
        for name in SERVICES:
            url = ready_url(settings, name)
            try:
                answer = client.get(url)
                ready, detail = answer.status_code == 200, f"HTTP {answer.status_code}"
            except httpx.HTTPError as error:
                ready, detail = False, f"no answer ({type(error).__name__})"
            found.append(State(name, url, ready, "ready" if ready else detail))
    return found


def owner(data: Path) -> int | None:
    """The process id of the stack that runs on the data folder, or None."""
    try:
        pid = int((data / PID_FILE).read_text())
    except (OSError, ValueError):
        return None
    return pid if pid != os.getpid() and psutil.pid_exists(pid) else None


def with_free_ports(settings: Settings, *, anywhere: bool = False) -> tuple[Settings, list[str]]:
    """The settings with each taken port replaced by a free one, and a line about each replacement.

    With `anywhere` every port is one drawn at random, so that two stacks that start at once do not meet.
    """
    notes: list[str] = []
    host = settings.trimtab.host
    taken: set[int] = set()

    def port(name: str, wanted: int) -> int:
        free = not anywhere and wanted not in taken and is_free(host, wanted)
        chosen = wanted if free else free_port(host, taken)
        taken.add(chosen)
        if not free and not anywhere:
            notes.append(f"port {wanted} is in use: {name} listens on {chosen}")
        return chosen

    replace = msgspec.structs.replace
    collector = replace(
        settings.collector,
        intake_port=port("the collector's intake", settings.collector.intake_port),
        query_port=port("the query API", settings.collector.query_port),
    )
    return replace(
        settings,
        collector=collector,
        alerts=replace(settings.alerts, port=port("alerts", settings.alerts.port)),
        serving=replace(settings.serving, port=port("serving", settings.serving.port)),
        dashboard=replace(settings.dashboard, port=port("the dashboard", settings.dashboard.port)),
    ), notes


@contextmanager
def running(settings: Settings, names: Iterable[str] = SERVICES) -> Iterator[Stack]:
    """The stack, ready, for the time of a `with` block."""
    stack = Stack.prepare(settings)
    try:
        names = tuple(names)
        stack.start(names)
        stack.wait_ready(names)
        yield stack
    finally:
        stack.stop()
