"""Delivers batches of events and labels, as Arrow streams."""

from __future__ import annotations

from collections.abc import Sequence

from observability.event_streams import Rows, ipc_body, ipc_pieces, same_columns
from observability.exporter import Backoff, BufferedExporter
from observability.metrics import Metrics
from observability.sinks import Batch, Scattered, Sink


class EventExporter(BufferedExporter[Rows]):
    """An exporter of event or label batches: small ones are gathered into one Arrow body of up to `max_rows`."""

    def __init__(
        self,
        sink: Sink,
        *,
        signal: str = "events",
        max_batches: int = 10_000,
        max_bytes: int = 64 << 20,
        max_rows: int = 16384,
        max_body_bytes: int = 16 << 20,
        linger_seconds: float = 0.2,
        backoff: Backoff | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        super().__init__(
            sink,
            signal=signal,
            encode=_scattered if getattr(sink, "gathers", False) else _encode_events,
            # What its rows take: their buffers may be parts of longer ones, shared by many batches.
            measure=lambda batch: (batch.nbytes, batch.num_rows),
            # Only equal columns: events of another model would fill this one's table with nulls.
            together=same_columns,
            max_batches=max_batches,
            max_bytes=max_bytes,
            max_rows=max_rows,
            max_body_bytes=max_body_bytes,
            linger_seconds=linger_seconds,
            backoff=backoff,
            metrics=metrics,
        )


def _encode_events(batches: Sequence[Rows]) -> Batch:
    return Batch(ipc_body(batches), sum(batch.num_rows for batch in batches))


def _scattered(batches: Sequence[Rows]) -> Batch:
    return Scattered(b"", sum(batch.num_rows for batch in batches), pieces=tuple(ipc_pieces(batches)))
