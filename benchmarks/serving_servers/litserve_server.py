"""LitServe, batches of 64 within 2 ms: `litserve_server.py PORT WEIGHTS`."""

import sys
from typing import Any

import litserve
import mlp
import numpy as np


class Api(litserve.LitAPI):
    """The model behind LitServe's steps."""

    def setup(self, device: str) -> None:
        """Loads in the worker process."""
        self.model = mlp.load(sys.argv[2])

    def decode_request(self, request: dict[str, Any]) -> np.ndarray:
        """The rows of a body."""
        return mlp.rows_of(request)

    def batch(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Requests may have several rows: they are joined where they are predicted."""
        return inputs

    def predict(self, x: list[np.ndarray]) -> list[np.ndarray]:
        """One batch."""
        return mlp.predict(self.model, x)

    def unbatch(self, output: list[np.ndarray]) -> list[np.ndarray]:
        """They are apart already."""
        return output

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        """An answer's body."""
        return mlp.answer(output)


if __name__ == "__main__":
    api = Api(max_batch_size=64, batch_timeout=0.002, api_path="/v2/models/mlp/infer")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="error", generate_client_file=False)
