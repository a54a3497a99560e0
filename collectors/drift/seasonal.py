"""A reference by the hour of the week: a window is compared with the same hours, where there is enough of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from collectors.drift.calibration import FEWEST_BLOCKS, Between, Calibration, between_of
from observability.cells import Kind, ProfileError
from observability.profile import Profile

FORMAT = 1
HOURS = 168
HOUR_NS = 3_600_000_000_000
# 1 January 1970 was a Thursday; cell 0 is Monday from 00:00 UTC.
_THURSDAY = 72
# A slot seen in fewer weeks, or a mixture of fewer rows, says less than the whole reference.
FEWEST_WEEKS = 2
FEWEST_ROWS = 1000
# Hours that say how the weeks of one differ, and columns whose hours are held in memory at a time.
MOST_HOURS = 4 * HOURS
COLUMNS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class SeasonalReference:
    """The whole reference, and its profile in each hour of the week that it has rows in; all of one layout."""

    whole: Profile
    slots: dict[int, Profile] = field(default_factory=dict)
    weeks: dict[int, int] = field(default_factory=dict)
    """In how many different weeks each slot has rows."""
    between: Calibration | None = None
    """How the weeks of one hour differ by more than chance among rows; None where that is not known."""

    @staticmethod
    def of(
        table: pa.Table, time: str, kinds: Mapping[str, Kind] | None = None, reference: Profile | None = None
    ) -> SeasonalReference:
        """From rows with a column of times (timestamps, or nanoseconds since 1970 as integers), in UTC.

        `reference` gives the layout, by default the profile of the table without `time`. ProfileError if there is no
        such column or it is not of times. Rows without a time are in the whole only.
        """
        if time not in table.schema.names:
            raise ProfileError(f"column {time!r} is not in the table: it has {', '.join(table.schema.names)}")
        hours = _hours(table.column(time), time)
        values = table.drop_columns([time]) if kinds is None or time not in kinds else table
        whole = Profile.of(values, kinds) if reference is None else reference.empty().updated(values)
        known = np.flatnonzero(hours >= 0)
        slot = (hours[known] + _THURSDAY) % HOURS
        order = known[np.argsort(slot, kind="stable")]
        bounds = np.searchsorted(np.sort(slot), np.arange(HOURS + 1))
        slots, weeks = {}, {}
        for place in range(HOURS):
            rows = order[bounds[place] : bounds[place + 1]]
            if len(rows):
                slots[place] = whole.empty().updated(values.take(pa.array(rows)))
                weeks[place] = len(np.unique(hours[rows]))
        repeated = np.isin(slot, [place for place, count in weeks.items() if count >= FEWEST_WEEKS])
        between = _between(values, whole, slots, hours, known[repeated])
        return SeasonalReference(whole, slots, weeks, between)

    def differing(self, start_ns: int, end_ns: int) -> Calibration | None:
        """How windows as long as from `start_ns` up to `end_ns` differ from their own hours by themselves.

        Hours that remember each other differ together, those that do not even out; what an hour differs by lasts for
        all windows in it.
        """
        if self.between is None or end_ns <= start_ns:
            return None
        hours = (end_ns - start_ns) / HOUR_NS
        columns = {}
        for name, one in self.between.columns.items():
            evened = min(one.memory / hours, 1.0)
            memory = max(one.memory / hours, 1.0) if one.mean or one.missing else 1.0
            columns[name] = Between(
                one.mean * evened, one.variance * evened**2, one.error * evened, one.missing * evened, memory
            )
        return replace(self.between, columns=columns)

    def during(self, start_ns: int, end_ns: int, *, fewest_rows: int = FEWEST_ROWS) -> Profile:
        """The reference for a window from `start_ns` up to `end_ns`: the sum of the slots that it touches.

        The whole, where the window is empty or as long as a week, where a slot was seen in fewer than two weeks, or
        where the sum has fewer than `fewest_rows` rows.
        """
        first, last = start_ns // HOUR_NS, -(-end_ns // HOUR_NS)
        if last <= first or last - first >= HOURS:
            return self.whole
        touched = [(hour + _THURSDAY) % HOURS for hour in range(first, last)]
        if any(self.weeks.get(slot, 0) < FEWEST_WEEKS for slot in touched):
            return self.whole
        mixture = sum((self.slots[slot] for slot in touched), start=self.whole.empty())
        return mixture if mixture.rows >= fewest_rows else self.whole

    def usable(self) -> SeasonalReference:
        """Without the hours that no window is compared with, for they were seen in too few weeks."""
        kept = [slot for slot in self.slots if self.weeks.get(slot, 0) >= FEWEST_WEEKS]
        return SeasonalReference(
            self.whole,
            {slot: self.slots[slot] for slot in kept},
            {slot: self.weeks[slot] for slot in kept},
            self.between,
        )

    def to_json(self) -> bytes:
        """As UTF-8 JSON; each profile is its own JSON inside."""
        return json.dumps(
            {
                "format": FORMAT,
                "whole": json.loads(self.whole.to_json()),
                "slots": {str(slot): json.loads(profile.to_json()) for slot, profile in self.slots.items()},
                "weeks": {str(slot): weeks for slot, weeks in self.weeks.items()},
                **({"between": self.between.to_json()} if self.between else {}),
            },
            separators=(",", ":"),
        ).encode()

    @staticmethod
    def from_json(body: bytes) -> SeasonalReference:
        """The reference that `to_json` wrote. ProfileError if the body is something else."""
        try:
            value = json.loads(body)
            if value["format"] != FORMAT:
                raise ProfileError(f"the seasonal reference has format {value['format']}, this version reads {FORMAT}")
            slots = {int(slot): _profile(profile) for slot, profile in value["slots"].items()}
            weeks = {int(slot): int(weeks) for slot, weeks in value["weeks"].items()}
            between = Calibration.from_json(value["between"]) if "between" in value else None
            return SeasonalReference(_profile(value["whole"]), slots, weeks, between)
        except ProfileError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ProfileError(f"the body is not a seasonal reference: {type(error).__name__}: {error}") from error


def _profile(value: object) -> Profile:
    return Profile.from_json(json.dumps(value).encode())


def _between(
    values: pa.Table, whole: Profile, slots: Mapping[int, Profile], hours: NDArray[np.int64], rows: NDArray[np.int64]
) -> Calibration | None:
    """How the single hours in `rows`, at most four weeks of them, differ from the slots that they lie in."""
    rows = rows[np.argsort(hours[rows], kind="stable")]
    found, starts = np.unique(hours[rows], return_index=True)
    latest = found[-MOST_HOURS:]
    if len(latest) < FEWEST_BLOCKS:
        return None
    ends = np.append(starts[1:], len(rows))[-MOST_HOURS:]
    chosen = [pa.array(rows[start:end]) for start, end in zip(starts[-MOST_HOURS:], ends, strict=True)]
    places = [int(slot) for slot in (latest + _THURSDAY) % HOURS]
    together = max(round(len(found) / len(set(places))), FEWEST_WEEKS)
    columns, names = {}, list(whole.columns)
    for at in range(0, len(names), COLUMNS_AT_ONCE):
        some = names[at : at + COLUMNS_AT_ONCE]
        empty = Profile({name: whole.columns[name] for name in some}).empty()
        blocks = [empty.updated(values.select(some).take(one)) for one in chosen]
        for name in some:
            one = between_of(
                [slots[place].columns[name] for place in places], [block.columns[name] for block in blocks], together
            )
            # A new window is off by itself, and the slot is by what the mean of its weeks is.
            more = 1 + 1 / together
            columns[name] = Between(
                one.mean * more, one.variance * more**2, one.error * more, one.missing * more, one.memory
            )
    return Calibration(len(chosen), round(sum(map(len, chosen)) / len(chosen)), columns)


def _hours(values: pa.ChunkedArray, name: str) -> NDArray[np.int64]:
    """Whole hours since 1970, −1 for a missing time."""
    if pa.types.is_date(values.type):
        values = values.cast(pa.timestamp("s"))
    if not pa.types.is_timestamp(values.type) and not pa.types.is_integer(values.type):
        raise ProfileError(f"column {name!r} of type {values.type} is not of times: give timestamps or nanoseconds")
    nanoseconds = values.cast(pa.int64()) if pa.types.is_integer(values.type) else _nanoseconds(values)
    hours: NDArray[np.int64] = pc.fill_null(nanoseconds, -HOUR_NS).to_numpy() // HOUR_NS
    return hours


def _nanoseconds(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return values.cast(pa.timestamp("ns", tz=values.type.tz)).cast(pa.int64())
