"""What makes variants of models: the layers of a program, and what is done to them."""

from __future__ import annotations

__all__ = ["bfloat16", "int8", "layers", "pruning"]
