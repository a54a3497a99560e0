"""Variants: each form answers nearly as the original, loads like any artifact, and is refused where it does not."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from serving import ArtifactError, Input, Output, Registry, Signature, load_artifact, save_artifact
from serving.artifacts import compilation
from serving.artifacts.archive import load_exported
from serving.artifacts.exporting import quiet, save_program
from serving.artifacts.variants import Sample, compare, make_variant, measured, register_variant
from serving.models import write_manifest
from serving.optimize import Recipe

WIDTH = 128
SIGNATURE = Signature((Input.of("x", "FP32", shape=(8,)),), (Output("y"),))


class Network(torch.nn.Module):
    """Of the first hidden layer's units, every other one is silent."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(8, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH), torch.nn.GELU(),
            torch.nn.Linear(WIDTH, 1),
        )  # fmt: skip
        with torch.no_grad():
            self.layers[0].weight[::2] = 0
            self.layers[0].bias[::2] = 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    save_artifact(folder, Network(), SIGNATURE, {"x": [[0.5] * 8]})
    return folder


@pytest.fixture(scope="module")
def sample() -> Sample:
    return Sample((np.random.default_rng(0).standard_normal((256, 8)).astype(np.float32),))


def outputs(folder: Path, rows: np.ndarray) -> np.ndarray:
    return load_artifact(folder).run([rows])[0]


@pytest.mark.parametrize(("recipe", "far"), [(Recipe(int8=True), 0.02), (Recipe(bf16=True), 0.02)])
def test_lower_precision_stays_near_takes_less_memory_and_takes_any_number_of_rows(
    recipe: Recipe, far: float, original: Path, sample: Sample, tmp_path: Path
) -> None:
    make_variant(original, tmp_path, recipe, sample)

    before, after = load_artifact(original), load_artifact(tmp_path)
    assert after.nbytes < 0.6 * before.nbytes
    for rows in (1, 2, 65):
        expected = before.run([sample.columns[0][:rows]])[0]
        np.testing.assert_allclose(
            after.run([sample.columns[0][:rows]])[0], expected, atol=far * np.ptp(expected) + far
        )


class Inside(torch.nn.Module):
    """Computes in another type than float32, which only comes in and goes out."""

    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(5)
        first, last = torch.nn.Linear(8, WIDTH), torch.nn.Linear(WIDTH, WIDTH)
        self.kind, self.layers = kind, torch.nn.Sequential(first, torch.nn.ReLU(), last).to(kind)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x.to(self.kind)).float().sum(1)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_layers_of_another_type_than_float32_keep_it_around_them(
    kind: torch.dtype, sample: Sample, tmp_path: Path
) -> None:
    save_artifact(tmp_path / "original", Inside(kind), SIGNATURE, {"x": [[0.5] * 8]})
    recipes = {"int8": Recipe(int8=True), "bf16": Recipe(bf16=True)}
    if kind is torch.bfloat16:
        with pytest.raises(ArtifactError, match="16 bits a weight already"):
            make_variant(tmp_path / "original", tmp_path / "none", recipes.pop("bf16"), sample)

    expected = outputs(tmp_path / "original", sample.columns[0])
    for name, recipe in recipes.items():
        make_variant(tmp_path / "original", tmp_path / name, recipe, sample)
        found = outputs(tmp_path / name, sample.columns[0])
        np.testing.assert_allclose(found, expected, atol=0.02 * np.ptp(expected))


def test_an_outlier_in_a_batch_changes_nothing_for_its_neighbours(
    original: Path, sample: Sample, tmp_path: Path
) -> None:
    make_variant(original, tmp_path, Recipe(int8=True), sample)
    rows = sample.columns[0][:16].copy()
    alone = outputs(tmp_path, rows)
    rows[7], rows[8], rows[9] = 1e30, np.nan, np.inf

    together = outputs(tmp_path, rows)

    others = [place for place in range(16) if place not in (7, 8, 9)]
    np.testing.assert_array_equal(together[others], alone[others])
    assert not np.isfinite(together[8:10]).any(), "what is not a number must not come out as one"


