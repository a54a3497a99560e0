"""The engine: shapes of results, all steps at once, staleness, refusals."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from collectors.query import (
    Engine,
    Matrix,
    QueryError,
    Scalar,
    String,
    Vector,
    VectorElement,
    format_query,
    parse,
    parse_selector,
)
from collectors.query.numbers import format_float
from collectors.query.quantiles import bucket_quantile, quantile_of_columns
from collectors.query.selectors import selectors_of
from collectors.query.sums import careful_mean, careful_sum
from collectors.query.syntax import Number, RangeSelector, Selector
from collectors.store import STALE_NAN, Matcher, Store

EXPRESSIONS = [
    "x",
    "x offset 20s",
    "x @ 60",
    "rate(x[1m])",
    "delta(x[45s])",
    "changes(x[1m]) + resets(x[1m])",
    "sum_over_time(x[1m]) / avg_over_time(x[1m])",
    "stddev_over_time(x[1m])",
    "quantile_over_time(0.4, x[1m])",
    "deriv(x[1m])",
    "sum by (a) (x)",
    "stdvar without (a) (x)",
    "quantile by (a) (0.5, x)",
    "topk by (a) (1, x)",
    "count_values('v', x)",
    "x > 2",
    "x{b='1'} + ignoring(b) x{b='2'}",
    "x and on(a) x{b='1'}",
    "x{b='1'} or x",
    "x unless on(a) x{b='2'}",
    "absent(x{b='1'})",
    "absent_over_time(x[20s])",
    "scalar(x{a='p',b='1'})",
    "max_over_time(x[1m:10s])",
    "sum(x) by (b) / on(b) group_right x",
    "label_replace(x, 'a', '$1', 'b', '(.*)') and on(a) x",
    "timestamp(x) - time()",
    "histogram_quantile(0.5, label_replace(x, 'le', '$1', 'b', '(.*)'))",
]


def filled(samples: dict[tuple[str, str], dict[int, float]]) -> Store:
    store = Store("sqlite://", clock=lambda: 0.0)
    for t_s in sorted({t for points in samples.values() for t in points}):
        row = [({"__name__": "x", "a": a, "b": b}, points[t_s]) for (a, b), points in samples.items() if t_s in points]
        store.append("t", t_s * 1000, row, stale=False)
    return store


def answer(engine: Engine, expr: str, at_ms: int) -> dict[frozenset[tuple[str, str]], float] | str:
    try:
        result = engine.instant(expr, at_ms)
    except QueryError as error:
        return error.kind
    if isinstance(result, Scalar):
        return {frozenset(): result.value}
    assert isinstance(result, Vector)
    return {frozenset(element.labels.items()): element.value for element in result}


values = st.one_of(
    st.integers(-4, 4).map(float), st.sampled_from([math.nan, math.inf, -math.inf, STALE_NAN]), st.floats(-1e6, 1e6)
)
series = st.dictionaries(
    st.tuples(st.sampled_from("pq"), st.sampled_from("12")),
    st.dictionaries(st.integers(0, 16).map(lambda k: k * 10 + 3), values, min_size=1),
    max_size=4,
)


@settings(max_examples=120, deadline=None)
@given(series, st.sampled_from(EXPRESSIONS))
@example({("p", "1"): {3: 0.0}, ("q", "1"): {3: 0.0, 23: 0.0}, ("q", "2"): {3: 0.0}}, "topk by (a) (1, x)")
def test_a_range_query_is_the_instant_query_at_every_step(
    samples: dict[tuple[str, str], dict[int, float]], expr: str
) -> None:
    store = filled(samples)
    engine = Engine(store, lookback_ms=30_000)
    moments = range(0, 200_000, 20_000)
    single = [answer(engine, expr, at_ms) for at_ms in moments]
    refused = [once for once in single if isinstance(once, str)]
    if refused:
        with pytest.raises(QueryError) as caught:
            engine.range(expr, 0, 199_999, 20_000)
        store.close()
        assert caught.value.kind in refused
        return
    matrix = engine.range(expr, 0, 199_999, 20_000)
    store.close()
    steps: list[dict[frozenset[tuple[str, str]], float]] = [{} for _ in moments]
    for item in matrix:
        for t_ms, value in zip(item.t.tolist(), item.v.tolist(), strict=True):
            steps[t_ms // 20_000][frozenset(item.labels.items())] = value
    for once, step in zip(single, steps, strict=True):
        assert isinstance(once, dict)
        assert once.keys() == step.keys()
        for key, value in once.items():
            np.testing.assert_allclose(step[key], value, rtol=1e-9, atol=1e-9)


@pytest.fixture
def store() -> Iterator[Store]:
    store = filled({("p", "1"): {t: float(t) for t in range(3, 303, 10)}, ("q", "1"): {3: 1.0, 13: STALE_NAN}})
    yield store
    store.close()


def test_each_kind_of_result_has_its_type(store: Store) -> None:
    engine = Engine(store)

    assert engine.instant("1 + 1", 5000) == Scalar(5000, 2.0)
    assert engine.instant("'a'", 5000) == String(5000, "a")
    assert engine.instant("x{a='p'}", 25_000) == Vector(
        (VectorElement({"__name__": "x", "a": "p", "b": "1"}, 25_000, 23.0),)
    )
    raw = engine.instant("x{a='p'}[20s]", 43_000)
    assert isinstance(raw, Matrix)
    assert raw.series[0].t.tolist() == [33_000, 43_000]


def test_a_range_is_open_on_its_old_side_and_a_stale_series_is_gone(store: Store) -> None:
    engine = Engine(store, lookback_ms=50_000)

    assert answer(engine, "count_over_time(x{a='p'}[20s])", 43_000) == {frozenset({("a", "p"), ("b", "1")}): 2.0}
    assert answer(engine, "x{a='q'}", 12_999) == {frozenset({("__name__", "x"), ("a", "q"), ("b", "1")}): 1.0}
    assert answer(engine, "x{a='q'}", 13_000) == {}
    assert answer(engine, "x{a='p'}", 293_000 + 49_999) != {}
    assert answer(engine, "x{a='p'}", 293_000 + 50_000) == {}


def test_at_start_and_end_are_those_of_the_whole_query(store: Store) -> None:
    matrix = Engine(store).range("x{a='p'} @ end() - x{a='p'} @ start()", 53_000, 103_000, 25_000)

    assert matrix.series[0].v.tolist() == [50.0, 50.0, 50.0]


@pytest.mark.parametrize(
    ("expr", "message"),
    [
        ("nonsense(x[5m])", "nonsense"),
        ("x @ -5", "1970"),
        ("sum(x", "parse error"),
        ('x{a=~"("}', "parse error"),
        ('{a="p" or a="q"}', "or"),
    ],
)
def test_what_is_not_supported_is_named(store: Store, expr: str, message: str) -> None:
    with pytest.raises(QueryError, match=message) as caught:
        Engine(store).instant(expr, 5000)

    assert caught.value.kind == "bad_data"


def test_a_query_out_of_time_is_stopped(store: Store) -> None:
    with pytest.raises(QueryError, match="timed out") as caught:
        Engine(store, timeout_seconds=-1.0).instant("sum(x)", 5000)

    assert caught.value.kind == "timeout"


def test_text_is_read_once_with_raw_strings_comments_and_quotes() -> None:
    assert parse(r"""x{a=~`\d"+`, b='`#`'} # end""") == Selector(
        (Matcher("__name__", "=", "x"), Matcher("a", "=~", r'\d"+'), Matcher("b", "=", "`#`"))
    )
    assert parse("x[5m] offset -1m") == RangeSelector(Selector((Matcher("__name__", "=", "x"),), -60_000), 300_000)
    assert parse("5m") == Number(300.0)
    assert hash(parse("sum(rate(x[5m]))")) == hash(parse("sum( rate(x[5m]) )"))
    assert parse_selector("x{a!='b'}")[1] == Matcher("a", "!=", "b")
    assert format_query("sum  (x)by(a)") == "sum by (a) (x)"
    assert len(list(selectors_of(parse("sum(rate(x[5m])) / on() y or -max_over_time(z[5m:])")))) == 3


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_written_number_reads_back_without_an_exponent(value: float) -> None:
    text = format_float(value)

    assert "e" not in text
    assert float(text) == value


def test_quantiles_agree_with_numpy_and_a_plain_histogram() -> None:
    chance = np.random.default_rng(3)
    values = chance.normal(size=(9, 4))
    ours = quantile_of_columns(values, np.ones_like(values, dtype=bool), np.full(4, 0.3))
    counts = np.array([[[2.0], [6.0], [10.0]]])
    bounds = np.array([1.0, 3.0, np.inf])

    np.testing.assert_allclose(ours, np.quantile(values, 0.3, axis=0))
    assert bucket_quantile(bounds, counts, np.array([0.4]))[0, 0] == 1.0 + 2.0 * (4 - 2) / 4
    assert bucket_quantile(bounds, counts, np.array([0.9]))[0, 0] == 3.0
    assert np.isnan(bucket_quantile(bounds[:2], counts[:, :2], np.array([0.9])))[0, 0]


def test_sums_keep_the_digits_that_cancelling_would_lose(store: Store) -> None:
    assert careful_sum(np.array([1.0, 1e100, 1.0, -1e100])) == 2.0
    assert careful_mean(np.array([1.7e308, 1.7e308])) == 1.7e308
    assert math.isnan(careful_mean(np.array([math.inf, -math.inf])))
