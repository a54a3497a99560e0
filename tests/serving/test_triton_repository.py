"""An unmodified Triton client loads and unloads models here."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable

import pytest

from serving import Service

Start = Callable[..., Awaitable[Service]]

# Run apart: the client is built on gevent, whose patches and warnings are none of this process's business.
CLIENT = """
import json, sys
import numpy as np
import tritonclient.http as triton

client = triton.InferenceServerClient(sys.argv[1])

def score(version=""):
    amount = triton.InferInput("amount", [1, 1], "FP32")
    amount.set_data_from_numpy(np.array([[np.e]], np.float32))
    carrier = triton.InferInput("carrier", [1, 1], "BYTES")
    carrier.set_data_from_numpy(np.array([["UA"]], object))
    return round(float(client.infer("fares", [amount, carrier], model_version=version).as_numpy("score").item()), 3)

def states():
    return [row["state"] for row in client.get_model_repository_index() if row["name"] == "fares"]

found = {"start": states()}
client.load_model("fares", config=json.dumps({"version_policy": {"specific": {"versions": [2, 3]}}}))
found["loaded"], found["scores"] = states(), [score("2"), score("3")]
found["ready"] = client.is_model_ready("fares", "3")
client.unload_model("fares")
found["unloaded"], found["gone"], found["server"] = states(), client.is_model_ready("fares"), client.is_server_ready()
client.load_model("fares")
found["again"], found["stable"] = states(), score()
for name, files in (("nobody", None), ("fares", {"file:1/model.pt": b"x"})):
    try:
        client.load_model(name, files=files, config="{}" if files else None)
    except triton.InferenceServerException as error:
        found[name] = str(error)
print(json.dumps(found))
"""


@pytest.mark.slow
async def test_tritonclient_loads_and_unloads(start: Start) -> None:
    service = await start()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", "-c", CLIENT, f"127.0.0.1:{service.port}",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    printed, complaint = await process.communicate()
    assert process.returncode == 0, complaint.decode()
    found = json.loads(printed)

    assert found["start"] == ["READY", "UNAVAILABLE", "UNAVAILABLE"]
    assert found["loaded"] == ["READY"] * 3
    assert found["scores"] == [22.0, 23.0]
    assert found["ready"] is True
    assert (found["unloaded"], found["gone"], found["server"]) == (["UNAVAILABLE"] * 3, False, True)
    assert (found["again"], found["stable"]) == (["READY", "UNAVAILABLE", "UNAVAILABLE"], 21.0)
    assert "not in the registry" in found["nobody"]
    assert "brings no files" in found["fares"]
