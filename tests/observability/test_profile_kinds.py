"""The kinds of profile columns beside numbers and categories, and what becomes of every Arrow type."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
import string
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from observability import (
    BooleanColumn,
    CategoricalColumn,
    DatetimeColumn,
    EmbeddingColumn,
    NumericColumn,
    Profile,
    ProfileError,
    TextColumn,
)
from observability.frequent import FrequentTexts
from observability.strangers import CAPACITY, Sample, hashed, merged

VECTORS = st.lists(st.floats(-1e3, 1e3) | st.sampled_from([math.nan, math.inf]), min_size=3, max_size=3)
ROWS = st.lists(
    st.tuples(
        st.none() | st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1)),
        st.none() | st.text(st.characters(codec="utf-8"), max_size=12),
        st.none() | VECTORS,
        st.none() | st.text("abcdef", max_size=2),
        st.none() | st.floats(-1e6, 1e6) | st.just(math.nan),
    ),
    max_size=30,
)
KINDS: dict[str, Any] = {
    "time": "datetime",
    "text": "text",
    "vector": "embedding",
    "category": "categorical",
    "x": "numeric",
    "y": "numeric",
}


def table(rows: list[tuple[Any, ...]]) -> pa.Table:
    times, texts, vectors, categories, numbers = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    return pa.table(
        {
            "time": pa.array(times, pa.timestamp("us")),
            "text": pa.array(texts, pa.utf8()),
            "vector": pa.array(vectors, pa.list_(pa.float32(), 3)),
            "category": pa.array(categories, pa.utf8()),
            "x": pa.array(numbers, pa.float64()),
            "y": pa.array([float(len(text or "")) for text in texts], pa.float64()),
        }
    )


def integers(value: Any) -> Any:
    """The whole numbers of a profile's JSON, which must be equal to the bit; decimals and packed floats aside."""
    if isinstance(value, dict):
        return {key: integers(part) for key, part in value.items() if key not in ("mean", "m2", "sums", "comoment")}
    return value


def floats(profile: Profile) -> np.ndarray:  # type: ignore[type-arg]
    """All that is a sum of floats, in units of one."""
    vector, joint = profile.columns["vector"], profile.joint
    assert isinstance(vector, EmbeddingColumn)
    assert vector.fourier is not None
    parts = [vector.mean / 1e3, vector.m2 / 1e6, vector.fourier.sums]
    for column in (profile.columns["x"], *profile.columns["text"].parts.values()):  # type: ignore[union-attr]
        assert isinstance(column, NumericColumn)
        parts.append(np.array([column.mean / 1e6, column.m2 / 1e12]))
    if joint is not None:
        parts += [joint.covariance.mean, joint.covariance.comoment.ravel(), joint.fourier.sums]
    return np.concatenate(parts)


def assert_same(left: Profile, right: Profile) -> None:
    assert integers(json.loads(left.to_json())) == integers(json.loads(right.to_json()))
    np.testing.assert_allclose(floats(left), floats(right), rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=20, phases=[Phase.explicit, Phase.generate])
@given(ROWS, ROWS, ROWS)
def test_every_kind_is_a_commutative_monoid(r1: Any, r2: Any, r3: Any) -> None:
    reference = Profile.of(table([*r1, (None, None, [0.0, 1.0, 2.0], "a", 1.0)]), KINDS, joint=True)
    a, b, c = reference, reference.empty().updated(table(r2)), reference.empty().updated(table(r3))

    assert_same((a + b) + c, a + (b + c))
    assert_same(a + b, b + a)
    assert a + a.empty() == a
    assert a.empty() + a == a
    assert_same(reference.empty().updated(table(r2 + r3)), b + c)
    assert Profile.from_json((a + b).to_json()) == a + b
    assert {column.rows for column in (a + b).columns.values()} == {len(r1) + 1 + len(r2)}


