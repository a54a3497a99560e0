"""Numbers as spreadsheets write them: told of where they were not read, and read right where they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from collectors.drift.compare import compare, saved_profile
from collectors.drift.comparison import Comparison, Mode
from collectors.drift.written_numbers import Decimal, numbers_written, writing_of

Writer = Callable[[float], str]


def swapped(text: str) -> str:
    return text.translate(str.maketrans(",.", ".,"))


WRITERS: dict[str, Writer] = {
    "dollars": lambda value: f"${value:,.2f}",
    "euros": lambda value: swapped(f"{value:,.2f} €"),
    "spaces": lambda value: f"{value:,.2f}".replace(",", "\u00a0").replace(".", ","),
    "apostrophes": lambda value: f"CHF {value:,.2f}".replace(",", "’"),
    "no thousands": lambda value: f"{value:.2f}".replace(".", ","),
    "brackets": lambda value: f"({value:,.2f})",
}


def amounts(seed: int, shift: float = 0.0, rows: int = 2000) -> list[float]:
    draw = np.random.default_rng(seed)
    return [float(value) for value in np.round(np.exp(draw.normal(7 + shift, 1, rows)), 2)]


def table(values: list[float], write: Writer) -> pa.Table:
    return pa.table({"amount": [write(value) for value in values]})


def read(before: pa.Table, now: pa.Table, mode: Mode = "exact") -> Comparison:
    return compare(before, now, kinds={"amount": "numeric"}, mode=mode)


@pytest.mark.parametrize("mode", ["exact", "profile"])
@pytest.mark.parametrize("name", list(WRITERS))
def test_amounts_are_the_numbers_that_they_say(name: str, mode: Mode) -> None:
    first, second = amounts(1), amounts(2, 0.3)
    sign = -1 if name == "brackets" else 1
    plain = [pa.table({"amount": [sign * value for value in values]}) for values in (first, second)]

    found = read(table(first, WRITERS[name]), table(second, WRITERS[name]), mode).columns["amount"]

    wanted = compare(*plain, mode=mode).columns["amount"]
    assert (found.type, found.score, found.wasserstein) == ("numeric", wanted.score, wanted.wasserstein)
    assert found.missing.reference == found.missing.current == 0
    assert found.drifted


def test_a_percentage_is_so_many_hundredths_and_said_to_be(tmp_path: Path) -> None:
    shares = [value / 1e5 for value in amounts(3)]
    (tmp_path / "a.csv").write_text("amount\n" + "\n".join(f"{100 * share:.6f}%" for share in shares))

    found = compare(tmp_path / "a.csv", pa.table({"amount": shares})).columns["amount"]

    assert (found.type, found.drifted) == ("numeric", False)
    assert found.wasserstein == pytest.approx(0, abs=1e-8)
    assert "12% is 0.12" in found.reason


@pytest.mark.parametrize("mode", ["exact", "profile"])
def test_what_a_comma_is_shows_in_some_values_and_holds_for_all(mode: Mode) -> None:
    # None of the first rows tells: 1,234 may be a thousand or one.
    few, whole = ["1,234"] * 1500, ["0,5"] * 1500
    told = pa.table({"amount": pa.chunked_array([few, whole])})

    found = compare(told, pa.table({"amount": [1.234, 0.5] * 700}), mode=mode).columns["amount"]

    assert found.wasserstein == pytest.approx(0, abs=1e-9)
    thousands = compare(pa.table({"amount": few}), pa.table({"amount": [1234.0] * 99}), mode=mode).columns["amount"]
    assert thousands.wasserstein == 0
    assert "'1,234' is read as 1234" in thousands.reason


def test_each_side_is_read_by_its_own_sign_and_what_differs_is_told() -> None:
    values = amounts(4)

    found = read(table(values, WRITERS["dollars"]), table(values, WRITERS["euros"])).columns["amount"]

    assert (found.score, found.drifted) == (0.0, False)
    assert "a point in the reference and with a comma in the current table" in found.reason
    assert "the currencies differ and are not converted: $ in the reference, now €" in found.reason


def test_a_side_that_does_not_tell_is_read_as_the_other_one() -> None:
    before = pa.table({"amount": ["1.250,50 €", "0,99 €", "2.000 €"] * 40})

    found = read(before, pa.table({"amount": ["2.000 €"] * 120})).columns["amount"]

    assert found.cells is not None
    assert found.cells.current.minimum == found.cells.reference.maximum == 2000.0


def test_what_is_no_number_is_missing_and_what_is_one_only_the_other_way_is_that() -> None:
    before = pa.table({"amount": ["1.250,50", "0,99", "1.000,00", "n. a. b.", "12 apples", "(5", "--1", "1,23,4"] * 40})
    now = pa.table({"amount": ["1.250,50", "1,000.00"] * 160})

    found = read(before, now).columns["amount"]

    assert (found.missing.reference, found.missing.current) == (200, 0)
    assert found.cells is not None
    assert (found.cells.current.minimum, found.cells.current.maximum) == (1000.0, 1250.5)
    assert "200 values of the reference are not numbers" in found.reason


@pytest.mark.parametrize("mode", ["exact", "profile"])
@pytest.mark.parametrize("name", list(WRITERS))
def test_a_column_of_amounts_is_told_how_to_be_read(name: str, mode: Mode) -> None:
    before, now = (table(amounts(seed), WRITERS[name]) for seed in (5, 6))

    found = compare(before, now, mode=mode).columns["amount"]

    assert found.type == "categorical"
    assert "--kinds amount=numeric" in found.reason
    assert "--kinds" not in compare(before, now, mode=mode, kinds={"amount": "categorical"}).columns["amount"].reason


@pytest.mark.parametrize(
    "texts",
    [["02139", "10001", "00501"], ["1", "2", "3", "12"], ["a1", "b2", "c3"], ["1.2.3", "1.2.4", "2.0.1"], ["", "1,5"]],
)
def test_codes_and_names_are_let_be(texts: list[str]) -> None:
    found = compare(pa.table({"code": texts * 50}), pa.table({"code": texts * 50})).columns["code"]

    assert found.reason in ("within threshold", "one value in both tables")


def test_whole_numbers_with_a_word_for_nothing_are_told(tmp_path: Path) -> None:
    rows = [str(40 + place) for place in range(60)]
    (tmp_path / "cars.csv").write_text("power\n" + "\n".join([*rows, "?"] * 5))

    found = compare(tmp_path / "cars.csv", tmp_path / "cars.csv").columns["power"]
    asked = compare(tmp_path / "cars.csv", tmp_path / "cars.csv", kinds={"power": "numeric"}).columns["power"]

    assert "--kinds power=numeric" in found.reason
    assert (asked.type, asked.missing.current) == ("numeric", 5)


def test_a_saved_profile_and_parts_read_them_too(tmp_path: Path) -> None:
    values = amounts(7)
    before = table(values, WRITERS["euros"])
    (tmp_path / "before.json").write_bytes(saved_profile(before, kinds={"amount": "numeric"}))
    parts = before.append_column("of", pa.array(["a", "b"] * 1000))

    found = compare(tmp_path / "before.json", before).columns["amount"]
    split = compare(parts, parts, by="of", kinds={"amount": "numeric"})

    assert (found.type, found.score, found.missing.current) == ("numeric", 0.0, 0)
    assert [part.comparison.columns["amount"].missing.current for part in split.values] == [0, 0]


@pytest.mark.parametrize(
    ("text", "point", "comma"),
    [
        ("12,34,567.5", 1234567.5, None),
        ("0,125", None, 0.125),
        ("−7", -7.0, -7.0),
        ("-$3", -3.0, -3.0),
        ("$-3", -3.0, -3.0),
        ("12 %", 0.12, 0.12),
        ("1e5", 1e5, 1e5),
        ("1,2345", None, 1.2345),
        ("1 234,5", None, 1234.5),
        ("ABC 5", None, None),
        ("5)", None, None),
        ("", None, None),
    ],
)
def test_one_text_at_a_time(text: str, point: float | None, comma: float | None) -> None:
    signs: tuple[Decimal, Decimal] = (".", ",")

    assert [numbers_written(pa.array([text]), sign)[0].as_py() for sign in signs] == [point, comma]


def test_how_a_column_writes_adds_up() -> None:
    texts = ["$1,234.50", "12,5 €", "1,234", "7", "word"]

    whole = sum((writing_of(pa.array([text])) for text in texts[1:]), writing_of(pa.array(texts[:1])))

    assert whole == writing_of(pa.array(texts))
    assert (whole.points, whole.commas, whole.either, whole.units) == (1, 1, "1,234", {"$", "€", ""})
