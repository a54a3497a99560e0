"""What a source may send: how many series, and how many and how long labels. A refusal names the worst label."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from collectors.store.values import Labels

_SHOWN = 60


class LimitExceeded(ValueError):
    """An append over a limit, of which nothing was taken; the message names the label that is to blame."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on each target (series) and on each series (labels); lengths are bytes of UTF-8. 0 lifts a bound."""

    series_per_target: int = 250_000
    labels_per_series: int = 64
    label_name_bytes: int = 1024
    label_value_bytes: int = 16_384

    def check_labels(self, labels: Labels) -> None:
        """Raises LimitExceeded for a label set that is not text, not UTF-8, or over a bound."""
        for name, value in labels.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise LimitExceeded(f"label {name!r} has the value {value!r}: names and values of labels are texts")
            name_bytes, value_bytes = _length(name, name), _length(name, value)
            if not name:
                raise LimitExceeded(f"a label of {_named(labels)} has an empty name")
            if self.label_name_bytes and name_bytes > self.label_name_bytes:
                raise LimitExceeded(
                    f"label {_short(name)} of {_named(labels)} has a name of {name_bytes:,} bytes; "
                    f"at most {self.label_name_bytes:,} are taken"
                )
            if self.label_value_bytes and value_bytes > self.label_value_bytes:
                raise LimitExceeded(
                    f"label {_short(name)} of {_named(labels)} has a value of {value_bytes:,} bytes "
                    f"({_short(value)}); at most {self.label_value_bytes:,} are taken"
                )
        if self.labels_per_series and len(labels) > self.labels_per_series:
            longest = max(labels, key=lambda name: len(labels[name]))
            raise LimitExceeded(
                f"{_named(labels)} has {len(labels):,} labels; at most {self.labels_per_series:,} are taken "
                f"(the longest is {_short(longest)})"
            )

    def refuse_series(self, target: str, count: int, series: Iterable[Labels]) -> LimitExceeded:
        """The error for a target with `count` series, of which these are some: names the label with most values."""
        values: dict[str, set[str]] = {}
        for labels in series:
            for name, value in labels.items():
                if name != "__name__":
                    values.setdefault(name, set()).add(value)
        said = ""
        if values:
            worst = max(values, key=lambda name: len(values[name]))
            example = next(iter(values[worst]))
            said = (
                f"; label {_short(worst)} alone has {len(values[worst]):,} values, such as {_short(example)}: "
                "drop it at the source or by relabelling"
            )
        return LimitExceeded(
            f"target {_short(target)} would have {count:,} series; at most {self.series_per_target:,} are taken{said}"
        )


def _length(name: str, text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise LimitExceeded(f"label {name!r} is not valid UTF-8: {error.reason} in {_short(text)}") from error


def _named(labels: Labels) -> str:
    return f"series {_short(labels.get('__name__', 'without a name'))}"


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
