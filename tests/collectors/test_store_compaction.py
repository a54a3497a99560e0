"""Blocks of closed hours: the same samples, in less room, read as before; and their bytes."""

from __future__ import annotations

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from collectors.store import Append, Matcher, Store, is_stale
from collectors.store.codec import pack_integers, pack_matrix, unpack_integers, unpack_matrix
from collectors.store.grouping import partition
from collectors.store.head import Layout

HOUR = 3_600_000
T0 = 472_222 * HOUR
X = [Matcher("__name__", "=", "x")]


class Clock:
    def __init__(self) -> None:
        self.now_ms = T0

    def __call__(self) -> float:
        return self.now_ms / 1000


def opened(url: str, clock: Clock, **options: float) -> Store:
    return Store(url, clock=clock, head_seconds=1800.0, late_seconds=600.0, **options)  # type: ignore[arg-type]


def samples(step: int, series: int = 40) -> list[tuple[dict[str, str], float]]:
    return [({"__name__": "x", "i": f"{i:02}"}, step * 3.0 + i if i % 2 else step * 0.125) for i in range(series)]


def fill(store: Store, clock: Clock, hours: int, every_ms: int = 30_000) -> None:
    for step in range(hours * HOUR // every_ms):
        clock.now_ms = T0 + step * every_ms
        store.append("t", clock.now_ms, samples(step))


def read(store: Store, start_ms: int, end_ms: int) -> dict[str, tuple[list[int], list[float]]]:
    return {s.labels["i"]: (s.t.tolist(), s.v.tolist()) for s in store.select(X, start_ms, end_ms)}


def compact(store: Store) -> int:
    total = 0
    while done := store.compact():
        total += done
    return total


def rows(store: Store, table: str) -> int:
    with store._engine.connect() as connection:
        return int(connection.execute(sa.text(f"SELECT count(*) FROM {table}")).scalar_one())


def test_closed_hours_become_blocks_and_answers_stay(database_url: str) -> None:
    clock = Clock()
    store = opened(database_url, clock)
    fill(store, clock, 4)
    ranges = [(0, 2 * T0), (T0 + 1_000_000, T0 + 5_000_000), (T0 + HOUR, T0 + HOUR), (T0 + 2 * HOUR, T0 + 4 * HOUR)]
    before = [read(store, *each) for each in ranges]
    clock.now_ms = T0 + 4 * HOUR + 601_000
    size = store.size_bytes()
    compacted = compact(store)
    after = [read(store, *each) for each in ranges]
    smaller, left = store.size_bytes(), rows(store, "scrapes")
    one = store.select([*X, Matcher("i", "=", "07")], T0, T0 + 2 * HOUR)
    store.close()
    again = opened(database_url, clock)
    reread = [read(again, *each) for each in ranges]
    again.close()

    assert compacted == 4 * 120 * 40
    assert before == after == reread
    assert len(before[0]["00"][0]) == 480
    assert left == 0
    assert smaller < size * 0.6
    assert [len(s.t) for s in one] == [241]


def test_an_hour_is_compacted_only_when_late_samples_can_no_longer_come(database_url: str) -> None:
    clock = Clock()
    store = opened(database_url, clock)
    fill(store, clock, 1, 600_000)
    clock.now_ms = T0 + HOUR + 599_000
    early = compact(store)
    clock.now_ms += 1000
    due = compact(store)
    store.close()

    assert (early, due) == (0, 6 * 40)


def test_late_samples_of_a_compacted_hour_are_found_beside_it(database_url: str) -> None:
    clock = Clock()
    store = opened(database_url, clock, retention_seconds=1e9)
    series = {"__name__": "x", "i": "0"}
    store.append("t", T0, [(series, 0.0)])
    store.append("t", T0 + HOUR - 300_000, [(series, 1.0)])
    clock.now_ms = T0 + 3 * HOUR
    compact(store)
    same = store.write([Append("t", T0 + HOUR - 300_000, [(series, 1.0)])])
    other = store.write([Append("t", T0 + HOUR - 300_000, [(series, 9.0)])])
    late = store.write([Append("t", T0 + HOUR - 310_000, [(series, 0.5)])])
    again = store.write([Append("t", T0 + HOUR - 310_000, [(series, 0.5)])])
    found = read(store, 0, 2 * T0)
    compact(store)
    recompacted = read(store, 0, 2 * T0)
    blocks = rows(store, "blocks")
    store.close()

    assert (same.taken, same.duplicates) == (1, 1)
    assert (other.taken, other.conflicting) == (0, 1)
    assert (late.taken, late.out_of_order) == (1, 1)
    assert (again.taken, again.duplicates) == (1, 1)
    assert found == recompacted == {"0": ([T0, T0 + HOUR - 310_000, T0 + HOUR - 300_000], [0.0, 0.5, 1.0])}
    assert blocks == 2


def test_a_scrape_that_comes_while_its_hour_is_compacted_is_not_lost(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    store = opened(database_url, clock)
    for step in (0, 2):
        store.append("t", T0 + step * 1000, samples(step))
    clock.now_ms = T0 + 3 * HOUR
    clear = store._compactor._clear
    seen = []

    def interrupted(layout: Layout, t: np.ndarray) -> None:  # type: ignore[type-arg]
        seen.append(read(store, 0, 2 * T0)["01"])
        store.append("t", T0 + 1000, samples(1), stale=False)
        clear(layout, t)

    monkeypatch.setattr(store._compactor, "_clear", interrupted)
    first = store.compact()
    monkeypatch.undo()
    second = compact(store)
    found = read(store, 0, 2 * T0)
    store.close()

    assert seen == [([T0, T0 + 2000], [1.0, 7.0])]
    assert (first, second) == (2 * 40, 40)
    assert found["01"] == ([T0, T0 + 1000, T0 + 2000], [1.0, 4.0, 7.0])


@pytest.mark.parametrize("cut", ["_clear", "_cleared"])
def test_a_step_that_was_cut_off_is_finished_at_the_next_start(
    database_url: str, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    clock = Clock()
    store = opened(database_url, clock)
    for step in range(4):
        store.append("t", T0 + step * 1000, samples(step))
    clock.now_ms = T0 + 3 * HOUR

    def stopped(*_: object) -> None:
        raise RuntimeError("stopped here")

    monkeypatch.setattr(store._compactor, cut, stopped)
    with pytest.raises(RuntimeError, match="stopped here"):
        store.compact()
    monkeypatch.undo()
    late = store.append("t", T0 + 1500, samples(9)[:1], stale=False)
    before = read(store, 0, 2 * T0)
    store.close()
    store = opened(database_url, clock)
    left, waiting = rows(store, "scrapes"), rows(store, "clearing")
    after = read(store, 0, 2 * T0)
    compact(store)
    blocks, compacted = rows(store, "blocks"), read(store, 0, 2 * T0)
    store.close()

    assert late == 1
    assert (left, waiting) == (1, 0)
    assert before == after == compacted
    assert len(before["00"][0]) == 5
    assert blocks == 2


def test_series_with_times_of_their_own_share_blocks_with_gaps(database_url: str) -> None:
    clock = Clock()
    store = opened(database_url, clock)
    expected: dict[str, tuple[list[int], list[float]]] = {}
    for step in range(120):
        clock.now_ms = T0 + step * 30_000
        sent = [i for i in range(30) if (step + i) % (i + 2) == 0]
        store.append("t", clock.now_ms, [({"__name__": "x", "i": str(i)}, float(step)) for i in sent], stale=False)
        for i in sent:
            times, values = expected.setdefault(str(i), ([], []))
            times.append(clock.now_ms)
            values.append(float(step))
    clock.now_ms = T0 + 3 * HOUR
    compact(store)
    blocks = rows(store, "blocks")
    store.close()
    again = opened(database_url, clock)
    found = read(again, 0, 2 * T0)
    again.close()

    assert found == expected
    assert blocks < 4


def test_stale_markers_and_what_a_source_sent_last_survive_a_restart(database_url: str) -> None:
    clock = Clock()
    store = opened(database_url, clock)
    store.append("t", T0, samples(0, 3))
    store.close()
    store = opened(database_url, clock)
    store.append("t", T0 + 1000, samples(1, 2))
    store.close()
    store = opened(database_url, clock)
    marked = store.mark_stale("t", T0 + 2000)
    store.close()
    store = opened(database_url, clock)
    nothing = store.mark_stale("t", T0 + 3000)
    found = {s.labels["i"]: is_stale(s.v).tolist() for s in store.select(X, 0, 2 * T0)}
    store.close()

    assert (marked, nothing) == (2, 0)
    assert found == {"00": [False, False, True], "01": [False, False, True], "02": [False, True]}


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.one_of(
            st.floats(width=64),
            st.integers(-(2**60), 2**60).map(float),
            st.integers(-(10**6), 10**6).map(lambda n: n / 1000),
            st.just(-0.0),
        ),
    ),
    st.randoms(use_true_random=False),
)
def test_a_matrix_comes_back_bit_by_bit(v: np.ndarray, chance: object) -> None:  # type: ignore[type-arg]
    present = np.array([[chance.random() < 0.7 for _ in row] for row in v])  # type: ignore[attr-defined]
    whole, none = unpack_matrix(pack_matrix(v))
    gapped, found = unpack_matrix(pack_matrix(v, present))

    assert none is None
    assert np.array_equal(np.ascontiguousarray(whole).view(np.uint64), v.view(np.uint64))
    assert np.array_equal(np.ones_like(present) if found is None else found, present)
    assert np.array_equal(gapped[present].view(np.uint64), v[present].view(np.uint64))


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.int64, st.integers(0, 20), elements=st.integers(-(2**62), 2**62)))
def test_integers_come_back(numbers: np.ndarray) -> None:  # type: ignore[type-arg]
    assert np.array_equal(unpack_integers(pack_integers(numbers)), numbers)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sets(st.integers(0, 12)), min_size=1, max_size=6))
def test_a_partition_groups_ids_by_the_sets_they_are_in(sets: list[set[int]]) -> None:
    parts = partition([np.array(sorted(some), dtype=np.int64) for some in sets])
    found = {i: tuple(positions) for ids, positions in parts for i in ids.tolist()}

    assert found == {i: tuple(k for k, some in enumerate(sets) if i in some) for i in set().union(*sets)}
    assert len({tuple(positions) for _, positions in parts}) == len(parts)
