"""Model artifacts: writing one, and loading one into a callable that takes and gives numpy columns. Never a pickle."""

from __future__ import annotations

import hashlib
import importlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from serving.archive import load_exported
from serving.errors import ArtifactError
from serving.manifest import MANIFEST, canonical, read_manifest, verify
from serving.signature import Signature
from serving.tensors import WIRE_TYPES, Array

if TYPE_CHECKING:
    import torch

Format = Literal["torch.export", "safetensors"]
_FILES: dict[str, str] = {"torch.export": "model.pt2", "safetensors": "model.safetensors"}


def save_artifact(
    directory: Path,
    module: torch.nn.Module,
    signature: Signature,
    example: Mapping[str, Sequence[Any]],
    *,
    format: Format = "torch.export",
    architecture: str | None = None,
    architecture_args: Mapping[str, Any] | None = None,
) -> str:
    """Writes `module` as an artifact and returns its digest. `example` is one row or more an input, answered at load:
    a list or an array [rows, *shape].

    `architecture` ("module:callable") and its keyword arguments rebuild the module when the format is safetensors.
    """
    if (format == "safetensors") != (architecture is not None):
        raise ArtifactError(
            "a safetensors artifact needs an architecture 'module:callable', a torch.export one has none"
        )
    import safetensors.torch
    import torch

    directory.mkdir(parents=True, exist_ok=True)
    path = directory / _FILES[format]
    if format == "safetensors":
        safetensors.torch.save_file({k: v.contiguous() for k, v in module.state_dict().items()}, path)
    else:
        torch.export.save(_exported(module.eval(), signature, example), path)
    manifest = {
        "format": format,
        "architecture": architecture,
        "architecture_args": dict(architecture_args or {}),
        **signature.to_json(),
        "example": {name: _listed(values) for name, values in example.items()},
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest()},
    }
    (directory / MANIFEST).write_bytes(canonical(manifest))
    return hashlib.sha256(canonical(manifest)).hexdigest()


def _exported(
    module: torch.nn.Module, signature: Signature, example: Mapping[str, Sequence[Any]]
) -> torch.export.ExportedProgram:
    import torch

    # Two rows at least: torch.export would take a batch of one for a constant.
    columns = signature.example({name: _listed(values) for name, values in example.items()}, times=2)
    arguments = tuple(torch.from_numpy(column) for column in columns)
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple(
        {0: batch} | {1 + place: torch.export.Dim.AUTO for place, length in enumerate(column.shape) if length == -1}
        for column in signature.inputs
    )
    return torch.export.export(module, arguments, dynamic_shapes=(shapes,) if _takes_varargs(module) else shapes)


def _listed(values: Any) -> list[Any]:
    """An example's values as JSON has them; arrays and tensors are taken, too."""
    listed: list[Any] = values.tolist() if hasattr(values, "tolist") else list(values)
    return listed


def _takes_varargs(module: torch.nn.Module) -> bool:
    code = type(module).forward.__code__
    return bool(code.co_flags & 0x04)


@dataclass(frozen=True, slots=True)
class WarmUp:
    """Measured seconds a batch, by rows: t(n) of a loaded model."""

    seconds: dict[int, float]

    def of(self, rows: int) -> float:
        """Estimated seconds for a batch of `rows`: the next measured size, in proportion beyond the largest."""
        for size in sorted(self.seconds):
            if rows <= size:
                return self.seconds[size]
        largest = max(self.seconds)
        return self.seconds[largest] * rows / largest


