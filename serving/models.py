"""Model artifacts: writing one, and loading one into a callable that takes and gives numpy columns. Never a pickle."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from serving.artifacts.exporting import exported, listed, require_outputs, save_onnx, save_program
from serving.artifacts.formats import load_call
from serving.artifacts.manifest import FILES, MANIFEST, canonical, open_artifact
from serving.artifacts.placement import CPU
from serving.errors import ArtifactError
from serving.protocol.signature import Signature
from serving.protocol.tensors import WIRE_TYPES, Array

if TYPE_CHECKING:
    import torch

# Batches of other sizes differ by roundings, those of bfloat16 by a hundredth: more is another answer.
_MIXED = 0.03

Format = Literal["torch.export", "safetensors", "onnx"]


def save_artifact(
    directory: Path | str,
    module: torch.nn.Module | Path | str,
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
    With `onnx`, `module` may be the path of a model.onnx that exists already. Raises ArtifactError.
    """
    if (format == "safetensors") != (architecture is not None):
        raise ArtifactError(
            "a safetensors artifact needs an architecture 'module:callable', a torch.export one has none"
        )
    directory = Path(directory)
    if isinstance(module, str):
        module = Path(module)
    if isinstance(module, Path) and format != "onnx":
        raise ArtifactError(f"{module} is a file; only an ONNX model can be taken as it is (format='onnx')")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / FILES[format]
    if isinstance(module, Path):
        shutil.copyfile(module, path)
    elif format == "safetensors":
        import safetensors.torch

        safetensors.torch.save_file({k: v.contiguous() for k, v in module.state_dict().items()}, path)
    elif format == "onnx":
        save_onnx(exported(module.eval(), signature, example), path, signature)
    else:
        save_program(exported(module.eval(), signature, example), path)
    return write_manifest(
        directory, format, signature, example, architecture=architecture, architecture_args=architecture_args
    )


