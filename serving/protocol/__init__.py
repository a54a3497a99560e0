"""The bodies of the Open Inference Protocol V2: tensors, signatures, answers."""

from __future__ import annotations

__all__ = ["answers", "frames", "outputs", "packing", "ragged", "responder", "signature", "tensors"]
