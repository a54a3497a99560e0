"""An unmodified Triton client against a real server process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import Registry

SERVER = """
    import sys
    from pathlib import Path
    from serving import ServingConfig, serve
    serve(ServingConfig(registry_url=sys.argv[1], artifacts_dir=Path(sys.argv[2]), port=0, drain_notice=0.2),
          started=lambda service: print(service.port, flush=True))
"""

# Run apart: the client is built on gevent, whose patches and warnings are none of this process's business.
CLIENT = """
    import json, sys
    import numpy as np
    import tritonclient.http as triton

    client = triton.InferenceServerClient(sys.argv[1])
    found = {"live": client.is_server_live(), "ready": client.is_server_ready(),
             "model": client.is_model_ready("fares"), "version": client.is_model_ready("fares", "1"),
             "server": client.get_server_metadata(), "metadata": client.get_model_metadata("fares"),
             "index": client.get_model_repository_index(), "scores": []}

    def inputs(binary):
        amount = triton.InferInput("amount", [3, 1], "FP32")
        amount.set_data_from_numpy(np.array([[1.0], [np.e], [1.0]], np.float32), binary_data=binary)
        carrier = triton.InferInput("carrier", [3, 1], "BYTES")
        carrier.set_data_from_numpy(np.array([["AA"], ["UA"], ["nowhere"]], object), binary_data=binary)
        return [amount, carrier]

    for binary_in in (False, True):
        for outputs in (None, [triton.InferRequestedOutput("score", binary_data=False)],
                        [triton.InferRequestedOutput("score", binary_data=True)]):
            for algorithm in (None, "gzip", "deflate"):
                answer = client.infer("fares", inputs(binary_in), outputs=outputs, request_id="r",
                                      request_compression_algorithm=algorithm, timeout=5_000_000,
                                      parameters={"attributes": '{"day": "d"}'})
                assert answer.get_response()["id"] == "r"
                found["scores"].append(answer.as_numpy("score").round(4).tolist())
    try:
        client.infer("fares", inputs(True)[:1])
    except Exception as error:
        found["error"] = str(error)
    print(json.dumps(found))
"""


@pytest.fixture
def server(registry: Registry, registry_url: str, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SERVER), registry_url, str(tmp_path / "artifacts")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    yield process, int(process.stdout.readline())
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.mark.slow
def test_tritonclient_infers_with_json_and_binary_tensors(server: tuple[subprocess.Popen[str], int]) -> None:
    _, port = server
    client = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(CLIENT), f"127.0.0.1:{port}"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert client.returncode == 0, client.stderr
    found = json.loads(client.stdout)

    assert all(found[name] for name in ("live", "ready", "model", "version"))
    assert found["server"]["extensions"] == ["binary_tensor_data"]
    assert found["metadata"]["inputs"] == [
        {"name": "amount", "datatype": "FP32", "shape": [-1, 1]},
        {"name": "carrier", "datatype": "BYTES", "shape": [-1, 1]},
    ]
    assert found["index"] == [{"name": "fares", "version": "1", "state": "READY", "reason": ""}]
    assert found["scores"] == [[10.0, 21.0, 0.0]] * 18
    assert "'carrier' is missing" in found["error"]


LOAD = """
    import asyncio, json, sys, time
    from serving import InferenceClient

    async def main():
        port, stop_at = int(sys.argv[1]), int(sys.argv[2])
        lost, answered, refused = 0, 0, 0
        async with InferenceClient(f"http://127.0.0.1:{port}", timeout=20) as client:
            async def one(number):
                nonlocal lost, answered, refused
                answer = await client.infer("fares", {"amount": [2.0], "carrier": ["AA"]})
                if answer.ok:
                    answered += 1
                elif "ConnectionRefused" in (answer.error or ""):
                    refused += 1  # no server any more, and nothing was accepted
                else:
                    lost += 1
                    print(answer, file=sys.stderr)
            tasks = []
            for number in range(stop_at):
                tasks.append(asyncio.create_task(one(number)))
                if number == stop_at // 3:
                    print("now", flush=True)
                await asyncio.sleep(0.004)
            await asyncio.gather(*tasks)
        print(json.dumps({"answered": answered, "lost": lost, "refused": refused}))
    asyncio.run(main())
"""


@pytest.mark.slow
def test_sigterm_under_load_answers_every_accepted_request_and_exits_0(
    server: tuple[subprocess.Popen[str], int],
) -> None:
    process, port = server
    load = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LOAD), str(port), "400"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert load.stdout is not None
    assert load.stdout.readline() == "now\n"
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(30) == 0
    out, err = load.communicate(timeout=60)
    assert process.stderr is not None
    logs = [json.loads(line) for line in process.stderr.read().splitlines()]

    result = json.loads(out)
    assert result["lost"] == 0, err
    assert result["answered"] > 400 // 3
    assert logs[-1]["message"] == "drained; goodbye"


@pytest.mark.slow
def test_readiness_goes_off_while_the_server_drains(server: tuple[subprocess.Popen[str], int]) -> None:
    process, port = server
    url = f"http://127.0.0.1:{port}/v2/health/ready"
    assert urllib.request.urlopen(url, timeout=5).status == 200
    os.kill(process.pid, signal.SIGTERM)
    limit = time.monotonic() + 5
    codes = []
    while time.monotonic() < limit and not codes:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError as error:
            codes.append((error.code, json.loads(error.read())["error"]))
            error.close()

    assert codes == [(503, "the server is draining")]
    assert process.wait(30) == 0
