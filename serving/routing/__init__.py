"""The traffic policy as a value, its changes, where it is kept, and what a shadow's answers are compared by."""

from __future__ import annotations

__all__ = ["backlog", "changes", "disagreement", "policies", "switches", "traffic"]
