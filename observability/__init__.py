"""Emit: metrics, traces, logs, prediction events and profiles. The one package that user code imports.

It never blocks, slows or breaks its host, and needs only prometheus-client, opentelemetry-sdk, numpy and pyarrow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from observability import names
from observability.push import push

if TYPE_CHECKING:
    from observability.columns import (
        BooleanColumn,
        CategoricalColumn,
        Column,
        DatetimeColumn,
        EmbeddingColumn,
        Kind,
        LogLinearColumn,
        NumericColumn,
        ProfileError,
        TextColumn,
    )
    from observability.event_exporter import EventExporter
    from observability.events import (
        BadBatch,
        event_batch,
        from_ipc,
        label_batch,
        to_ipc,
        validate_events,
        validate_labels,
    )
    from observability.exporter import Backoff, BufferedExporter, Exporter
    from observability.inference import InferenceBatch, InferenceMonitor
    from observability.logs import JsonFormatter, LogLine, log_exporter, setup_logging
    from observability.metrics import Metrics, exposition, observe_many
    from observability.middleware import InferenceMiddleware
    from observability.probe import Probe, ignored_by_ddp, profile_of_tensors
    from observability.profile import Profile, distribution
    from observability.signing import SignatureError, sign, verify
    from observability.sinks import Batch, DeliveryError, HttpSink, Rejected, Sink, Unavailable
    from observability.tracing import (
        NoTracing,
        OtlpSpanExporter,
        Tracing,
        format_trace_id,
        format_traceparent,
        parse_traceparent,
        setup_tracing,
    )
    from observability.training import Step, TrainingMonitor

# Where each public name lives: it is imported when it is first used, so that a server that only counts does not wait
# for what measures tables.
_HOMES = {
    "columns": "BooleanColumn CategoricalColumn Column DatetimeColumn EmbeddingColumn "
    "Kind LogLinearColumn NumericColumn ProfileError TextColumn",
    "event_exporter": "EventExporter",
    "events": "BadBatch event_batch from_ipc label_batch to_ipc validate_events validate_labels",
    "exporter": "Backoff BufferedExporter Exporter",
    "inference": "InferenceBatch InferenceMonitor",
    "logs": "JsonFormatter LogLine log_exporter setup_logging",
    "metrics": "Metrics exposition observe_many",
    "middleware": "InferenceMiddleware",
    "probe": "Probe ignored_by_ddp profile_of_tensors",
    "profile": "Profile distribution",
    "signing": "SignatureError sign verify",
    "sinks": "Batch DeliveryError HttpSink Rejected Sink Unavailable",
    "tracing": "NoTracing OtlpSpanExporter Tracing format_trace_id format_traceparent parse_traceparent setup_tracing",
    "training": "Step TrainingMonitor",
}
_MODULES = {name: module for module, listed in _HOMES.items() for name in listed.split()}

__all__ = [
    "Backoff",
    "BadBatch",
    "Batch",
    "BooleanColumn",
    "BufferedExporter",
    "CategoricalColumn",
    "Column",
    "DatetimeColumn",
    "DeliveryError",
    "EmbeddingColumn",
    "EventExporter",
    "Exporter",
    "HttpSink",
    "InferenceBatch",
    "InferenceMiddleware",
    "InferenceMonitor",
    "JsonFormatter",
    "Kind",
    "LogLine",
    "LogLinearColumn",
    "Metrics",
    "NoTracing",
    "NumericColumn",
    "OtlpSpanExporter",
    "Probe",
    "Profile",
    "ProfileError",
    "Rejected",
    "SignatureError",
    "Sink",
    "Step",
    "TextColumn",
    "Tracing",
    "TrainingMonitor",
    "Unavailable",
    "distribution",
    "event_batch",
    "exposition",
    "format_trace_id",
    "format_traceparent",
    "from_ipc",
    "ignored_by_ddp",
    "label_batch",
    "log_exporter",
    "names",
    "observe_many",
    "parse_traceparent",
    "profile_of_tensors",
    "push",
    "setup_logging",
    "setup_tracing",
    "sign",
    "to_ipc",
    "validate_events",
    "validate_labels",
    "verify",
]


def __getattr__(name: str) -> Any:
    """A public name, from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
