"""What the start of a server does not load: each of these took tens of milliseconds or megabytes of it."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
POOL = "ARROW_DEFAULT_MEMORY_POOL"
# A registry in SQLite needs no SQLAlchemy, a server without events no Arrow, one that calls nobody no HTTP client.
HEAVY = ("sqlalchemy", "pyarrow", "httpx", "rich", "pandas", "yaml", "jsonschema", "grpc", "google.protobuf", "torch")


def loaded(code: str) -> set[str]:
    """The modules of HEAVY that a fresh interpreter has after the code."""
    tell = f"{code}\nimport sys\nimport json\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", tell], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_command_is_imported_without_what_it_may_never_use() -> None:
    assert loaded("import trimtab.commands.serve") == set()


def test_a_server_is_made_without_what_it_does_not_use(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from serving import ServingConfig
from serving.server import Service
Service(ServingConfig(registry_url="sqlite:///{tmp_path}/registry.db", artifacts_dir=Path({str(tmp_path)!r}), port=0))
"""
    assert loaded(code) == set()


def arrows_pool(code: str) -> str:
    """Where Arrow's C++ takes its memory after the code, in a fresh interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != POOL}
    # `repeat` takes it where C++ does unless it is told a pool.
    tell = f"{code}\nimport pyarrow as pa\nkept = pa.repeat('a', 9)\nprint(pa.system_memory_pool().bytes_allocated())"
    done = subprocess.run(
        [sys.executable, "-c", tell], cwd=ROOT, check=True, capture_output=True, text=True, env=environment
    )
    return "system" if int(done.stdout.splitlines()[-1]) > 0 else "its own"


def test_a_servers_own_process_has_one_allocator_and_others_are_left_alone() -> None:
    share = "from serving.garbage import load_arrow, load_torch\n"

    assert arrows_pool(f"{share}load_torch(1)\nload_arrow()") == "system"
    assert arrows_pool(f"{share}load_arrow()") == "its own"


def test_arrow_in_a_servers_own_process_never_asks_for_pandas() -> None:
    code = "from serving.garbage import load_arrow, load_torch\n{}load_arrow()\nimport pyarrow\npyarrow.array([[1.0]])"

    assert "pandas" not in loaded(code.format("load_torch(1)\n"))
    assert "pandas" in loaded(code.format(""))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library cannot give memory back")
def test_a_process_that_settles_down_gives_back_what_its_start_has_freed() -> None:
    code = """
import linecache, random
from pathlib import Path
from serving.garbage import settle_down
linecache.getlines(random.__file__)
# Below the size that has a mapping of its own; the last one keeps the heap from getting smaller by itself.
blocks = [bytes(60_000) for _ in range(1000)]
kept = blocks[-1]
del blocks
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
before = resident()
settle_down()
print(before - resident(), len(linecache.cache))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    freed, sources = map(int, done.stdout.split())

    assert freed > 40_000_000
    assert sources == 0


def test_events_and_traces_are_made_and_sent_without_arrow_and_protobuf() -> None:
    code = """
import threading
from array import array
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
import numpy as np
import observability
from observability.sinks import HttpSink
from serving.protocol.signature import Input, Output, Signature
from serving.router import Choice
from serving.telemetry import EventMaker
from serving.telemetry.columns import Anchor, ServedGroup
from serving.telemetry.memory import Memory
from serving.telemetry.runs import Run

bodies = []
class Collector(BaseHTTPRequestHandler):
    def do_POST(self):
        bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass
server = HTTPServer(("127.0.0.1", 0), Collector)
threading.Thread(target=server.serve_forever, daemon=True).start()
exporter = observability.EventExporter(HttpSink(f"http://127.0.0.1:{server.server_port}/v1/events"))
maker = EventMaker(exporter, "0f")
signature = Signature((Input("x", "FP32"), Input("c", "BYTES", ("a",))), (Output("y"),))
one = Signature((Input("x", "FP32", shape=(2,)),), (Output("y"),))
choice = Choice(1, "stable", 1.0)
maker.put([SimpleNamespace(
    model="m", choice=choice, signature=signature, rows=1, values=[[1.0], ["a"]], id="i", outputs=[np.ones((1, 1))],
    outcome="ok", arrived=0.0, done=1.0, span=None, attributes=None, drawn=True, row_ids=None)],
    Anchor(0.0, 0))
run = Run(Memory(), one)
run.add(np.ones((1, 2), np.float32), [np.ones((1, 1))], array("q", [1]).tobytes(), array("d", [0.0]).tobytes(), 1.0)
maker.put_served(ServedGroup("m", choice, [run], 1), Anchor(0.0, 0))
assert exporter.flush(60)
maker.close()
tracing = observability.setup_tracing("serving", f"http://127.0.0.1:{server.server_port}")
tracing.record("request", 1, 2)
tracing.close()
assert len(bodies) > 2, bodies
"""
    assert loaded(code) == set()
