"""The edge of a server of several processes: TLS, gRPC, and pages and rates that are those of all together."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import os
import signal
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tritonclient.utils import InferenceServerException

from serving.callers import token_digest
from tests.serving.fleet_processes import PATIENCE, ROW, Fleet, running, until, with_versions

pytestmark = pytest.mark.slow


def certificate(folder: Path) -> tuple[Path, Path]:
    """Files of a certificate for 127.0.0.1 that signs itself, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "trimtab test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_file, key_file


TOKEN, SLOW_TOKEN = "t" * 32, "s" * 32
HEADERS = {"authorization": f"Bearer {TOKEN}"}
RATE, BURST = 5.0, 10.0  # so little that a busy machine asks for more
CALLERS = [
    {"name": "fast", "token_sha256": token_digest(TOKEN)},
    {"name": "slow", "token_sha256": token_digest(SLOW_TOKEN), "rows_per_second": RATE, "burst_rows": BURST},
]


class Edge:
    """A fleet behind TLS, with a client of each kind."""

    def __init__(self, fleet: Fleet, cert: Path, http: httpx.AsyncClient) -> None:
        self.fleet = fleet
        self.http = fleet.http = http
        self.cert = cert

    def grpc(self) -> triton.InferenceServerClient:
        """A new client, on a connection of its own."""
        return triton.InferenceServerClient(
            f"127.0.0.1:{self.fleet.grpc_port}", ssl=True, root_certificates=str(self.cert),
            # Else all channels of a process to one address share a connection.
            channel_args=[("grpc.use_local_subchannel_pool", 1)],
        )  # fmt: skip


@pytest.fixture(scope="module")
def secure_fleet(tmp_path_factory: pytest.TempPathFactory, artifacts: list[Path]) -> Iterator[tuple[Fleet, Path]]:
    """Two fronts and two replicas with TLS and gRPC, and the file of their certificate."""
    folder = tmp_path_factory.mktemp("secure")
    cert_file, key_file = certificate(folder)
    options: dict[str, Any] = {
        "grpc_port": 0,
        "ssl_certfile": str(cert_file),
        "ssl_keyfile": str(key_file),
        "drain_notice": 0.2,
    }
    options["callers"] = CALLERS
    with running(with_versions(folder, artifacts), folder, options, replicas=2, fronts=2, ping_limit=20.0) as fleet:
        yield fleet, cert_file


@pytest.fixture
async def edge(secure_fleet: tuple[Fleet, Path]) -> AsyncIterator[Edge]:
    fleet, cert = secure_fleet
    async with httpx.AsyncClient(
        base_url=f"https://127.0.0.1:{fleet.port}", verify=ssl.create_default_context(cafile=str(cert)),
        trust_env=False, timeout=60,
    ) as client:  # fmt: skip
        edge = Edge(fleet, cert, client)
        await fleet.all_up()
        yield edge


def inputs(amount: float = 2.0) -> list[Any]:
    """One row for `fares`, whose version n answers n log(amount) + 10."""
    number = triton.InferInput("amount", [1, 1], "FP32")
    number.set_data_from_numpy(np.array([[amount]], np.float32))
    text = triton.InferInput("carrier", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([[b"AA"]], object))
    return [number, text]


async def test_every_front_speaks_tls_and_nothing_else(edge: Edge) -> None:
    fronts = set()
    for _ in range(4):
        async with httpx.AsyncClient(
            base_url=edge.http.base_url, verify=ssl.create_default_context(cafile=str(edge.cert)), trust_env=False
        ) as client:
            answer = await client.post("/v2/models/fares/infer", json=ROW, headers=HEADERS)
            assert answer.status_code == 200, answer.text
            assert answer.json()["outputs"][0]["data"] == pytest.approx([10 + np.log(2.0)])
            fronts.add(answer.headers["x-trimtab-version"])
    assert fronts == {"1"}
    async with httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(httpx.HTTPError):
            await client.get(f"http://127.0.0.1:{edge.fleet.port}/v2/health/live")
        with pytest.raises(httpx.ConnectError, match="certificate"):
            await client.get(f"https://127.0.0.1:{edge.fleet.port}/v2/health/live")


async def test_tritons_grpc_client_has_the_whole_protocol_from_every_front(edge: Edge) -> None:
    for _ in range(4):
        async with edge.grpc() as client:
            assert await client.is_server_ready()
            assert await client.is_model_ready("fares")
            result = await client.infer("fares", inputs(float(np.e)), headers=HEADERS)
            np.testing.assert_allclose(result.as_numpy("score"), [11.0], rtol=1e-5)
            forced = await client.infer("fares", inputs(float(np.e)), headers=HEADERS, model_version="1")
            np.testing.assert_allclose(forced.as_numpy("score"), [11.0], rtol=1e-5)
            metadata = await client.get_model_metadata("fares", as_json=True)
            assert [column["name"] for column in metadata["inputs"]] == ["amount", "carrier"]
            with pytest.raises(InferenceServerException, match="amount") as caught:
                await client.infer("fares", inputs()[1:], headers=HEADERS)
            assert "INVALID_ARGUMENT" in caught.value.status()
            with pytest.raises(InferenceServerException, match="not served"):
                await client.infer("unknown", inputs(), headers=HEADERS)
    async with edge.grpc() as client:
        # A change of what is loaded goes to the replica that leads, and by it to all of them.
        await client.load_model("fares", config='{"version_policy": {"specific": {"versions": [2]}}}')
        for _ in range(8):
            result = await client.infer("fares", inputs(float(np.e)), headers=HEADERS, model_version="2")
            np.testing.assert_allclose(result.as_numpy("score"), [12.0], rtol=1e-5)


