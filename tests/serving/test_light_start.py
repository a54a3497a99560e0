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
    share = "from serving.garbage import load_torch, share_memory_with_arrow\n"

    assert arrows_pool(f"{share}load_torch(1)\nshare_memory_with_arrow()") == "system"
    assert arrows_pool(f"{share}share_memory_with_arrow()") == "its own"


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
