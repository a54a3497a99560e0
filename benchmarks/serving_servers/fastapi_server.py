"""FastAPI on uvicorn with a pydantic body and no batching: `fastapi_server.py PORT WEIGHTS`."""

import sys
from typing import Any

import mlp
import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Tensor(BaseModel):
    """A V2 tensor."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float]


class Body(BaseModel):
    """A V2 request."""

    inputs: list[Tensor]


app = FastAPI()
model = mlp.load(sys.argv[2])


@app.post("/v2/models/mlp/infer")
async def infer(body: Body) -> dict[str, Any]:
    """One request, one step of the model."""
    tensor = body.inputs[0]
    (rows,) = mlp.predict(model, [np.array(tensor.data, np.float32).reshape(tensor.shape)])
    return mlp.answer(rows)


if __name__ == "__main__":
    uvicorn.run(
        app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", access_log=False, loop="uvloop",
        http="httptools",
    )  # fmt: skip
