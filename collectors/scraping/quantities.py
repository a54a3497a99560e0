"""Sizes as Prometheus' configuration writes them."""

from __future__ import annotations

import re

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([KMGTPE]?)i?B", re.ASCII)


def size_bytes(text: str) -> int:
    """Bytes of `512KB`, `10MB`, `1.5GiB` or `0`; all of them count in powers of 1024. ValueError for any other form."""
    if text == "0":
        return 0
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size: write 512KB, 10MB or 1GB")
    return int(float(match[1]) * 1024 ** (" KMGTPE".index(match[2] or " ")))
