import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import msgspec
import pytest

from trimtab.settings import General, Settings, load
from trimtab.stack import Service, Stack, StackError, owner, states, with_free_ports

# A stand-in for a service: answers every GET with 200, counts its starts in a file, ends cleanly on SIGTERM.
SERVER = """
import http.server, pathlib, signal, sys
counter, port = pathlib.Path(sys.argv[1]), int(sys.argv[2])
counter.write_text(str(int(counter.read_text()) + 1 if counter.exists() else 1))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


class _OneServer(Stack):
    """A stack whose services are all the stand-in."""

    def service(self, name: str) -> Service:
        real = super().service(name)
        port = real.ready_url.split(":")[2].split("/")[0]
        counter = str(self.settings.data / f"{name}.starts")
        return Service(name, (sys.executable, "-c", SERVER, counter, port), real.ready_url, real.log)


def _settings(folder: Path) -> Settings:
    own = msgspec.structs.replace(Settings(), trimtab=General(data=str(folder)))
    return with_free_ports(own, anywhere=True)[0]


def _wait(condition: object, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def test_a_taken_port_is_replaced_and_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = msgspec.structs.replace(
            Settings(), dashboard=msgspec.structs.replace(Settings().dashboard, port=port)
        )

        chosen, notes = with_free_ports(settings)

    assert chosen.dashboard.port != port
    assert any(str(port) in note and str(chosen.dashboard.port) in note for note in notes)


def test_the_services_get_the_settings_in_a_file_only_the_owner_reads(tmp_path: Path) -> None:
    settings = _settings(tmp_path / "data")

    stack = Stack.prepare(settings)

    assert load(stack.settings_file, {}) == settings
    assert stack.settings_file.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_killed_service_comes_back_and_stop_ends_it_cleanly(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    prepared = Stack.prepare(settings)
    stack = _OneServer(settings, prepared.settings_file)
    starts = tmp_path / "alerts.starts"
    try:
        stack.start(["alerts"])
        stack.wait_ready(["alerts"], timeout=240)
        first = stack.pid("alerts")
        stack.kill("alerts")
        _wait(lambda: starts.read_text() == "2")
        stack.wait_ready(["alerts"], timeout=240)

        assert stack.pid("alerts") != first
        _wait(lambda: {state.name: state.ready for state in states(settings)}["alerts"])
    finally:
        statuses = stack.stop()

    assert statuses == {"alerts": 0}
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{settings.alerts_url}/-/ready")


@pytest.mark.slow
def test_a_service_that_cannot_start_is_reported_with_its_log(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    stack = Stack.prepare(settings)
    stack.settings_file.write_text("[nonsense]\n")
    try:
        stack.start(["serving"])
        with pytest.raises(StackError, match="nonsense"):
            stack.wait_ready(["serving"], timeout=240)
    finally:
        stack.stop()


def test_a_folder_that_a_stack_runs_on_has_an_owner_until_it_stops(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    script = "import sys, time; sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as other:
        (tmp_path / "stack.pid").write_text(str(other.pid))
        assert owner(tmp_path) == other.pid
        other.communicate()

    assert owner(tmp_path) is None
    stack = Stack.prepare(settings)
    assert owner(tmp_path) is None  # our own
    stack.stop()
    assert not (tmp_path / "stack.pid").exists()
