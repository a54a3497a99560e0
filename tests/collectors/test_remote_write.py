"""Remote write: messages as any sender may write them, what is refused, and what a refused request leaves."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

import cramjam
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.query import Engine, Vector
from collectors.remote_write import (
    BadMessage,
    LabelCache,
    NotAccepted,
    Outcome,
    Receiver,
    read_v1,
    read_v2,
    version_of,
)
from collectors.remote_write.receiver import Version
from collectors.store import STALE_NAN, Limits, Matcher, Store
from tests.collectors.conftest import FakeClock

NOW_MS = 1_363_000_000_000
V1 = {"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy"}
V2 = {**V1, "Content-Type": "application/x-protobuf;proto=io.prometheus.write.v2.Request"}
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "Label": {"name": (1, "string"), "value": (2, "string")},
    "Sample": {"value": (1, "double"), "timestamp": (2, "int64")},
    "Exemplar": {"labels": (1, "*Label"), "value": (2, "double"), "timestamp": (3, "int64")},
    "Histogram": {"count_int": (1, "uint64")},
    "TimeSeries": {
        "labels": (1, "*Label"),
        "samples": (2, "*Sample"),
        "exemplars": (3, "*Exemplar"),
        "histograms": (4, "*Histogram"),
    },
    "Metadata": {
        "type": (1, "int32"),
        "metric_family_name": (2, "string"),
        "help": (4, "string"),
        "unit": (5, "string"),
    },
    "WriteRequest": {"timeseries": (1, "*TimeSeries"), "metadata": (3, "*Metadata"), "unknown": (17, "string")},
    "Exemplar2": {"labels_refs": (1, "*uint32"), "value": (2, "double"), "timestamp": (3, "int64")},
    "Metadata2": {"type": (1, "int32"), "help_ref": (3, "uint32"), "unit_ref": (4, "uint32")},
    "TimeSeries2": {
        "labels_refs": (1, "*uint32"),
        "samples": (2, "*Sample"),
        "histograms": (3, "*Histogram"),
        "exemplars": (4, "*Exemplar2"),
        "metadata": (5, "Metadata2"),
    },
    "Request2": {"symbols": (4, "*string"), "timeseries": (5, "*TimeSeries2")},
}


def _messages() -> dict[str, Any]:
    """The protocol's messages, read and written by the protobuf library: what the reader is held to."""
    field = descriptor_pb2.FieldDescriptorProto
    scalars = {"string": 9, "double": 1, "int64": 3, "uint64": 4, "int32": 5, "uint32": 13}
    file = descriptor_pb2.FileDescriptorProto(name="test/remote.proto", package="test.remote", syntax="proto3")
    for name, members in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for member, (number, kind) in members.items():
            label = field.LABEL_REPEATED if kind.startswith("*") else field.LABEL_OPTIONAL
            bare = kind.removeprefix("*")
            made = message.field.add(name=member, number=number, label=label, type=scalars.get(bare, 11))
            if bare not in scalars:
                made.type_name = f".test.remote.{bare}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = message_factory.GetMessageClassesForFiles([file.name], pool)
    return {name.rsplit(".", 1)[1]: kind for name, kind in found.items()}


MESSAGE = _messages()
Series = tuple[dict[str, str], list[tuple[int, float]]]


def request_v1(series: list[Series], **more: Any) -> Any:
    return MESSAGE["WriteRequest"](
        timeseries=[
            {
                "labels": [{"name": name, "value": value} for name, value in labels.items()],
                "samples": [{"timestamp": t_ms, "value": value} for t_ms, value in samples],
            }
            for labels, samples in series
        ],
        **more,
    )


def request_v2(series: list[Series]) -> Any:
    symbols = [""]
    request = MESSAGE["Request2"]()
    for labels, samples in series:
        made = request.timeseries.add(samples=[{"timestamp": t_ms, "value": value} for t_ms, value in samples])
        for text in (text for pair in labels.items() for text in pair):
            if text not in symbols:
                symbols.append(text)
            made.labels_refs.append(symbols.index(text))
    request.symbols.extend(symbols)
    return request


