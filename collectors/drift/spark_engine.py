"""Both tables counted by Spark instead of here: tables of any size, the same integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from collectors.drift.comparison import Sides
from collectors.drift.inputs import read_profile
from collectors.drift.kinds import checked_kinds
from collectors.drift.source import InputError
from collectors.spark import SparkError, columns_of_lake, lake_session, profile_of_lake, reference_of_lake
from observability.cells import ProfileError
from observability.profile import Profile
from observability.table_files.csv_files import dialect_of
from observability.table_files.files import format_of


def spark_profiles(
    reference: Any, current: Any, columns: Sequence[str] | None, kinds: Mapping[str, str] | None
) -> Sides[Profile]:
    """The profiles of two paths, or whatever else Spark reads by name; the reference may be a profile already.

    InputError for what is no path, or a table that Spark cannot read.
    """
    if not isinstance(current, str | Path):
        raise InputError("the Spark engine reads files: give the current table as a path, or use the numpy engine")
    with _explained(), lake_session() as spark:
        before = _reference(reference, columns, kinds, spark)
        written = _written(current)
        now = profile_of_lake(current, before.empty(), spark, **written)
        return Sides(before, _as_it_is(now, before, columns_of_lake(current, spark, **written)))


def _as_it_is(now: Profile, before: Profile, there: Sequence[str]) -> Profile:
    """A profile in the reference's layout, of a table with the columns `there`: it lacks what the table lacks."""
    kept = {name: column for name, column in now.columns.items() if name in there}
    others = {name: before.left_out.get(name, "the reference has no such column") for name in there if name not in kept}
    return replace(now, columns=kept, left_out=others)


def _reference(data: Any, columns: Sequence[str] | None, kinds: Mapping[str, str] | None, spark: Any) -> Profile:
    if isinstance(data, str | Path) and Path(data).is_file() and _is_profile(Path(data)):
        data = read_profile(Path(data))
    if not isinstance(data, Profile | str | Path):
        raise InputError("the Spark engine reads files: give the reference as a path, or use the numpy engine")
    found = data if isinstance(data, Profile) else reference_of_lake(data, session=spark, **_written(data))
    given: dict[str, Any] = checked_kinds(kinds, list(found.columns))
    different = {name: kind for name, kind in given.items() if found.columns[name].kind != kind}
    if different and not isinstance(data, Profile):
        every: dict[str, Any] = {name: column.kind for name, column in found.columns.items()}
        found = reference_of_lake(data, {**every, **given}, spark, **_written(data))
    elif different:
        raise InputError(f"the profile has other kinds for {', '.join(different)}")
    known = [*found.columns, *found.left_out]
    absent = [name for name in columns or () if name not in known]
    if absent:
        raise InputError(f"column {absent[0]!r} is not in the reference: there are {', '.join(known)}")
    chosen = dict.fromkeys(known if columns is None else columns)
    left_out = {name: reason for name, reason in found.left_out.items() if name in chosen}
    return Profile({name: found.columns[name] for name in chosen if name in found.columns}, left_out=left_out)


def _is_profile(path: Path) -> bool:
    """Whether a file is a saved profile; Spark may know formats that nothing else here does."""
    try:
        return format_of(path) == "profile"
    except InputError:
        return False


def _written(path: str | Path) -> dict[str, Any]:
    """What Spark must be told of a local CSV file: the sign that divides its fields. InputError for decimal commas."""
    local = Path(path)
    if local.suffix.lower() not in (".csv", ".tsv") or not local.is_file():
        return {}
    dialect = dialect_of(local)
    if dialect.decimal != ".":
        raise InputError(f"{path} writes numbers with a comma, which Spark does not read: use the numpy engine")
    return {"sep": dialect.delimiter}


@contextmanager
def _explained() -> Any:
    """What goes wrong in Spark, in the words of a comparison."""
    try:
        yield
    except (SparkError, ProfileError) as error:
        raise InputError(str(error)) from error
    except ModuleNotFoundError as error:
        raise InputError("the Spark engine needs pyspark: pip install 'trimtab[spark]'") from error
