"""Models on a GPU: batches filled up to captured sizes, and what happens to those that cannot be captured.

The device is made of processors here: it repeats the captured work on the same memory, as a graph's replay does. On a
machine with a GPU the last tests run on that.
"""

from __future__ import annotations

import io
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from serving import ArtifactError, Input, Output, Service, ServingConfig, Signature, load_artifact, save_artifact
from serving.artifacts import archive, formats, program
from serving.artifacts.graphs import Cuda, OnGpu
from serving.artifacts.onnx_model import load_onnx
from serving.artifacts.placement import of_process, require_device
from serving.errors import ModelFailed
from serving.server import serve
from tests.serving.test_program_reader import Attention, Constants


class Processors:
    """A device whose memory is the host's. `fails` is raised by whatever it is asked to do."""

    def __init__(self) -> None:
        self.records: list[int] = []
        self.runs = 0
        self.fails: Exception | None = None

    def on_host(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.full(tuple(shape), -77, dtype=dtype)

    def on_device(self, tensor: Tensor) -> Tensor:
        if self.fails is not None:
            raise self.fails
        return tensor.clone()

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        result = work()
        outputs = list(result.values()) if isinstance(result, dict) else result
        outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
        self.records.append(len(outputs[0]) if outputs[0].ndim else 0)

        def replay() -> None:
            again = work()
            again = list(again.values()) if isinstance(again, dict) else again
            for old, new in zip(outputs, again if isinstance(again, (tuple, list)) else [again], strict=True):
                old.copy_(new)

        return replay, result

    def run(self, work: Callable[[], Any]) -> Any:
        self.runs += 1
        if self.fails is not None:
            raise self.fails
        return work()


def twice(values: Tensor) -> Tensor:
    return values * 2


@given(batches=st.lists(st.integers(1, 40), min_size=1, max_size=12), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_each_batch_gets_its_own_rows_however_they_are_filled_up(batches: list[int], seed: int) -> None:
    gpu = Processors()
    torch.manual_seed(seed)
    layer = nn.Linear(3, 2)
    call = OnGpu(lambda x, y: {"sum": layer(x) + y[:, None], "twice": y * 2}, gpu)
    answers = []
    with torch.inference_mode():
        for rows in batches:
            x, y = torch.randn(rows, 3), torch.randn(rows)
            answers.append((call(x, y), x, y))
        for answer, x, y in answers:  # none is written over by a later batch
            assert set(answer) == {"sum", "twice"}
            torch.testing.assert_close(answer["sum"], layer(x) + y[:, None])
            assert torch.equal(answer["twice"], y * 2)

    assert sorted(gpu.records) == sorted({1 << (rows - 1).bit_length() for rows in batches})


def test_rows_that_fill_a_batch_up_are_copies_of_its_first() -> None:
    seen: list[list[int]] = []
    call = OnGpu(lambda x: (seen.append(x.tolist()), x + 1)[1], Processors())

    call(torch.tensor([9, 8, 7, 6]))
    answer = call(torch.tensor([1, 2, 3]))

    assert seen[-1] == [1, 2, 3, 1]
    assert answer.tolist() == [2, 3, 4]


def test_a_tuple_stays_a_tuple_and_a_tensor_a_tensor() -> None:
    values = torch.arange(3.0)

    assert isinstance(OnGpu(lambda x: (x, x + 1), Processors())(values), tuple)
    assert torch.equal(OnGpu(twice, Processors())(values), values * 2)
    assert OnGpu(lambda x: x.to(torch.bfloat16), Processors())(values).dtype == torch.bfloat16


def test_what_cannot_be_captured_runs_kernel_by_kernel_and_is_tried_once(caplog: pytest.LogCaptureFixture) -> None:
    class NoCapture(Processors):
        tried = 0

        def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
            self.tried += 1
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    gpu = NoCapture()
    call = OnGpu(twice, gpu)

    with caplog.at_level(logging.WARNING):
        assert [call(torch.ones(3)).tolist(), call(torch.ones(4)).tolist()] == [[2.0] * 3, [2.0] * 4]

    assert gpu.tried == 1
    assert not call.lost
    assert [r.getMessage() for r in caplog.records] == [
        "batches of 4 rows run kernel by kernel, as no graph of them could be captured: "
        "operation not permitted when stream is capturing"
    ]


def test_outputs_without_rows_are_no_graph() -> None:
    call = OnGpu(lambda x: x.sum(), Processors())

    assert call(torch.ones(3)).item() == 3.0


def test_so_many_graphs_and_no_more() -> None:
    gpu = Processors()
    call = OnGpu(twice, gpu, most_graphs=2)

    for rows in (1, 2, 4, 8, 16):
        assert len(call(torch.ones(rows))) == rows

    assert gpu.records == [1, 2]


def test_inputs_of_other_shapes_and_types_have_graphs_of_their_own() -> None:
    gpu = Processors()
    call = OnGpu(twice, gpu)

    for values in (torch.ones(2, 3), torch.ones(2, 4), torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3)):
        assert torch.equal(call(values), values * 2)

    assert len(gpu.records) == 3


def test_a_batch_without_rows_is_asked_of_the_model() -> None:
    assert OnGpu(twice, Processors())(torch.ones(0, 3)).shape == (0, 3)


def test_an_error_of_the_model_is_the_models_and_the_device_stays() -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("shapes do not match")

    call = OnGpu(Picky(), Processors())

    with pytest.raises(RuntimeError, match="shapes do not match"):
        call(torch.ones(2))
    assert not call.lost


def test_a_device_that_takes_nothing_any_more_is_lost() -> None:
    gpu = Processors()
    call = OnGpu(twice, gpu)
    call(torch.ones(2))

    gpu.fails = RuntimeError("CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA")
    with pytest.raises(ModelFailed, match="can no longer be used by this process: CUDA error: device-side assert"):
        call(torch.ones(2))

    assert call.lost


def test_memory_that_is_too_small_is_no_lost_device() -> None:
    gpu = Processors()
    call = OnGpu(twice, gpu)
    call(torch.ones(2))

    gpu.fails = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(torch.OutOfMemoryError):
        call(torch.ones(2))

    assert not call.lost


def artifact(folder: Path, format: str = "torch.export") -> Path:
    signature = Signature((Input.of("x", "FP32", shape=(3,)),), (Output("y", "FP32", (2,)),))
    architecture = {"architecture": "tests.serving.test_gpu_graphs:linear"} if format == "safetensors" else {}
    save_artifact(folder, linear(), signature, {"x": [[1.0, 2.0, 3.0]]}, format=format, **architecture)  # type: ignore[arg-type]
    return folder


def linear() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize("format", ["torch.export", "safetensors"])
def test_a_served_artifact_answers_from_its_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    """Loading, example, warm-up and batches through the graphs, the weights left where they are."""
    gpu = Processors()
    monkeypatch.setattr(formats, "Cuda", lambda device: gpu)
    monkeypatch.setattr(formats, "load_program", lambda content, device: archive.load_program(content))
    monkeypatch.setattr(nn.Module, "to", lambda module, device: module)
    folder = artifact(tmp_path, format)
    architectures = ["tests.serving.test_gpu_graphs:linear"]
    on_gpu = load_artifact(folder, architectures=architectures, device="cuda:0")
    on_cpu = load_artifact(folder, architectures=architectures)
    on_gpu.warm_up(16, repeats=1)

    rows = np.random.default_rng(1).normal(size=(11, 3)).astype(np.float32)

    np.testing.assert_allclose(on_gpu.run([rows])[0], on_cpu.run([rows])[0], rtol=1e-5)
    assert gpu.records == [1, 2, 4, 8, 16]
    # Its time is the device's, not this thread's.
    assert not on_gpu.solo
    assert on_gpu.device == "cuda:0"


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize(
    ("module", "given"),
    [
        (Attention(), (torch.ones(2, 4, dtype=torch.int64),)),
        (Constants(), (torch.ones(2), torch.ones(2, dtype=torch.int64))),
    ],
)
def test_a_program_is_wholly_on_its_device(module: nn.Module, given: tuple[Tensor, ...]) -> None:
    """torch's fake tensors know devices without having one: they refuse a constant that was left behind."""
    checked = archive._checked(saved(torch.export.export(module.eval(), given)))
    weights = archive._tensors(checked.members)
    with FakeTensorMode(allow_non_fake_inputs=True):
        held = {name: torch.empty_like(value, device="cuda") for name, value in weights.items()}
        found = program.build(checked.program, held, "cuda").call(*(torch.empty_like(v, device="cuda") for v in given))

    assert {output.device.type for output in (found if isinstance(found, tuple) else (found,))} == {"cuda"}


def saved(exported: torch.export.ExportedProgram) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("device", "message"),
    [("gpu", "it is cpu, cuda or cuda:N"), ("cuda:", "cpu, cuda or cuda:N"), ("CUDA", "cpu, cuda or cuda:N")],
)
def test_a_device_has_a_name_that_torch_knows(tmp_path: Path, device: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServingConfig(registry_url="sqlite://", artifacts_dir=tmp_path, device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_server_says_that_there_is_no_gpu_before_it_listens(tmp_path: Path) -> None:
    config = ServingConfig(registry_url="sqlite://", artifacts_dir=tmp_path, port=0, device="cuda")

    with pytest.raises(ValueError, match=r"device is 'cuda', and torch finds no GPU.*set device = 'cpu'"):
        serve(config)


def test_devices_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    require_device("cuda:1")
    with pytest.raises(ValueError, match="torch finds 2 GPUs, cuda:0 to cuda:1"):
        require_device("cuda:2")
    assert [of_process("cuda", number) for number in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [of_process(device, 1) for device in ("cuda:0", "cpu")] == ["cuda:0", "cpu"]


def test_an_onnx_model_needs_a_build_for_gpus(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    folder = artifact(tmp_path, "onnx")

    with pytest.raises(ArtifactError, match=r"needs onnxruntime's build for GPUs.*install onnxruntime-gpu"):
        load_artifact(folder, device="cuda:0")
    assert load_onnx((folder / "model.onnx").read_bytes(), load_artifact(folder).manifest).call is not None


async def test_a_server_whose_gpu_is_lost_ends_to_be_started_again(
    start: Callable[..., Awaitable[Service]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu = Processors()
    monkeypatch.setattr(formats, "Cuda", lambda device: gpu)
    monkeypatch.setattr(formats, "load_program", lambda content, device: archive.load_program(content))
    told: list[tuple[int, int]] = []
    monkeypatch.setattr("serving.server.os.kill", lambda process, number: told.append((process, number)))
    service = await start(device="cuda:0")
    body = {"inputs": [{"name": "amount", "datatype": "FP64", "shape": [3], "data": [1.0, 2.0, 3.0]},
                       {"name": "carrier", "datatype": "BYTES", "shape": [3], "data": ["AA", "B6", "AA"]}]}  # fmt: skip
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}") as client:
        right = await client.post("/v2/models/fares/infer", json=body)
        assert right.status_code == 200, right.text
        assert right.json()["outputs"][0]["shape"] == [3]
        assert gpu.records

        gpu.fails = RuntimeError("CUDA error: device-side assert triggered")
        failed = await client.post("/v2/models/fares/infer", json=body)
        assert failed.status_code == 500
        assert "the GPU can no longer be used by this process" in failed.json()["error"]
    service._leave_lost_device()

    assert set(told) == {(os.getpid(), signal.SIGTERM)}  # its own sweep may have told it, too
    assert "the GPU is lost to this process (fares): it ends, to be started again" in caplog.messages


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("format", ["torch.export", "safetensors"])
def test_a_gpu_answers_what_the_cpu_answers(tmp_path: Path, format: str) -> None:
    folder = artifact(tmp_path, format)
    architectures = ["tests.serving.test_gpu_graphs:linear"]
    on_gpu = load_artifact(folder, architectures=architectures, device="cuda:0")
    on_cpu = load_artifact(folder, architectures=architectures)
    on_gpu.warm_up(64)
    for rows in (1, 3, 64, 100, 7):
        values = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
        np.testing.assert_allclose(on_gpu.run([values])[0], on_cpu.run([values])[0], rtol=1e-4, atol=1e-5)
    graphs = on_gpu._call._graphs
    assert all(graph is not None for graph in graphs.values())
    assert len(graphs) == 8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_what_waits_for_the_host_runs_kernel_by_kernel() -> None:
    def branches(x: Tensor) -> Tensor:
        return x * 2 if bool((x > 0).all()) else x

    call = OnGpu(branches, Cuda("cuda:0"))
    with torch.inference_mode():
        assert call(torch.ones(3)).tolist() == [2.0] * 3
        assert call(-torch.ones(3)).tolist() == [-1.0] * 3
    assert not call.lost
    assert list(call._graphs.values()) == [None]