def test_units_that_say_nothing_are_taken_out_first_and_the_matrices_shrink(
    original: Path, sample: Sample, tmp_path: Path
) -> None:
    make_variant(original, tmp_path, Recipe(prune=0.5), sample)

    before, after = load_artifact(original), load_artifact(tmp_path)
    assert after.nbytes < 0.4 * before.nbytes
    # The first layer's silent half is constant, and goes into the next layer's bias; of the second, half really goes.
    make_variant(original, tmp_path / "less", Recipe(prune=0.1), sample)
    np.testing.assert_allclose(
        outputs(tmp_path / "less", sample.columns[0]), before.run(list(sample.columns))[0], atol=0.1
    )


def test_sparsity_zeroes_the_smallest_weights(original: Path, sample: Sample, tmp_path: Path) -> None:
    make_variant(original, tmp_path, Recipe(sparsity=0.6), sample)
    weights = [
        tensor
        for name, tensor in load_exported((tmp_path / "model.pt2").read_bytes()).state_dict.items()
        if name.endswith("weight")
    ]
    share = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    assert share == pytest.approx(0.6, abs=0.03)


@pytest.mark.parametrize("settings", [{}, {"prune": 1.0}, {"int8": True, "bf16": True}, {"sparsity": -0.1}])
def test_a_recipe_that_means_nothing_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ArtifactError):
        Recipe(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("recipe", "complaint"), [(Recipe(int8=True), "no linear layer"), (Recipe(prune=0.5), "no two linear layers")]
)
def test_a_model_in_which_there_is_nothing_to_change_is_refused(
    recipe: Recipe, complaint: str, artifacts: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=complaint):
        make_variant(artifacts[0], tmp_path, recipe)


