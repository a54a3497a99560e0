"""The model artifact: an exported program, its weights beside it, and the manifest that names and hashes both."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.data import TabularTask, encode

MANIFEST, PROGRAM, WEIGHTS = "manifest.json", "model.pt2", "weights.safetensors"


class ArtifactError(RuntimeError):
    """An artifact folder that does not hold what its manifest says; the message names the file."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A written artifact: its folder and its digest, the SHA-256 of the manifest's canonical JSON."""

    folder: Path
    digest: str


def write_artifact(
    folder: Path,
    task: TabularTask,
    network: nn.Module,
    vocabularies: Mapping[str, tuple[str, ...]],
    example: Mapping[str, Sequence[Any]],
) -> Artifact:
    """Exports `network` for any batch size and writes folder, weights (for a warm start) and manifest.

    `example` has one value or more for each of the task's features, as a client would send them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.export.save(export(network, _example_inputs(task, vocabularies, example)), folder / PROGRAM)
    save_file(unshared(network.state_dict()), folder / WEIGHTS)
    inputs = [{"name": name, "datatype": "BYTES", "categories": list(vocabularies[name])} for name in task.categorical]
    manifest = {
        "format": "torch.export",
        "architecture": None,
        "architecture_args": {},
        "inputs": inputs + [{"name": name, "datatype": "FP32", "categories": None} for name in task.numeric],
        "outputs": [{"name": task.output, "datatype": "FP32"}],
        "example": {name: list(example[name]) for name in task.features},
        "files": {name: _sha256((folder / name).read_bytes()) for name in (PROGRAM, WEIGHTS)},
    }
    (folder / MANIFEST).write_bytes(canonical(manifest))
    return Artifact(folder, _sha256(canonical(manifest)))


def unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each in memory of its own: safetensors takes no two that share it, as tied weights do."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        place = own.untyped_storage().data_ptr()
        found[name] = own.clone() if place in seen else own
        seen.add(place)
    return found


def export(network: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """The network in evaluation mode as a program whose batch dimension, shared by all inputs, is free.

    `inputs` need two rows or more: torch.export takes a size of one for a constant. Restores the training mode.
    """
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} for _ in inputs)
    training = network.training
    try:
        with warnings.catch_warnings():
            # torch's own tracer still uses names that torch itself deprecates.
            warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch(\.|$)")
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch(\.|$)")
            return torch.export.export(
                network.eval(), inputs, dynamic_shapes=(shapes,) if _takes_any_number(network) else shapes
            )
    finally:
        network.train(training)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact whose files all have the digests it names. Raises ArtifactError."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        found = {name: _sha256((folder / name).read_bytes()) for name in manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder} is not a complete artifact: {error!r}") from error
    altered = [name for name, digest in manifest["files"].items() if found[name] != digest]
    if altered:
        raise ArtifactError(f"{folder / altered[0]} was altered: SHA-256 {found[altered[0]]}; fetch the artifact again")
    return cast("dict[str, Any]", manifest)


def read_vocabularies(manifest: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The categories of each categorical input."""
    return {i["name"]: tuple(i["categories"]) for i in manifest["inputs"] if i["categories"] is not None}


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The parameters and buffers that the program was exported with. ArtifactError where the folder has none."""
    if not (folder / WEIGHTS).is_file():
        raise ArtifactError(f"{folder} has no {WEIGHTS}: it cannot be a starting point; train anew")
    return cast("dict[str, Tensor]", load_file(folder / WEIGHTS))


def load_program(folder: Path) -> nn.Module:
    """The exported program as a callable module, from a folder whose digests `read_manifest` has checked."""
    read_manifest(folder)
    return torch.export.load(folder / PROGRAM).module()


def canonical(value: object) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _example_inputs(
    task: TabularTask, vocabularies: Mapping[str, tuple[str, ...]], example: Mapping[str, Sequence[Any]]
) -> tuple[Tensor, ...]:
    row = encode(task, vocabularies, pa.table({name: list(example[name]) for name in task.features}))
    return tuple(torch.cat([column, column]) for column in row)


def _takes_any_number(network: nn.Module) -> bool:
    """Whether `forward` is written `(*inputs)`; torch.export then nests the shapes once more."""
    return bool(type(network).forward.__code__.co_flags & 0x04)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
