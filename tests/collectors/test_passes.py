from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collectors.drift.passes import each_column
from collectors.drift.source import InputError, Source
from observability.table_files.files import source_of_path


def made(rows: int, columns: int) -> pa.Table:
    return pa.table({f"x{i}": np.arange(rows) * columns + i for i in range(columns)})


def written(folder: Path, table: pa.Table, files: int) -> Source:
    for place in range(files):
        rows = -(-table.num_rows // files)
        pq.write_table(table.slice(place * rows, rows), folder / f"{place:03d}.parquet", row_group_size=1_000)
    return source_of_path(folder, in_memory=0)


@pytest.mark.parametrize("files", [0, 1, 40])
def test_every_column_is_handed_over_in_the_order_of_its_rows(tmp_path: Path, files: int) -> None:
    table = made(60_000, 7)
    source = written(tmp_path, table, files) if files else Source.of_table("the table", table)
    found: dict[str, list[pa.Array]] = {name: [] for name in table.schema.names}
    told: list[int] = []

    each_column(source, table.schema.names, lambda name, values: found[name].append(values), told.append)

    for name in table.schema.names:
        assert pa.chunked_array(found[name]).to_numpy().tolist() == table.column(name).to_pylist()
    assert told[0] == 0
    assert told[-1] == table.num_rows
    assert told == sorted(told)


def test_what_goes_wrong_in_a_thread_is_raised_and_ends_the_pass(tmp_path: Path) -> None:
    source = written(tmp_path, made(100_000, 8), 2)
    done: list[str] = []

    def work(name: str, _: pa.Array) -> None:
        done.append(name)
        raise InputError(f"{name} cannot be counted")

    with pytest.raises(InputError, match="cannot be counted"):
        each_column(source, source.columns, work, lambda _: None)

    assert len(done) <= 8
