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

Running = tuple[subprocess.Popen[str], int, int]

SERVER = """
    import sys
    from pathlib import Path
    from serving import ServingConfig, serve
    serve(ServingConfig(registry_url=sys.argv[1], artifacts_dir=Path(sys.argv[2]), port=0, grpc_port=0,
                        max_batch_rows=64, drain_notice=float(sys.argv[3])),
          started=lambda service: print(service.port, service.edge.grpc_port, flush=True))
"""

# Run apart: the clients are built on gevent and grpcio, whose patches and threads are none of this process's business.
CLIENT = """
    import json, queue, sys
    import ml_dtypes
    import numpy as np

    kind, address = sys.argv[1:]
    if kind == "http":
        import tritonclient.http as triton
    else:
        import tritonclient.grpc as triton
    from tritonclient.utils import InferenceServerException

    client = triton.InferenceServerClient(address)

    def plain(method, *args, **options):
        # The one gives plain JSON, the other a message, or as JSON with numbers as texts.
        return method(*args, **options) if kind == "http" else method(*args, as_json=True, **options)

    found = {"live": client.is_server_live(), "ready": client.is_server_ready(),
             "model": client.is_model_ready("fares"), "version": client.is_model_ready("fares", "1"),
             "unknown": client.is_model_ready("nowhere"), "unloaded": client.is_model_ready("fares", "3"),
             "server": plain(client.get_server_metadata), "metadata": plain(client.get_model_metadata, "fares"),
             "config": plain(client.get_model_config, "fares", "1"),
             "index": plain(client.get_model_repository_index),
             "trace": plain(client.get_trace_settings), "model_trace": plain(client.get_trace_settings, "fares"),
             "untouched": plain(client.update_trace_settings, settings={"trace_count": None}),
             "log": plain(client.get_log_settings),
             "system": plain(client.get_system_shared_memory_status),
             "cuda": plain(client.get_cuda_shared_memory_status), "scores": []}

    def inputs(binary=True):
        amount = triton.InferInput("amount", [3, 1], "FP32")
        carrier = triton.InferInput("carrier", [3, 1], "BYTES")
        options = {"binary_data": binary} if kind == "http" else {}
        amount.set_data_from_numpy(np.array([[1.0], [np.e], [1.0]], np.float32), **options)
        carrier.set_data_from_numpy(np.array([["AA"], ["UA"], ["nowhere"]], object), **options)
        return [amount, carrier]

    def requested(binary):
        options = {"binary_data": binary} if kind == "http" else {}
        return [triton.InferRequestedOutput("score", **options)]

    for binary in (False, True) if kind == "http" else (True,):
        for outputs in (None, requested(False), requested(True)):
            for algorithm in (None, "gzip", "deflate"):
                options = ({"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
                           if kind == "http" else {"compression_algorithm": algorithm, "client_timeout": 60})
                answer = client.infer("fares", inputs(binary), outputs=outputs, request_id="r", timeout=60_000_000,
                                      headers={"x-deadline-ms": "60000"}, priority=1,
                                      parameters={"attributes": '{"day": "d"}'}, **options)
                response = answer.get_response()
                assert (response["id"] if kind == "http" else response.id) == "r"
                found["scores"].append(answer.as_numpy("score").round(4).tolist())

    if kind == "http":
        found["async"] = client.async_infer("fares", inputs()).get_result().as_numpy("score").round(4).tolist()
    else:
        answers = queue.Queue()
        client.async_infer("fares", inputs(), lambda result, error: answers.put(result))
        found["async"] = answers.get(timeout=60).as_numpy("score").round(4).tolist()
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(3):
            client.async_stream_infer("fares", inputs(), request_id=str(number))
        client.async_stream_infer("fares", inputs()[:1])
        client.async_stream_infer("fares", inputs(), request_id="last")
        streamed = [answers.get(timeout=60) for _ in range(5)]
        found["stream"] = [str(error) if result is None else result.get_response().id for result, error in streamed]
        client.stop_stream()

    found["floats"] = []
    for datatype, dtype in (("FP32", np.float32), ("BF16", ml_dtypes.bfloat16)):
        asked = inputs()
        asked[0] = triton.InferInput("amount", [3, 1], datatype)
        asked[0].set_data_from_numpy(np.array([[1.0], [2.5], [0.75]], dtype))
        found["floats"].append(client.infer("fares", asked).as_numpy("score").tolist())

    shared = inputs()
    shared[0].set_shared_memory("region", 12)
    classified = [triton.InferRequestedOutput("score", class_count=2)]
    refused = {
        "missing": lambda: client.infer("fares", inputs()[:1]),
        "model": lambda: client.infer("nowhere", inputs()),
        "version_9": lambda: client.infer("fares", inputs(), model_version="9"),
        "classified": lambda: client.infer("fares", inputs(), outputs=classified),
        "sequence": lambda: client.infer("fares", inputs(), sequence_id=7, sequence_start=True),
        "shared": lambda: client.infer("fares", shared),
        "register": lambda: client.register_system_shared_memory("region", "/region", 64),
        "cuda_region": lambda: client.register_cuda_shared_memory("region", b"aGFuZGxl", 0, 64),
        "trace": lambda: client.update_trace_settings(settings={"trace_rate": "7"}),
        "log": lambda: client.update_log_settings({"log_verbose_level": 3}),
        "config": lambda: client.get_model_config("nowhere"),
        "statistics": lambda: client.get_inference_statistics("nowhere"),
    }
    found["errors"] = {}
    for name, ask in refused.items():
        try:
            ask()
        except InferenceServerException as error:
            found["errors"][name] = error.message()
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    found["statistics"] = plain(client.get_inference_statistics, "fares")
    found["all_statistics"] = plain(client.get_inference_statistics)
    client.close()
    print(json.dumps(found))
"""