@given(
    st.lists(st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2250, 1, 1)), min_size=1),
    st.sampled_from(["s", "ms", "us", "ns"]),
)
@example([dt.datetime(1969, 1, 1, 0, 59, 59, 1)], "s")
def test_hours_of_the_week_are_those_of_the_calendar(times: list[dt.datetime], unit: str) -> None:
    # numpy rounds down to a coarser unit; Arrow rounds times before 1970 up, which can be another hour.
    rounded = np.array(times, "datetime64[us]").astype(f"datetime64[{unit}]")
    column = Profile.of({"t": pa.array(rounded)}).columns["t"]
    expected = np.zeros(168, np.int64)
    for time in times:
        expected[time.weekday() * 24 + time.hour] += 1

    assert isinstance(column, DatetimeColumn)
    assert column.counts.tolist() == expected.tolist()
    assert column.labels[25] == "Tuesday 01:00"
    assert column.minimum is not None
    assert abs(column.minimum / 1e9 - (min(times) - dt.datetime(1970, 1, 1)).total_seconds()) <= 1


def test_dates_zones_and_texts_are_times_too() -> None:
    day = dt.date(2024, 5, 5)
    zoned = dt.datetime(2024, 5, 5, 23, tzinfo=dt.timezone(dt.timedelta(hours=-2)))
    reference = Profile.of({"t": pa.array([day, None])})

    column = reference.updated({"t": pa.array([zoned])}).updated({"t": ["2024-05-06T01:30:00Z"]}).columns["t"]

    assert isinstance(column, DatetimeColumn)
    assert {column.labels[cell]: int(column.counts[cell]) for cell in np.flatnonzero(column.counts)} == {
        "Sunday 00:00": 1,
        "Monday 01:00": 2,
    }
    assert (column.missing, column.rows) == (1, 4)
    with pytest.raises(ProfileError, match="column 't' of type int64 is not datetime: numbers have no unit of time"):
        reference.updated({"t": [1]})


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=30), min_size=1, max_size=20))
def test_the_shape_of_a_text_is_a_plain_count_of_its_characters(texts: list[str]) -> None:
    column = Profile.of({"s": texts}, {"s": "text"}).columns["s"]
    assert isinstance(column, TextColumn)
    blank = " \t\n\r\v\f"
    words = [len("".join(" " if c in blank else "x" for c in text).split()) for text in texts]

    def mean_of(letters: str) -> float:
        return sum(sum(c in letters for c in text) / max(len(text), 1) for text in texts) / len(texts)

    found = {name: part.mean for name, part in column.parts.items()}
    assert found["length"] == pytest.approx(sum(map(len, texts)) / len(texts))
    assert found["words"] == pytest.approx(sum(words) / len(texts))
    assert found["letters"] == pytest.approx(mean_of(string.ascii_letters))
    assert found["capitals"] == pytest.approx(mean_of(string.ascii_uppercase))
    assert found["digits"] == pytest.approx(mean_of(string.digits))
    assert found["punctuation"] == pytest.approx(mean_of(string.punctuation))
    assert found["foreign"] == pytest.approx(
        sum(sum(ord(c) > 127 for c in t) / max(len(t), 1) for t in texts) / len(texts)
    )


def test_free_text_is_told_from_codes_and_categories() -> None:
    generator = np.random.default_rng(1)
    words = np.array(["the", "model", "was", "retrained", "after", "an", "alarm", "about", "flights", "from", "Newark"])
    rows = 400
    found = Profile.of(
        {
            "review": [" ".join(generator.choice(words, 9)) for _ in range(rows)],
            "chinese": ["".join(map(chr, generator.integers(0x4E00, 0x9000, 30))) for _ in range(rows)],
            "uuid": [f"{number:032x}" for number in generator.integers(0, 2**62, rows)],
            "status": generator.choice(["ok", "not at all ok today", "it is late again"], rows),
            "few": [" ".join(words)] * rows,
        }
    )

    assert {name: column.kind for name, column in found.columns.items()} == {
        "review": "text",
        "chinese": "text",
        "uuid": "categorical",
        "status": "categorical",
        "few": "categorical",
    }
    assert Profile.of({"s": ["a b c d"] * 3}, {"s": "text"}).columns["s"].kind == "text"


