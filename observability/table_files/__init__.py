"""Tables in files: which files a path means, their formats, and their rows in batches or whole."""

from __future__ import annotations

from observability.table_files.files import source_of_path
from observability.table_files.source import InputError, Source

__all__ = ["InputError", "Source", "source_of_path"]