def packed(message: Any) -> bytes:
    return bytes(cramjam.snappy.compress_raw(message.SerializeToString()))


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


class Stored:
    """A receiver over a store in memory: what a request leaves, without the listener."""

    def __init__(self, limits: Limits | None = None) -> None:
        clock = FakeClock(NOW_MS / 1000)
        self.store = Store("sqlite://", clock=clock, limits=limits)
        self.receiver = Receiver(self.store, clock)

    def write(self, request: Any) -> Outcome:
        version: Version = "2" if isinstance(request, MESSAGE["Request2"]) else "1"
        return self.receiver.write(packed(request), version)

    def values(self, name: str) -> list[float]:
        return [v for series in self.store.select([Matcher("__name__", "=", name)], 0, 2**62) for v in series.v]


@pytest.fixture
def stored() -> Iterator[Stored]:
    made = Stored()
    yield made
    made.receiver.close()
    made.store.close()


labels_strategy = st.dictionaries(
    st.sampled_from(["job", "instance", "le", "a", "long_label_name"]), st.text(min_size=1, max_size=200), max_size=4
).map(lambda labels: {"__name__": "x", **labels})
samples_strategy = st.lists(
    st.tuples(
        st.one_of(st.integers(-(2**62), 2**62), st.integers(NOW_MS, NOW_MS + 10**6)),
        st.one_of(st.floats(allow_nan=False), st.sampled_from([0.0, -0.0, STALE_NAN, math.inf])),
    ),
    max_size=3,
)
series_strategy = st.lists(
    st.tuples(labels_strategy, st.one_of(samples_strategy, st.tuples(st.just((NOW_MS, 1.5))).map(list))), max_size=6
)


@settings(max_examples=50)
@given(series_strategy)
def test_both_versions_are_read_as_they_were_written(series: list[Series]) -> None:
    expected = sorted((sorted(labels.items()), t, bits(v)) for labels, samples in series for t, v in samples)
    cache = LabelCache()
    for _ in range(2):  # the second time all labels are known
        first = read_v1(request_v1(series).SerializeToString(), cache)
        found = zip(first.labels, first.times.tolist(), first.values.tolist(), strict=True)
        assert sorted((sorted(labels.items()), t, bits(v)) for labels, t, v in found) == expected
    with_samples = [item for item in series if item[1]]
    second = read_v2(request_v2(with_samples).SerializeToString(), LabelCache())
    found = zip(second.labels, second.times.tolist(), second.values.tolist(), strict=True)
    assert sorted((sorted(labels.items()), t, bits(v)) for labels, t, v in found) == expected
    assert not first.invalid
    assert not second.invalid


@given(st.binary(max_size=200), st.integers(0, 400))
def test_no_bytes_break_the_reader(noise: bytes, cut: int) -> None:
    whole = request_v1([({"__name__": "a", "b": "c" * 100}, [(NOW_MS, 1.0)])] * 3).SerializeToString()
    for body in (noise, whole[:cut], whole[:cut] + noise, noise + whole):
        for read in (read_v1, read_v2):
            try:
                written = read(body, LabelCache())
            except BadMessage:
                continue
            assert len(written.labels) == len(written.times) == len(written.values)


def test_a_value_that_looks_like_the_end_of_a_series_is_no_sample() -> None:
    """The quick way looks at a series' last bytes: labels that end like a sample must be read as labels."""
    tail = b"\x12\x10\x09" + bytes(8) + b"\x10" + b"A" * 6
    label = b"\x0a\x08__name__" + b"\x12" + bytes([2 + len(tail)]) + b"xx" + tail
    series = b"\x0a" + bytes([len(label)]) + label
    body = b"\x0a" + bytes([len(series)]) + series
    expected = MESSAGE["WriteRequest"].FromString(body)

    written = read_v1(body, LabelCache())

    assert [label.name for label in expected.timeseries[0].labels] == ["__name__"]
    assert not len(expected.timeseries[0].samples)
    assert not len(written.times)


