"""ONNX artifacts: verified and answering as the module does; what is not served is refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from serving import (
    ArtifactError,
    InferenceClient,
    Input,
    Output,
    Registry,
    Service,
    Signature,
    load_artifact,
    save_artifact,
)
from serving.artifacts.onnx_model import load_onnx

Start = Callable[..., Awaitable[Service]]
SIGNATURE = Signature((Input.of("amount", "FP32"), Input.of("carrier", "BYTES", ["AA", "UA"])), (Output("score"),))
EXAMPLE = {"amount": [2.0], "carrier": ["UA"]}


class Scored(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(3.0))
        self.register_buffer("offsets", torch.tensor([0.0, 10.0, 20.0]))

    def forward(self, amount: torch.Tensor, carrier: torch.Tensor) -> torch.Tensor:
        return amount * self.scale + self.offsets[carrier]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    save_artifact(folder, Scored(), SIGNATURE, EXAMPLE, format="onnx")
    return folder


def made(folder: Path, graph: onnx.GraphProto, signature: Signature, example: dict[str, list[float]]) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "given.onnx").write_bytes(model.SerializeToString())
    save_artifact(folder / "artifact", folder / "given.onnx", signature, example, format="onnx")
    return folder / "artifact"


def test_a_module_written_as_onnx_answers_as_it_does_for_any_number_of_rows(written: Path) -> None:
    model = load_artifact(written)

    for rows in (1, 3, 40):
        amounts = np.linspace(1, 5, rows).astype(np.float32)
        columns = model.signature.columns([[amounts.tolist(), ["AA"] * rows]])
        np.testing.assert_allclose(model.run(columns)[0], 3 * amounts + 10, rtol=1e-6)
    assert model.nbytes > 0


def test_a_given_model_is_taken_as_it_is_with_columns_and_names_of_its_own(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Add", ["left", "right"], ["total"])], "sum",
        [helper.make_tensor_value_info("left", TensorProto.DOUBLE, [None, 1]),
         helper.make_tensor_value_info("right", TensorProto.DOUBLE, [None, 1])],
        [helper.make_tensor_value_info("total", TensorProto.DOUBLE, [None, 1])],
    )  # fmt: skip
    # The names agree, the order does not.
    signature = Signature((Input.of("right", "FP32"), Input.of("left", "FP32")), (Output("sum"),))
    model = load_artifact(made(tmp_path, graph, signature, {"right": [1.0], "left": [2.0]}))

    (total,) = model.run(model.signature.columns([[[1.0, 2.0], [10.0, 20.0]]]))
    assert total.tolist() == [[11.0], [22.0]]


def negated(folder: Path, given: list[int | str], gives: list[int | str]) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])], "negated",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, gives)],
    )  # fmt: skip
    example = {"x": [[float(2 * row + place) for place in range(2)] for row in range(3)]}
    return made(folder, graph, Signature((Input.of("x", "FP32", shape=(2,)),), (Output("y"),)), example)


@pytest.mark.parametrize("size", [1, 4])
def test_a_model_made_for_a_fixed_number_of_rows_answers_any_number(tmp_path: Path, size: int) -> None:
    model = load_artifact(negated(tmp_path, [size, 2], [size, 2]))
    model.warm_up(8)

    for rows in (1, 3, 4, 9):
        columns = [np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)]
        assert model.run(columns)[0].tolist() == (-columns[0]).tolist()


def test_a_model_whose_inputs_want_different_numbers_of_rows_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["y"])], "sum",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 2]),
         helper.make_tensor_value_info("b", TensorProto.FLOAT, [4, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 2])],
    )  # fmt: skip
    signature = Signature((Input.of("a", "FP32", shape=(2,)), Input.of("b", "FP32", shape=(2,))), (Output("y"),))

    with pytest.raises(ArtifactError, match="export it with one dimension for the rows"):
        load_artifact(made(tmp_path, graph, signature, {"a": [1.0, 2.0], "b": [1.0, 2.0]}))


def test_outputs_that_do_not_follow_the_rows_of_a_fixed_batch_are_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=0)], "mean",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )  # fmt: skip
    signature = Signature((Input.of("x", "FP32", shape=(2,)),), (Output("y"),))

    with pytest.raises(ArtifactError, match=r"output 'y' has shape \[2\] for 1 rows"):
        load_artifact(made(tmp_path, graph, signature, {"x": [1.0, 2.0]}))


class Extremes(torch.nn.Module):
    """A dict of outputs, in another order than a signature may have."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"least": x.amin(1), "most": x.amax(1), "mean": x.mean(1)}


