"""Outputs as JSON: what stands between the brackets is the same for rows of a batch as for a batch of those rows."""

from __future__ import annotations

import json

import numpy as np
import pytest

from serving.protocol.outputs import Outputs


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (2, 0), (2, 2)], ids=str)
@pytest.mark.parametrize(("start", "stop"), [(0, 1), (1, 3), (0, 4)])
def test_rows_of_a_batch_are_their_values_in_order(shape: tuple[int, ...], start: int, stop: int) -> None:
    values = np.arange(4 * np.prod(shape, dtype=int), dtype=np.float32).reshape(4, *shape)

    text = Outputs([values], 4).text(0, start, stop)

    assert json.loads(b"[" + text + b"]") == values[start:stop].reshape(-1).tolist()