@pytest.mark.parametrize(
    ("content_type", "encoding", "version"),
    [
        ("application/x-protobuf", "snappy", "1"),
        ("application/x-protobuf;proto=prometheus.WriteRequest", "snappy", "1"),
        ("application/x-protobuf; proto=io.prometheus.write.v2.Request", "snappy", "2"),
        ("", "", "1"),
    ],
)
def test_the_headers_name_the_version(content_type: str, encoding: str, version: str) -> None:
    assert version_of(content_type, encoding) == version


@pytest.mark.parametrize(
    ("content_type", "encoding"),
    [
        ("application/json", "snappy"),
        ("application/x-protobuf", "gzip"),
        ("application/x-protobuf;proto=io.prometheus.write.v3.Request", "snappy"),
    ],
)
def test_other_forms_are_not_accepted(content_type: str, encoding: str) -> None:
    with pytest.raises(NotAccepted, match="is not accepted: send"):
        version_of(content_type, encoding)


def test_samples_exemplars_and_metadata_are_stored_by_both_ports(collector: Any) -> None:
    request = request_v1([({"__name__": "x_total", "job": "a"}, [(NOW_MS, 2.5)])], unknown="field")
    request.timeseries[0].exemplars.add(labels=[{"name": "trace_id", "value": "t"}], value=2.0, timestamp=NOW_MS)
    request.metadata.add(type=1, metric_family_name="x_total", help="How many.", unit="")

    answer = collector.intake.post("/api/v1/write", content=packed(request), headers=V1)
    later = request_v2([({"__name__": "x_total", "job": "a"}, [(NOW_MS + 1000, 4.0)])])
    second = collector.query.post("/api/v1/write", content=packed(later), headers=V2)

    assert (answer.status_code, second.status_code) == (204, 204)
    assert second.headers["X-Prometheus-Remote-Write-Samples-Written"] == "1"
    (series,) = collector.collector.store.select([Matcher("__name__", "=", "x_total")], 0, 2**62)
    assert (series.t.tolist(), series.v.tolist()) == ([NOW_MS, NOW_MS + 1000], [2.5, 4.0])
    (exemplar,) = collector.collector.store.exemplars([Matcher("job", "=", "a")], 0, 2**62)
    assert (exemplar.labels, exemplar.value, exemplar.t_ms) == ({"trace_id": "t"}, 2.0, NOW_MS)
    known = collector.collector.store.metadata()["x_total"]
    assert (known.type, known.help) == ("counter", "How many.")


def test_metadata_of_version_two_is_that_of_the_family(stored: Stored) -> None:
    request = request_v2([({"__name__": "lag_seconds_bucket", "le": "+Inf"}, [(NOW_MS, 1.0)])])
    request.symbols.extend(["How late.", "seconds"])
    request.timeseries[0].metadata.type = 3
    request.timeseries[0].metadata.help_ref = len(request.symbols) - 2
    request.timeseries[0].metadata.unit_ref = len(request.symbols) - 1

    assert stored.write(request).refused is None
    known = stored.store.metadata()["lag_seconds"]
    assert (known.type, known.help, known.unit) == ("histogram", "How late.", "seconds")