def test_outputs_in_a_dict_keep_their_names_in_any_order(tmp_path: Path) -> None:
    signature = Signature((Input.of("x", "FP32", shape=(3,)),), (Output("most"), Output("least")))
    save_artifact(tmp_path, Extremes(), signature, {"x": [[1.0, 5.0, 3.0]]}, format="onnx")
    most, least = load_artifact(tmp_path).run([np.array([[1, 5, 3], [9, 8, 7]], np.float32)])

    assert (most.tolist(), least.tolist()) == ([5.0, 9.0], [1.0, 7.0])


def test_what_onnxruntime_cannot_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07not a model")
    save_artifact(tmp_path / "artifact", tmp_path / "broken.onnx", SIGNATURE, EXAMPLE, format="onnx")

    with pytest.raises(ArtifactError, match="onnxruntime cannot load"):
        load_artifact(tmp_path / "artifact")


def test_a_model_whose_names_are_no_text_is_refused_and_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = (negated(tmp_path, ["rows", 2], ["rows", 2]) / "model.onnx").read_bytes()
    manifest = json.loads((tmp_path / "artifact" / "manifest.json").read_text())
    for place in (place for place in range(len(content)) if content[place : place + 1] in (b"x", b"y")):
        with pytest.raises(ArtifactError, match="onnxruntime cannot load"):
            load_onnx(content[:place] + b"\xd0" + content[place + 1 :], manifest)

    assert capfd.readouterr().out == ""


def test_weights_in_other_files_are_refused(tmp_path: Path) -> None:
    """They have no digest, and their path may name any file of the machine."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], b"\0\0\0\0", raw=True)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "../../../../etc/hostname"), ("offset", "0"), ("length", "4")):
        weight.external_data.append(onnx.StringStringEntryProto(key=key, value=value))
    graph = helper.make_graph(
        [helper.make_node("Add", ["amount", "w"], ["score"])], "outside",
        [helper.make_tensor_value_info("amount", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None])], [weight],
    )  # fmt: skip
    signature = Signature((Input.of("amount", "FP32"),), (Output("score"),))

    with pytest.raises(ArtifactError, match="onnxruntime cannot load"):
        load_artifact(made(tmp_path, graph, signature, {"amount": [1.0]}))


@pytest.mark.parametrize(
    ("inputs", "outputs", "complaint"),
    [
        (["amount"], ["score", "other"], "has the outputs"),
        (["amount", "more"], ["score"], "has the inputs"),
    ],
)
def test_a_manifest_that_does_not_fit_the_model_is_refused(
    tmp_path: Path, inputs: list[str], outputs: list[str], complaint: str
) -> None:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])], "negated",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
    )  # fmt: skip
    signature = Signature(tuple(Input.of(name, "FP32") for name in inputs), tuple(map(Output, outputs)))

    with pytest.raises(ArtifactError, match=complaint):
        load_artifact(made(tmp_path, graph, signature, {name: [1.0] for name in inputs}))


def test_a_text_output_is_refused(tmp_path: Path) -> None:
    words = helper.make_tensor("words", TensorProto.STRING, [1], [b"yes"])
    graph = helper.make_graph(
        [helper.make_node("Constant", [], ["y"], value=words)], "words",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, [1])],
    )  # fmt: skip
    signature = Signature((Input.of("x", "FP32"),), (Output("y"),))

    with pytest.raises(ArtifactError, match="export it with plain tensors"):
        load_artifact(made(tmp_path, graph, signature, {"x": [1.0]}))


def test_an_altered_model_is_refused(written: Path, tmp_path: Path) -> None:
    for file in written.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.onnx").write_bytes((tmp_path / "model.onnx").read_bytes() + b"\0")

    with pytest.raises(ArtifactError, match="was altered"):
        load_artifact(tmp_path)


async def test_the_server_serves_it_like_any_other(registry: Registry, written: Path, start: Start) -> None:
    registry.register("scored", written, lineage={}, profile=None, metrics={})
    registry.set_alias("scored", "stable", 1)
    service = await start(models=("scored",))
    async with InferenceClient(f"http://127.0.0.1:{service.port}") as client:
        answer = await client.infer("scored", {"amount": [1.0, 2.0], "carrier": ["UA", "??"]})

    assert answer.outputs["score"] == pytest.approx([23.0, 6.0])
