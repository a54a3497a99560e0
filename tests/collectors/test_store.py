"""The store: what is taken, what is refused, what survives."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.store import Exemplar, Matcher, MetricMetadata, Store, is_stale

T0 = 1_700_000_000_000


class FakeClock:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(T0 / 1000)


@pytest.fixture
def store(clock: FakeClock, database_url: str) -> Iterator[Store]:
    store = Store(database_url, clock=clock)
    yield store
    store.close()


def named(name: str, **labels: str) -> dict[str, str]:
    return {"__name__": name, **labels}


def by_name(name: str) -> list[Matcher]:
    return [Matcher("__name__", "=", name)]


def points(store: Store, name: str, start: int = 0, end: int = 2 * T0) -> dict[str, list[tuple[int, float]]]:
    found = store.select(by_name(name), start, end)
    return {s.labels.get("i", ""): list(zip(s.t.tolist(), s.v.tolist(), strict=True)) for s in found}


def test_appended_samples_are_selected_by_time_with_both_ends_included(store: Store) -> None:
    for step in range(5):
        store.append("a", T0 + step * 1000, [(named("x", i="1"), float(step))])

    assert points(store, "x", T0 + 1000, T0 + 3000) == {"1": [(T0 + 1000, 1.0), (T0 + 2000, 2.0), (T0 + 3000, 3.0)]}
    assert points(store, "y") == {}


def test_series_of_one_scrape_share_their_times_in_one_block(store: Store) -> None:
    for step in range(3):
        store.append("a", T0 + step * 1000, [(named("x", i=str(i)), step * 10.0 + i) for i in range(4)])

    (block,) = store.select_blocks(by_name("x"), T0, T0 + 9000)

    assert block.v.shape == (3, 4)
    assert block.v[2].tolist() == [20.0, 21.0, 22.0, 23.0]


def test_a_series_that_vanishes_from_a_target_gets_one_stale_marker(store: Store) -> None:
    store.append("a", T0, [(named("x", i="1"), 1.0), (named("x", i="2"), 2.0)])
    store.append("b", T0, [(named("x", i="3"), 3.0)])
    store.append("a", T0 + 1000, [(named("x", i="1"), 1.0)])
    store.append("a", T0 + 2000, [(named("x", i="1"), 1.0)])
    found = {s.labels["i"]: s for s in store.select(by_name("x"), 0, 2 * T0)}

    assert is_stale(found["1"].v).tolist() == [False, False, False]
    assert is_stale(found["2"].v).tolist() == [False, True]
    assert found["2"].t.tolist() == [T0, T0 + 1000]
    assert is_stale(found["3"].v).tolist() == [False]


def test_a_source_that_sends_parts_ends_nothing_until_it_is_marked_stale(store: Store) -> None:
    store.append("push", T0, [(named("x", i="1"), 1.0)], stale=False)
    store.append("push", T0 + 1000, [(named("x", i="2"), 2.0)], stale=False)
    before = store.select(by_name("x"), 0, 2 * T0)
    marked = store.mark_stale("push", T0 + 2000)
    after = store.select(by_name("x"), 0, 2 * T0)

    assert not any(is_stale(s.v).any() for s in before)
    assert marked == 2
    assert all(is_stale(s.v)[-1] and s.t[-1] == T0 + 2000 for s in after)


def test_samples_behind_the_window_and_conflicting_ones_are_refused_one_by_one(
    database_url: str, clock: FakeClock
) -> None:
    store = Store(database_url, clock=clock, late_seconds=0.0)
    store.append("a", T0, [(named("x", i="1"), 1.0)], stale=False)
    taken = store.append("a", T0 - 1, [(named("x", i="1"), 0.0), (named("x", i="2"), 2.0)], stale=False)
    same = store.append("a", T0, [(named("x", i="1"), 1.0)], stale=False)
    other = store.append("a", T0, [(named("x", i="1"), 9.0)], stale=False)
    counts = store.counts()
    found = points(store, "x")
    store.close()

    assert (taken, same, other) == (1, 1, 0)
    assert (counts.out_of_order, counts.too_old, counts.duplicates, counts.conflicting) == (1, 1, 1, 1)
    assert found == {"1": [(T0, 1.0)], "2": [(T0 - 1, 2.0)]}


def test_the_same_series_twice_in_one_append_keeps_the_first(store: Store) -> None:
    assert store.append("a", T0, [(named("x", i="1"), 1.0), (named("x", i="1", empty=""), 2.0)]) == 1
    assert points(store, "x") == {"1": [(T0, 1.0)]}
    assert store.counts().conflicting == 1


def test_nan_and_infinity_are_values_like_any_other(store: Store) -> None:
    store.append("a", T0, [(named("x", i="n"), float("nan")), (named("x", i="p"), float("inf"))])
    found = {s.labels["i"]: s.v for s in store.select(by_name("x"), 0, 2 * T0)}

    assert np.isnan(found["n"]).all()
    assert not is_stale(found["n"]).any()
    assert found["p"].tolist() == [float("inf")]


def test_matchers_treat_a_missing_label_as_empty_and_anchor_expressions(store: Store) -> None:
    store.append("a", T0, [(named("x"), 0.0), (named("x", i="one"), 1.0), (named("x", i="two"), 2.0)])

    def selected(op: str, value: str) -> list[str]:
        return sorted(s.get("i", "") for s in store.series([*by_name("x"), Matcher("i", op, value)]))  # type: ignore[arg-type]

    assert selected("=", "one") == ["one"]
    assert selected("=", "") == [""]
    assert selected("!=", "one") == ["", "two"]
    assert selected("!=", "") == ["one", "two"]
    assert selected("=~", "o.*|t.*") == ["one", "two"]
    assert selected("=~", "ne") == []
    assert selected("=~", ".*") == ["", "one", "two"]
    assert selected("!~", "t.*") == ["", "one"]
    assert selected("=~", "((?i)O)ne") == ["one"]


def test_a_bad_expression_says_which_label_it_is_for() -> None:
    with pytest.raises(ValueError, match="label 'i'"):
        Matcher("i", "=~", "(")


label_values = st.sampled_from(["", "a", "b", "ab", "ba"])
matchers = st.builds(
    Matcher,
    st.sampled_from(["p", "q"]),
    st.sampled_from(["=", "!=", "=~", "!~"]),
    st.sampled_from(["", "a", "a.*", "b|ab"]),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(label_values, label_values), max_size=12, unique=True), st.lists(matchers, max_size=3))
def test_the_index_agrees_with_matching_every_series(pairs: list[tuple[str, str]], conditions: list[Matcher]) -> None:
    store = Store("sqlite://", clock=lambda: T0 / 1000)
    store.append("a", T0, [(named("x", p=p, q=q), 1.0) for p, q in pairs])
    expected = {pair for pair in pairs if all(m.matches_labels({"p": pair[0], "q": pair[1]}) for m in conditions)}
    found = store.series(conditions)
    store.close()

    assert {(labels.get("p", ""), labels.get("q", "")) for labels in found} == expected
    assert len(found) == len(expected)


def test_labels_are_listed_for_all_series_or_for_those_that_match(store: Store) -> None:
    store.append("a", T0, [(named("x", i="1"), 1.0), (named("y", k="2"), 1.0)])

    assert store.label_names() == ["__name__", "i", "k"]
    assert store.label_names(by_name("x")) == ["__name__", "i"]
    assert store.label_values("__name__") == ["x", "y"]
    assert store.label_values("k", by_name("x")) == []
    assert store.label_values("i", start_ms=T0 + 1, end_ms=T0 + 10) == []


def test_what_was_appended_is_there_after_a_restart(database_url: str, clock: FakeClock) -> None:
    url = database_url
    store = Store(url, clock=clock)
    store.append("a", T0, [(named("x", i="1"), 1.0), (named("x", i="2"), 2.0)])
    store.append("a", T0 + 1000, [(named("x", i="1"), 1.5), (named("x", i="2"), 2.5)])
    store.set_metadata({"x": MetricMetadata("gauge", "An x.", "")})
    store.close()
    again = Store(url, clock=clock)
    refused = again.append("a", T0, [(named("x", i="1"), 7.0)], stale=False)
    again.append("a", T0 + 2000, [(named("x", i="1"), 3.0)], stale=False)
    found = points(again, "x")
    metadata = again.metadata()
    again.close()

    assert refused == 0
    assert found == {"1": [(T0, 1.0), (T0 + 1000, 1.5), (T0 + 2000, 3.0)], "2": [(T0, 2.0), (T0 + 1000, 2.5)]}
    assert metadata == {"x": MetricMetadata("gauge", "An x.", "")}


def test_rows_older_than_the_head_come_from_the_database(database_url: str, clock: FakeClock) -> None:
    store = Store(database_url, clock=clock, head_seconds=60.0)
    for step in range(300):
        clock.seconds = T0 / 1000 + step
        width = 2 if step % 2 else 1
        samples = [(named("x", i=str(i)), float(step)) for i in range(width)]
        store.append("a", T0 + step * 1000, samples, stale=False)
    in_head = len(store._head.rows[0])
    whole, some = points(store, "x"), points(store, "x", T0 + 200_000, T0 + 260_000)
    in_range = store.series(by_name("x"), T0, T0)
    store.close()

    assert in_head < 60
    assert whole["0"] == [(T0 + step * 1000, float(step)) for step in range(300)]
    assert whole["1"] == [(T0 + step * 1000, float(step)) for step in range(1, 300, 2)]
    assert some["0"] == [(T0 + step * 1000, float(step)) for step in range(200, 261)]
    assert in_range == [named("x", i="0")]


def test_pruning_goes_in_steps_and_takes_unused_series_along(database_url: str, clock: FakeClock) -> None:
    url = database_url
    store = Store(url, clock=clock, retention_seconds=100.0)
    store.append("a", T0, [(named("old"), 1.0)])
    for step in range(1, 20):
        store.append("a", T0 + step * 1000, [(named("x", i="1"), float(step))])
    now = T0 / 1000 + 100
    steps = [store.prune(now + 10.5, limit=4) for _ in range(5)]
    kept = points(store, "x")
    names = store.label_values("__name__")
    store.append("a", T0 + 30_000, [(named("old"), 5.0)])
    back = points(store, "old")
    store.close()
    again = Store(url, clock=clock)
    reloaded = points(again, "x"), points(again, "old")
    again.close()

    assert steps[0] == 4
    assert sum(steps) == 12
    assert steps[-1] == 0
    assert kept == {"1": [(T0 + step * 1000, float(step)) for step in range(11, 20)]}
    assert names == ["x"]
    assert back == {"": [(T0 + 30_000, 5.0)]}
    assert [t for t, _ in reloaded[0]["1"]][:9] == [t for t, _ in kept["1"]]
    assert reloaded[1] == back


def test_many_threads_append_at_once_and_lose_nothing(database_url: str, clock: FakeClock) -> None:
    url = database_url
    store = Store(url, clock=clock)

    def work(number: int) -> None:
        for step in range(25):
            store.append(f"t{number}", T0 + step, [(named("x", i=str(number)), float(step))])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = store.counts()
    store.close()
    again = Store(url, clock=clock)
    found = points(again, "x")
    again.close()

    assert counts.appended == 200
    assert found == {str(n): [(T0 + step, float(step)) for step in range(25)] for n in range(8)}


def test_a_failed_transaction_takes_nothing_and_the_next_attempt_takes_all(store: Store) -> None:
    store.append("a", T0, [(named("x", i="1"), 1.0)])
    with store._engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE scrapes RENAME TO elsewhere"))
    with pytest.raises(sa.exc.DBAPIError):
        store.append("a", T0 + 1000, [(named("x", i="1"), 2.0), (named("x", i="2"), 2.0)])
    unchanged = points(store, "x")
    with store._engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE elsewhere RENAME TO scrapes"))
    taken = store.append("a", T0 + 1000, [(named("x", i="1"), 2.0), (named("x", i="2"), 2.0)])

    assert unchanged == {"1": [(T0, 1.0)]}
    assert taken == 2
    assert points(store, "x") == {"1": [(T0, 1.0), (T0 + 1000, 2.0)], "2": [(T0 + 1000, 2.0)]}


def test_exemplars_are_found_by_series_and_time(store: Store) -> None:
    store.add_exemplar(named("x", i="1"), {"trace_id": "abc"}, 0.5, T0)
    store.add_exemplar(named("x", i="2"), {"trace_id": "def"}, 0.7, T0 + 1000)

    assert store.exemplars([Matcher("i", "=", "1")], T0, T0) == [
        Exemplar(named("x", i="1"), {"trace_id": "abc"}, 0.5, T0)
    ]
    assert len(store.exemplars(by_name("x"), T0, T0 + 1000)) == 2
    assert store.exemplars(by_name("x"), T0 + 1, T0 + 999) == []


scrapes = st.lists(
    st.tuples(st.integers(0, 1), st.integers(-3, 40), st.dictionaries(st.integers(0, 4), st.floats(-9, 9), max_size=5)),
    max_size=30,
)


@settings(max_examples=40, deadline=None)
@given(scrapes, st.integers(0, 20), st.integers(0, 30))
def test_the_store_agrees_with_a_plain_dictionary(
    appends: list[tuple[int, int, dict[int, float]]], start: int, length: int
) -> None:
    clock = FakeClock(0.0)
    store = Store("sqlite://", clock=clock, head_seconds=0.010, late_seconds=0.0)
    model: dict[str, dict[int, float]] = {}
    for target, t_ms, values in appends:
        clock.seconds = max(clock.seconds, t_ms / 1000)
        store.append(f"t{target}", t_ms, [(named("x", i=str(i)), v) for i, v in values.items()], stale=False)
        for i, value in values.items():
            known = model.setdefault(str(i), {})
            if not known or t_ms > max(known):
                known[t_ms] = value
    found = points(store, "x", start, start + length)
    store.close()
    expected = {i: [(t, v) for t, v in known.items() if start <= t <= start + length] for i, known in model.items()}

    assert found == {i: rows for i, rows in expected.items() if rows}
