"""Quality: what the data should look like, and every row and window that does not.

A schema is inferred from the reference and can be edited. A violation never drops data: it is counted, kept aside and
shown.
"""

from collectors.quality.duplicates import RecentRows, row_hashes
from collectors.quality.monitor import Observed, QualityMonitor
from collectors.quality.schema import ColumnRules, Schema, SchemaEdit, SchemaError
from collectors.quality.shares import ColumnQuality, became_constant, column_quality
from collectors.quality.violations import Violation, check
from collectors.quality.volume import Volume

__all__ = [
    "ColumnQuality",
    "ColumnRules",
    "Observed",
    "QualityMonitor",
    "RecentRows",
    "Schema",
    "SchemaEdit",
    "SchemaError",
    "Violation",
    "Volume",
    "became_constant",
    "check",
    "column_quality",
    "row_hashes",
]
