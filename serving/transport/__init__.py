"""How bytes become requests and answers bytes: HTTP/1.1 over asyncio, its limits, and the ways in beside it."""

from __future__ import annotations

__all__ = ["connection", "exchange", "framing", "gateway", "heads", "intake", "limits", "listening"]
