"""The message classes of the gRPC protocol, in a descriptor pool of their own.

Clients of the same protocol register the same names in protobuf's default pool; in a pool of our own both can live in
one process.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

SERVICE = "inference.GRPCInferenceService"
_DESCRIPTION = Path(__file__).with_name("open_inference.binpb")


@cache
def _pool() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool  # type: ignore[import-untyped]

    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(_DESCRIPTION.read_bytes()).file:
        pool.Add(file)
    return pool


@cache
def message(name: str) -> Any:
    """The class of the message `name`, such as `ModelInferRequest`. Raises KeyError for an unknown one."""
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"inference.{name}"))


@cache
def methods() -> dict[str, tuple[Any, Any, bool]]:
    """Of each method of the service: class of its request, class of its answer, and whether it streams."""
    service = _pool().FindServiceByName(SERVICE)
    return {
        method.name: (message(method.input_type.name), message(method.output_type.name), method.client_streaming)
        for method in service.methods
    }
