"""Pages in the text formats: what prometheus_client writes is read back, and what Prometheus refuses is refused."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from collectors.formats import bound_text, read_lines, read_openmetrics, read_text

Sample = tuple[tuple[tuple[str, str], ...], float]


def samples_of(lines: Any, labels: dict[Any, dict[str, str]]) -> list[Sample]:
    return sorted(
        ((tuple(sorted(labels[key].items())), value) for key, value in zip(lines.keys, lines.values, strict=True)),
        key=repr,
    )


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.text(max_size=20), st.floats(allow_nan=True)), max_size=5, unique_by=lambda pair: pair[0]),
    st.lists(st.floats(0, 20), max_size=5),
    st.text(max_size=30),
)
def test_what_prometheus_client_writes_is_read_back(
    gauges: list[tuple[str, float]], observed: list[float], help_text: str
) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("heat", help_text or "Heat.", ["room"], registry=registry)
    for room, value in gauges:
        gauge.labels(room).set(value)
    histogram = Histogram("lag_seconds", "Lag.", registry=registry)
    for value in observed:
        histogram.observe(value, {"trace_id": "é"})
    Counter("hits", "Hits.", registry=registry).inc(3, {"trace_id": "abc"})
    Info("build", "Build.", registry=registry).info({"version": '1.2 \\ " \n'})
    expected: list[Sample] = sorted(
        (
            (tuple(sorted({"__name__": sample.name, **sample.labels}.items())), float(sample.value))
            for family in registry.collect()
            for sample in family.samples
        ),
        key=repr,
    )

    text = read_text(generate_latest(registry))
    openmetrics = read_openmetrics(generate_openmetrics(registry))

    for lines in (text, openmetrics):
        assert lines.error is None
        assert repr(samples_of(lines, lines.new)) == repr(expected)
        assert lines.metadata["lag_seconds"].type == "histogram"
        assert lines.metadata["hits_total"].type == "counter"
    assert {exemplar.labels["trace_id"] for exemplar in openmetrics.exemplars} >= {"abc"}
    if help_text:
        assert text.metadata["heat"].help == help_text
    # The second time all series are known: the quick way reads the same.
    again = read_text(generate_latest(registry), text.new)
    assert not again.new
    assert repr(samples_of(again, text.new)) == repr(expected)


@pytest.mark.parametrize(
    ("page", "labels", "value", "t_ms"),
    [
        (b"a 1 2\n", {"__name__": "a"}, 1.0, 2),
        (b'a{x="1"}2', {"__name__": "a", "x": "1"}, 2.0, None),
        (b'{"foo.bar", x="y"} 3\n', {"__name__": "foo.bar", "x": "y"}, 3.0, None),
        (b'a { x = "1" , } \t5\n', {"__name__": "a", "x": "1"}, 5.0, None),
        (b'a{x="1" y="2",} 1', {"__name__": "a", "x": "1", "y": "2"}, 1.0, None),
        (rb'a{x="\n\"\\\q"} +Inf', {"__name__": "a", "x": '\n"\\\\q'}, math.inf, None),
        (b'a{x="}"} 1e-3\n', {"__name__": "a", "x": "}"}, 0.001, None),
        (b'# TYPE h histogram\nh_bucket{le="1"} 3\n', {"__name__": "h_bucket", "le": "1.0"}, 3.0, None),
        (b'# TYPE s summary\ns{quantile="0.50"} 3\n', {"__name__": "s", "quantile": "0.5"}, 3.0, None),
        (b"#comment\n# HELPless\n\n  \na 1\n", {"__name__": "a"}, 1.0, None),
        (b'a{x=""} 1\n', {"__name__": "a", "x": ""}, 1.0, None),
    ],
)
def test_the_text_format_is_read_as_prometheus_reads_it(
    page: bytes, labels: dict[str, str], value: float, t_ms: int | None
) -> None:
    lines = read_text(page)

    assert lines.error is None
    assert [lines.new[key] for key in lines.keys] == [labels]
    assert lines.values == [value]
    assert lines.times == ({} if t_ms is None else {0: t_ms})


@pytest.mark.parametrize(
    "line",
    [
        "a", "a x", "a 1_0", "a -nan", "a 0x1p3", "a 1e400", "a 1\r", "a 1 2.5", "a 1 -5", "a 1 2 3", 'a{x="1"',
        'a{x=1} 1', "a{,} 1", 'a{="1"} 1', 'a{1x="1"} 1', 'a{x="1",x="2"} 1', '{x="1"} 1', '{"a","b"} 1', "1a 1",
        "a-b 1", "# TYPE a", "# TYPE a thing", "# HELP 1 x", "# TYPE a  gauge",
    ],
)  # fmt: skip
def test_a_bad_line_ends_the_reading_and_keeps_what_came_before(line: str) -> None:
    lines = read_text(f"good 1\n{line}\nlater 2\n".encode())

    assert lines.error
    assert lines.values[:1] == [1.0]
    assert len(lines.keys) == len(lines.values) == 1


@pytest.mark.parametrize(
    "page",
    [
        "a 1\n", "a 1\n# EOF\nx", "a 1\n# EOF\n\n", "\n# EOF\n", "a  1\n# EOF\n", "a\t1\n# EOF\n", "a 1 \n# EOF\n",
        "a 1 NaN\n# EOF\n", "# a comment\n# EOF\n", "a 1 # {x=1} 2\n# EOF\n", 'a 1 # {"x"} 2\n# EOF\n',
        "# UNIT a seconds\n# EOF\n", "# TYPE a untyped\n# EOF\n", "a 1 # {} x\n# EOF\n", 'a{ x="1"} 1\n# EOF\n',
    ],
)  # fmt: skip
def test_openmetrics_is_as_strict_as_prometheus(page: str) -> None:
    assert read_openmetrics(page.encode()).error


def test_known_series_are_read_as_strictly_as_new_ones() -> None:
    known = read_text(b"a 1\n").new

    for bad in (b"a 1\r\n", b"a 1_0\n", b"a -nan\n", b"a \x0b1\n"):
        assert read_text(bad, known).error
    for good in (b"a 1\t\n", b"a \t1\n", b"# HELP a \r\na 1\n"):
        lines = read_text(good, known)
        assert (lines.error, lines.values, lines.new) == (None, [1.0], {}), good
    assert read_openmetrics(b"a 1\t\n# EOF\n", known).error
    assert read_openmetrics(b"a \t1\n# EOF\n", known).error


def test_an_openmetrics_line_may_have_a_time_and_an_exemplar() -> None:
    page = b'a_total{x="1"} 2 3.5 # {t="1",u="b c"} 4 5.25\n# HELP b # EOF\nb 1 # {} 2\n# EOF'
    lines = read_openmetrics(page)

    assert lines.error is None
    assert lines.times == {0: 3500}
    first, second = lines.exemplars
    assert (first.index, first.labels, first.value, first.t_ms) == (0, {"t": "1", "u": "b c"}, 4.0, 5250)
    assert (second.index, second.labels, second.t_ms) == (1, {}, None)


@given(
    st.binary(max_size=300),
    st.sampled_from(["text/plain", "application/openmetrics-text", "application/vnd.google.protobuf"]),
)
def test_no_bytes_break_a_reader(page: bytes, kind: str) -> None:
    lines = read_lines(page, kind)

    assert len(lines.keys) == len(lines.values)
    assert set(lines.keys) <= set(lines.new)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1.0"), (0, "0.0"), (0.005, "0.005"), (1e6, "1e+06"), (123456, "123456.0"), (1234567, "1.234567e+06"),
     (1e-5, "1e-05"), (2.5e10, "2.5e+10"), (-0.5, "-0.5"), (math.inf, "+Inf"), (math.nan, "NaN"), (100000, "100000.0")],
)  # fmt: skip
def test_bounds_are_written_as_go_writes_them(value: float, text: str) -> None:
    assert bound_text(value) == text


NUMBERS = st.sampled_from(
    ["1", "2.5", "-3e7", "+Inf", "NaN", "1_0", "x", "", " 4", "4 ", "5 1000", "5\t1000", "1e999", '6 # {a="b"} 1']
)
HEADS = st.sampled_from(["a", 'b{x="1"}', 'b{x="a b"}', "# TYPE a counter", "# HELP a Some text.", "", 'c{x="\t"}'])


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(HEADS, NUMBERS), max_size=5),
    st.lists(st.lists(NUMBERS, min_size=5, max_size=5), min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from(["text/plain", "application/openmetrics-text"]),
)
def test_a_page_like_the_last_one_is_read_as_any_other(
    first: list[tuple[str, str]], more: list[list[str]], plain: bool, media: str
) -> None:
    def page(numbers: list[str]) -> bytes:
        lines = [f"{head} {number}" for (head, _), number in zip(first, numbers, strict=False)]
        return "\n".join([*lines, "# EOF" if "open" in media else ""]).encode()

    known: dict[Hashable, int] = {}
    layout = None
    usual = ["7"] * 5
    for numbers in [usual, usual, *([usual] if plain else []), *more, usual]:
        quickly = read_lines(page(numbers), media, known, layout=layout)
        wholly = read_lines(page(numbers), media, known)

        assert (list(quickly.keys), quickly.new, quickly.times) == (list(wholly.keys), wholly.new, wholly.times)
        assert np.array_equal(quickly.values, wholly.values, equal_nan=True)
        assert (quickly.metadata, quickly.error) == (wholly.metadata, wholly.error)
        if quickly.error is None:
            known = dict.fromkeys(quickly.keys, 0)
            layout = quickly.layout


def test_a_page_whose_numbers_alone_differ_has_the_same_keys() -> None:
    first = read_lines(b"# TYPE a counter\na 1\nb 2\n", "text/plain")
    known = dict.fromkeys(first.keys)
    second = read_lines(b"# TYPE a counter\na 2\nb 2\n", "text/plain", known)
    third = read_lines(b"# TYPE a counter\na 3\nb 4\n", "text/plain", known, layout=second.layout)
    other = read_lines(b"# TYPE a gauge\na 3\nb 4\n", "text/plain", known, layout=third.layout)

    assert first.layout is None
    assert third.keys is second.keys
    assert third.values == [3, 4]
    assert other.keys is not third.keys
    assert other.metadata["a"].type == "gauge"


def test_a_time_after_a_tab_is_read_on_every_page() -> None:
    known = dict.fromkeys(read_lines(b"a 1\t123\n", "text/plain").keys)

    again = read_lines(b"a 1\t124\n", "text/plain", known)

    assert (again.error, again.values, again.times) == (None, [1], {0: 124})
