"""The store on a real PostgreSQL server, which the test starts."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from collectors.store import Matcher, MetricMetadata, Store

T0 = 1_700_000_000_000
pytestmark = pytest.mark.slow


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    path = shutil.which("initdb")
    return None if path is None else Path(path).parent


@pytest.fixture(scope="module")
def postgresql_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("postgresql")
    # PostgreSQL refuses to run as root; its own account can reach the folder only if the path to it is open.
    user = "postgres" if os.geteuid() == 0 else None
    if user is not None:
        base = Path(tempfile.gettempdir())
        for parent in (folder, *(above for above in folder.parents if above.is_relative_to(base) and above != base)):
            parent.chmod(0o755)
        shutil.chown(folder, user, user)
    data = folder / "data"

    def command(program: str, *arguments: str) -> None:
        subprocess.run(
            [str(programs / program), *arguments],
            user=user,
            check=True,
            timeout=60,
            cwd=folder,
            stdout=subprocess.DEVNULL,
        )

    command("initdb", "-D", str(data), "-U", "trimtab", "--auth=trust", "--no-sync")
    settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    command("pg_ctl", "-D", str(data), "-o", settings, "-l", str(folder / "log"), "-w", "start")
    yield f"postgresql+psycopg://trimtab@127.0.0.1:{port}/postgres"
    command("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")


def test_postgresql_keeps_samples_serves_old_ones_and_prunes(postgresql_url: str) -> None:
    now = [T0 / 1000]

    def opened() -> Store:
        return Store(postgresql_url, clock=lambda: now[0], head_seconds=30.0, retention_seconds=60.0)

    store = opened()
    for step in range(100):
        now[0] = T0 / 1000 + step
        samples = [({"__name__": "x", "i": str(i), "long": "é" * 4000}, float(step * i)) for i in range(3)]
        store.append("a", T0 + step * 1000, samples)
    store.set_metadata({"x": MetricMetadata("gauge", "An x.", "")})
    store.set_metadata({"x": MetricMetadata("counter", "An x.", "")})
    store.close()
    store = opened()
    two = [Matcher("i", "=", "2")]
    (whole,) = store.select(two, 0, 2 * T0)
    deleted = [store.prune(now[0], limit=25), store.prune(now[0], limit=25), store.prune(now[0], limit=25)]
    (left,) = store.select(two, 0, 2 * T0)
    metadata = store.metadata()
    store.close()

    assert whole.v.tolist() == [2.0 * step for step in range(100)]
    assert whole.labels["long"] == "é" * 4000
    assert deleted == [25, 14, 0]
    assert left.t[0] == T0 + 39_000
    assert metadata["x"].type == "counter"
