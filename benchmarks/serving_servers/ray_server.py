"""Ray Serve behind its HAProxy, set for throughput, batches of 64 within 2 ms: `ray_server.py PORT WEIGHTS`."""

import os
import shutil
import signal
import socket
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

FOLDER = tempfile.mkdtemp(prefix="ray-")
PORTS = ("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT")
# Read when Ray is imported, in each of its processes.
os.environ |= {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{FOLDER}/haproxy.cfg", "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{FOLDER}/haproxy",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": FOLDER, "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{FOLDER}/state",
    "PYTHONPATH": str(Path(__file__).parent),
}  # fmt: skip
with ExitStack() as held:
    for name in PORTS:
        free = held.enter_context(socket.create_server(("127.0.0.1", 0)))
        os.environ[name] = str(free.getsockname()[1])

import mlp  # noqa: E402
import numpy as np  # noqa: E402
import ray  # noqa: E402
from ray import serve  # noqa: E402
from starlette.requests import Request  # noqa: E402


@serve.deployment(max_ongoing_requests=1000)
class Service:
    """The model behind Ray's batches."""

    def __init__(self, weights: str) -> None:
        self.model = mlp.load(weights)

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.002)
    async def predict(self, groups: list[np.ndarray]) -> list[np.ndarray]:
        """One batch."""
        return mlp.predict(self.model, groups)

    async def __call__(self, request: Request) -> dict[str, Any]:
        """One request."""
        return mlp.answer(await self.predict(mlp.rows_of(await request.json())))


if __name__ == "__main__":
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=FOLDER)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # Ray has its own, which aborts
        serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
        serve.run(Service.bind(sys.argv[2]), route_prefix="/v2/models/mlp/infer")
        signal.pause()
    finally:
        ray.shutdown()
        shutil.rmtree(FOLDER, ignore_errors=True)
