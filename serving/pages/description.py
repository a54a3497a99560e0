"""What the V2 protocol says of the server and its models: metadata, configuration, repository index."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from serving.versions.deployment import Deployment

EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
_PLATFORMS = {"torch.export": "pytorch_export", "safetensors": "pytorch_safetensors", "onnx": "onnxruntime_onnx"}
_CONFIG_TYPES = {"BYTES": "TYPE_STRING"}


def server_metadata() -> dict[str, Any]:
    """Name, version and the extensions that are spoken."""
    return {"name": "trimtab", "version": own_version(), "extensions": list(EXTENSIONS)}


def model_metadata(deployment: Deployment, number: int) -> dict[str, Any]:
    """Inputs and outputs of a loaded version, with -1 for the rows, and the versions that are loaded."""
    model = deployment.versions[number].loaded.model
    return {
        "name": deployment.model,
        "versions": [str(known) for known in sorted(deployment.versions)],
        "platform": _platform(model.manifest),
        "inputs": [{"name": i.name, "datatype": i.datatype, "shape": i.wire_shape} for i in model.signature.inputs],
        "outputs": [
            {"name": output.name, "datatype": output.datatype, "shape": [-1, *example.shape[1:]]}
            for output, example in zip(model.signature.outputs, model.example_outputs, strict=True)
        ],
    }


def model_config(deployment: Deployment, number: int) -> dict[str, Any]:
    """The part of Triton's model configuration that means something here; dims leave the batch dimension out."""
    version, metadata = deployment.versions[number], model_metadata(deployment, number)
    queue = version.lane.queue
    return {
        "name": deployment.model,
        "platform": metadata["platform"],
        "backend": "pytorch",
        "max_batch_size": queue.max_rows,
        "input": [_tensor(column) for column in metadata["inputs"]],
        "output": [_tensor(column) for column in metadata["outputs"]],
        "dynamic_batching": {
            "preferred_batch_size": [],
            "max_queue_delay_microseconds": round(queue.max_delay * 1e6),
        },
        "parameters": {
            "version": {"string_value": str(number)},
            "digest": {"string_value": version.loaded.model.digest},
        },
    }


def own_version() -> str:
    """The installed distribution's version."""
    try:
        return version("trimtab")
    except PackageNotFoundError:
        return "unknown"


def _platform(manifest: Mapping[str, Any]) -> str:
    return _PLATFORMS.get(manifest["format"], str(manifest["format"]))


def _tensor(column: Mapping[str, Any]) -> dict[str, Any]:
    kind = _CONFIG_TYPES.get(column["datatype"], f"TYPE_{column['datatype']}")
    return {"name": column["name"], "data_type": kind, "dims": list(column["shape"][1:]) or [1]}
