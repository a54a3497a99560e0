"""What a comparison reads: the tables of `observability.table_files`, by the names that its callers know."""

from __future__ import annotations

from observability.table_files.source import BATCH_ROWS, InputError, Source, checked_names

__all__ = ["BATCH_ROWS", "InputError", "Source", "checked_names"]
