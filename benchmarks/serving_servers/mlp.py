"""The model of the peers: the same layers and weights as ours, one thread, and V2 JSON around it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

FEATURES, OUTPUTS = 64, 8


class Mlp(torch.nn.Module):
    """64 -> 256 -> 256 -> 8."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256), torch.nn.ReLU(),
            torch.nn.Linear(256, OUTPUTS),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 64] -> [rows, 8]."""
        out: torch.Tensor = self.layers(x)
        return out


def load(weights: str) -> Mlp:
    """The model with the weights of a file, ready to predict."""
    torch.set_num_threads(1)
    model = Mlp()
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()


def predict(model: Mlp, groups: Sequence[np.ndarray]) -> list[np.ndarray]:
    """One batch of all groups of rows, and each group's answers."""
    rows = groups[0] if len(groups) == 1 else np.concatenate(groups)
    with torch.inference_mode():
        answers = model(torch.from_numpy(rows)).numpy()
    return np.split(answers, np.cumsum([len(group) for group in groups])[:-1])


def rows_of(body: dict[str, Any]) -> np.ndarray:
    """The rows of a decoded V2 request."""
    tensor = body["inputs"][0]
    return np.array(tensor["data"], np.float32).reshape(tensor["shape"])


def answer(rows: np.ndarray) -> dict[str, Any]:
    """A V2 response, to be encoded."""
    output = {"name": "y", "datatype": "FP32", "shape": list(rows.shape), "data": rows.reshape(-1).tolist()}
    return {"model_name": "mlp", "model_version": "1", "outputs": [output]}
