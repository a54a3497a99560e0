"""The V2 protocol over gRPC: each call becomes a call of the HTTP protocol."""

from __future__ import annotations

__all__ = ["messages", "routes", "service", "transcoding"]
