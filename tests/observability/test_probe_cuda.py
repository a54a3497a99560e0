"""The probe on a GPU: the same counts, inside CUDA graphs, read back without waiting."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest
import torch

from observability.probe import Probe, profile_of_tensors
from observability.profile import Profile

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
NAMES = ["a", "b"]


@pytest.fixture
def reference() -> Profile:
    draw = np.random.default_rng(1)
    return Profile.of(pa.table({name: draw.normal(size=3000) for name in NAMES}))


def counts_of(profile: Profile) -> dict[str, list[int]]:
    return {name: column.counts.tolist() for name, column in profile.columns.items()}


def counted(reference: Profile, values: torch.Tensor) -> dict[str, list[int]]:
    tensors = {name: values[:, place].cpu() for place, name in enumerate(NAMES)}
    return counts_of(profile_of_tensors(reference, tensors))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_gpu_counts_what_the_cpu_counts(reference: Profile, kind: torch.dtype) -> None:
    probe = Probe(reference, NAMES).cuda()
    values = torch.randn(10_001, 2, device="cuda").to(kind)
    values[:5, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0], device="cuda")

    probe(values)

    assert counts_of(probe.profile()) == counted(reference, values)
    torch.testing.assert_close(probe.profile().columns["b"].mean, values[:, 1].double().mean().item())


def test_a_cuda_graph_counts_at_every_replay(reference: Profile) -> None:
    probe = Probe(reference, NAMES).cuda()
    values = torch.randn(64, 2, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            probe(values)
    torch.cuda.current_stream().wait_stream(stream)
    probe.reset()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        probe(values)
    for seed in range(5):
        values.copy_(torch.randn(64, 2, generator=torch.Generator("cuda").manual_seed(seed), device="cuda"))
        graph.replay()

    assert probe.profile().rows == 320


def test_a_snapshot_never_waits_and_arrives_in_the_end(reference: Profile) -> None:
    probe = Probe(reference, NAMES).cuda()
    values = torch.randn(1000, 2, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        probe(values)
        first = probe.snapshot()
        for _ in range(1000):
            if probe.snapshot().rows:
                break
            time.sleep(0.001)
        found = probe.snapshot()
    finally:
        torch.cuda.set_sync_debug_mode("default")

    assert first.rows == 0
    assert counts_of(found) == counted(reference, values)


def test_compiled_on_a_gpu(reference: Profile) -> None:
    probe = Probe(reference, NAMES).cuda()
    model = torch.compile(
        torch.nn.Sequential(probe, torch.nn.Linear(2, 2).cuda()), fullgraph=True, mode="reduce-overhead"
    )
    values = torch.randn(128, 2, device="cuda")
    with torch.inference_mode():
        for _ in range(4):
            model(values)

    # The compiler runs the model for itself before it records the graph: rows are a multiple of the batch.
    assert probe.profile().rows % 128 == 0
    assert probe.profile().rows >= 4 * 128
