"""mosec with orjson in its worker, batches of 64 within 2 ms: `mosec_server.py --port PORT --weights FILE`."""

import sys
from typing import Any

import mlp
import numpy as np
import orjson
from mosec import Server, Worker


class Inference(Worker):
    """One worker process with the model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = mlp.load(sys.argv[sys.argv.index("--weights") + 1])

    def deserialize(self, data: bytes) -> np.ndarray:
        """The rows of a body."""
        return mlp.rows_of(orjson.loads(data))

    def serialize(self, data: Any) -> bytes:
        """An answer's body."""
        return orjson.dumps(mlp.answer(data))

    def forward(self, data: list[np.ndarray]) -> list[np.ndarray]:
        """One batch."""
        return mlp.predict(self.model, data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Inference, num=1, max_batch_size=64, max_wait_time=2, route="/v2/models/mlp/infer")
    server.run()
