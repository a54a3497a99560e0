"""What the store refuses, and how it says so: too many series, labels too large, samples too old, values twice."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from collectors.store import Append, Exemplar, LimitExceeded, Limits, Matcher, Scrape, Store

T0 = 1_700_000_000_000
X = [Matcher("__name__", "=", "x")]


def opened(url: str, **options: object) -> Store:
    return Store(url, clock=lambda: T0 / 1000, **options)  # type: ignore[arg-type]


def series(**labels: str) -> dict[str, str]:
    return {"__name__": "x", **labels}


def test_a_source_over_its_limit_is_refused_whole_and_told_of_the_worst_label(database_url: str) -> None:
    store = opened(database_url, limits=Limits(series_per_target=10))
    many = [(series(job="a", code=str(k % 3), user=f"u{k}"), 1.0) for k in range(11)]
    with pytest.raises(LimitExceeded, match="target 'web' would have 11 series; at most 10 are taken") as error:
        store.append("web", T0, many)
    taken = store.append("web", T0, many[:10])
    with pytest.raises(LimitExceeded, match="'user' alone has 11 values"):
        store.append("web", T0 + 1000, many[10:], stale=False)
    other = store.append("other", T0 + 1000, many[10:])
    with pytest.raises(LimitExceeded, match="'more' would have 11 series"):
        store.columns("more", [{**labels, "job": "b"} for labels, _ in many])
    counts, known = store.counts(), store.num_series()
    store.close()

    assert "label 'user' alone has 11 values, such as 'u" in str(error.value)
    assert (taken, other) == (10, 1)
    assert (counts.limited, known) == (23, 11)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (series(path="/" * 60), "label 'path' of series 'x' has a value of 60 bytes"),
        (series(path="é" * 30), "60 bytes"),
        (series(**{"n" * 30: "1"}), "has a name of 30 bytes; at most 20"),
        (series(a="1", b="22", c="3", d="4"), "series 'x' has 5 labels; at most 4 are taken .the longest is 'b'"),
        (series(a="\ud800"), "label 'a' is not valid UTF-8"),
        ({"__name__": "x", "a": 1}, "label 'a' has the value 1: names and values of labels are texts"),
        ({"__name__": "x", "": "1"}, "a label of series 'x' has an empty name"),
    ],
)
def test_labels_over_a_limit_are_named(labels: dict[str, str], said: str) -> None:
    store = opened("sqlite://", limits=Limits(labels_per_series=4, label_name_bytes=20, label_value_bytes=50))
    with pytest.raises(LimitExceeded, match=said):
        store.append("t", T0, [(series(), 1.0), (labels, 1.0)])
    nothing = store.num_series()
    taken = store.append("t", T0, [(series(), 1.0)])
    store.close()

    assert (nothing, taken) == (0, 1)


def test_a_value_that_is_no_number_is_named() -> None:
    store = opened("sqlite://")
    with pytest.raises(LimitExceeded, match=r"the value of .*'i': '2'.* is 'much', which is not a number"):
        store.append("t", T0, [(series(i="1"), 1.0), (series(i="2"), "much")])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="2 columns and values of the shape"):
        store.append_values(store.columns("t", [series(i="1"), series(i="2")]), T0, np.zeros(3))
    store.close()


def test_odd_texts_are_kept_as_they_are(database_url: str) -> None:
    odd = series(nul="a\0b", long="é" * 4000, quote='"\\\n', emoji="🙂")
    store = opened(database_url)
    store.append("t\ud800", T0, [(odd, 1.0)])
    store.append("ok", T0, [(series(i="1"), 1.0)])
    store.close()
    again = opened(database_url)
    found = again.series(X)
    again.close()

    assert odd in found
    assert len(found) == 2


def test_late_samples_are_taken_within_the_window_and_refused_clearly_behind_it(database_url: str) -> None:
    store = opened(database_url, late_seconds=600.0)
    store.append("t", T0, [(series(i="1"), 5.0)])
    late = store.write([Append("t", T0 - 600_000, [(series(i="1"), 1.0)])])
    old = store.write([Append("t", T0 - 600_001, [(series(i="1"), 2.0), (series(i="2"), 3.0)])])
    conflicting = store.write([Append("t", T0 - 600_000, [(series(i="1"), 4.0)])])
    counts = store.counts()
    found = {s.labels["i"]: (s.t - T0).tolist() for s in store.select(X, 0, 2 * T0)}
    store.close()

    assert (late.taken, late.out_of_order, late.refused, late.refusal) == (1, 1, 0, "")
    assert (old.taken, old.too_old, old.refused) == (1, 1, 1)
    assert old.refusal == (
        f'out of order: the sample of x{{i="1"}} at {T0 - 600_001} ms is 600.001 s older than the series\' newest; '
        "late samples are taken for 600 s"
    )
    assert conflicting.refusal == (
        f'duplicate sample for timestamp: x{{i="1"}} has 1.0 at {T0 - 600_000} ms, and 4.0 was sent'
    )
    assert (counts.out_of_order, counts.too_old, counts.conflicting) == (2, 1, 1)
    assert found == {"1": [-600_000, 0], "2": [-600_001]}


def test_a_backfill_in_one_batch_comes_out_in_order(database_url: str) -> None:
    store = opened(database_url)
    columns = store.columns("t", [series(i=str(k)) for k in range(3)])
    store.append_values(columns, T0, np.full(3, 100.0))
    steps = np.random.default_rng(3).permutation(100).tolist()
    done = store.write([Scrape(columns, T0 - 1000 * (k + 1), np.full(3, float(k)), replaces=False) for k in steps])
    (block,) = store.select_blocks(X, 0, 2 * T0)
    store.close()

    assert (done.taken, done.out_of_order) == (300, 300)
    assert block.v[:, 0].tolist() == [*(float(k) for k in range(99, -1, -1)), 100.0]
    assert block.t.tolist() == list(range(T0 - 100_000, T0 + 1, 1000))


def test_series_that_retention_removed_are_looked_up_again(database_url: str) -> None:
    now = [T0 / 1000]
    store = Store(database_url, clock=lambda: now[0], retention_seconds=3600.0)
    columns = store.columns("t", [series(i="1"), series(i="2")])
    store.append_values(columns, T0, np.array([1.0, 2.0]))
    now[0] += 7200
    while store.maintain():
        pass
    gone = store.num_series()
    store.append_values(columns, T0 + 7_200_000, np.array([3.0, 4.0]))
    found = {s.labels["i"]: s.v.tolist() for s in store.select(X, 0, 2 * T0)}
    store.close()

    assert gone == 0
    assert found == {"1": [3.0], "2": [4.0]}


def test_one_refusal_leaves_the_others_of_a_group_alone(tmp_path: object) -> None:
    store = opened(f"sqlite:///{tmp_path}/store.db", limits=Limits(series_per_target=5))
    refused: list[int] = []

    def work(number: int) -> None:
        for step in range(20):
            count = 6 if step % 5 == number % 5 else 5
            try:
                store.append(f"t{number}", T0 + step, [(series(t=str(number), i=str(k)), 1.0) for k in range(count)])
            except LimitExceeded:
                refused.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts, known = store.counts(), store.num_series()
    store.close()

    assert len(refused) == 6 * 4
    assert counts.appended == 6 * 16 * 5
    assert known == 30


def test_exemplars_survive_a_restart_and_are_each_kept_once(database_url: str) -> None:
    store = opened(database_url)
    first = Exemplar(series(i="1"), {"trace_id": "a"}, 0.1, T0)
    kept = store.add_exemplars(
        [
            first,
            first,
            Exemplar(series(i="1"), {"trace_id": "older"}, 0.1, T0 - 1),
            Exemplar(series(i="2"), {"trace_id": "b" * 200}, 0.1, T0),
            Exemplar(series(i="2"), {"trace_id": "c"}, float("inf"), T0 + 5),
        ]
    )
    store.close()
    again = opened(database_url)
    repeated = again.add_exemplars([first])
    found = again.exemplars(X, T0, T0 + 10)
    again.close()

    assert (kept, repeated) == (2, 0)
    assert found == [first, Exemplar(series(i="2"), {"trace_id": "c"}, float("inf"), T0 + 5)]