def test_embeddings_keep_the_moments_of_every_dimension_and_count_what_is_wrong() -> None:
    vectors = np.random.default_rng(2).normal(3.0, 2.0, size=(5_000, 7))
    reference = Profile.of({"e": vectors})
    column = reference.columns["e"]
    odd = reference.empty().updated({"e": pa.array([[1.0] * 7, [1.0] * 6, None, [math.nan] * 7])}).columns["e"]

    assert isinstance(column, EmbeddingColumn)
    assert isinstance(odd, EmbeddingColumn)
    assert column.dimensions == 7
    np.testing.assert_allclose(column.mean, vectors.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(column.m2 / 5_000, vectors.var(axis=0), rtol=1e-9)
    assert column.norm.mean == pytest.approx(np.linalg.norm(vectors, axis=1).mean())
    assert (odd.count, odd.misshapen, odd.missing, odd.norm.nan, odd.rows) == (1, 1, 1, 1, 4)


def test_the_mean_embeddings_distance_is_that_of_the_kernel() -> None:
    generator = np.random.default_rng(3)
    before, now = generator.normal(size=(400, 3)), generator.normal(0.8, 1.0, size=(400, 3))
    reference = Profile.of({"e": before})
    one, other = (profile.columns["e"] for profile in (reference, reference.empty().updated({"e": now})))
    assert isinstance(one, EmbeddingColumn)
    assert isinstance(other, EmbeddingColumn)
    assert one.fourier is not None
    assert other.fourier is not None

    def kernel(a: Any, b: Any) -> float:
        squares = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)
        return float(np.exp(-squares / (2 * one.fourier.bandwidth**2)).mean())  # type: ignore[union-attr]

    exact = kernel(before, before) + kernel(now, now) - 2 * kernel(before, now)
    assert np.sum((one.fourier.mean - other.fourier.mean) ** 2) == pytest.approx(exact, rel=0.3)


def test_the_joint_part_is_numpys_covariance_and_counts_what_it_imputed() -> None:
    generator = np.random.default_rng(4)
    rows = generator.multivariate_normal([5, -3], [[4, 1.5], [1.5, 1]], size=20_000)
    profile = Profile.of({"a": rows[:, 0], "b": rows[:, 1], "c": ["x"] * 20_000}, joint=True)
    joint = profile.joint
    assert joint is not None
    spoilt = profile.empty().updated({"a": [1e9, math.nan, 5.0], "b": pa.array([None, -3.0, math.inf])}).joint

    assert joint.columns == ("a", "b")
    assert joint.count == 20_000
    np.testing.assert_allclose(joint.covariance.matrix, np.corrcoef(rows.T), rtol=1e-9)
    assert spoilt is not None
    assert spoilt.imputed.tolist() == [1, 2]
    assert np.abs(spoilt.covariance.mean).max() < 10 / 3 + 0.1
    with pytest.raises(ProfileError, match="only one of the profiles has a joint part"):
        profile + Profile(profile.columns)


TYPES: list[tuple[str, pa.Array, str]] = [
    ("decimal", pa.array([decimal.Decimal("1.50"), decimal.Decimal("2.25"), None]), "numeric"),
    ("uint64", pa.array([2**63 + 10, 1, None], pa.uint64()), "numeric"),
    ("int64", pa.array([2**53 + 1, -(2**60), None], pa.int64()), "numeric"),
    ("float16", pa.array(np.array([1.5, 2.0], np.float16)), "numeric"),
    ("int8", pa.array([1, -2, None], pa.int8()), "numeric"),
    ("null", pa.nulls(3), "numeric"),
    ("duration", pa.array([1_500, None, 3_000], pa.duration("ms")), "numeric"),
    ("time32", pa.array([60, 120], pa.time32("s")), "numeric"),
    ("time64", pa.array([1_000_000, None], pa.time64("us")), "numeric"),
    ("coded numbers", pa.array([1.5, 2.5, 1.5, None]).dictionary_encode(), "numeric"),
    ("coded texts", pa.array(["a", "b", "a", None]).dictionary_encode(), "categorical"),
    ("large_string", pa.array(["a", None, "b"], pa.large_utf8()), "categorical"),
    ("string_view", pa.array(["a", None, "b"], pa.string_view()), "categorical"),
    ("run ends", pa.RunEndEncodedArray.from_arrays([2, 3], pa.array(["a", "b"])), "categorical"),
    ("bool", pa.array([True, None, False]), "boolean"),
    ("date32", pa.array([dt.date(2024, 1, 1), None]), "datetime"),
    ("date64", pa.array([dt.date(2024, 1, 1), None], pa.date64()), "datetime"),
    ("zoned", pa.array([dt.datetime(2024, 1, 1), None], pa.timestamp("ns", "Europe/Paris")), "datetime"),
    ("vectors", pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float64())), "embedding"),
    ("int vectors", pa.array([[1, 2], None], pa.list_(pa.int8(), 2)), "embedding"),
    ("half vectors", pa.array([[1.0, 2.0]], pa.list_(pa.float16(), 2)), "embedding"),
]


