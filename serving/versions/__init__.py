"""Versions in memory: a model's deployment, the memory budget, loading and unloading, their references."""

from __future__ import annotations

__all__ = ["deployment", "memory", "references", "repository", "residency"]
