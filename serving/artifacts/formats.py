"""From a verified artifact to a function of tensors, by its format: exported program, safetensors with code, ONNX."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from serving.artifacts.archive import load_program
from serving.artifacts.compilation import compiled
from serving.artifacts.graphs import Cuda, OnGpu
from serving.artifacts.manifest import Artifact
from serving.artifacts.onnx_model import load_onnx
from serving.artifacts.placement import CPU
from serving.artifacts.program import Program, weight_bytes
from serving.errors import ArtifactError

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)


def load_call(artifact: Artifact, architectures: Sequence[str] = (), device: str = CPU) -> Program:
    """The artifact's function of tensors of the CPU and the bytes of its weights, which are on the device; compiled
    where the manifest asks for it.

    Raises ArtifactError. Nothing is unpickled; `architectures` are the only Python that an artifact may name.
    """
    manifest = artifact.manifest
    compile = _wants_compiling(manifest)
    if manifest["format"] == "onnx":
        return load_onnx(artifact.content, manifest, device)
    if manifest["format"] == "torch.export":
        program = load_program(artifact.content, device)
    else:
        module = built(manifest, architectures, artifact.content).to(device)
        program = Program(module, weight_bytes((*module.parameters(), *module.buffers())))
    call = compiled(program.call) if compile else program.call
    return Program(call if device == CPU else OnGpu(call, Cuda(device)), program.nbytes)


def built(manifest: Mapping[str, Any], architectures: Sequence[str], content: bytes) -> torch.nn.Module:
    """The architecture that a safetensors artifact names, with its weights. Raises ArtifactError."""
    import safetensors.torch

    name = manifest.get("architecture")
    if name not in architectures:
        raise ArtifactError(
            f"architecture {name!r} is not among the allowed {list(architectures)}; "
            "add it to the server's `architectures` if you trust its code"
        )
    module_name, _, attribute = str(name).partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
        module: torch.nn.Module = factory(**manifest.get("architecture_args") or {})
        module.load_state_dict(safetensors.torch.load(content))
    except Exception as error:
        raise ArtifactError(f"architecture {name!r} cannot be built with these weights: {error!r}") from error
    return module.eval()


def _wants_compiling(manifest: Mapping[str, Any]) -> bool:
    runtime = manifest.get("runtime") or {}
    if not isinstance(runtime, dict) or runtime.keys() - {"compile"} or not isinstance(runtime.get("compile", 0), int):
        raise ArtifactError(f"the manifest's runtime is {runtime!r}; known is only {{'compile': true}}")
    return bool(runtime.get("compile"))
