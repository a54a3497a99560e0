"""Variants of a registered version: made, measured beside it on the same rows, judged, registered as candidates."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from serving.artifacts.archive import load_exported
from serving.artifacts.exporting import exported, quiet, save_program
from serving.artifacts.formats import built
from serving.artifacts.manifest import FILES, Artifact, open_artifact
from serving.errors import ArtifactError
from serving.models import LoadedModel, load_artifact, write_manifest
from serving.optimize import Recipe, transformed
from serving.optimizing.layers import Fate
from serving.protocol.signature import Signature
from serving.protocol.tensors import Array
from serving.registry import ModelVersion, Registry

BATCHES = (1, 8, 64)
_ROUNDS = 7
_FEW_ROWS = 64  # they do not show how far an output goes
_ROUND_SECONDS = 0.02
_PROBABILITY_MARGIN = 1e-7


@dataclass(frozen=True, slots=True)
class Speed:
    """Rows and processor seconds for a batch size, the best of several rounds."""

    rows: int
    rows_per_second: float
    processor_seconds_per_row: float


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one output of the variant is from the original's, on `rows` rows.

    `largest` and `mean` are absolute; `relative` is the largest as a share of the original's range on these rows (of
    its largest absolute value, where it has no range).
    """

    output: str
    rows: int
    largest: float
    mean: float
    relative: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was measured: speeds by batch size, differences by output, and scores where there are labels."""

    original_speed: tuple[Speed, ...]
    variant_speed: tuple[Speed, ...]
    original_bytes: int
    variant_bytes: int
    differences: tuple[Difference, ...]
    original_scores: Mapping[str, float]
    variant_scores: Mapping[str, float]
    tolerance: float

    def refusal(self) -> str | None:
        """Why the variant must not be registered; None when it may be."""
        for found in self.differences:
            # A NaN is not below any tolerance.
            if not found.relative <= self.tolerance:
                few = "; so few rows show little of its range: give a sample of more" if found.rows < _FEW_ROWS else ""
                return (
                    f"output {found.output!r} differs by {found.largest:.4g}, {found.relative:.2%} of its range on "
                    f"{found.rows} rows; the tolerance is {self.tolerance:.2%}{few}"
                )
        for name, before in self.original_scores.items():
            after = self.variant_scores[name]
            if not after - before <= self.tolerance * abs(before):
                return f"{name} rises from {before:.4g} to {after:.4g}; the tolerance is {self.tolerance:.2%}"
        return None


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows to compare on: one column an input, as the model takes them, and labels if there are any."""

    columns: tuple[Array, ...]
    labels: Array | None = None

    @property
    def rows(self) -> int:
        return len(self.columns[0])


def make_variant(
    source: Path, target: Path, recipe: Recipe, sample: Sample | None = None, *, architectures: Sequence[str] = ()
) -> tuple[Fate, ...]:
    """Writes the variant of the artifact in `source` to `target`, and says what became of its layers.

    Raises ArtifactError where the recipe changes nothing, and where the artifact cannot be changed.

    A safetensors artifact becomes a program too: its variant needs no Python of the user's.
    """
    artifact = open_artifact(source)
    manifest = artifact.manifest
    if manifest["format"] == "onnx":
        raise ArtifactError(
            "an ONNX model cannot be changed here: optimize it with onnxruntime's tools, and register it"
        )
    if manifest.get("runtime"):
        raise ArtifactError(
            f"{source} is a variant already ({manifest['runtime']}); start from the version it came from"
        )
    signature, example = Signature.of(manifest), manifest["example"]
    target.mkdir(parents=True, exist_ok=True)
    path = target / FILES["torch.export"]
    fates: tuple[Fate, ...] = ()
    with quiet():
        if recipe.changes_weights or manifest["format"] != "torch.export":
            columns = list(sample.columns) if sample is not None else signature.example(example, times=2)
            program = _program(artifact, signature, architectures)
            if recipe.changes_weights:
                changed, fates = transformed(program.module(check_guards=False), recipe, columns)
                program = exported(changed, signature, example)
            save_program(program, path)
        else:
            shutil.copyfile(source / FILES["torch.export"], path)
    runtime = {"compile": True} if recipe.compile else None
    write_manifest(target, "torch.export", signature, example, runtime=runtime)
    return fates


def _program(artifact: Artifact, signature: Signature, architectures: Sequence[str]) -> Any:
    if artifact.manifest["format"] == "torch.export":
        return load_exported(artifact.content)
    module = built(artifact.manifest, architectures, artifact.content)
    try:
        return exported(module, signature, artifact.manifest["example"])
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ArtifactError(
            f"architecture {artifact.manifest['architecture']!r} cannot be exported as a program, which a variant is: "
            f"{type(error).__name__}: {reason}"
        ) from error


