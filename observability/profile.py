"""Profile: what a table looks like, in a few kilobytes a column, so that drift needs no rows.

Profiles of one layout are a commutative monoid: `reference.empty()` is the identity, `a + b` the profile of both
tables. A window is the sum of its batches, a day of its windows, a cluster of its workers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from observability.cells import Kind, ProfileError
from observability.columns import Column, as_reference, column_from_json, rebinned
from observability.distinct import Distinct
from observability.joint import Joint
from observability.kinds import KINDS
from observability.reference import (
    Layout,
    column_groups,
    fitted,
    free_layout,
    joint_blocks,
    joint_layout,
    memory_layout,
    stream_layout,
)
from observability.tables import Data, Rows, Stream, opened

FORMAT = 2
_READABLE = (1, 2)

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Profile:
    """Mergeable summaries of a table's columns, over bins and categories taken from a reference table.

    `joint` is what is kept of the numeric columns together, `distinct` a sketch of each column's different values (both
    where they were asked for). `left_out` names the columns that no kind holds, each with the reason.
    """

    columns: dict[str, Column]
    joint: Joint | None = None
    distinct: dict[str, Distinct] | None = None
    left_out: dict[str, str] = field(default_factory=dict, compare=False)

    @staticmethod
    def of(
        data: Data,
        kinds: Mapping[str, Kind] | None = None,
        *,
        joint: bool = False,
        distinct: bool = False,
        threads: int = 1,
    ) -> Profile:
        """The reference profile of `data`: its quantiles become the bins, its categories the cells.

        Of a table of events the features and predictions are profiled, of another every column that a kind holds (see
        `kind_of_type` and `is_free_text`); the rest is in `left_out`. `kinds` names the columns instead and says what
        they are (for example codes: "categorical").

        A path is a file, a folder or a pattern of Parquet, CSV, Arrow or Feather. In memory, and of Arrow and of CSV
        that is not large, the bins are the exact quantiles. Of Parquet, datasets and large CSV, which may be larger
        than memory, they are those of one row drawn from each of up to 262,144 equal stretches: a bin's share is off by
        about 2 % of itself. The counts are exact over all rows, and so are the outermost edges of numeric columns.

        `joint` adds the covariance and the mean embedding of the first 64 numeric columns, `distinct` a sketch of
        distinct values (needs the extra `sketches`). `threads` columns are counted at once. ProfileError names what
        is wrong with the data: a column that is not there, two of one name, a type that is not of its kind.
        """
        source = opened(data)
        _known(kinds)
        if isinstance(source, Stream):
            layout = stream_layout(source, kinds, joint)
        else:
            layout = memory_layout(source, kinds, threads)
        profile = _started(layout, distinct)._added(source, threads)
        if joint and isinstance(source, Rows):
            return replace(profile, joint=_joint(profile, source))
        return profile

    @staticmethod
    def without_reference(
        data: Data, kinds: Mapping[str, Kind] | None = None, *, distinct: bool = False, threads: int = 1
    ) -> Profile:
        """The profile of `data` over cells that need no reference, so that any two such profiles of one table add up.

        Numeric columns are counted over log-linear cells; of categories the bounded sample `strangers` is kept.
        `rebinned` brings it into a reference's layout, `as_reference` makes a reference of it.
        """
        source = opened(data)
        _known(kinds)
        return _started(free_layout(source, kinds), distinct)._added(source, threads)

    def empty(self) -> Profile:
        """No rows in the same layout: the identity of `+`."""
        return Profile(
            {name: column.empty() for name, column in self.columns.items()},
            None if self.joint is None else self.joint.empty(),
            None if self.distinct is None else {name: Distinct.empty() for name in self.distinct},
            self.left_out,
        )

    def updated(self, data: Data, *, threads: int = 1) -> Profile:
        """This profile with the rows of `data` added. A column that the data lacks is missing in all its rows."""
        return self._added(opened(data), threads)

    def rebinned(self, reference: Profile, allowed: float = 0.02) -> Profile:
        """This profile, made without a reference, in the layout of `reference`, of the columns that both have.

        Each numeric distribution function is then off by at most the `allowed` share of the values at any edge;
        ProfileError names the column where that does not hold. `joint` and `distinct` do not come along.
        """
        columns = {}
        for name, column in self.columns.items():
            if name in reference.columns:
                columns[name] = _named(name, lambda c=column, n=name: rebinned(c, reference.columns[n], allowed))  # type: ignore[misc]
        return Profile(columns)

    def __add__(self, other: Profile) -> Profile:
        """The profile of both sets of rows. ProfileError unless both have the layout of one reference."""
        if self.columns.keys() != other.columns.keys():
            different = sorted(self.columns.keys() ^ other.columns.keys())
            raise ProfileError(f"only one of the profiles has the columns {', '.join(different)}")
        if (self.joint is None) != (other.joint is None) or (self.distinct is None) != (other.distinct is None):
            raise ProfileError("only one of the profiles has a joint part or distinct counts")
        joint = None if self.joint is None or other.joint is None else self.joint + other.joint
        distinct = None
        if self.distinct is not None and other.distinct is not None:
            distinct = {name: sketch + other.distinct[name] for name, sketch in self.distinct.items()}
        columns = {name: _sum(name, column, other.columns[name]) for name, column in self.columns.items()}
        return Profile(columns, joint, distinct, {**other.left_out, **self.left_out})

    @property
    def rows(self) -> int:
        """Rows profiled."""
        return max((column.rows for column in self.columns.values()), default=0)

    def to_json(self) -> bytes:
        """The profile as UTF-8 JSON, exact to the bit."""
        value: dict[str, Any] = {
            "format": FORMAT,
            "columns": {name: column.to_json() for name, column in self.columns.items()},
        }
        if self.joint is not None:
            value["joint"] = self.joint.to_json()
        if self.distinct is not None:
            value["distinct"] = {name: sketch.to_json() for name, sketch in self.distinct.items()}
        if self.left_out:
            value["left_out"] = self.left_out
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()

    @staticmethod
    def from_json(body: bytes) -> Profile:
        """The profile that `to_json` wrote, in this format or the first. ProfileError if the body is something else."""
        try:
            value: dict[str, Any] = json.loads(body)
            if value["format"] not in _READABLE:
                raise ProfileError(
                    f"the profile has format {value['format']}, this version reads {' and '.join(map(str, _READABLE))}"
                )
            joint, distinct = value.get("joint"), value.get("distinct")
            return Profile(
                {name: column_from_json(column) for name, column in value["columns"].items()},
                None if joint is None else Joint.from_json(joint),
                None if distinct is None else {name: Distinct.from_json(text) for name, text in distinct.items()},
                {str(name): str(reason) for name, reason in value.get("left_out", {}).items()},
            )
        except ProfileError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ProfileError(f"the body is not a profile: {type(error).__name__}: {error}") from error

    def _added(self, source: Rows | Stream, threads: int) -> Profile:
        if isinstance(source, Rows):
            return self._over([source], threads)
        if source.rows is None:
            # It is read once, so all columns are read together.
            names = [name for name in self.columns if name in source.names]
            return self._over(source.pieces(names), threads)
        columns: dict[str, Column] = {}
        distinct: dict[str, Distinct] = {}
        for group in column_groups(list(self.columns)):
            sketches = None if self.distinct is None else {name: self.distinct[name] for name in group}
            part = Profile({name: self.columns[name] for name in group}, None, sketches)
            part = part._over(source.pieces([name for name in group if name in source.names]), threads)
            columns |= part.columns
            distinct |= part.distinct or {}
        joint = self.joint
        if joint is not None:
            for piece in source.pieces([name for name in joint.columns if name in source.names]):
                joint = _joined(joint, piece)
        return Profile(columns, joint, None if self.distinct is None else distinct, self.left_out)

    def _over(self, pieces: Iterable[Rows], threads: int) -> Profile:
        profile = self
        if threads <= 1:
            for piece in pieces:
                profile = profile._with(piece, map)
            return profile
        with ThreadPoolExecutor(threads) as pool:
            for piece in pieces:
                profile = profile._with(piece, pool.map)
        return profile

    def as_reference(self) -> Profile:
        """This profile, made without a reference, as one: its bins hold about equal shares, every count stays exact.

        Categories become the sampled ones; where there were more, the rest is `other`.
        """
        return Profile(
            {name: as_reference(column) for name, column in self.columns.items()},
            None,
            self.distinct,
            self.left_out,
        )

    def _with(self, rows: Rows, each: Callable[..., Iterable[Any]]) -> Profile:
        names = list(self.columns)
        columns = dict(zip(names, each(lambda name: _updated(name, self.columns[name], rows), names), strict=True))
        joint = None if self.joint is None else _joined(self.joint, rows)
        distinct = None
        if self.distinct is not None:
            distinct = {name: _distinct(name, sketch, rows) for name, sketch in self.distinct.items()}
        return Profile(columns, joint, distinct, self.left_out)


def distribution(column: Column) -> NDArray[np.float64]:
    """The share of each cell of `column.counts` in its values (missing ones aside); zeros where there are none."""
    return column.counts / max(column.count, 1)


def _started(layout: Layout, distinct: bool) -> Profile:
    sketches = {name: Distinct.empty() for name in layout.columns} if distinct else None
    return Profile(layout.columns, layout.joint, sketches, layout.left_out)


def _joint(profile: Profile, rows: Rows) -> Joint | None:
    joint = joint_layout(profile.columns, rows)
    return None if joint is None else _joined(joint, rows)


def _joined(joint: Joint, rows: Rows) -> Joint:
    for block in joint_blocks(joint.columns, rows):
        joint = joint.updated(block)
    return joint


def _known(kinds: Mapping[str, Kind] | None) -> None:
    for name, kind in (kinds or {}).items():
        if kind not in KINDS:
            raise ProfileError(f"column {name!r} has the kind {kind!r}: known are {', '.join(KINDS)}")


def _updated(name: str, column: Column, rows: Rows) -> Column:
    if name not in rows.names:
        return column.without_values(rows.rows)
    values = rows.column(name)
    updated: Column = fitted(name, column.kind, values.type, lambda: column.updated(values))
    return updated


def _distinct(name: str, sketch: Distinct, rows: Rows) -> Distinct:
    return sketch.updated(rows.column(name)) if name in rows.names else sketch


def _sum(name: str, left: Column, right: Column) -> Column:
    if left.kind != right.kind:
        raise ProfileError(f"column {name!r} is {left.kind} in one profile and {right.kind} in the other")
    if type(left) is not type(right):
        raise ProfileError(
            f"column {name!r} has a reference's bins in one profile and none in the other: use `rebinned`"
        )
    try:
        return left + right  # type: ignore[operator]  # the kinds are equal, which the union cannot say
    except ProfileError as error:
        raise ProfileError(f"column {name!r}: {error}") from error


def _named(name: str, make: Callable[[], Result]) -> Result:
    try:
        return make()
    except ProfileError as error:
        raise ProfileError(f"column {name!r}: {error}") from error
