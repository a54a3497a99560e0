"""What was counted, under our names, Triton's, KServe's and MLServer's; the load report and its header."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from observability import names
from observability.metrics import Metrics, exposition
from serving import AsyncInferenceClient, Service
from serving.clients.errors import InferenceError
from serving.clients.retries import NO_RETRIES
from serving.pages.aliases import Aliases
from serving.pages.load_report import LoadReport
from serving.pages.statistics import read_counts

Start = Callable[..., Awaitable[Service]]


def values_of(page: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


ONE = (("model", "fares"), ("version", "1"))


@pytest.mark.slow
async def test_known_traffic_has_the_right_numbers_under_every_name(start: Start) -> None:
    service = await start(metric_aliases=True, load_header=True)
    url = f"http://127.0.0.1:{service.port}"
    async with AsyncInferenceClient(url, retries=NO_RETRIES) as client:
        assert (await client.statistics("fares"))["model_stats"][0]["last_inference"] == 0
        began = time.time()
        for rows in (1, 2, 5):
            await client.infer("fares", {"amount": np.full(rows, 2.0), "carrier": ["AA"] * rows})
        wrong: list[dict[str, Any]] = [
            {"inputs": {"amount": [-1.0], "carrier": ["AA"]}},
            {"inputs": {"amount": [1.0]}},
            {"inputs": {"amount": [1.0], "carrier": ["AA"]}, "parameters": {"timeout": 1}},
        ]
        for options in wrong:
            with pytest.raises(InferenceError):
                await client.infer("fares", **options)
        (stats,) = (await client.statistics("fares"))["model_stats"]
    async with httpx.AsyncClient(base_url=url) as browser:
        page = (await browser.get("/metrics")).text
        opened = (await browser.get("/metrics", headers={"accept": "application/openmetrics-text"})).text
    found = values_of(page)

    # Three answers of 8 rows in three batches, and the one whose output was no number in a fourth.
    assert found["nv_inference_request_success"][ONE] == 3
    assert found["nv_inference_count"][ONE] == 9
    assert found["nv_inference_exec_count"][ONE] == 4
    assert found["nv_inference_pending_request_count"][ONE] == 0
    reasons = {dict(labels)["reason"]: value for labels, value in found["nv_inference_request_failure"].items()}
    assert reasons == {"BACKEND": 1, "OTHER": 2, "REJECTED": 0, "CANCELED": 0}
    assert (found["model_infer_request_success"][ONE], found["model_infer_request_failure"][ONE]) == (3, 3)
    for alias, family, labels in (
        ("nv_inference_request_duration_us", names.INFERENCE_DURATION, ONE),
        ("nv_inference_queue_duration_us", names.INFERENCE_STAGE_DURATION, (*ONE[:1], ("stage", "queue"), *ONE[1:])),
        ("nv_inference_compute_infer_duration_us", names.INFERENCE_STAGE_DURATION,
         (*ONE[:1], ("stage", "model"), *ONE[1:])),
    ):  # fmt: skip
        assert found[alias][ONE] == pytest.approx(found[f"{family.name}_sum"][labels] * 1e6)
        assert found[alias][ONE] > 0
    model = (("model_name", "fares"),)
    assert found["request_predict_seconds_count"][model] == found[f"{names.INFERENCE_DURATION.name}_count"][ONE]
    assert found["request_preprocess_seconds_count"][model] >= 3
    assert "nv_inference_request_success" in opened

    inference = stats["inference_stats"]
    assert (stats["inference_count"], stats["execution_count"]) == (9, 4)
    assert int(began * 1000) <= stats["last_inference"] <= time.time() * 1000
    assert found[names.INFERENCE_LAST.name][ONE] == pytest.approx(stats["last_inference"] / 1000, abs=0.001)
    assert (inference["success"]["count"], inference["fail"]["count"]) == (3, 3)
    assert inference["compute_infer"]["ns"] == pytest.approx(
        found["nv_inference_compute_infer_duration_us"][ONE] * 1e3, rel=1e-3
    )
    if shutil.which("promtool") is not None:
        _promtool(page)


def _promtool(page: str) -> None:
    """promtool takes the page; all that it may complain of is the spelling of names that others chose."""
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, text=True, timeout=60, check=False
    )
    complaints = [line for line in (checked.stdout + checked.stderr).splitlines() if line.strip()]
    others = {alias.name for alias in names.ALIASES}
    assert [line for line in complaints if line.split()[0] not in others] == []
    assert all("abbreviated unit" in line or "base unit" in line for line in complaints), complaints


@pytest.mark.slow
async def test_every_answer_says_how_busy_the_server_is(start: Start) -> None:
    service = await start(load_header=True)
    async with AsyncInferenceClient(f"http://127.0.0.1:{service.port}") as client:
        await client.infer("fares", {"amount": [1.0], "carrier": ["AA"]})
        async with httpx.AsyncClient() as browser:
            answer = await browser.post(
                f"http://127.0.0.1:{service.port}/v2/models/fares/infer",
                json={"inputs": [{"name": "amount", "datatype": "FP32", "shape": [1], "data": [1]},
                                 {"name": "carrier", "datatype": "BYTES", "shape": [1], "data": ["AA"]}]},
            )  # fmt: skip
    assert re.fullmatch(
        r"TEXT application_utilization=[\d.e-]+, named_metrics.queue_rows=\d+, "
        r"named_metrics.in_flight_requests=\d+, named_metrics.estimated_wait_seconds=[\d.e-]+",
        answer.headers["endpoint-load-metrics"],
    )


@pytest.mark.slow
async def test_the_load_report_sees_what_waits(start: Start, gate: tuple[str, Path]) -> None:
    architecture, door = gate
    service = await start(architectures=(architecture,), max_batch_rows=4)
    door.unlink()
    url = f"http://127.0.0.1:{service.port}"
    async with AsyncInferenceClient(url, timeout=60) as client:
        asked = [
            asyncio.create_task(client.infer("gate", {"amount": [1.0] * 3, "carrier": ["AA"] * 3})) for _ in range(4)
        ]
        async with asyncio.timeout(60):
            while (report := await client.load())["queue_rows"] < 9:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        report = await client.load()
        (gated,) = [entry for entry in report["models"] if entry["model"] == "gate"]
        assert (gated["queue_rows"], gated["busy"]) == (9, True)
        assert report["in_flight_requests"] >= 4
        assert report["queue_rows"] == 9
        assert gated["oldest_seconds"] > 0.04
        assert gated["estimated_wait_seconds"] > 0
        door.touch()
        await asyncio.gather(*asked)
        report = await client.load()
        assert (report["queue_rows"], report["oldest_seconds"], report["estimated_wait_seconds"]) == (0, 0.0, 0.0)


def test_utilization_is_the_share_of_the_time_kept() -> None:
    now, worked, metrics = [0.0], [0.0], Metrics()
    report = LoadReport({}, lambda: worked[0], lambda: 0, lambda: "ready", lambda: 0, lambda: now[0], metrics)
    assert report.utilization() == 0.0
    for second in range(1, 40):
        now[0], worked[0] = float(second), 0.25 * second
        report.sample()
        assert report.utilization() == pytest.approx(0.25)
    assert values_of(exposition(metrics)[0].decode())["inference_utilization_ratio"] == {(): pytest.approx(0.25)}
    # What was long ago is forgotten.
    for second in range(40, 60):
        now[0] = float(second)
        report.sample()
    assert report.utilization() == 0.0


def test_an_idle_server_has_no_numbers_of_nobody() -> None:
    metrics = Metrics()
    metrics.registry.register(Aliases(metrics, {}))
    page, _ = exposition(metrics)
    assert read_counts(metrics) == {}
    assert not [line for line in page.decode().splitlines() if line.startswith("nv_")]
    metrics[names.INFERENCE_REQUESTS].labels("m", "none", "invalid").inc()
    assert read_counts(metrics) == {}
