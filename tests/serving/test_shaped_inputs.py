"""Inputs of any shape: what a request may look like, what is refused, and a real server that answers them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from serving import Input, Output, Registry, Service, ServingConfig, Signature, load_artifact, save_artifact, v2
from serving.errors import ArtifactError, InvalidRequest

SIGNATURE = Signature((Input("x", "FP32", shape=(4,)),), (Output("y", shape=(2,)),))


def body(data: Any, shape: list[int], datatype: str = "FP32") -> bytes:
    return json.dumps({"inputs": [{"name": "x", "datatype": datatype, "shape": shape, "data": data}]}).encode()


def binary(values: np.ndarray[Any, Any], shape: list[int]) -> tuple[bytes, int]:
    raw = values.astype("<f4").tobytes()
    tensor = {"name": "x", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return head + raw, len(head)


@pytest.mark.parametrize("floats", [False, True])
def test_flat_nested_and_binary_data_mean_the_same(floats: bool) -> None:
    values = np.arange(8, dtype=np.float32).reshape(2, 4) / 3
    packed, length = binary(values, [2, 4])
    forms = [
        v2.parse(body(values.reshape(-1).tolist(), [2, 4]), None, floats),
        v2.parse(body(values.tolist(), [2, 4]), None, floats),
        v2.parse(packed, length, floats),
        v2.parse(packed, length, floats),
    ]
    for form in forms:
        (column,) = SIGNATURE.columns([form.values(SIGNATURE)])
        np.testing.assert_array_equal(column, values)
        assert column.flags.writeable


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (body([1.0] * 3, [1, 3]), r"'x' has shape \[1, 3\], the model takes \[-1, 4\]"),
        (body([1.0] * 4, [4]), r"takes \[-1, 4\]"),
        (body([1.0] * 3, [1, 4]), "has 3 values"),
        (body([1.0] * 4, [2**62, 2**62]), r"takes \[-1, 4\]"),
        (body([1.0] * 4, [2**62, 4]), "has 4 values"),
        (body([1.0] * 4, [-1, 4]), "has shape"),
        (body([[1.0, 2.0], [3.0, 4.0]], [1, 4]), "nested"),
        (body(["1"] * 4, [1, 4]), "holds str"),
        (body([True] * 4, [1, 4]), "holds bool"),
        (body([1e39] * 4, [1, 4]), "outside FP32"),
        (body([1.0] * 4, [1, 4], "BYTES"), "has datatype BYTES"),
        (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[NaN,1,1,1]}]}', "not a V2"),
    ],
)
@pytest.mark.parametrize("floats", [False, True])
def test_what_does_not_fit_the_shape_is_refused(content: bytes, reason: str, floats: bool) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        v2.parse(content, None, floats).values(SIGNATURE)


def test_a_signature_keeps_its_shapes_in_the_manifest() -> None:
    assert Signature.of(SIGNATURE.to_json()) == SIGNATURE
    assert SIGNATURE.inputs[0].wire_shape == [-1, 4]
    with pytest.raises(ArtifactError, match="dimensions"):
        Input("x", "FP32", shape=(0,))


def test_binary_nan_is_a_missing_value_as_null_is(tmp_path: Path) -> None:
    packed, length = binary(np.array([[np.nan, 1, 2, 3]]), [1, 4])
    (one,) = SIGNATURE.columns([v2.parse(packed, length).values(SIGNATURE)])
    (other,) = SIGNATURE.columns([v2.parse(body([None, 1, 2, 3], [1, 4]), None, True).values(SIGNATURE)])
    np.testing.assert_array_equal(one, other)


async def test_a_server_answers_shaped_requests_and_its_stages_add_up(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = torch.nn.Linear(4, 2)
    save_artifact(tmp_path / "a", module, SIGNATURE, {"x": [[0.1] * 4]})
    assert load_artifact(tmp_path / "a").example_outputs[0].shape == (1, 2)
    url = f"sqlite:///{tmp_path}/registry.db"
    registry = Registry(url, tmp_path / "artifacts")
    registry.register("lin", tmp_path / "a", lineage={}, profile=None, metrics={})
    registry.set_alias("lin", "stable", 1)
    registry.close()
    service = Service(ServingConfig(registry_url=url, artifacts_dir=tmp_path / "artifacts", port=0, drain_notice=0.0))
    await service.start()
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    wanted = module(torch.from_numpy(x)).detach().numpy()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}") as client:
        for _ in range(5):  # the header is met for the third time: the shortcut takes it
            got = await client.post("/v2/models/lin/infer", content=body(x.reshape(-1).tolist(), [3, 4]))
            assert got.status_code == 200
            output = got.json()["outputs"][0]
            assert output["shape"] == [3, 2]
            np.testing.assert_allclose(np.reshape(output["data"], (3, 2)), wanted, rtol=1e-5)
        packed, length = binary(x, [3, 4])
        for _ in range(5):
            got = await client.post(
                "/v2/models/lin/infer", content=packed, headers={"Inference-Header-Content-Length": str(length)}
            )
            size = int(got.headers["inference-header-content-length"])
            np.testing.assert_allclose(np.frombuffer(got.content[size:], "<f4").reshape(3, 2), wanted, rtol=1e-5)
        for bad in (body([1.0] * 3, [1, 3]), body([1.0] * 4, [2**62, 4]), b"{"):
            for _ in range(3):
                refused = await client.post("/v2/models/lin/infer", content=bad)
                assert (refused.status_code, list(refused.json())) == (400, ["error"])
        two = json.loads(body([1.0] * 4, [1, 4]))
        two["inputs"].append({"name": "z", "datatype": "FP32", "shape": [1], "data": [1.0]})
        stranger = await client.post("/v2/models/lin/infer", json=two)
        assert stranger.status_code == 400
        assert "'z' is unknown" in stranger.json()["error"]
        page = (await client.get("/metrics")).text
        metadata = (await client.get("/v2/models/lin")).json()
    await service.drain()
    assert metadata["inputs"][0]["shape"] == [-1, 4]
    lines = [line.rsplit(" ", 1) for line in page.splitlines() if line.startswith("inference_")]
    stages = sum(float(v) for n, v in lines if n.startswith("inference_stage_duration_seconds_sum") and '"1"' in n)
    total = sum(float(v) for n, v in lines if n.startswith("inference_request_duration_seconds_sum") and '"1"' in n)
    assert total > 0
    assert stages == pytest.approx(total, rel=0.01)
