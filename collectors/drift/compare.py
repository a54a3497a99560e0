"""Two tables compared, whatever and wherever they are: frames, tables, files, folders or saved profiles."""

from __future__ import annotations

import time as clock
from collections.abc import Mapping, Sequence
from dataclasses import replace

from collectors.drift.comparison import Comparison, Mode, Sides
from collectors.drift.encoding import told_encoding
from collectors.drift.inputs import Data, opened
from collectors.drift.methods import ALIASES
from collectors.drift.parts import duration_ms, since_when
from collectors.drift.plain_numbers import with_plain_numbers
from collectors.drift.plan import planned
from collectors.drift.slices import compare_values, compare_windows
from collectors.drift.source import InputError, Source
from collectors.drift.spark_engine import spark_profiles
from collectors.drift.tables import Engine, Options, Report, compare_sides, profiles_of, silent
from collectors.drift.thresholds import DriftThresholds
from observability.profile import Profile


def compare(
    reference: Data,
    current: Data,
    *,
    mode: Mode | None = None,
    method: str = "auto",
    columns: Sequence[str] | None = None,
    kinds: Mapping[str, str] | None = None,
    by: str | None = None,
    window: str | None = None,
    time: str | None = None,
    threshold: float | None = None,
    alpha: float | None = None,
    thresholds: DriftThresholds | None = None,
    engine: Engine = "numpy",
    progress: Report | None = None,
) -> Comparison:
    """Compare two tables column by column.

    `reference` and `current` are Arrow tables, batches or datasets, pandas frames, mappings of arrays, paths (Parquet,
    CSV, Arrow, Feather; folders and patterns too), profiles, or paths of saved profiles. `mode="exact"` works on the
    rows, a few columns at a time; `"profile"` on counts over the reference's bins, in memory that does not grow with
    the rows. Without a mode it is exact where both tables have rows that fit into a quarter of the free memory.
    `method` is "auto" (calibrated for the number of rows, false discoveries controlled over the columns), "evidently",
    or one of `methods.METHODS`. `columns` are the columns to compare, `kinds` what some of them are (codes:
    "categorical").

    `by` compares also the rows of each value of a column with the reference's rows of that value (all of them, where
    the reference lacks the column; of floating-point numbers with many values each tenth of the reference's), `window`
    (a duration, "1d") with `time` (a column) each window of the current table with the reference. `engine="spark"`
    counts Parquet in Spark. InputError says what cannot be compared.
    """
    started = clock.perf_counter()
    options = Options(ALIASES.get(method, method), threshold, alpha, thresholds)
    width = _window(window, time)
    if engine not in ("numpy", "spark"):
        raise InputError(f"there is no engine {engine!r}: known are numpy and spark")
    if engine == "spark":
        rows = {"mode exact": mode == "exact", "method evidently": method == "evidently"}
        parts = {"by": by is not None, "window": width is not None}
        if asked := [name for name, given in (rows | parts).items() if given]:
            raise InputError(
                f"the Spark engine cannot do {', '.join(asked)}: it compares whole tables by one profile of each, "
                "which has no rows to sort or to split. Take the engine numpy: it too reads more than memory holds"
            )
        counted = spark_profiles(reference, current, columns, kinds)
        sides: Sides[Source | Profile] = Sides(counted.reference, counted.current)
        kinds = None
    else:
        sides = Sides(opened(reference, "the reference"), opened(current, "the current table"))
    show = progress or silent
    with told_encoding(sides):
        plain = with_plain_numbers(sides, kinds)
        sides = plain.sides
        found = compare_sides(sides, mode, options, columns, kinds, show, started, notes=plain.notes)
        if by is not None:
            values, only = compare_values(sides, by, found.mode, options, columns, kinds, show, given=mode is not None)
            found = replace(found, by=by, values=values, values_only_in=only, seconds=clock.perf_counter() - started)
        if width is not None and time is not None:
            windows = compare_windows(sides, time, width, options, columns, kinds, show)
            since, seconds = since_when(windows), clock.perf_counter() - started
            found = replace(found, time=time, windows=windows, since=since, seconds=seconds)
    return found


def saved_profile(
    reference: Data, *, columns: Sequence[str] | None = None, kinds: Mapping[str, str] | None = None
) -> bytes:
    """The reference's profile as a file to be saved; `compare` takes its path in place of the rows."""
    opened_reference = opened(reference, "the reference")
    if isinstance(opened_reference, Profile):
        return opened_reference.to_json()
    if not opened_reference.rows:
        raise InputError(f"{opened_reference.name} has no rows: there is nothing to make bins and categories from")
    sides: Sides[Source | Profile] = Sides(opened_reference, opened_reference)
    with told_encoding(sides):
        sides = with_plain_numbers(sides, kinds).sides
        plan = planned(sides, columns, kinds)
        if not plan.compared:
            told = "; ".join(f"{column.name!r}: {column.reason}" for column in plan.columns[:5])
            raise InputError(f"no column of {opened_reference.name} can be profiled: {told}")
        left_out = {column.name: column.reason for column in plan.columns if column.kind is None}
        return replace(profiles_of(sides, plan, silent).reference, left_out=left_out).to_json()


def _window(window: str | None, time: str | None) -> int | None:
    """The length of a window in milliseconds. InputError unless both or neither of window and time are given."""
    if (window is None) != (time is None):
        raise InputError("windows need both their length and the column of times: --window 1d --time COLUMN")
    if window is None:
        return None
    return duration_ms(window)
