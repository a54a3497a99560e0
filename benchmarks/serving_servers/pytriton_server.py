"""PyTriton, batches of 64 within 2 ms, on Triton's own V2 endpoint: `pytriton_server.py PORT WEIGHTS`."""

import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import mlp
import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.models.model import Model
from pytriton.triton import Triton, TritonConfig

# Triton embeds a Python 3.11 older than the `multiprocessing` of an installed one, which asks a lock for this.
OLD_LOCK = b"""
import threading
from multiprocessing import resource_tracker
if not hasattr(threading.RLock(), "_recursion_count"):
    resource_tracker._resource_tracker._lock = threading._PyRLock()
"""


def with_lock(files_of: Callable[[Model], dict[str, bytes]]) -> Callable[[Model], dict[str, bytes]]:
    """What Triton's process is given to run, made to work there."""

    def files(model: Model) -> dict[str, bytes]:
        return {name: text + OLD_LOCK * name.endswith("/model.py") for name, text in files_of(model).items()}

    return files


def inference(weights: str) -> Callable[..., Any]:
    """One batch of the model."""
    model = mlp.load(weights)

    def infer(x: np.ndarray) -> list[np.ndarray]:
        return mlp.predict(model, [x])

    made: Callable[..., Any] = batch(infer)
    return made


if __name__ == "__main__":
    Model.get_proxy_model_files = with_lock(Model.get_proxy_model_files)
    config = TritonConfig(http_address="127.0.0.1", http_port=int(sys.argv[1]), allow_grpc=False, allow_metrics=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with tempfile.TemporaryDirectory() as folder, Triton(config=config, workspace=f"{folder}/work") as server:
        server.bind(
            "mlp", inference(sys.argv[2]), [Tensor(name="x", dtype=np.float32, shape=(mlp.FEATURES,))],
            [Tensor(name="y", dtype=np.float32, shape=(mlp.OUTPUTS,))],
            config=ModelConfig(max_batch_size=64, batcher=DynamicBatcher(max_queue_delay_microseconds=2000)),
        )  # fmt: skip
        server.serve()
