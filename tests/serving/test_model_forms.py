"""Modules of every form that torch.export takes: dicts of outputs, masks, bfloat16, control flow."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from serving import (
    ArtifactError,
    Input,
    Output,
    Registry,
    Service,
    Signature,
    load_artifact,
    save_artifact,
)
from serving.artifacts.archive import _checked_graph
from serving.models import LoadedModel

Start = Callable[..., Awaitable[Service]]
X = Input.of("x", "FP32", shape=(3,))
ROWS = np.array([[1, 5, 3], [-9, -8, -7]], np.float32)


def loaded(folder: Path, module: torch.nn.Module, inputs: tuple[Input, ...], *outputs: Output) -> LoadedModel:
    example = {one.name: torch.ones(2, *one.shape).tolist() for one in inputs if one.datatype != "BOOL"}
    example |= {one.name: torch.ones(2, *one.shape).bool().tolist() for one in inputs if one.datatype == "BOOL"}
    save_artifact(folder, module, Signature(inputs, outputs), example)
    return load_artifact(folder)


# --- outputs --------------------------------------------------------------------------------------------------------
class Extremes(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"least": x.amin(1), "most": x.amax(1), "mean": x.mean(1)}


def test_outputs_in_a_dict_go_by_their_names_and_may_be_more_than_are_served(tmp_path: Path) -> None:
    model = loaded(tmp_path, Extremes(), (X,), Output("most"), Output("least"))
    most, least = model.run([ROWS])

    assert (most.tolist(), least.tolist()) == ([5.0, -7.0], [1.0, -9.0])


def test_a_dict_without_a_declared_output_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"gives the outputs \['least', 'most', 'mean'\].*names \['median'\]"):
        loaded(tmp_path, Extremes(), (X,), Output("median"))


class Nested(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        return x, (x + 1, x + 2)


def test_nested_outputs_are_refused_with_what_to_give_in_their_place(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="output 1 is a tuple: give a tensor, a tuple of tensors, or a dict"):
        loaded(tmp_path, Nested(), (X,), Output("y"), Output("z"))


class Brain(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.to(torch.bfloat16) * 2, x


def test_outputs_in_bfloat16_are_given_as_float32(tmp_path: Path) -> None:
    doubled, same = loaded(tmp_path, Brain(), (X,), Output("doubled"), Output("same")).run([ROWS])

    assert doubled.dtype == np.float32
    assert (doubled.tolist(), same.tolist()) == ((2 * ROWS).tolist(), ROWS.tolist())


# --- flags ----------------------------------------------------------------------------------------------------------
class Masked(torch.nn.Module):
    """The sum of what is not masked, with a mask as torch's own layers take it."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x.masked_fill(~mask, 0.0).sum(1)


class Weighed(torch.nn.Module):
    """Flags as numbers."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        flags = mask[:, None] if mask.ndim == 1 else mask
        return x.sum(1, keepdim=True) + 10 * flags @ torch.ones(flags.shape[1], 1)


class Chosen(torch.nn.Module):
    """A flag a row, as a condition."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.where(mask[:, None], x, -x).sum(1)


MASK = Input.of("mask", "BOOL", shape=(3,))
FLAG = Input.of("mask", "BOOL")


@pytest.mark.parametrize(
    ("module", "mask", "given", "wanted"),
    [
        (Masked(), MASK, [[True, False, True], [False, False, True]], [4.0, -7.0]),
        (Weighed(), MASK, [[True, False, True], [False, False, True]], [29.0, -14.0]),
        (Weighed(), FLAG, [True, False], [19.0, -24.0]),
        (Chosen(), FLAG, [True, False], [9.0, 24.0]),
    ],
)
def test_flags_reach_a_module_as_it_takes_them(
    tmp_path: Path, module: torch.nn.Module, mask: Input, given: Any, wanted: list[float]
) -> None:
    model = loaded(tmp_path, module, (X, mask), Output("y"))
    columns = model.signature.columns([[ROWS.tobytes(), np.array(given)]])

    assert columns[1].dtype == (np.float32 if mask is FLAG else np.bool_)
    assert model.run(columns)[0].reshape(-1).tolist() == wanted


async def test_a_mask_is_served_as_json_and_as_binary(registry: Registry, tmp_path: Path, start: Start) -> None:
    loaded(tmp_path / "masked", Masked(), (X, MASK), Output("y"))
    registry.register("masked", tmp_path / "masked", lineage={}, profile=None, metrics={})
    registry.set_alias("masked", "stable", 1)
    service = await start(models=("masked",))
    url = f"http://127.0.0.1:{service.port}"
    mask = np.array([[True, False, True], [False, False, True]])
    async with httpx.AsyncClient(base_url=url) as client:
        body = {
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": ROWS.reshape(-1).tolist()},
                {"name": "mask", "datatype": "BOOL", "shape": [2, 3], "data": mask.tolist()},
            ]
        }
        text = await client.post("/v2/models/masked/infer", json=body)
        for tensor, values in zip(body["inputs"], (ROWS, mask), strict=True):
            del tensor["data"]
            tensor["parameters"] = {"binary_data_size": values.nbytes}
        header = json.dumps(body).encode()
        binary = await client.post(
            "/v2/models/masked/infer", content=header + ROWS.tobytes() + mask.tobytes(),
            headers={"Inference-Header-Content-Length": str(len(header))},
        )  # fmt: skip

    assert text.json()["outputs"][0]["data"] == binary.json()["outputs"][0]["data"] == [4.0, -7.0]


# --- control flow ---------------------------------------------------------------------------------------------------
class Branches(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.cond(x.sum() > 0, lambda x: x * self.scale, lambda x: x - 1.0, (x,))
        return result


class WithoutGradients(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            inner = self.linear(x)
        result: torch.Tensor = inner * 2
        return result


def test_a_branch_of_torch_cond_is_taken_at_each_call(tmp_path: Path) -> None:
    model = loaded(tmp_path, Branches(), (X,), Output("y"))

    assert model.run([ROWS[:1]])[0].tolist() == [[3.0, 15.0, 9.0]]
    assert model.run([ROWS[1:]])[0].tolist() == [[-10.0, -9.0, -8.0]]


def test_a_part_without_gradients_is_served(tmp_path: Path) -> None:
    module = WithoutGradients()
    model = loaded(tmp_path, module, (X,), Output("y"))

    np.testing.assert_allclose(model.run([ROWS])[0], module(torch.from_numpy(ROWS)).detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize("name", ['g_0", __import__("os").system("true"), "', "__class___0", "a b_0", ""])
def test_a_graph_within_the_graph_cannot_bring_python_by_its_name(name: str) -> None:
    graph = {"as_graph": {"name": name, "graph": {"nodes": []}}}

    with pytest.raises(ArtifactError, match="names the graph"):
        _checked_graph(json.dumps({"graph_module": {"nodes": [{"arg": graph}]}}).encode())


def test_operators_of_a_graph_within_the_graph_are_checked_too() -> None:
    graph = {"as_graph": {"name": "true_graph_0", "graph": {"nodes": [{"target": "torch.ops.evil.run.default"}]}}}

    with pytest.raises(ArtifactError, match=r"torch\.ops\.evil\.run"):
        _checked_graph(json.dumps({"graph_module": {"nodes": [{"arg": graph}]}}).encode())
