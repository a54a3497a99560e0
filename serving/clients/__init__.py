"""What the clients of `serving.client` are made of: bodies, tries, retries, errors, and the quick client."""

from __future__ import annotations

__all__ = ["bodies", "errors", "quick", "retries", "steps"]
