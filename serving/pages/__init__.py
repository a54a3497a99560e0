"""What the server says of itself: the protocol's pages, statistics, other tools' names, the load report, OpenAPI."""

from __future__ import annotations

__all__ = ["aliases", "description", "edge", "extensions", "inspection", "load_report", "openapi", "statistics"]
