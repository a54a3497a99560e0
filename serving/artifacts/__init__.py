"""What a version is made of: its manifest, the formats that are read without running their code, and its variants."""

from __future__ import annotations

__all__ = ["archive", "compilation", "formats", "manifest", "onnx_model", "program", "variants"]
