"""Logs: one JSON object a line, joined to traces."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from observability.logs import JsonFormatter, log_exporter, setup_logging
from observability.tracing import setup_tracing

Receiver = Any  # conftest.py's


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = [*root.handlers], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_a_json_object_with_its_extra_fields(stream: io.StringIO) -> None:
    setup_logging("serving", "info", stream=stream)
    logging.getLogger("a.b").info("took %d rows\nof text", 3, extra={"model": "delay", "odd": {1, 2}})
    logging.getLogger("a.b").debug("not shown")

    (line,) = lines(stream)
    assert line["message"] == "took 3 rows\nof text"
    assert (line["level"], line["logger"], line["service"], line["model"]) == ("info", "a.b", "serving", "delay")
    assert line["ts"].endswith("+00:00")
    assert "trace_id" not in line


def test_a_line_inside_a_span_carries_its_ids(stream: io.StringIO) -> None:
    setup_logging("serving", stream=stream)
    tracing = setup_tracing("serving", exporter=InMemorySpanExporter())
    with tracing.span("work") as context:
        logging.getLogger("a").warning("inside")
    logging.getLogger("a").warning("by hand", extra={"trace_id": "ab" * 16})
    tracing.close()

    inside, by_hand = lines(stream)
    assert inside["trace_id"] == f"{context.trace_id:032x}"
    assert inside["span_id"] == f"{context.span_id:016x}"
    assert by_hand["trace_id"] == "ab" * 16


def test_a_wrong_format_does_not_lose_the_line() -> None:
    record = logging.LogRecord("a", logging.WARNING, "file.py", 1, "%d rows", ("many",), None)

    assert json.loads(JsonFormatter("serving").format(record))["message"] == "%d rows"


def test_an_exception_is_one_line(stream: io.StringIO) -> None:
    setup_logging("serving", stream=stream)
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("a").exception("failed")

    (failed,) = lines(stream)
    assert "ValueError: boom" in failed["exception"]


def test_setting_up_again_replaces_the_handler(stream: io.StringIO) -> None:
    setup_logging("one", stream=stream)
    setup_logging("two", stream=stream)
    logging.getLogger("a").info("once")

    assert [line["service"] for line in lines(stream)] == ["two"]


def test_lines_reach_a_collector_over_otlp(receiver: Receiver, stream: io.StringIO) -> None:
    exporter = log_exporter("serving", receiver.url)
    setup_logging("serving", stream=stream, exporter=exporter)
    logging.getLogger("a").warning("hello", extra={"rows": 3, "ok": True})
    logging.getLogger("observability.exporter").warning("of the exporter itself")
    assert exporter.close()

    (sent,) = receiver.accepted
    assert (sent.path, sent.headers["Content-Type"]) == ("/v1/logs", "application/json")
    resource = json.loads(sent.body)["resourceLogs"][0]
    (record,) = resource["scopeLogs"][0]["logRecords"]
    assert resource["resource"]["attributes"] == [{"key": "service.name", "value": {"stringValue": "serving"}}]
    assert (record["severityNumber"], record["body"]) == (13, {"stringValue": "hello"})
    assert {"key": "rows", "value": {"intValue": "3"}} in record["attributes"]
    assert {"key": "ok", "value": {"boolValue": True}} in record["attributes"]
