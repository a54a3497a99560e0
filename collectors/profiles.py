"""Profiles as an intake: what a sender counted of a version's rows itself, in place of the rows' own columns.

Which columns of a version come so is declared beside its reference (`"from_profiles"`): those are taken from profiles
alone, all others from events alone, so that no row is counted twice, whatever its events carry. A posted profile covers
a span of event time no longer than a window, and is counted whole in the window that holds the middle of the span.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import msgspec

from observability.columns import ProfileError
from observability.profile import Profile

START_HEADER, END_HEADER = "x-profile-start", "x-profile-end"
# The furthest from 1970 that nanoseconds in 64 bits reach.
MOST_SECONDS = 9.2e9


@dataclass(frozen=True, slots=True)
class Source:
    """Where a version's rows are counted: the `columns`, and with `joint` the joint part, come in profiles.

    The rest comes with its events.
    """

    columns: frozenset[str] = frozenset()
    joint: bool = False

    @staticmethod
    def declared(value: bool | list[str] | None, reference: Profile) -> Source:
        """What `"from_profiles"` says: true (everything), or names of columns. ProfileError for unknown ones."""
        if not value:
            return EVENTS
        if value is True:
            return Source(frozenset(reference.columns), joint=True)
        if unknown := sorted(set(value) - set(reference.columns)):
            raise ProfileError(f"from_profiles names columns that the profile lacks: {', '.join(unknown)}")
        return Source(frozenset(value))


EVENTS = Source()


@dataclass(frozen=True, slots=True)
class ProfileBatch:
    """A profile of one version's rows between two event times, unix seconds."""

    model: str
    version: str
    start: float
    end: float
    profile: Profile

    @property
    def num_rows(self) -> int:
        return self.profile.rows

    @property
    def time(self) -> float:
        """The window that holds it is the one that the batch is counted in."""
        return (self.start + self.end) / 2

    def to_bytes(self) -> bytes:
        """What `from_bytes` reads."""
        body = msgspec.Raw(self.profile.to_json())
        return msgspec.json.encode(_Stored(self.model, self.version, self.start, self.end, body))

    @staticmethod
    def from_bytes(body: bytes) -> ProfileBatch:
        """The batch that `to_bytes` wrote."""
        stored = msgspec.json.decode(body, type=_Stored)
        profile = Profile.from_json(bytes(stored.profile))
        return ProfileBatch(stored.model, stored.version, stored.start, stored.end, profile)


class _Stored(msgspec.Struct):
    model: str
    version: str
    start: float
    end: float
    profile: msgspec.Raw


class NotProfiled(ValueError):
    """Columns of a posted profile that the version takes from its events, or from nowhere."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the profiles of one version have to look like."""

    model: str
    version: str
    reference: Profile
    source: Source
    window_seconds: float = field(default=math.inf)

    def read(self, body: bytes, headers: Mapping[str, str]) -> ProfileBatch:
        """The batch of a request. ProfileError says what does not fit, NotProfiled which columns come with events."""
        start, end = _time(headers, START_HEADER), _time(headers, END_HEADER)
        if not start <= end:
            raise ProfileError(f"the profile ends at {end}, before it starts at {start}")
        if end - start > self.window_seconds:
            raise ProfileError(
                f"the profile covers {end - start:g} s and windows are {self.window_seconds:g} s long: "
                "send one a window at least, it cannot be divided"
            )
        profile = Profile.from_json(body)
        if not profile.columns:
            raise ProfileError("the profile has no columns")
        if unknown := sorted(set(profile.columns) - set(self.reference.columns)):
            known = ", ".join(self.reference.columns)
            raise ProfileError(f"the reference of {self._owner} has no column {', '.join(unknown)}: it has {known}")
        if others := sorted(set(profile.columns) - self.source.columns):
            raise NotProfiled(
                f"{self._owner} takes {', '.join(others)} from its events: to take columns from profiles, PUT the "
                'reference with their names as "from_profiles" (or true for all)'
            )
        joint = profile.joint if self.source.joint and self.reference.joint is not None else None
        self._check_layout(Profile(profile.columns, joint))
        return ProfileBatch(self.model, self.version, start, end, Profile(profile.columns, joint, profile.distinct))

    def _check_layout(self, profile: Profile) -> None:
        """ProfileError unless columns, and the joint part if there is one, are counted over the reference's layout."""
        joint = None if profile.joint is None else self.reference.joint
        known = Profile({name: self.reference.columns[name] for name in profile.columns}, joint)
        try:
            known.empty() + profile.empty()
        except ProfileError as error:
            raise ProfileError(
                f"the profile is not counted over the bins and categories of the reference of {self._owner}: {error}; "
                f"make it of GET /v1/references/{self.model}/{self.version}"
            ) from error

    @property
    def _owner(self) -> str:
        return f"{self.model} version {self.version}"


def _time(headers: Mapping[str, str], name: str) -> float:
    """Unix seconds of a header that says them, or RFC 3339. ProfileError when it does not."""
    text = headers.get(name, "").strip()
    if not text:
        raise ProfileError(f"the header {name.title()} is missing: unix seconds or RFC 3339, in event time")
    try:
        seconds = float(text)
    except ValueError:
        try:
            when = datetime.fromisoformat(text)
        except ValueError:
            seconds = math.nan
        else:
            # A time that names no zone is taken for UTC, as all times here are.
            seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    if not abs(seconds) <= MOST_SECONDS:
        raise ProfileError(f"the header {name.title()} says {text!r}: give unix seconds or RFC 3339")
    return seconds


def merged_into(window: Profile, posted: Profile) -> Profile:
    """`window` with what was posted added, column by column. ProfileError where a layout differs."""
    alone = Profile({name: window.columns[name] for name in posted.columns})
    total = alone + Profile(posted.columns)
    joint = window.joint
    if joint is not None and posted.joint is not None:
        joint = joint + posted.joint
    distinct = window.distinct
    if distinct is not None and posted.distinct is not None:
        counted = {name: sketch for name, sketch in posted.distinct.items() if name in distinct}
        distinct = {**distinct, **{name: distinct[name] + sketch for name, sketch in counted.items()}}
    return Profile({**window.columns, **total.columns}, joint, distinct, window.left_out)
