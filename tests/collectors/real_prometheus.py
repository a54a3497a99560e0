"""A real Prometheus on a free port, with a configuration."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from trimtab.ports import free_port


class Prometheus:
    """One that runs until `close`."""

    def __init__(self, folder: Path, config: Path, *arguments: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.log = folder / "prometheus.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={config}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={self.address}",
                    *arguments,
                ],
                stderr=log,
            )
        self.client = httpx.Client(base_url=f"http://{self.address}", timeout=60)

    def until(self, seen: Callable[[], Any], seconds: float = 60) -> Any:
        """What `seen` gives as soon as it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if found := seen():
                    return found
            except (httpx.HTTPError, ValueError):
                pass
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def get(self, path: str, **params: Any) -> Any:
        return self.client.get(f"/api/v1/{path}", params=params).json()["data"]

    def close(self) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait()