@pytest.mark.parametrize(("values", "kind"), [case[1:] for case in TYPES], ids=[case[0] for case in TYPES])
def test_every_type_has_its_kind_and_counts_each_row_once(values: pa.Array, kind: str) -> None:
    profile = Profile.of(pa.table({"v": values}))
    column = profile.columns["v"]

    assert column.kind == kind
    assert (column.rows, column.missing) == (len(values), values.null_count)
    again = profile.empty().updated(pa.table({"v": pa.chunked_array([values.slice(0, 1), values.slice(1)])}))
    assert integers(json.loads(again.to_json())) == integers(json.loads(profile.to_json()))
    assert Profile.from_json(profile.to_json()) == profile


def test_what_no_kind_holds_is_left_out_with_the_reason() -> None:
    strange = pa.table({"b": [b"\xff"], "s": [{"a": 1}], "l": [["x"]], "x": [1.0]})

    profile = Profile.of(strange)

    assert list(profile.columns) == ["x"]
    assert profile.left_out["b"] == "the type binary is bytes: cast it to text, or name a kind for it"
    assert profile.left_out["s"].startswith("no kind of column holds the type struct<a: int64>")
    assert set(profile.left_out) == {"b", "s", "l"}
    assert Profile.from_json(profile.to_json()).left_out == profile.left_out
    with pytest.raises(ProfileError, match="column 's' of type struct<a: int64> is not numeric"):
        Profile.of(strange, {"s": "numeric"})
    with pytest.raises(ProfileError, match="column 'b' of type binary is not categorical"):
        Profile.of(strange, {"b": "categorical"})
    with pytest.raises(ProfileError, match="the kind 'number'"):
        Profile.of(strange, {"x": "number"})  # type: ignore[dict-item]


def test_wide_numbers_are_counted_as_the_nearest_double() -> None:
    values = np.array([2**53 + 1, 2**62, -(2**62) - 1], np.int64)
    column = Profile.of({"v": values}).columns["v"]

    assert isinstance(column, NumericColumn)
    assert (column.minimum, column.maximum) == (float(values.min()), float(values.max()))
    assert (column.count, column.out_of_range) == (3, 0)


def test_codes_and_floats_and_texts_of_one_number_are_one_category() -> None:
    reference = Profile.of({"c": [1, 2, 2]}, {"c": "categorical"}).empty()

    for same in ([1.0, 2.0], ["1", "2"], pa.array([1, 2], pa.int8()), pa.array(["1", "2"]).dictionary_encode()):
        assert reference.updated({"c": same}).columns["c"].counts.tolist() == [1, 1, 0, 0]


@settings(deadline=None)
@given(
    st.lists(st.text("abcdefghij", min_size=1, max_size=4), max_size=300),
    st.lists(st.integers(0, 300), max_size=4),
    st.booleans(),
)
def test_strangers_are_the_same_whatever_the_order_and_the_parts(
    texts: list[str], cuts: list[int], coded: bool
) -> None:
    empty = Profile.of({"c": ["known"]}).empty()
    bounds = [0, *sorted(min(cut, len(texts)) for cut in cuts), len(texts)]
    parts = [pa.array(texts[low:high], pa.utf8()) for low, high in pairwise(bounds)]
    if coded:
        parts = [part.dictionary_encode() for part in parts]
    whole = empty.updated({"c": pa.array(texts[::-1], pa.utf8())}).columns["c"]
    total = empty
    for part in parts:
        total = empty.updated({"c": part}) + total
    column = total.columns["c"]

    assert isinstance(column, CategoricalColumn)
    assert isinstance(whole, CategoricalColumn)
    assert column == whole
    assert column.unseen == len(texts)
    assert len(column.strangers) == min(len(set(texts)), CAPACITY)
    assert all(texts.count(text) == count for text, count in column.strangers.items())
    if len(set(texts)) <= CAPACITY:
        assert sum(column.strangers.values()) == len(texts)