def test_a_stale_marker_ends_a_series(stored: Stored) -> None:
    for t_ms, value in ((NOW_MS, 1.0), (NOW_MS + 1000, STALE_NAN)):
        assert stored.write(request_v1([({"__name__": "x"}, [(t_ms, value)])])).refused is None

    engine = Engine(stored.store)
    before = engine.instant("x", NOW_MS + 500)
    assert isinstance(before, Vector)
    assert [element.value for element in before.elements] == [1.0]
    assert bits(stored.values("x")[1]) == bits(STALE_NAN)
    answer = engine.instant("x", NOW_MS + 2000)
    assert isinstance(answer, Vector)
    assert not answer.elements


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (({"job": "a"}, [(NOW_MS, 1.0)]), "no metric name"),
        (({"__name__": "x"}, [(NOW_MS + 3_600_000, 1.0)]), "out of bounds"),
        (({"__name__": "kept"}, [(NOW_MS, 8.0)]), "first sample was taken"),
        (({"__name__": "x", "a": "b" * 20_000}, [(NOW_MS, 1.0)]), "at most 16,384 are taken"),
    ],
)
def test_what_can_never_be_stored_is_refused_and_the_rest_is_stored(stored: Stored, bad: Series, reason: str) -> None:
    good: Series = ({"__name__": "kept"}, [(NOW_MS, 7.0)])

    outcome = stored.write(request_v1([good, bad]))

    assert reason in str(outcome.refused)
    assert outcome.samples == 1
    assert stored.values("kept") == [7.0]


def test_the_limits_are_those_of_the_store() -> None:
    stored = Stored(Limits(label_value_bytes=10))
    good: Series = ({"__name__": "kept"}, [(NOW_MS, 7.0)])
    long: Series = ({"__name__": "kept", "a": "12345678901"}, [(NOW_MS, 1.0)])

    outcome = stored.write(request_v1([long, good]))

    assert "at most 10 are taken" in str(outcome.refused)
    assert stored.values("kept") == [7.0]
    stored.receiver.close()
    stored.store.close()


def test_another_value_for_a_time_is_refused(stored: Stored) -> None:
    first, second = (stored.write(request_v1([({"__name__": "x"}, [(NOW_MS, value)])])) for value in (1.0, 2.0))

    assert first.refused is None
    assert "duplicate sample for timestamp" in str(second.refused)


def test_native_histograms_are_refused_and_say_so(stored: Stored) -> None:
    request = request_v1([({"__name__": "x"}, [(NOW_MS, 1.0)])])
    request.timeseries[0].histograms.add(count_int=3)

    assert "native histograms" in str(stored.write(request).refused)
    assert stored.values("x") == [1.0]


def test_a_request_that_is_sent_again_is_taken_again_without_effect(stored: Stored) -> None:
    for _ in range(2):
        assert stored.write(request_v1([({"__name__": "x"}, [(NOW_MS, 1.0), (NOW_MS + 1, 2.0)])])).refused is None
    assert stored.values("x") == [1.0, 2.0]


def test_many_times_of_one_series_come_in_order(stored: Stored) -> None:
    times = NOW_MS + np.arange(50) * 10
    series: Series = ({"__name__": "x"}, [(int(t), float(t % 7)) for t in times])

    assert stored.write(request_v1([series])).refused is None
    (found,) = stored.store.select([Matcher("__name__", "=", "x")], 0, 2**62)
    assert found.t.tolist() == times.tolist()
    assert stored.store.counts().commits == 1


def test_a_refusal_is_a_400_with_what_was_written(collector: Any) -> None:
    series: list[Series] = [({"__name__": "kept"}, [(NOW_MS, 7.0)]), ({"job": "a"}, [(NOW_MS, 1.0)])]
    answer = collector.intake.post("/api/v1/write", content=packed(request_v1(series)), headers=V1)

    assert answer.status_code == 400
    assert "no metric name" in answer.text
    assert answer.headers["X-Prometheus-Remote-Write-Samples-Written"] == "1"
    assert list(collector.values("kept", NOW_MS / 1000).values()) == [7.0]


def test_bad_requests_are_errors_that_are_not_tried_again(collector: Any) -> None:
    for body, headers, status in (
        (b"not snappy", V1, 400),
        (bytes(cramjam.snappy.compress_raw(b"\x0a\xff\xff")), V1, 400),
        (b"\xff\xff\xff\xff\x0f" + bytes(10), V1, 413),
        (b"", {**V1, "Content-Type": "text/plain"}, 415),
        (b"", {**V1, "Content-Encoding": "zstd"}, 415),
    ):
        answer = collector.intake.post("/api/v1/write", content=body, headers=headers)

        assert answer.status_code == status
        assert answer.json()["error"]
