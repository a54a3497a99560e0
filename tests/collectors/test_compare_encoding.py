"""Text that is not UTF-8, which Parquet and Arrow files may hold all the same: told by its column, in every mode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from collectors.drift.compare import compare, saved_profile
from collectors.drift.comparison import Mode
from collectors.drift.source import InputError


def latin_1(rows: int) -> pa.Array:
    """`rows` times the one byte 0xFC, which is ü there and nothing in UTF-8."""
    offsets = pa.py_buffer(np.arange(rows + 1, dtype=np.int32))
    return pa.Array.from_buffers(pa.utf8(), rows, [None, offsets, pa.py_buffer(b"\xfc" * rows)])


@pytest.fixture(params=["parquet", "dictionary", "feather", "memory"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Path | pa.Table:
    made = pa.table({"größe": np.arange(900.0), "ort": latin_1(900)})
    if request.param == "memory":
        return made
    path = tmp_path / ("a.feather" if request.param == "feather" else "a.parquet")
    if request.param == "feather":
        feather.write_feather(made, str(path))
    else:
        pq.write_table(made, path, use_dictionary=request.param == "dictionary")
    return path


@pytest.mark.parametrize("mode", ["exact", "profile"])
def test_the_column_is_named_and_the_others_can_be_compared(table: Path | pa.Table, mode: Mode) -> None:
    with pytest.raises(InputError, match=r"column 'ort' of .* holds text that is not UTF-8"):
        compare(table, table, mode=mode)
    with pytest.raises(InputError, match="column 'ort'"):
        compare(table, table, columns=["größe"], by="ort")
    with pytest.raises(InputError, match="column 'ort'"):
        saved_profile(table)

    assert compare(table, table, mode=mode, columns=["größe"]).columns["größe"].drifted is False
