"""The sending side of Prometheus' remote write, version 1.0: samples with exactly their labels, stale markers too."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

import cramjam
import httpx

from alerts.labels import Labels
from alerts.samples import Sample, WriteError
from observability.protobuf import EIGHT, VARINT, message, tag, varint

WRITE_PATH = "/api/v1/write"
_MAX_SAMPLES = 10_000
_HEADERS = {
    "Content-Type": "application/x-protobuf",
    "Content-Encoding": "snappy",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
    "User-Agent": "trimtab",
}


class RemoteWriter:
    """Writes to `url`, the full address of a receiver: Trimtab's, or that of a Prometheus that was told to receive.

    The bytes of each series' labels are kept, since a rule writes the same series again and again.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 5.0) -> None:
        self._url = url
        self._client = httpx.Client(timeout=timeout_seconds, headers=_HEADERS)
        self._labels: dict[Labels, bytes] = {}

    def write(self, samples: Sequence[Sample], at: float) -> None:
        """Write samples at a time (unix seconds); raises WriteError."""
        if len(self._labels) > 10 * _MAX_SAMPLES:
            self._labels.clear()
        for first in range(0, len(samples), _MAX_SAMPLES):
            self._send(encoded(samples[first : first + _MAX_SAMPLES], round(at * 1000), self._labels))

    def close(self) -> None:
        """Let the connections go."""
        self._client.close()

    def _send(self, body: bytes) -> None:
        try:
            response = self._client.post(self._url, content=bytes(cramjam.snappy.compress_raw(body)))
        except httpx.HTTPError as error:
            raise WriteError(f"cannot write to {self._url}: {error!r}; is the collector up?") from error
        if not response.is_success:
            hint = ""
            if response.status_code == 404:
                hint = f"; does {urlsplit(self._url).netloc} take remote writes (--web.enable-remote-write-receiver)?"
            raise WriteError(f"{self._url} refused a write: {response.status_code} {response.text[:200].strip()}{hint}")


def encoded(samples: Iterable[Sample], t_ms: int, known: dict[Labels, bytes] | None = None) -> bytes:
    """The request's protobuf, before compression; `known` keeps the bytes of labels from one call to the next."""
    known = {} if known is None else known
    parts = []
    stamp = tag(2, VARINT) + varint(t_ms & 0xFFFF_FFFF_FFFF_FFFF)
    for sample in samples:
        labels = known.get(sample.labels)
        if labels is None:
            labels = known[sample.labels] = _label_bytes(sample.labels)
        point = tag(1, EIGHT) + struct.pack("<d", sample.value) + stamp
        parts.append(message(1, labels + message(2, point)))
    return b"".join(parts)


def _label_bytes(labels: Labels) -> bytes:
    return b"".join(
        message(1, message(1, name.encode()) + message(2, value.encode())) for name, value in sorted(labels)
    )
