"""Variants of models with other layers than linear ones: what is changed, what is left, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from serving import ArtifactError, Input, Output, Signature, save_artifact
from serving.artifacts.archive import load_exported
from serving.artifacts.variants import Sample, compare, make_variant
from serving.models import load_artifact
from serving.optimize import Recipe
from serving.optimizing.layers import Fate

WIDTH = 128
SIGNATURE = Signature((Input.of("x", "FP32", shape=(8,)),), (Output("y"),))


def outputs(folder: Path, rows: np.ndarray) -> np.ndarray:
    return load_artifact(folder).run([rows])[0]


class Words(torch.nn.Module):
    """An embedding, a recurrent layer of two directions and a small last layer."""

    def __init__(self, kind: type[torch.nn.RNNBase]) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.table = torch.nn.Embedding(300, 32)
        self.walk = kind(32, 48, batch_first=True, bidirectional=True)
        self.last = torch.nn.Linear(96, 1)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.last(self.walk(self.table(words))[0][:, -1])


class Picture(torch.nn.Module):
    """Convolutions with a batch norm, pools and a flat end; `last` is a transposed one beside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(8)
        nn = torch.nn
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 32, 3),
            nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU(),
            nn.Linear(64, 4),
        )  # fmt: skip
        with torch.no_grad():
            # Every other channel is constant, whatever the picture shows.
            self.layers[0].weight[::2] = 0
            for norm in (self.layers[1], self.layers[9]):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
                norm.weight.uniform_(0.5, 2)
                norm.bias.normal_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Tied(torch.nn.Module):
    """One table at both ends, as in language models."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(9)
        self.table = torch.nn.Embedding(300, 32)
        self.last = torch.nn.Linear(32, 300, bias=False)
        self.last.weight = self.table.weight

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.table(words)).mean(1))


WORDS = (Signature((Input.of("words", "INT64", shape=(6,)),), (Output("y"),)), {"words": [[1, 2, 3, 4, 5, 6]]})
PICTURES = (Signature((Input.of("x", "FP32", shape=(3, 8, 8)),), (Output("y"),)), {"x": np.zeros((1, 3, 8, 8))})


def kept(folder: Path, module: torch.nn.Module, shape: tuple[Signature, dict[str, Any]]) -> tuple[Path, Sample]:
    save_artifact(folder, module.eval(), *shape)
    drawn = np.random.default_rng(1)
    if "words" in shape[1]:
        return folder, Sample((drawn.integers(0, 300, (128, 6)),))
    return folder, Sample((drawn.standard_normal((128, 3, 8, 8)).astype(np.float32),))


def told(fates: Iterable[Fate]) -> set[tuple[str, int, bool]]:
    return {(fate.kind, fate.layers, fate.changed) for fate in fates}


@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
def test_recurrent_layers_and_embeddings_keep_their_weights_in_int8(
    kind: type[torch.nn.RNNBase], tmp_path: Path
) -> None:
    source, rows = kept(tmp_path / "original", Words(kind), WORDS)

    fates = make_variant(source, tmp_path / "int8", Recipe(int8=True), rows)

    assert told(fates) == {("embedding", 1, True), (kind.__name__, 1, True), ("linear layer", 1, False)}
    assert "fewer than 4,096 weights" in next(fate.how for fate in fates if not fate.changed)
    found = compare(source, tmp_path / "int8", rows, 0.02)
    assert found.refusal() is None
    assert found.variant_bytes < 0.35 * found.original_bytes
    for count in (1, 2, 65):
        alone = outputs(tmp_path / "int8", rows.columns[0][:count])
        np.testing.assert_allclose(alone, outputs(tmp_path / "int8", rows.columns[0])[:count], atol=1e-5)


def test_convolutions_keep_their_weights_in_int8_and_small_ones_are_said_to_be_left(tmp_path: Path) -> None:
    source, rows = kept(tmp_path / "original", Picture(), PICTURES)

    fates = make_variant(source, tmp_path / "int8", Recipe(int8=True), rows)

    assert told(fates) == {
        ("convolution", 1, True), ("linear layer", 1, True), ("convolution", 1, False), ("linear layer", 1, False),
    }  # fmt: skip
    found = compare(source, tmp_path / "int8", rows, 0.03)
    assert found.refusal() is None
    assert found.variant_bytes < 0.4 * found.original_bytes


@pytest.mark.parametrize("recipe", [Recipe(int8=True), Recipe(bf16=True)])
def test_a_table_at_both_ends_is_lowered_at_both(recipe: Recipe, tmp_path: Path) -> None:
    source, rows = kept(tmp_path / "original", Tied(), WORDS)

    fates = make_variant(source, tmp_path / "variant", recipe, rows)

    assert told(fates) == {("embedding", 1, True), ("linear layer", 1, True)}
    found = compare(source, tmp_path / "variant", rows, 0.03)
    assert found.refusal() is None
    assert found.variant_bytes < 0.6 * found.original_bytes


def test_weights_that_two_kinds_of_operators_read_are_not_zeroed(tmp_path: Path) -> None:
    source, rows = kept(tmp_path / "original", Tied(), WORDS)

    with pytest.raises(ArtifactError, match="no linear layer and no convolution"):
        make_variant(source, tmp_path / "variant", Recipe(sparsity=0.5), rows)


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_convolutions_and_lstm_are_for_processors_that_multiply_it(
    native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    source, rows = kept(tmp_path / "pictures", Picture(), PICTURES)
    fates = make_variant(source, tmp_path / "picture", Recipe(bf16=True), rows)
    other, words = kept(tmp_path / "texts", Words(torch.nn.LSTM), WORDS)
    fates += make_variant(other, tmp_path / "text", Recipe(bf16=True), words)

    assert {("LSTM", 1, native), ("convolution", 1, native), ("embedding", 1, True)} <= told(fates)
    assert compare(source, tmp_path / "picture", rows, 0.03).refusal() is None
    assert compare(other, tmp_path / "text", words, 0.03).refusal() is None


def test_channels_that_say_nothing_are_taken_out_through_norms_pools_and_a_flat_end(tmp_path: Path) -> None:
    source, rows = kept(tmp_path / "original", Picture(), PICTURES)

    fates = make_variant(source, tmp_path / "pruned", Recipe(prune=0.5), rows)

    assert told(fates) == {("convolution", 2, True), ("linear layer", 1, True), ("linear layer", 1, False)}
    program = load_exported((tmp_path / "pruned" / "model.pt2").read_bytes())
    assert {tuple(weight.shape) for weight in program.state_dict.values() if weight.dim() > 1} == {
        (16, 3, 3, 3), (16, 16, 3, 3), (32, 64), (4, 32),
    }  # fmt: skip
    # Only the constant channels of the first layer, whose means go into the next layer's bias.
    first = Picture()
    first.layers[4], first.layers[8] = torch.nn.Conv2d(32, 8, 3), torch.nn.Linear(32, 8)
    first.layers[9], first.layers[11] = torch.nn.Identity(), torch.nn.Linear(8, 4)
    source, rows = kept(tmp_path / "narrow", first, PICTURES)
    make_variant(source, tmp_path / "exact", Recipe(prune=0.5), rows)
    np.testing.assert_allclose(
        outputs(tmp_path / "exact", rows.columns[0]), outputs(source, rows.columns[0]), atol=1e-4
    )


def test_weights_that_a_norm_computes_at_each_call_are_computed_once(tmp_path: Path) -> None:
    torch.manual_seed(4)
    normed = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(8, WIDTH))
    spectral = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(WIDTH, WIDTH))
    module = torch.nn.Sequential(normed, torch.nn.ReLU(), spectral, torch.nn.Tanh(), torch.nn.Linear(WIDTH, 1)).eval()
    save_artifact(tmp_path / "original", module, SIGNATURE, {"x": [[0.5] * 8]})
    rows = Sample((np.random.default_rng(2).standard_normal((128, 8)).astype(np.float32),))

    fates = make_variant(tmp_path / "original", tmp_path / "variant", Recipe(int8=True), rows)
    pruned = make_variant(tmp_path / "original", tmp_path / "pruned", Recipe(prune=0.5), rows)

    assert told(fates) == {("linear layer", 1, True), ("linear layer", 2, False)}
    assert told(pruned) == {("linear layer", 2, True), ("linear layer", 1, False)}
    assert compare(tmp_path / "original", tmp_path / "variant", rows, 0.03).refusal() is None


def test_a_recipe_that_changes_nothing_says_why_of_each_layer(tmp_path: Path) -> None:
    source, rows = kept(tmp_path / "original", Words(torch.nn.GRU), WORDS)
    with pytest.raises(ArtifactError, match=r"no two linear layers or convolutions .*; zero single weights"):
        make_variant(source, tmp_path / "variant", Recipe(prune=0.5), rows)

    small, rows = kept(tmp_path / "small", torch.nn.Linear(8, 4), (SIGNATURE, {"x": [[0.5] * 8]}))
    with pytest.raises(
        ArtifactError, match=r"int8 changes nothing in this model: 1 linear layer \(32 weights\): fewer"
    ):
        make_variant(small, tmp_path / "variant", Recipe(int8=True), rows)