def test_a_compiled_variant_runs_as_it_is_where_there_is_no_compiler(
    original: Path, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_variant(original, tmp_path, Recipe(compile=True))
    monkeypatch.setattr(compilation, "compiler", lambda: None)
    with caplog.at_level(logging.WARNING):
        after = outputs(tmp_path, sample.columns[0])

    np.testing.assert_array_equal(after, outputs(original, sample.columns[0]))
    assert "apt-get install g++" in caplog.text


@pytest.mark.slow
def test_a_compiled_variant_answers_as_the_original(original: Path, sample: Sample, tmp_path: Path) -> None:
    make_variant(original, tmp_path, Recipe(compile=True))
    with quiet():
        model = load_artifact(tmp_path)
        for rows in (1, 5, 64):
            batch = [sample.columns[0][:rows]]
            np.testing.assert_allclose(model.run(batch)[0], load_artifact(original).run(batch)[0], atol=1e-5)
    assert model.manifest["runtime"] == {"compile": True}


def test_the_runtime_in_a_manifest_is_known_or_refused(original: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes((original / "model.pt2").read_bytes())
    write_manifest(tmp_path, "torch.export", SIGNATURE, {"x": [[0.5] * 8]}, runtime={"compile": True, "shell": "rm"})

    with pytest.raises(ArtifactError, match="known is only"):
        load_artifact(tmp_path)


def test_a_safetensors_model_becomes_a_program(tmp_path: Path) -> None:
    size = {"in_features": 8, "out_features": 1}
    module = torch.nn.Linear(**size)
    save_artifact(
        tmp_path / "linear", module, SIGNATURE, {"x": [[0.5] * 8]},
        format="safetensors", architecture="torch.nn:Linear", architecture_args=size,
    )  # fmt: skip
    with pytest.raises(ArtifactError, match="not among the allowed"):
        make_variant(tmp_path / "linear", tmp_path / "variant", Recipe(sparsity=0.5))

    make_variant(tmp_path / "linear", tmp_path / "variant", Recipe(sparsity=0.5), architectures=("torch.nn:Linear",))

    variant = load_artifact(tmp_path / "variant")
    assert variant.manifest["format"] == "torch.export"
    kept = module.weight.detach() * (module.weight.abs() > module.weight.abs().flatten().kthvalue(4).values)
    expected = torch.nn.functional.linear(torch.ones(3, 8), kept, module.bias).detach().numpy()
    np.testing.assert_allclose(variant.run([np.ones((3, 8), np.float32)])[0], expected, rtol=1e-5)


def test_an_architecture_that_cannot_be_exported_has_no_variants(gate: tuple[str, Path], tmp_path: Path) -> None:
    architecture, _ = gate

    with pytest.raises(ArtifactError, match=r"cannot be exported as a program.* data-dependent"):
        make_variant(tmp_path / "gate", tmp_path / "variant", Recipe(sparsity=0.5), architectures=(architecture,))


def test_a_decomposed_program_has_the_same_linear_layers(original: Path, sample: Sample, tmp_path: Path) -> None:
    with quiet():
        rows = {0: torch.export.Dim("rows")}
        program = torch.export.export(Network(), (torch.zeros(2, 8),), dynamic_shapes=(rows,)).run_decompositions()
        save_program(program, tmp_path / "model.pt2")
    write_manifest(tmp_path, "torch.export", SIGNATURE, {"x": [[0.5] * 8]})
    assert b"aten.addmm" in (tmp_path / "model.pt2").read_bytes()

    fates = make_variant(tmp_path, tmp_path / "variant", Recipe(int8=True), sample)

    assert [(fate.kind, fate.layers, fate.changed) for fate in fates] == [
        ("linear layer", 1, True), ("linear layer", 2, False),
    ]  # fmt: skip
    assert compare(original, tmp_path / "variant", sample, 0.05).refusal() is None


# --- judged ----------------------------------------------------------------------------------------------------------
def test_a_near_variant_is_registered_beside_its_parent_and_nothing_is_promoted(
    original: Path, sample: Sample, registry: Registry, tmp_path: Path
) -> None:
    parent = registry.register("net", original, lineage={"run": "1"}, profile=b"{}", metrics={})
    registry.set_alias("net", "stable", 1)
    make_variant(original, tmp_path / "variant", Recipe(int8=True), sample)
    labelled = Sample(sample.columns, outputs(original, sample.columns[0])[:, 0].astype(np.float64))

    found = compare(original, tmp_path / "variant", labelled, 0.05)

    assert found.refusal() is not None, "the original's own outputs as labels: its error is 0, and any other is worse"
    found = compare(original, tmp_path / "variant", sample, 0.05)
    assert found.refusal() is None
    made = register_variant(registry, parent, tmp_path / "variant", Recipe(int8=True), found)
    assert (made.version, made.lineage["parent"], made.lineage["variant"]) == (2, 1, "int8")
    assert made.lineage["measured"] == measured(found)
    assert registry.profile("net", 2) == b"{}"
    assert registry.alias("net", "stable") == 1
    assert [speed.rows for speed in found.variant_speed] == [1, 8, 64]
    assert all(speed.rows_per_second > 0 for speed in (*found.original_speed, *found.variant_speed))


def test_a_variant_that_differs_too_much_is_not_registered(
    original: Path, sample: Sample, registry: Registry, tmp_path: Path
) -> None:
    parent = registry.register("net", original, lineage={}, profile=None, metrics={})
    make_variant(original, tmp_path / "variant", Recipe(sparsity=0.9), sample)
    found = compare(original, tmp_path / "variant", sample, 0.05)

    with pytest.raises(ArtifactError, match=r"output 'y' differs by .* the tolerance is 5.00%"):
        register_variant(registry, parent, tmp_path / "variant", Recipe(sparsity=0.9), found)
    assert len(registry.versions("net")) == 1
