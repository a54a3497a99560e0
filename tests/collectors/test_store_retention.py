"""Retention by time and by size, in small steps; and what goes when no sample is left of it."""

from __future__ import annotations

import numpy as np
import pytest
import sqlalchemy as sa

from collectors.store import Exemplar, Matcher, MetricMetadata, Store

HOUR = 3_600_000
T0 = 472_222 * HOUR


class Clock:
    def __init__(self) -> None:
        self.now_ms = T0

    def __call__(self) -> float:
        return self.now_ms / 1000


def by_name(name: str) -> list[Matcher]:
    return [Matcher("__name__", "=", name)]


def fill(store: Store, clock: Clock, hours: int, width: int = 50, scrapes: int = 20) -> None:
    """A metric an hour, of random numbers, so that they do not get small."""
    chance = np.random.default_rng(0)
    for hour in range(hours):
        columns = store.columns("t", [{"__name__": f"h{hour}", "i": str(i)} for i in range(width)])
        for step in range(scrapes):
            clock.now_ms = T0 + hour * HOUR + step * (HOUR // scrapes) // 2
            store.append_values(columns, clock.now_ms, chance.random(width))


def maintain(store: Store) -> int:
    steps = 0
    while store.maintain():
        steps += 1
        assert steps < 1000, "it does not end"
    return steps


def test_what_is_older_than_retention_goes_with_all_that_belonged_to_it(database_url: str) -> None:
    clock = Clock()
    store = Store(database_url, clock=clock, head_seconds=3600.0, retention_seconds=3 * 3600.0, late_seconds=0.0)
    fill(store, clock, 6)
    store.add_exemplars([Exemplar({"__name__": f"h{k}"}, {"id": str(k)}, 1.0, T0 + k * HOUR) for k in range(6)])
    store.set_metadata({"h0": MetricMetadata("gauge", "One.", "")})
    clock.now_ms = T0 + 6 * HOUR + 120_000
    maintain(store)
    names, known = store.label_values("__name__"), store.num_series()
    exemplars = {item.labels["id"] for item in store.exemplars([], 0, 2 * T0)}
    whole = [len(s.t) for name in names for s in store.select(by_name(name), 0, 2 * T0)]
    with store._engine.connect() as connection:
        left = {table: connection.scalar(sa.text(f"SELECT count(*) FROM {table}")) for table in ("layouts", "chunks")}
    store.close()
    again = Store(database_url, clock=clock, head_seconds=3600.0, retention_seconds=3 * 3600.0)
    reread = again.label_values("__name__")
    again.close()

    assert names == reread == ["h2", "h3", "h4", "h5"]  # one block is past retention only when all of it is
    assert known == 4 * 50
    assert set(whole) <= {20, 21}
    assert exemplars == {"4", "5"}
    assert left["layouts"] <= 3


@pytest.mark.parametrize("compacted", [True, False])
def test_what_is_beyond_the_size_goes_oldest_first(database_url: str, compacted: bool) -> None:
    clock = Clock()
    store = Store(database_url, clock=clock, head_seconds=3600.0, late_seconds=0.0)
    fill(store, clock, 8, width=150, scrapes=60)
    clock.now_ms = T0 + (9 * HOUR if compacted else 0)
    maintain(store)
    whole = store.size_bytes()
    store.close()
    store = Store(database_url, clock=clock, head_seconds=3600.0, late_seconds=0.0, retention_bytes=whole * 6 // 10)
    maintain(store)
    size, names = store.size_bytes(), store.label_values("__name__")
    last = store.select(by_name("h7"), 0, 2 * T0)
    steps = maintain(store)
    store.close()

    assert size <= whole * 6 // 10
    assert size > whole * 3 // 10
    assert names[-1] == "h7"
    assert names == [f"h{k}" for k in range(8 - len(names), 8)]
    assert 2 <= len(names) <= 7
    assert [len(s.t) for s in last] == [60] * 150
    assert steps == 0


def test_a_file_gives_space_back_to_the_disk(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collectors.store.retention._FREE_PAGES", 16)
    clock = Clock()
    url = f"sqlite:///{tmp_path}/store.db"
    store = Store(url, clock=clock, retention_seconds=3600.0, late_seconds=0.0)
    fill(store, clock, 8, width=200)
    with store._engine.connect() as connection:
        before = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    clock.now_ms += 10 * HOUR
    maintain(store)
    with store._engine.connect() as connection:
        after = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    store.close()

    assert after < before / 3


def test_a_quiet_series_stays_while_it_has_a_sample(database_url: str) -> None:
    clock = Clock()
    options = {"head_seconds": 3600.0, "retention_seconds": 5 * 3600.0, "late_seconds": 0.0}
    store = Store(database_url, clock=clock, **options)
    store.append("a", T0, [({"__name__": "gone"}, 1.0)], stale=False)
    store.append("b", T0 + 2 * HOUR, [({"__name__": "quiet"}, 1.0)], stale=False)
    clock.now_ms = T0 + 4 * HOUR
    store.append("c", clock.now_ms, [({"__name__": "live"}, 1.0)], stale=False)
    maintain(store)
    store.close()
    clock.now_ms = T0 + 6 * HOUR
    store = Store(database_url, clock=clock, **options)
    store.append("c", clock.now_ms, [({"__name__": "live"}, 2.0)], stale=False)
    maintain(store)
    names = store.label_values("__name__")
    quiet = store.select(by_name("quiet"), 0, 2 * T0)
    back = store.append("a", clock.now_ms, [({"__name__": "gone"}, 3.0)], stale=False)
    found = store.select(by_name("gone"), 0, 2 * T0)
    store.close()

    assert names == ["live", "quiet"]
    assert [s.v.tolist() for s in quiet] == [[1.0]]
    assert back == 1
    assert [s.v.tolist() for s in found] == [[3.0]]
