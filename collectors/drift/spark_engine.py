"""Both tables counted by Spark instead of here: Parquet of any size, the same integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from collectors.drift.comparison import Sides
from collectors.drift.plan import planned
from collectors.drift.profiling import layout_of
from collectors.drift.source import InputError, Source
from collectors.spark import profile_of_lake
from observability.profile import Profile


def spark_profiles(
    sides: Sides[Source | Profile],
    given: Sides[Any],
    columns: Sequence[str] | None,
    kinds: Mapping[str, str] | None,
) -> Sides[Source | Profile]:
    """The profiles of two paths (the reference may be a profile already), in a layout from the reference's rows.

    InputError for what is no path, or a table that Spark cannot read.
    """
    plan = planned(sides, columns, kinds)
    if isinstance(sides.reference, Profile):
        layout = replace(sides.reference, columns={name: sides.reference.columns[name] for name in plan.compared})
        reference = layout
        layout = layout.empty()
    else:
        layout = layout_of(sides.reference, plan)
        reference = _counted(given.reference, "the reference", layout)
    if isinstance(sides.current, Profile):
        raise InputError("the Spark engine reads Parquet: give the current table as a path")
    return Sides(reference, _counted(given.current, "the current table", layout))


def _counted(path: Any, name: str, layout: Profile) -> Profile:
    if not isinstance(path, str | Path):
        raise InputError(f"the Spark engine reads Parquet: give {name} as a path, or use the numpy engine")
    try:
        return profile_of_lake(path, layout)
    except ModuleNotFoundError as error:
        raise InputError("the Spark engine needs pyspark: pip install 'trimtab[spark]'") from error
    except Exception as error:
        # Spark has no type of its own for what goes wrong in Java: the first line says it.
        text = str(error).strip().splitlines()
        raise InputError(f"Spark cannot read {path}: {text[0] if text else type(error).__name__}") from error
