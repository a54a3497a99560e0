"""BentoML, adaptive batches of at most 64 requests: `bentoml_server.py PORT WEIGHTS`.

A batched method of it answers a list, so that an answer is the V2 outputs without what stands around them.
"""

import os
import sys
from pathlib import Path
from typing import Any

import bentoml
import mlp


@bentoml.service(name="mlp", workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Service:
    """The model behind BentoML's batches."""

    def __init__(self) -> None:
        self.model = mlp.load(os.environ["MLP_WEIGHTS"])

    @bentoml.api(route="/v2/models/mlp/infer", batchable=True, max_batch_size=64, max_latency_ms=60000)
    def infer(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One batch: a tensor a request."""
        groups = [mlp.rows_of({"inputs": [tensor]}) for tensor in inputs]
        return [mlp.answer(rows)["outputs"][0] for rows in mlp.predict(self.model, groups)]


if __name__ == "__main__":
    place = ["--working-dir", str(Path(__file__).parent), "--host", "127.0.0.1", "--port", sys.argv[1]]
    os.environ |= {"MLP_WEIGHTS": sys.argv[2], "BENTOML_DO_NOT_TRACK": "True"}
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", "bentoml_server:Service", *place])