class LoadedModel:
    """A version in memory. `run(columns)` takes one column [rows] an input and gives one array an output."""

    def __init__(self, module: Any, manifest: Mapping[str, Any], digest: str) -> None:
        self.manifest = manifest
        self.digest = digest
        self.signature = Signature.of(manifest)
        self.example_outputs: list[Array] = []
        self._kinds = [WIRE_TYPES[output.datatype] for output in self.signature.outputs]
        import torch

        self._torch = torch
        self._call = module

    def run(self, columns: Sequence[Array]) -> list[Array]:
        """The outputs as arrays of their declared datatypes, rows first. Raises what the model raises."""
        with self._torch.inference_mode():
            result = self._call(*map(self._torch.from_numpy, columns))
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        kinds = self._kinds if len(outputs) == len(self._kinds) else [None] * len(outputs)
        return [np.asarray(output.numpy(), kind) for output, kind in zip(outputs, kinds, strict=True)]

    def answer_example(self) -> list[Array]:
        """The outputs for the manifest's example. Raises ArtifactError unless they fit the signature and are finite."""
        columns = self.signature.example(self.manifest["example"])
        outputs = self.run(columns)
        if len(outputs) != len(self.signature.outputs):
            raise ArtifactError(
                f"the model gives {len(outputs)} outputs, its manifest names {len(self.signature.outputs)}"
            )
        for output, values in zip(self.signature.outputs, outputs, strict=True):
            if values.ndim == 0 or len(values) != len(columns[0]) or not output.fits(values.shape):
                raise ArtifactError(
                    f"output {output.name!r} has shape {list(values.shape)} for {len(columns[0])} example rows, "
                    f"declared is {[-1, *output.shape]}"
                )
            if not np.isfinite(values).all():
                raise ArtifactError(f"output {output.name!r} is not finite for the manifest's example")
        self.example_outputs = outputs
        return outputs

    def warm_up(self, max_rows: int, repeats: int = 3) -> WarmUp:
        """Runs the example at each power of two up to `max_rows` and keeps the best time of each."""
        columns = self.signature.example(self.manifest["example"])
        sizes = sorted({min(2**power, max_rows) for power in range(max_rows.bit_length() + 1)})
        seconds: dict[int, float] = {}
        for rows in sizes:
            batch = [np.resize(column, (rows, *column.shape[1:])) for column in columns]
            times = []
            for _ in range(1 + repeats):
                start = time.perf_counter()
                self.run(batch)
                times.append(time.perf_counter() - start)
            seconds[rows] = min(times[1:])
        return WarmUp(seconds)


def load_artifact(directory: Path, *, architectures: Sequence[str] = (), digest: str | None = None) -> LoadedModel:
    """The verified artifact, loaded on the CPU and answering its example with finite outputs.

    `architectures` lists the `module:callable` that safetensors artifacts may name. Raises ArtifactError.
    """
    actual = verify(directory, digest)
    manifest = read_manifest(directory)
    format = manifest.get("format")
    if format not in _FILES or _FILES[format] not in manifest["files"]:
        raise ArtifactError(
            f"format {format!r} with files {sorted(manifest['files'])}; use torch.export or safetensors"
        )
    if format == "torch.export":
        # The guards and the pytree hooks of the unlifted module cost more than a small model: call its forward.
        call = load_exported((directory / _FILES[format]).read_bytes()).module(check_guards=False).forward
    else:
        call = _built(manifest, architectures, directory / _FILES[format])
    model = LoadedModel(call, manifest, actual)
    try:
        model.answer_example()
    except ArtifactError:
        raise
    except Exception as error:
        raise ArtifactError(f"{directory}: the model does not answer its own example: {error!r}") from error
    return model


def _built(manifest: Mapping[str, Any], architectures: Sequence[str], weights: Path) -> torch.nn.Module:
    import safetensors.torch

    name = manifest.get("architecture")
    if name not in architectures:
        raise ArtifactError(
            f"architecture {name!r} is not among the allowed {list(architectures)}; "
            "add it to the server's `architectures` if you trust its code"
        )
    module_name, _, attribute = str(name).partition(":")
    factory = getattr(importlib.import_module(module_name), attribute)
    module: torch.nn.Module = factory(**manifest.get("architecture_args") or {})
    module.load_state_dict(safetensors.torch.load_file(weights))
    return module.eval()