def test_the_tail_is_the_same_whatever_the_order_the_parts_and_the_type() -> None:
    random = np.random.default_rng(0)
    reference = Profile.of({"c": pa.array(random.integers(0, 2_000, 20_000).astype(str))})
    numbers = random.integers(0, 4_000, 5_000)
    texts = pa.array(numbers.astype(str))
    empty = reference.empty()
    whole = empty.updated({"c": texts}).columns["c"]
    parts = [empty.updated({"c": part}) for part in (texts[3_000:].dictionary_encode(), numbers[:3_000])]
    stored = Profile.from_json((parts[0] + parts[1]).to_json()).columns["c"]

    assert isinstance(whole, CategoricalColumn)
    assert stored == whole == (parts[1] + parts[0]).columns["c"]
    assert whole.tail.sum() == whole.counts[-1] > 0
    assert np.count_nonzero(whole.tail) > 100
    assert not Profile.of({"c": ["a", "b"]}).empty().updated({"c": texts}).columns["c"].tail.any()  # type: ignore[union-attr]


def test_long_strangers_are_kept_short_and_apart() -> None:
    long = ["x" * 500 + str(number) for number in range(3)]
    column = Profile.of({"c": ["a"]}).empty().updated({"c": long * 2}).columns["c"]
    again = Profile.of({"c": ["a"]}).empty().updated({"c": long}).columns["c"]

    assert isinstance(column, CategoricalColumn)
    assert isinstance(again, CategoricalColumn)
    assert sorted(column.strangers.values()) == [2, 2, 2]
    assert all(len(text) < 100 for text in column.strangers)
    assert merged(again.strangers, again.strangers) == column.strangers


def test_hashes_do_not_depend_on_where_a_text_lies() -> None:
    texts = pa.array(["", "a", "ab", "abcdefgh", "abcdefghi", "é" * 40, "x" * 1000])
    moved = pa.concat_arrays([pa.array(["before"]), texts]).slice(1)

    assert hashed(texts).tolist() == hashed(moved).tolist() == hashed(texts.cast(pa.large_utf8())).tolist()
    assert len(set(hashed(texts).tolist())) == len(texts)
    assert Sample().result() == {}


def test_a_hundred_thousand_categories_stay_small() -> None:
    texts = pa.array([f"user-{number}" for number in range(100_000)] + ["frequent"] * 50)
    profile = Profile.of({"c": texts})
    column = profile.columns["c"]

    assert isinstance(column, CategoricalColumn)
    assert (column.categories, column.truncated) == (("frequent",), True)
    assert (column.count, column.unseen) == (100_050, 0)
    assert len(column.strangers) == CAPACITY
    assert len(profile.to_json()) < 10_000


def test_frequent_texts_survive_in_bounded_memory() -> None:
    frequent = FrequentTexts(capacity=100)
    for start in range(0, 10_000, 50):
        frequent.add([("often", 5), ("also", 3), *((f"once {start + i}", 1) for i in range(50))])

    kept, more = frequent.most(2)
    assert kept == ("often", "also")
    assert more
    assert len(frequent.most(10_000)[0]) <= 100


def test_numbers_of_a_boolean_column_are_true_unless_zero_and_nan_is_missing() -> None:
    column = Profile.of({"b": [True, False]}).empty().updated({"b": [0.0, 2.0, math.nan, None]}).columns["b"]

    assert isinstance(column, BooleanColumn)
    assert (column.counts.tolist(), column.missing) == ([1, 1], 2)
