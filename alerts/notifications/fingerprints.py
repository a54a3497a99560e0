"""The fingerprints of label sets, kept: each is asked for again and again while its alert lives."""

from __future__ import annotations

from functools import lru_cache

from alerts.labels import Labels, fingerprint


@lru_cache(maxsize=100_000)
def fingerprint_of(labels: Labels) -> str:
    """Alertmanager's fingerprint of a label set."""
    return fingerprint(labels)
