"""Artifacts: written, verified, loaded; nothing that could run code gets near torch's loader."""

from __future__ import annotations

import importlib
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from serving import ArtifactError, Input, Output, Signature, load_artifact, save_artifact
from serving.artifacts.archive import load_exported
from serving.artifacts.manifest import canonical, read_manifest, verify


@pytest.fixture
def artifact(artifacts: list[Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifacts[0], tmp_path / "copy"))


def altered(
    content: bytes, change: Callable[[str, bytes], bytes | None], extra: dict[str, bytes] | None = None
) -> bytes:
    """The archive with each member passed through `change` (None drops it)."""
    source, target = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for info in source.infolist():
            kept = change(info.filename, source.read(info))
            if kept is not None:
                archive.writestr(info.filename, kept)
        root = source.infolist()[0].filename.split("/")[0]
        for name, data in (extra or {}).items():
            archive.writestr(f"{root}/{name}", data)
    return target.getvalue()


def test_a_loaded_artifact_gives_the_modules_outputs_for_any_number_of_rows(artifacts: list[Path]) -> None:
    model = load_artifact(artifacts[1])
    for rows in (1, 2, 7, 64):
        amounts = np.linspace(1, 5, rows).astype(np.float32)
        columns = model.signature.columns([[amounts.tolist(), ["UA"] * rows]])
        (scores,) = model.run(columns)

        np.testing.assert_allclose(scores, 2 * np.log(amounts) + 20, rtol=1e-5)


def test_folders_may_be_named_by_text(signature: Signature, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="only an ONNX model can be taken as it is"):
        save_artifact(str(tmp_path / "x"), "model.pt2", signature, {"amount": [2.0], "carrier": ["AA"]})

    pairs = Signature((Input.of("x", "FP32", None, [2]),), (Output("y"),))
    digest = save_artifact(str(tmp_path / "written"), Clamped(), pairs, {"x": [[0.5, 2.0]]})

    assert load_artifact(str(tmp_path / "written"), digest=digest).digest == digest


class Clamped(torch.nn.Module):
    """Sums of what it changes first."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, 2] -> [rows]."""
        return x.clamp_(0.0, 1.0).sum(1)


def test_a_model_that_writes_into_its_inputs_gets_its_own(tmp_path: Path) -> None:
    signature = Signature((Input("x", "FP32", shape=(2,)),), (Output("y", "FP32"),))
    # The example is within the bounds: nothing that can be seen changes there.
    save_artifact(tmp_path / "clamped", Clamped(), signature, {"x": [[0.25, 0.5]]})
    model, given = load_artifact(tmp_path / "clamped"), np.array([[-3.0, 0.5], [2.0, 0.25]], np.float32)

    (sums,) = model.run([given])

    assert sums.tolist() == [0.5, 1.25]
    assert given.tolist() == [[-3.0, 0.5], [2.0, 0.25]]


def test_categories_become_codes_and_what_is_not_in_the_list_becomes_0(signature: Signature) -> None:
    carrier = signature.inputs[1]

    assert carrier.column([["UA", "??"], ["AA", None]]).tolist() == [2, 0, 1, 0]


def test_the_digest_is_of_the_canonical_manifest(artifact: Path) -> None:
    import hashlib

    manifest = read_manifest(artifact)

    assert verify(artifact) == hashlib.sha256(canonical(manifest)).hexdigest()
    assert set(manifest) == {
        "format", "architecture", "architecture_args", "inputs", "outputs", "example", "files",
    }  # fmt: skip


def test_an_altered_file_is_refused(artifact: Path) -> None:
    with (artifact / "model.pt2").open("ab") as file:
        file.write(b"x")

    with pytest.raises(ArtifactError, match="was altered"):
        load_artifact(artifact)