def compare(
    source: Path, variant: Path, sample: Sample | None, tolerance: float, *, architectures: Sequence[str] = ()
) -> Comparison:
    """Loads both as the server would and measures them by turns. Without a sample, outputs are those of the example."""
    models = [load_artifact(folder, architectures=architectures) for folder in (source, variant)]
    given = sample or Sample(tuple(models[0].signature.example(models[0].manifest["example"])))
    outputs = [_outputs(model, given.columns) for model in models]
    names = [output.name for output in models[0].signature.outputs]
    scores = [_scores(found[0], given.labels) for found in outputs]
    speeds = _speeds(models, given.columns)
    return Comparison(
        tuple(speeds[0]), tuple(speeds[1]), models[0].nbytes, models[1].nbytes,
        tuple(map(_difference, names, *outputs)), scores[0], scores[1], tolerance,
    )  # fmt: skip


def register_variant(
    registry: Registry, parent: ModelVersion, folder: Path, recipe: Recipe, comparison: Comparison
) -> ModelVersion:
    """Registers the variant as a version without traffic. Raises ArtifactError when the comparison refuses it."""
    refusal = comparison.refusal()
    if refusal is not None:
        raise ArtifactError(refusal)
    return registry.register(
        parent.model, folder,
        lineage={"parent": parent.version, "variant": recipe.name, "measured": measured(comparison)},
        profile=registry.profile(parent.model, parent.version),
        metrics=dict(comparison.variant_scores),
    )  # fmt: skip


def measured(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON."""

    def side(speeds: Sequence[Speed], size: int, scores: Mapping[str, float]) -> dict[str, Any]:
        return {
            "weights_bytes": size,
            "scores": dict(scores),
            "speed": [
                {"rows": s.rows, "rows_per_second": s.rows_per_second,
                 "processor_seconds_per_row": s.processor_seconds_per_row}
                for s in speeds
            ],
        }  # fmt: skip

    return {
        "original": side(comparison.original_speed, comparison.original_bytes, comparison.original_scores),
        "variant": side(comparison.variant_speed, comparison.variant_bytes, comparison.variant_scores),
        "differences": [
            {"output": d.output, "rows": d.rows, "largest": d.largest, "mean": d.mean, "relative": d.relative}
            for d in comparison.differences
        ],
        "tolerance": comparison.tolerance,
        "refused": comparison.refusal(),
    }


def _outputs(model: LoadedModel, columns: Sequence[Array]) -> list[Array]:
    size = BATCHES[-1]
    parts = [
        model.run([np.ascontiguousarray(column[at : at + size]) for column in columns])
        for at in range(0, len(columns[0]), size)
    ]
    return [np.concatenate(chunks).astype(np.float64) for chunks in zip(*parts, strict=True)]


def _difference(name: str, original: Array, variant: Array) -> Difference:
    if original.shape != variant.shape:
        raise ArtifactError(f"output {name!r} has the shape {variant.shape}, the original's is {original.shape}")
    both = np.isfinite(original)
    if not np.isfinite(variant[both]).all():
        return Difference(name, len(original), float("inf"), float("inf"), float("inf"))
    apart, known = np.abs(variant[both] - original[both]), original[both]
    if not len(known):
        return Difference(name, len(original), 0.0, 0.0, 0.0)
    scale = max(float(np.ptp(known)), 1e-12) if len(np.unique(known)) > 1 else max(float(np.abs(known).max()), 1e-12)
    largest = float(apart.max())
    return Difference(name, len(original), largest, float(apart.mean()), largest / scale)


def _scores(output: Array, labels: Array | None) -> dict[str, float]:
    """Scores of which less is better: log loss of probabilities against 0 and 1, absolute error of other numbers."""
    if labels is None:
        return {}
    known = np.isfinite(labels)
    values, truth = output.reshape(len(output), -1)[known, 0], labels[known]
    if not len(truth):
        return {}
    if np.isin(truth, (0.0, 1.0)).all() and values.min() >= 0 and values.max() <= 1:
        sure = np.clip(values, _PROBABILITY_MARGIN, 1 - _PROBABILITY_MARGIN)
        return {"log_loss": float(-np.mean(np.where(truth == 1, np.log(sure), np.log1p(-sure))))}
    return {"mean_absolute_error": float(np.abs(values - truth).mean())}


def _speeds(models: Sequence[LoadedModel], columns: Sequence[Array]) -> list[list[Speed]]:
    found: list[list[Speed]] = [[] for _ in models]
    for rows in BATCHES:
        batch = [np.resize(column, (rows, *column.shape[1:])) for column in columns]
        best = [(float("inf"), float("inf"))] * len(models)
        repeats = [_repeats(model, batch) for model in models]
        for _ in range(_ROUNDS):
            # By turns: the machine's speed changes from one second to the next.
            for place, model in enumerate(models):
                wall, processor = _timed(partial(model.run, batch), repeats[place])
                best[place] = (min(best[place][0], wall), min(best[place][1], processor))
        for place, (wall, processor) in enumerate(best):
            found[place].append(Speed(rows, rows / wall, processor / rows))
    return found


def _repeats(model: LoadedModel, batch: Sequence[Array]) -> int:
    model.run(batch)
    wall, _ = _timed(partial(model.run, batch), 3)
    return max(3, min(1000, int(_ROUND_SECONDS / wall)))


def _timed(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Wall and processor seconds of one call, on average."""
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - wall) / repeats, (time.process_time() - processor) / repeats