def write_manifest(
    directory: Path,
    format: str,
    signature: Signature,
    example: Mapping[str, Any],
    *,
    architecture: str | None = None,
    architecture_args: Mapping[str, Any] | None = None,
    runtime: Mapping[str, Any] | None = None,
) -> str:
    """Writes the manifest beside the file with the weights and returns the artifact's digest."""
    manifest = {
        "format": format,
        "architecture": architecture,
        "architecture_args": dict(architecture_args or {}),
        **signature.to_json(),
        "example": {name: listed(values) for name, values in example.items()},
        "files": {FILES[format]: hashlib.sha256((directory / FILES[format]).read_bytes()).hexdigest()},
        **({"runtime": dict(runtime)} if runtime else {}),
    }
    (directory / MANIFEST).write_bytes(canonical(manifest))
    return hashlib.sha256(canonical(manifest)).hexdigest()


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

    def __init__(
        self, module: Any, manifest: Mapping[str, Any], digest: str, nbytes: int = 0, device: str = CPU
    ) -> None:
        self.manifest = manifest
        self.digest = digest
        self.nbytes = nbytes  # of the weights
        self.device = device
        self.signature = Signature.of(manifest)
        self.example_outputs: list[Array] = []
        self._kinds = [WIRE_TYPES[output.datatype] for output in self.signature.outputs]
        import torch

        self._torch = torch
        # torch.inference_mode is this guard behind Python that costs more than a small model's layer.
        self._guard = getattr(torch._C, "_InferenceMode", torch.inference_mode)
        self._call = module
        self._changes_inputs = False
        # What the example shows: the names by which outputs come, and whether some are bfloat16.
        self._names: list[str] | None = None
        self._brain = False

    @property
    def solo(self) -> bool:
        """Whether all its work is done by the thread that calls it. An architecture's Python may wait for others."""
        ours = self.manifest.get("format") != "safetensors"
        return ours and self.device == CPU and bool(self._torch.get_num_threads() == 1)

    @property
    def lost(self) -> bool:
        """Whether its device takes nothing from this process any more."""
        return bool(getattr(self._call, "lost", False))

    def run(self, columns: Sequence[Array]) -> list[Array]:
        """The outputs as arrays of their declared datatypes, rows first; the columns stay as they are. Raises what the
        model raises.
        """
        if self._changes_inputs:
            columns = [np.array(column) for column in columns]
        return self._answered([self._torch.from_numpy(column) for column in columns])

    def _answered(self, given: Sequence[Any]) -> list[Array]:
        with self._guard(True):
            result = self._call(*given)
        return self._arrays(result)

    def _arrays(self, result: Any) -> list[Array]:
        if self._names is not None:
            result = [result[name] for name in self._names]
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        if self._brain:
            # numpy has no bfloat16; every one of its values is a float32.
            outputs = [output.float() if output.dtype == self._torch.bfloat16 else output for output in outputs]
        kinds = self._kinds if len(outputs) == len(self._kinds) else [None] * len(outputs)
        return [np.asarray(output.numpy(), kind) for output, kind in zip(outputs, kinds, strict=True)]

    def _learn(self, result: Any) -> None:
        """Sees in which form the outputs come. Raises ArtifactError for a form that is not served."""
        if isinstance(result, Mapping):
            require_outputs(result, self.signature)
            self._names = [output.name for output in self.signature.outputs]
            result = [result[name] for name in self._names]
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        for place, output in enumerate(outputs):
            if not isinstance(output, self._torch.Tensor):
                raise ArtifactError(
                    f"the model's output {place} is a {type(output).__name__}: give a tensor, a tuple of tensors, or a "
                    "dict of tensors by the outputs' names"
                )
        self._brain = any(output.dtype == self._torch.bfloat16 for output in outputs)

    def answer_example(self) -> list[Array]:
        """The outputs for the manifest's example. Raises ArtifactError unless they fit the signature and are finite."""
        columns = self.signature.example(self.manifest["example"])
        given = [self._torch.from_numpy(column) for column in columns]
        with self._guard(True):
            result = self._call(*given)
        self._learn(result)
        outputs = self._arrays(result)
        # Events tell of what was given, and a batch that fails is run again in parts.
        self._changes_inputs = any(one._version for one in given)
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

    def warm_up(self, max_rows: int, repeats: int = 3, *, quick: float = 0.0) -> WarmUp:
        """Runs the example at each power of two up to `max_rows` and keeps the best time of each; and at larger ones,
        up to four times `max_rows`, that take at most `quick` seconds.
        """
        columns = self.signature.example(self.manifest["example"])
        sizes = sorted({min(2**power, max_rows) for power in range(max_rows.bit_length() + 1)})
        seconds = {rows: self._timed(columns, rows, repeats) for rows in sizes}
        rows = max_rows
        while rows < 4 * max_rows and 2 * seconds[rows] <= quick:
            rows *= 2
            try:
                taken = self._timed(columns, rows, repeats)
            except Exception:
                break  # a program may be made for so many rows at most
            if taken > quick:
                break
            seconds[rows] = taken
        return WarmUp(seconds)

    def mixes_rows(self) -> bool:
        """Whether the example's first row is answered otherwise beside other rows, so that a request's answer depends
        on its company. False where that cannot be told: outputs that are not floats, or that chance decides.
        """
        first = [column[:1] for column in self.signature.example(self.manifest["example"])]
        others = [1 + 2 * row if row.dtype.kind == "f" else row for row in first]
        company = [np.concatenate([row, other, other]) for row, other in zip(first, others, strict=True)]
        try:
            alone, again, beside = self.run(first), self.run(first), self.run(company)
        except Exception:
            return False  # the other rows need not be ones that it takes
        for one, same, other in zip(alone, again, beside, strict=True):
            if one.dtype.kind != "f" or not np.array_equal(one, same):
                continue
            near = _MIXED * max(1.0, float(np.abs(one).max(initial=0.0)))
            if one.shape[1:] == other.shape[1:] and not np.allclose(one, other[:1], rtol=0.0, atol=near):
                return True
        return False

    def _timed(self, columns: Sequence[Array], rows: int, repeats: int) -> float:
        """The least seconds of a batch of so many rows."""
        batch = [np.resize(column, (rows, *column.shape[1:])) for column in columns]
        # What else the machine does is not the model's.
        clock = time.thread_time if self.solo else time.perf_counter
        times = []
        for _ in range(1 + repeats):
            start = clock()
            self.run(batch)
            times.append(clock() - start)
        return min(times[1:])


def load_artifact(
    directory: Path | str, *, architectures: Sequence[str] = (), digest: str | None = None, device: str = CPU
) -> LoadedModel:
    """The verified artifact, loaded on the device (cpu, cuda or cuda:N) and answering its example with finite outputs.

    `architectures` lists the `module:callable` that safetensors artifacts may name. Raises ArtifactError.
    """
    artifact = open_artifact(Path(directory), digest)
    program = load_call(artifact, architectures, device)
    try:
        model = LoadedModel(program.call, artifact.manifest, artifact.digest, program.nbytes, device)
        model.answer_example()
    except ArtifactError:
        raise
    except Exception as error:
        raise ArtifactError(f"{directory}: the model does not answer its own example: {error!r}") from error
    return model
