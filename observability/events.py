"""Prediction event and label batches in Arrow: one record batch for an inference batch, no Python work a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from observability import names
from observability.event_names import EVENT_FIELDS
from observability.event_names import FEATURE as FEATURE
from observability.event_names import MEDIA_TYPE as MEDIA_TYPE
from observability.event_names import PREDICTION as PREDICTION
from observability.event_names import BadBatch as BadBatch
from observability.event_streams import Batches, ipc_body
from observability.event_streams import ipc_pieces as ipc_pieces
from observability.stream_schema import ZONE

ARMS = ("stable", "canary", "hold_back", "shadow", "forced")
"""Who answered: `hold_back` is the version before, beside a promoted one; `forced` if the caller named the version or a
header did. A variant of an experiment is `ab:NAME`.
"""
VARIANT = "ab:"
TIME = pa.timestamp("ns", tz=ZONE)
_OF_KIND = {"utf8": pa.utf8(), "time": TIME, "float64": pa.float64(), "float32": pa.float32(), "bool": pa.bool_()}
# Kept as a list: a schema makes its fields anew each time that it is read.
_METADATA_FIELDS = [pa.field(one.name, _OF_KIND[one.kind], one.nullable) for one in EVENT_FIELDS]
METADATA = pa.schema(_METADATA_FIELDS)
LABELS = pa.schema(
    [
        pa.field("id", pa.utf8(), nullable=False),
        pa.field("model", pa.utf8(), nullable=False),
        pa.field("time", TIME, nullable=False),
        pa.field("label", pa.float64()),
    ]
)
VALUE_TYPES = (pa.float64(), pa.utf8(), pa.bool_())


def event_batch(
    *,
    ids: Any,
    time_ns: Any,
    model: Any,
    version: Any,
    arm: Any = "stable",
    release: Any = None,
    propensity: Any = 1.0,
    outcome: Any = "ok",
    latency_seconds: Any = None,
    trace_ids: Any = None,
    attributes: Any = None,
    features: Mapping[str, Any],
    predictions: Mapping[str, Any],
) -> pa.RecordBatch:
    """A batch of prediction events, one row an id.

    Every argument is one value for all rows or an array-like of one value a row; `time_ns` is unix time in
    nanoseconds. Contiguous float64 arrays are not copied: do not write to them afterwards. A prediction that is None
    gives a null column (it failed). Raises BadBatch naming the column when lengths or types do not fit.
    """
    id_column = _column("id", ids, pa.utf8(), len(ids))
    rows = len(id_column)
    given = (model, version, arm, release, propensity, outcome, latency_seconds, trace_ids, attributes)
    fields = [*_METADATA_FIELDS]
    arrays = [id_column, _times("time", time_ns, rows)]
    arrays += [
        _column(field.name, value, field.type, rows) for field, value in zip(_METADATA_FIELDS[2:], given, strict=True)
    ]
    for prefix, columns in ((FEATURE, features), (PREDICTION, predictions)):
        for name, values in columns.items():
            array = _value_column(prefix + name, values, rows)
            fields.append(pa.field(prefix + name, array.type))
            arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def label_batch(ids: Any, model: Any, labels: Any, time_ns: Any) -> pa.RecordBatch:
    """A batch of labels, one row an id; `model` and `time_ns` may be one value for all. Raises BadBatch."""
    rows = len(ids)
    arrays = [
        _column("id", ids, pa.utf8(), rows),
        _column("model", model, pa.utf8(), rows),
        _times("time", time_ns, rows),
        _column("label", labels, pa.float64(), rows),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=LABELS)


def to_ipc(batches: Batches) -> bytes:
    """The batches as one Arrow IPC stream; columns that some lack are null there. BadBatch if types clash."""
    return bytes(ipc_body(batches))


def from_ipc(body: bytes | memoryview) -> pa.Table:
    """The table in an Arrow IPC stream, fully validated: a hostile body cannot crash a later reader. BadBatch."""
    try:
        table = pa.ipc.open_stream(pa.py_buffer(body)).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, EOFError, ValueError, MemoryError, OverflowError) as error:
        raise BadBatch(f"the body of {len(body)} bytes is not an Arrow IPC stream ({MEDIA_TYPE}): {error}") from error
    return table


def validate_events(table: pa.Table) -> None:
    """Raises BadBatch naming the first column that breaks the event schema."""
    _check_fields(table, METADATA, "event")
    _check_members(table, "arm", ARMS, VARIANT)
    _check_members(table, "outcome", names.OUTCOMES)
    for field in table.schema:
        if field.name in METADATA.names:
            continue
        if not field.name.startswith((FEATURE, PREDICTION)):
            raise BadBatch(f"column {field.name!r} is unknown: name it {FEATURE}… or {PREDICTION}…")
        if field.type not in VALUE_TYPES and not is_vector(field.type):
            raise BadBatch(
                f"column {field.name!r} has type {field.type}: send float64, utf8, bool or, for an embedding, a "
                "fixed-size list of float32 or float64"
            )


def validate_labels(table: pa.Table) -> None:
    """Raises BadBatch naming the first column that breaks the label schema."""
    _check_fields(table, LABELS, "label")
    unknown = [name for name in table.schema.names if name not in LABELS.names]
    if unknown:
        raise BadBatch(f"column {unknown[0]!r} is unknown: a label batch has {', '.join(LABELS.names)}")


def is_vector(kind: pa.DataType) -> bool:
    """Whether values of the type are embeddings: a fixed-size list of float32 or float64."""
    return pa.types.is_fixed_size_list(kind) and kind.value_type in (pa.float32(), pa.float64())


def _check_fields(table: pa.Table, schema: pa.Schema, kind: str) -> None:
    if len(set(table.schema.names)) != len(table.schema.names):
        repeated = next(name for name in table.schema.names if table.schema.names.count(name) > 1)
        raise BadBatch(f"column {repeated!r} comes twice")
    for field in schema:
        if field.name not in table.schema.names:
            raise BadBatch(f"column {field.name!r} is missing: a batch of {kind}s needs it")
        column = table.column(field.name)
        if column.type != field.type:
            raise BadBatch(f"column {field.name!r} has type {column.type}: send {field.type}")
        if not field.nullable and column.null_count:
            raise BadBatch(f"column {field.name!r} has {column.null_count} null values: it needs one in every row")


def _check_members(table: pa.Table, name: str, allowed: tuple[str, ...], prefix: str = "") -> None:
    """Raises BadBatch for a value that is not `allowed`, and is not `prefix` with something behind it."""
    wrong = set(table.column(name).unique().to_pylist()) - set(allowed)
    wrong = {value for value in wrong if not (prefix and value.startswith(prefix) and value != prefix)}
    if wrong:
        known = ", ".join((*allowed, f"{prefix}…")) if prefix else ", ".join(allowed)
        raise BadBatch(f"column {name!r} has the value {min(wrong)!r}: allowed are {known}")


def _times(name: str, value: Any, rows: int) -> pa.Array:
    if isinstance(value, int | np.integer):
        return pa.repeat(pa.scalar(int(value), pa.int64()).cast(TIME), rows)
    if isinstance(value, pa.Array) and pa.types.is_timestamp(value.type):
        return _sized(name, value.cast(TIME), rows)
    return _column(name, np.asarray(value, dtype=np.int64), pa.int64(), rows).view(TIME)


def _column(name: str, value: Any, kind: pa.DataType, rows: int) -> pa.Array:
    """`value` as an array of `rows` values of `kind`: a scalar is repeated, None is null."""
    try:
        if value is None:
            return pa.nulls(rows, kind)
        if isinstance(value, str | float | int):
            return pa.repeat(pa.scalar(value, kind), rows)
        array = value if isinstance(value, pa.Array) else pa.array(value)
        return _sized(name, array if array.type == kind else array.cast(kind), rows)
    except (pa.ArrowException, TypeError) as error:
        raise BadBatch(f"column {name!r} does not fit {kind}: {error}") from error


def _value_column(name: str, values: Any, rows: int) -> pa.Array:
    """A feature or prediction: float64, utf8 or bool by what the values are."""
    if values is None:
        return pa.nulls(rows, pa.float64())
    if isinstance(values, np.ndarray) and values.dtype == np.float64 and values.ndim == 1:
        return _sized(name, pa.array(values), rows)
    try:
        if isinstance(values, bool | str):
            return pa.repeat(pa.scalar(values), rows)
        if isinstance(values, int | float):
            return pa.repeat(pa.scalar(float(values)), rows)
        array = values if isinstance(values, pa.Array) else _from_array_like(values)
        fits = array.type in VALUE_TYPES or is_vector(array.type)
        return _sized(name, array if fits else array.cast(_value_type(array.type)), rows)
    except (pa.ArrowException, TypeError) as error:
        raise BadBatch(f"column {name!r} is neither numbers, text nor booleans: {error}") from error


def _from_array_like(values: Any) -> pa.Array:
    if isinstance(values, list | tuple):
        return pa.array(values)
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind == "f":
        kept = array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
        return pa.FixedSizeListArray.from_arrays(pa.array(kept.reshape(-1)), array.shape[1])
    return pa.array(array.reshape(-1) if array.ndim == 2 and array.shape[1] == 1 else array)


def _value_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _value_type(kind.value_type)
    if pa.types.is_boolean(kind):
        return pa.bool_()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.utf8()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pa.utf8()
    return pa.float64()


def _sized(name: str, array: pa.Array, rows: int) -> pa.Array:
    if len(array) != rows:
        raise BadBatch(f"column {name!r} has {len(array)} values for {rows} ids")
    return array