async def test_pages_tell_of_all_processes(edge: Edge) -> None:
    http = edge.http
    before = (await http.get("/v2/models/fares/versions/1/stats")).json()["model_stats"][0]
    async with asyncio.TaskGroup() as group:
        asked = [
            group.create_task(http.post("/v2/models/fares/versions/1/infer", json=ROW, headers=HEADERS))
            for _ in range(60)
        ]
    assert {task.result().status_code for task in asked} == {200}
    after = (await http.get("/v2/models/fares/versions/1/stats")).json()["model_stats"][0]
    whole = (await http.get("/v2/models/stats")).json()["model_stats"]
    assert after["inference_count"] == before["inference_count"] + 60
    assert after["inference_stats"]["success"]["count"] == before["inference_stats"]["success"]["count"] + 60
    assert after in whole
    async with edge.grpc() as client:
        over_grpc = await client.get_inference_statistics("fares", "1", as_json=True)
    assert int(over_grpc["model_stats"][0]["inference_count"]) == after["inference_count"]

    load = (await http.get("/load")).json()
    assert (load["state"], set(load["replicas"]), set(load["fronts"])) == ("ready", {"0", "1"}, {"0", "1"})
    # This request itself is in flight, on a connection.
    assert load["connections"] >= load["in_flight_requests"] >= 1
    assert load["connections"] == sum(front["connections"] for front in load["fronts"].values())
    (lane,) = (one for one in load["models"] if one["version"] == "1")
    assert (lane["replicas"], lane["queue_limit_rows"]) == (2, 2048)

    described = await edge.fleet.described()
    assert [one["replica"] for one in described["replicas"]] == [0, 1]
    assert {one["generation"] for one in described["replicas"]} == {described["generation"]}
    assert all(1 in one["loaded"] for one in described["replicas"])
    index = {one["version"]: one["state"] for one in (await http.post("/v2/repository/index", json={})).json()}
    assert index["1"] == "READY"
    assert index["3"] == "UNAVAILABLE"
    assert (await http.get("/v2/models/fares/ready")).json()["ready"] is True


async def test_a_callers_rate_is_that_of_all_replicas(edge: Edge) -> None:
    headers = {"authorization": f"Bearer {SLOW_TOKEN}"}
    answers: list[httpx.Response] = []
    began = time.monotonic()

    async def ask() -> None:
        while sum(answer.status_code == 200 for answer in answers) < 2 * BURST:
            answers.append(await edge.http.post("/v2/models/fares/infer", json=ROW, headers=headers))
            assert time.monotonic() < began + PATIENCE

    await asyncio.gather(*(ask() for _ in range(4)))
    seconds = time.monotonic() - began
    admitted = sum(answer.status_code == 200 for answer in answers)
    refused = [answer for answer in answers if answer.status_code != 200]

    # One row a replica is the least that can be had at once.
    assert admitted <= RATE * seconds + BURST + 2
    assert {answer.status_code for answer in refused} == {429}
    assert f"may send {RATE:g} rows a second, {BURST:g} at once" in refused[0].json()["error"]
    assert "retry-after" in refused[0].headers


async def test_a_killed_front_costs_grpc_clients_their_connection_only(edge: Edge) -> None:
    said: list[str] = []
    os.kill(edge.fleet.pids("front")[1], signal.SIGKILL)
    async with edge.grpc() as client:

        async def answered() -> bool:
            try:
                await client.infer("fares", inputs(), headers=HEADERS)
            except InferenceServerException as error:
                said.append(error.status())
                return False
            return True

        await until(answered, "an answer over gRPC")
    assert set(said) <= {"StatusCode.UNAVAILABLE"}
    await edge.fleet.all_up()
    async with edge.grpc() as client:
        await client.infer("fares", inputs(), headers=HEADERS)


async def test_no_call_fails_when_the_server_is_told_to_end(edge: Edge) -> None:
    """The last test of the module: it ends the server."""
    stopped = asyncio.Event()
    seen: list[str] = []

    async def ask() -> None:
        async with edge.grpc() as client:
            while not stopped.is_set():
                try:
                    await client.infer("fares", inputs(), headers=HEADERS)
                    seen.append("ok")
                except InferenceServerException as error:
                    # The port is closed; a call that was taken in is answered.
                    seen.append(f"{error.status()}: {error.message()}")
                    return

    asking = [asyncio.create_task(ask()) for _ in range(4)]

    async def going() -> bool:
        return seen.count("ok") >= 40

    await until(going, "answers")
    edge.fleet.process.terminate()
    assert await asyncio.to_thread(edge.fleet.process.wait, PATIENCE) == 0
    stopped.set()
    await asyncio.gather(*asking)
    assert {line.split(":")[0] for line in seen} <= {"ok", "StatusCode.UNAVAILABLE"}, seen[-4:]