def test_a_manifest_that_names_a_file_outside_its_folder_is_refused(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    manifest["files"]["../model.pt2"] = manifest["files"]["model.pt2"]
    (artifact / "manifest.json").write_bytes(canonical(manifest))

    with pytest.raises(ArtifactError, match="leaves the folder"):
        verify(artifact)


class _Bomb:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('a pickle ran')",))


@pytest.mark.parametrize(
    "member",
    [
        "data/weights/model.pt",
        "data/constants/model.pt",
        "data/constants/opaque_obj_0",
        "data/constants/custom_obj_0",
        "data/aotinductor/model/wrapper.so",
        "models/other.json",
    ],
)
def test_an_archive_with_a_foreign_member_is_refused(artifact: Path, member: str) -> None:
    content = altered((artifact / "model.pt2").read_bytes(), lambda _, data: data, {member: pickle.dumps(_Bomb())})

    with pytest.raises(ArtifactError, match="does not need"):
        load_exported(content)


def test_pickled_example_inputs_are_thrown_away_unread(artifact: Path) -> None:
    bomb = io.BytesIO()
    torch.save(_Bomb(), bomb)
    content = altered(
        (artifact / "model.pt2").read_bytes(),
        lambda name, data: bomb.getvalue() if "sample_inputs" in name else data,
    )

    program = load_exported(content)

    assert program.module(check_guards=False)(torch.tensor([1.0]), torch.tensor([1])).item() == pytest.approx(10.0)


def _with_graph(content: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    def edit(name: str, data: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return data
        graph = json.loads(data)
        change(graph)
        return json.dumps(graph).encode()

    return altered(content, edit)


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.hub.load",
        "torch.load",
        "_operator.methodcaller",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.__init__.__getattribute__",
        "torch.ops.aten.add.__class__",
        "torch.ops.aten.__class__.mro",
        "torch.ops.aten.add._schema",
        "torch.ops.load_library",
    ],
)
def test_a_graph_that_calls_outside_the_tensor_operators_is_refused(artifact: Path, target: str) -> None:
    def call(graph: dict[str, Any]) -> None:
        graph["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(ArtifactError, match="outside the allowed set"):
        load_exported(_with_graph((artifact / "model.pt2").read_bytes(), call))


@pytest.mark.parametrize(
    "text", ["__import__('os').system('true')", "Max(1).func", "s0.__class__", "exec(s0)", "lambda: 1"]
)
def test_a_symbolic_expression_that_is_more_than_arithmetic_is_refused(artifact: Path, text: str) -> None:
    def poison(graph: dict[str, Any]) -> None:
        sizes = next(iter(v for k, v in graph["graph_module"]["graph"]["tensor_values"].items() if k == "amount"))[
            "sizes"
        ]
        sizes[0]["as_expr"]["expr_str"] = text

    with pytest.raises(ArtifactError, match="expression"):
        load_exported(_with_graph((artifact / "model.pt2").read_bytes(), poison))


def test_a_weight_marked_as_a_pickle_is_refused(artifact: Path) -> None:
    content = altered(
        (artifact / "model.pt2").read_bytes(),
        lambda name, data: (
            data.replace(b'"use_pickle": false', b'"use_pickle": true') if "weights_config" in name else data
        ),
    )

    with pytest.raises(ArtifactError, match="as a pickle"):
        load_exported(content)


def test_a_safetensors_artifact_needs_its_architecture_on_the_list(gate: tuple[str, Path], tmp_path: Path) -> None:
    architecture, _ = gate

    with pytest.raises(ArtifactError, match="not among the allowed"):
        load_artifact(tmp_path / "gate")
    model = load_artifact(tmp_path / "gate", architectures=(architecture,))
    assert model.answer_example()[0].tolist() == [2.0]


def test_what_an_architecture_waits_for_counts_as_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "waiting.py").write_text(
        "import time\nimport torch\n\n\nclass Asks(torch.nn.Identity):\n"
        "    def forward(self, amount: torch.Tensor) -> torch.Tensor:\n"
        "        time.sleep(0.01)\n        return amount * 2\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    asks = importlib.import_module("waiting").Asks()
    signature = Signature((Input.of("amount", "FP32"),), (Output("twice"),))
    save_artifact(
        tmp_path / "made", asks, signature, {"amount": [1.0]}, format="safetensors", architecture="waiting:Asks"
    )

    model = load_artifact(tmp_path / "made", architectures=("waiting:Asks",))

    assert min(model.warm_up(2, repeats=1).seconds.values()) >= 0.01


@pytest.mark.parametrize("over", ["rows", "values", "chance"])
def test_a_model_whose_rows_influence_each_other_is_known(tmp_path: Path, over: str) -> None:
    class Centred(torch.nn.Module):
        def forward(self, amounts: torch.Tensor) -> torch.Tensor:
            if over == "chance":
                return amounts + torch.randn_like(amounts)
            return amounts - amounts.mean(0 if over == "rows" else 1, keepdim=True)

    signature = Signature((Input.of("amounts", "FP32", shape=(3,)),), (Output("centred"),))
    save_artifact(tmp_path / "made", Centred(), signature, {"amounts": [[1.0, 2.0, 4.0]]})

    assert load_artifact(tmp_path / "made").mixes_rows() is (over == "rows")


def test_a_model_that_is_not_finite_on_its_example_does_not_load(artifact: Path) -> None:
    manifest = read_manifest(artifact)
    manifest["example"]["amount"] = [-2.0]
    (artifact / "manifest.json").write_bytes(canonical(manifest))

    with pytest.raises(ArtifactError, match="not finite"):
        load_artifact(artifact)


def test_warm_up_measures_each_power_of_two_up_to_the_largest_batch(artifacts: list[Path]) -> None:
    curve = load_artifact(artifacts[0]).warm_up(48, repeats=1)

    assert sorted(curve.seconds) == [1, 2, 4, 8, 16, 32, 48]
    assert curve.of(96) == pytest.approx(2 * curve.of(48))


def test_warm_up_goes_on_to_larger_batches_while_they_are_quick(artifacts: list[Path]) -> None:
    model = load_artifact(artifacts[0])
    assert sorted(model.warm_up(3, repeats=1, quick=60.0).seconds) == [1, 2, 3, 6, 12]
    assert sorted(model.warm_up(3, repeats=1, quick=1e-9).seconds) == [1, 2, 3]
    run = model.run

    def small(columns: list[object]) -> object:
        if len(columns[0]) > 8:  # type: ignore[arg-type]
            raise RuntimeError("this program takes at most 8 rows")
        return run(columns)  # type: ignore[arg-type]

    model.run = small  # type: ignore[assignment,method-assign]
    assert sorted(model.warm_up(3, repeats=1, quick=60.0).seconds) == [1, 2, 3, 6]


def test_inputs_of_every_datatype_reach_the_module_in_order(tmp_path: Path) -> None:
    class Sum(torch.nn.Module):
        def forward(self, *columns: torch.Tensor) -> torch.Tensor:
            return torch.stack([column.to(torch.float32) * 10**place for place, column in enumerate(columns)], 1)

    signature = Signature(
        (Input.of("f", "FP32"), Input.of("b", "BOOL"), Input.of("i", "INT64"), Input.of("c", "BYTES", ["x"])),
        (Output("y"),),
    )
    save_artifact(tmp_path, Sum(), signature, {"f": [1.5], "b": [True], "i": [3], "c": ["x"]})
    model = load_artifact(tmp_path)

    assert model.run(model.signature.columns([[[2.5], [False], [7], ["?"]]]))[0].tolist() == [[2.5, 0.0, 700.0, 0.0]]
