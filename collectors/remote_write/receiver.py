"""Takes remote-write requests into the store, and says what became of them as the protocol wants it.

Follows the remote-write specifications 1.0 and 2.0: what is refused for good is a 400 and the rest of its request is
stored; what could not be made durable is an error that the sender tries again.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import cramjam
import numpy as np
from numpy.typing import NDArray

from collectors.formats.wire import BadMessage, varint
from collectors.remote_write.v1 import read_v1
from collectors.remote_write.v2 import read_v2
from collectors.remote_write.written import LabelCache, SeriesLabels, Written
from collectors.scraping.samples import MAX_AHEAD_MS
from collectors.store.store import Store
from collectors.store.values import Columns, Scrape

# No source of the store's: who writes says itself when a series ends.
SOURCE = ""
# Requests that wait for one commit at the same time share it.
THREADS = 16
Version = Literal["1", "2"]
MESSAGES: dict[str, Version] = {"prometheus.WriteRequest": "1", "io.prometheus.write.v2.Request": "2"}
_REASONS = 3


class NotAccepted(ValueError):
    """A request in a form that is not taken: 415."""


class TooLarge(ValueError):
    """A request that is too large once it is unpacked: 413."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was stored, and why the rest was not; `refused` is None when all was."""

    version: Version
    samples: int
    exemplars: int
    refused: str | None

    @property
    def headers(self) -> dict[str, str]:
        """The statistics that version 2.0 answers with."""
        prefix = "X-Prometheus-Remote-Write"
        return {
            f"{prefix}-Samples-Written": str(self.samples),
            f"{prefix}-Histograms-Written": "0",
            f"{prefix}-Exemplars-Written": str(self.exemplars),
        }


def version_of(content_type: str, content_encoding: str) -> Version:
    """The protocol version that a request's headers name. NotAccepted."""
    media, _, parameters = content_type.partition(";")
    if media.strip().lower() not in ("", "application/x-protobuf"):
        raise NotAccepted(f"content type {content_type!r} is not accepted: send application/x-protobuf")
    if content_encoding.strip().lower() not in ("", "snappy"):
        raise NotAccepted(f"content encoding {content_encoding!r} is not accepted: send snappy")
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "proto":
            message = value.strip().strip('"')
            if message not in MESSAGES:
                raise NotAccepted(f"the message {message!r} is not accepted: send one of {', '.join(MESSAGES)}")
            return MESSAGES[message]
    return "1"


def unpacked(body: bytes, limit: int) -> bytes:
    """A body in snappy's block format. TooLarge past `limit` bytes, before anything is unpacked; BadMessage."""
    size, _ = varint(body, 0, len(body))
    if size > limit:
        raise TooLarge(f"the request has {size} bytes, at most {limit} fit: send fewer samples at a time")
    try:
        return bytes(cramjam.snappy.decompress_raw(body))
    except cramjam.DecompressionError as error:
        raise BadMessage(f"the body is not in snappy's block format: {error}") from error


class Receiver:
    """Stores requests; any number of threads may. `threads` are its own: a flood of requests holds up nothing else."""

    def __init__(self, store: Store, clock: Callable[[], float], limit: int = 64 * 1024 * 1024) -> None:
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="remote-write")
        self._store = store
        self._clock = clock
        self._limit = limit
        self._readers = {"1": (read_v1, LabelCache(store.limits)), "2": (read_v2, LabelCache(store.limits))}

    def close(self) -> None:
        """Lets the requests under way end."""
        self.threads.shutdown(wait=True)

    def write(self, body: bytes, version: Version) -> Outcome:
        """Stores a request; when it returns, what it says is durable. BadMessage, TooLarge, and the store's errors."""
        read, cache = self._readers[version]
        written = read(unpacked(body, self._limit), cache)
        reasons = [*written.invalid]
        if written.histograms:
            reasons.append(f"{written.histograms} samples of native histograms: they are not stored")
        taken = self._samples(written, reasons)
        if written.exemplars:
            self._store.add_exemplars(written.exemplars)
        self._store.set_metadata(written.metadata)
        return Outcome(version, taken, len(written.exemplars), _told(reasons))

    def _samples(self, written: Written, reasons: list[str]) -> int:
        """Stores the samples in one transaction, oldest first; gives how many are in the store now."""
        if not written.labels:
            return 0
        removals, ids = self._ids(written.labels)
        latest = round(self._clock() * 1000) + MAX_AHEAD_MS
        ahead = int((written.times > latest).sum())
        if ahead:
            reasons.append(f"out of bounds: {ahead} samples are more than {MAX_AHEAD_MS // 60_000} minutes ahead")
        scrapes = []
        for t_ms, rows in _by_time(written.times):
            if t_ms <= latest:
                labels = written.labels if isinstance(rows, slice) else [written.labels[row] for row in rows.tolist()]
                columns = Columns(SOURCE, labels, ids[rows], removals)  # type: ignore[arg-type]
                scrapes.append(Scrape(columns, t_ms, written.values[rows], replaces=False))
        taken = self._store.write(scrapes)
        if taken.refused:
            reasons.append(f"{taken.refused} of {len(written.times)} samples: {taken.refusal}")
        return taken.taken

    def _ids(self, labels: list[SeriesLabels]) -> tuple[int, NDArray[np.int64]]:
        """The series of the label sets, and the catalog's count of removals that they hold for.

        Removals are read before ids and written after them: an id is never taken for newer than it is.
        """
        removals = {item.removals for item in labels}
        ids = np.array([item.series_id for item in labels], np.int64)
        if len(removals) == 1 and -1 not in removals:
            return removals.pop(), ids
        found = self._store.columns(SOURCE, labels)
        for item, series_id in zip(labels, found.ids.tolist(), strict=True):
            item.series_id = series_id
            item.removals = found.removals
        return found.removals, found.ids


def _by_time(times: NDArray[np.int64]) -> list[tuple[int, slice | NDArray[np.int64]]]:
    """The rows of each moment, oldest first."""
    if (times == times[0]).all():
        return [(int(times[0]), slice(None))]
    order = np.argsort(times, kind="stable")
    starts = np.flatnonzero(np.diff(times[order]))
    return [(int(times[rows[0]]), rows) for rows in np.split(order, starts + 1)]


def _told(reasons: list[str]) -> str | None:
    if not reasons:
        return None
    more = f"; and {len(reasons) - _REASONS} more" if len(reasons) > _REASONS else ""
    return "; ".join(reasons[:_REASONS]) + more