@pytest.fixture
def drain_notice() -> float:
    """Seconds for which a server that was told to end still takes connections."""
    return 1.0


@pytest.fixture
def server(registry: Registry, registry_url: str, tmp_path: Path, drain_notice: float) -> Iterator[Running]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SERVER), registry_url, str(tmp_path / "artifacts"), str(drain_notice)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    yield process, *map(int, process.stdout.readline().split())
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_an_unmodified_tritonclient_finds_all_it_asks_for(server: Running, kind: str) -> None:
    _, http_port, grpc_port = server
    address = f"127.0.0.1:{http_port if kind == 'http' else grpc_port}"
    client = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(CLIENT), kind, address],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert client.returncode == 0, client.stderr
    found = json.loads(client.stdout)
    http = kind == "http"

    assert all(found[name] for name in ("live", "ready", "model", "version"))
    assert not found["unknown"]
    # Half of a float32 is enough for these.
    assert found["floats"][0] == found["floats"][1]
    assert not found["unloaded"]
    assert {"binary_tensor_data", "statistics", "model_configuration"} <= set(found["server"]["extensions"])
    one, row = (1, -1) if http else ("1", "-1")
    assert found["metadata"]["inputs"] == [
        {"name": "amount", "datatype": "FP32", "shape": [row, one]},
        {"name": "carrier", "datatype": "BYTES", "shape": [row, one]},
    ]
    config = found["config"] if http else found["config"]["config"]
    assert (config["name"], config["max_batch_size"]) == ("fares", 64)
    assert config["input"][1] == {"name": "carrier", "data_type": "TYPE_STRING", "dims": [one]}
    index = found["index"] if http else found["index"]["models"]
    assert [(entry["name"], entry["version"], entry["state"]) for entry in index][:1] == [("fares", "1", "READY")]
    settings = found["trace"] if http else {k: v["value"] for k, v in found["trace"]["settings"].items()}
    assert settings["trace_level"] == ["TIMESTAMPS"]
    assert found["model_trace"] == found["untouched"] == found["trace"]
    assert found["log"] if http else found["log"]["settings"]
    assert not found["system"]
    assert not found["cuda"]
    assert found["scores"] == [[10.0, 21.0, 0.0]] * (18 if http else 9)
    assert found["async"] == [10.0, 21.0, 0.0]
    if not http:
        assert found["stream"][:3] + found["stream"][4:] == ["0", "1", "2", "last"]
        assert "'carrier' is missing" in found["stream"][3]
    for name, said in {
        "missing": "'carrier' is missing", "model": "'nowhere' is not served", "version_9": "loaded are [1]",
        "classified": "classification is not offered", "sequence": "sequences are not offered",
        "shared": "shared memory is not offered", "register": "shared memory is not offered",
        "cuda_region": "shared memory is not offered", "trace": "fixed at start", "log": "fixed at start",
        "config": "'nowhere' is not served", "statistics": "'nowhere' is not served",
    }.items():  # fmt: skip
        assert said in found["errors"].get(name, "nothing"), name
    (stats,) = found["statistics"]["model_stats"]
    answered = 21 if http else 16
    assert int(stats["inference_count"]) == 3 * answered
    assert int(stats["inference_stats"]["success"]["count"]) == answered
    assert int(stats["inference_stats"]["fail"]["count"]) >= 3
    assert int(stats["inference_stats"]["compute_infer"]["ns"]) > 0
    assert stats in found["all_statistics"]["model_stats"]


LOAD = """
    import asyncio, json, sys, time
    from serving import QuickClient

    async def main():
        port, stop_at = int(sys.argv[1]), int(sys.argv[2])
        lost, answered, refused = 0, 0, 0
        async with QuickClient(f"http://127.0.0.1:{port}", timeout=60) as client:
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
    server: Running,
) -> None:
    process, port, _ = server
    load = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(LOAD), str(port), "500"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert load.stdout is not None
    assert load.stdout.readline() == "now\n"
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(90) == 0
    out, err = load.communicate(timeout=60)
    assert process.stderr is not None
    logs = [json.loads(line) for line in process.stderr.read().splitlines()]

    result = json.loads(out)
    assert result["lost"] == 0, err
    assert result["answered"] > 500 // 3
    assert logs[-1]["message"] == "drained; goodbye"


@pytest.mark.slow
@pytest.mark.parametrize("drain_notice", [90.0])  # for as long as the question may take
def test_readiness_goes_off_while_the_server_drains(server: Running) -> None:
    process, port, _ = server
    url = f"http://127.0.0.1:{port}/v2/health/ready"
    assert urllib.request.urlopen(url, timeout=60).status == 200
    os.kill(process.pid, signal.SIGTERM)
    limit = time.monotonic() + 60
    codes = []
    while time.monotonic() < limit and not codes:
        try:
            urllib.request.urlopen(url, timeout=60).close()
        except urllib.error.HTTPError as error:
            codes.append((error.code, json.loads(error.read())["error"]))
            error.close()

    assert codes == [(503, "the server is draining")]
