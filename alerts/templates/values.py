"""The values that a template works with, and what Go calls their types.

`str`, `bool`, `int`, `float` and None stand for Go's string, bool, int, float64 and nil; the classes here for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

Value = Any

MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class LabelMap(dict[str, str]):
    """Labels: an absent one is the empty text."""


class ArgumentMap(dict[str, Value]):
    """What `args` makes."""


class QueryResult(list["SamplePointer"]):
    """What `query` gives."""


class Html(str):
    """What `safeHtml` makes: printed like text, but no text to functions."""


class Byte(int):
    """What indexing a text gives."""


class Named(int):
    """A number whose type prints it by name: a month or a weekday."""

    type_name: str
    text: str

    @classmethod
    def of(cls, number: int, type_name: str, text: str) -> Named:
        """The number with its type and its name."""
        made = cls(number)
        made.type_name, made.text = type_name, text
        return made


@dataclass(frozen=True, slots=True)
class SamplePointer:
    """One sample of a query's result."""

    labels: LabelMap
    value: float


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of time in nanoseconds."""

    nanoseconds: int


@dataclass(frozen=True, slots=True)
class Time:
    """A moment in UTC, as nanoseconds since 1970."""

    nanoseconds: int

    @property
    def moment(self) -> datetime:
        """The moment to the microsecond."""
        return _EPOCH + timedelta(microseconds=self.nanoseconds // 1000)

    @property
    def fraction(self) -> int:
        """Nanoseconds of the second."""
        return self.nanoseconds % 1_000_000_000


@dataclass(frozen=True, slots=True)
class Data:
    """The dot that a template begins with."""

    Labels: LabelMap
    ExternalLabels: LabelMap
    ExternalURL: str
    Value: float


_TYPES: Mapping[type, str] = {
    bool: "bool",
    int: "int",
    float: "float64",
    str: "string",
    LabelMap: "map[string]string",
    ArgumentMap: "map[string]interface {}",
    QueryResult: "template.queryResult",
    SamplePointer: "*template.sample",
    Html: "template.HTML",
    Byte: "uint8",
    Time: "*time.Time",
    Duration: "*time.Duration",
    Data: "struct { Labels map[string]string; ExternalLabels map[string]string; ExternalURL string; Value float64 }",
    type(None): "<nil>",
}


def type_name(value: Value) -> str:
    """The name of a value's Go type."""
    return value.type_name if isinstance(value, Named) else _TYPES[type(value)]


def truth(value: Value) -> bool:
    """Go's truth: false, 0, nil, "" and empty collections are false; a struct or a pointer is true."""
    return True if isinstance(value, (SamplePointer, Time, Duration, Data)) else bool(value)


def members(value: SamplePointer | Data) -> dict[str, Value]:
    """The exported fields of a struct by their names."""
    if isinstance(value, SamplePointer):
        return {"Labels": value.labels, "Value": value.value}
    return {
        "Labels": value.Labels,
        "ExternalLabels": value.ExternalLabels,
        "ExternalURL": value.ExternalURL,
        "Value": value.Value,
    }
