"""What serving counts and records: metrics, prediction events, spans."""

from __future__ import annotations

__all__ = ["accounts", "counting", "delivery", "recorder", "served", "signals"]
