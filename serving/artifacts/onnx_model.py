"""ONNX models on onnxruntime (the extra `onnx`): the same signature, digest and example as any other artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from serving.artifacts.placement import CPU
from serving.artifacts.program import Program
from serving.errors import ArtifactError
from serving.protocol.signature import Signature
from serving.protocol.tensors import Array

if TYPE_CHECKING:
    import torch

_TYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(int64)": "int64",
    "tensor(int32)": "int32", "tensor(int16)": "int16", "tensor(int8)": "int8", "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}  # fmt: skip


def load_onnx(content: bytes, manifest: Mapping[str, Any], device: str = CPU) -> Program:
    """The model as a function of tensors of the CPU, in the signature's order, run on the device. Raises ArtifactError.

    It is read from memory: a model that keeps weights in other files is refused, since those have no digest.
    One thread a run unless torch has more; inputs go by name if the names agree, else by order. A model exported for a
    fixed number of rows runs once for each so many, the last ones filled up.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ArtifactError("an ONNX model needs onnxruntime; install it with: pip install 'trimtab[onnx]'") from error
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Threads that wait for work in a loop would take the processor from the event loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        # Without its fallback, which tries the same once more and prints that.
        providers = _providers(onnxruntime.get_available_providers(), device)
        session = onnxruntime.InferenceSession(content, options, providers=providers, enable_fallback=0)
        return Program(_function(session, Signature.of(manifest)), len(content))
    except ArtifactError:
        raise
    except Exception as error:
        # Names that are no text show only when they are read.
        raise ArtifactError(f"onnxruntime cannot load model.onnx: {error}") from error


def _providers(available: Sequence[str], device: str) -> list[Any]:
    if device == CPU:
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in available:
        raise ArtifactError(
            f"an ONNX model on {device} needs onnxruntime's build for GPUs, and this one has {list(available)}: "
            "install onnxruntime-gpu in place of onnxruntime, or serve the model by a server whose device is cpu"
        )
    number = int(device.partition(":")[2] or 0)
    return [("CUDAExecutionProvider", {"device_id": number}), "CPUExecutionProvider"]


def _function(session: Any, signature: Signature) -> Callable[..., Any]:
    import torch

    inputs = _matched("inputs", [i.name for i in signature.inputs], session.get_inputs())
    outputs = _matched("outputs", [o.name for o in signature.outputs], session.get_outputs())
    kinds = [(value.name, _dtype(value), _column(value)) for value in inputs]
    wanted = [value.name for value in outputs]
    for value in outputs:
        _dtype(value)
    fixed = _fixed_rows(inputs)

    def call(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        feed = {}
        for (name, dtype, column), tensor in zip(kinds, tensors, strict=True):
            array = tensor.numpy().astype(dtype, copy=False)
            feed[name] = array.reshape(-1, 1) if column and array.ndim == 1 else array
        results = session.run(wanted, feed) if fixed is None else _in_parts(session, wanted, feed, fixed)
        return tuple(map(torch.from_numpy, results))

    return call


def _fixed_rows(inputs: Sequence[Any]) -> int | None:
    """The number of rows that the model takes; None where it takes any."""
    fixed = {value.name: value.shape[0] for value in inputs if value.shape and isinstance(value.shape[0], int)}
    if len(set(fixed.values())) > 1:
        raise ArtifactError(f"model.onnx takes batches of {fixed} rows: export it with one dimension for the rows")
    return next(iter(fixed.values()), None)


def _in_parts(session: Any, wanted: Sequence[str], feed: Mapping[str, Array], size: int) -> list[Array]:
    """The outputs for any number of rows of a model that takes `size`; the last part repeats its last row."""
    rows = len(next(iter(feed.values())))
    parts = []
    for start in range(0, rows, size):
        count = min(size, rows - start)
        part = {name: values[start : start + count] for name, values in feed.items()}
        if count < size:
            part = {name: np.concatenate([v, np.repeat(v[-1:], size - count, axis=0)]) for name, v in part.items()}
        results = session.run(wanted, part)
        for name, result in zip(wanted, results, strict=True):
            if result.shape[:1] != (size,):
                raise ArtifactError(f"model.onnx: output {name!r} has shape {list(result.shape)} for {size} rows")
        parts.append([result[:count] for result in results])
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def _matched(what: str, names: Sequence[str], found: Sequence[Any]) -> list[Any]:
    by_name = {value.name: value for value in found}
    if all(name in by_name for name in names):
        if what == "inputs" and len(names) != len(found):
            missing = sorted(by_name.keys() - set(names))
            raise ArtifactError(f"model.onnx takes the inputs {missing}, which the manifest does not name")
        return [by_name[name] for name in names]
    if len(found) != len(names):
        raise ArtifactError(f"model.onnx has the {what} {sorted(by_name)}, the manifest names {list(names)}")
    return list(found)


def _dtype(value: Any) -> str:
    if value.type not in _TYPES:
        raise ArtifactError(
            f"model.onnx: {value.name!r} is a {value.type}, which is not served; export it with plain tensors "
            "(scikit-learn: zipmap=False)"
        )
    return _TYPES[value.type]


def _column(value: Any) -> bool:
    """Whether the model wants a scalar column as [rows, 1]."""
    return len(value.shape) == 2 and value.shape[1] == 1
