"""Emit: metrics, traces, logs, prediction events and profiles. The one package that user code imports.

It never blocks, slows or breaks its host, and needs only prometheus-client, opentelemetry-sdk, numpy and pyarrow.
"""

from observability import names
from observability.columns import BooleanColumn, CategoricalColumn, Column, NumericColumn, ProfileError
from observability.events import (
    BadBatch,
    event_batch,
    from_ipc,
    label_batch,
    to_ipc,
    validate_events,
    validate_labels,
)
from observability.exporter import Backoff, BufferedExporter, EventExporter, Exporter
from observability.lake import (
    events_path,
    labels_path,
    read_events,
    read_labelled,
    read_labels,
    write_events,
    write_labels,
    write_table,
)
from observability.metrics import Metrics, exposition
from observability.profile import Profile, distribution
from observability.signing import SignatureError, sign, verify
from observability.sinks import Batch, DeliveryError, HttpSink, ParquetSink, Rejected, Sink, Unavailable

__all__ = [
    "Backoff",
    "BadBatch",
    "Batch",
    "BooleanColumn",
    "BufferedExporter",
    "CategoricalColumn",
    "Column",
    "DeliveryError",
    "EventExporter",
    "Exporter",
    "HttpSink",
    "Metrics",
    "NumericColumn",
    "ParquetSink",
    "Profile",
    "ProfileError",
    "Rejected",
    "SignatureError",
    "Sink",
    "Unavailable",
    "distribution",
    "event_batch",
    "events_path",
    "exposition",
    "from_ipc",
    "label_batch",
    "labels_path",
    "names",
    "read_events",
    "read_labelled",
    "read_labels",
    "sign",
    "to_ipc",
    "validate_events",
    "validate_labels",
    "verify",
    "write_events",
    "write_labels",
    "write_table",
]
