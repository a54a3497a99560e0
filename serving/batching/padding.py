"""Batches of few sizes: smaller ones are filled up, so that a model that was compiled for those sizes sees no other."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from serving.batching.execution import Runnable
from serving.protocol.tensors import Array


class Padded:
    """A model whose batches are filled up to the next of `sizes` with copies of their first row.

    Copies are values that the model is known to take, which zeros need not be. The copies' outputs are cut off.
    """

    def __init__(self, model: Runnable, sizes: Sequence[int]) -> None:
        self.signature = model.signature
        self._model = model
        self._sizes = sorted(sizes)
        self._added = 0

    @property
    def solo(self) -> bool:
        """The model's."""
        return bool(getattr(self._model, "solo", False))

    def run(self, columns: Sequence[Array]) -> list[Array]:
        """Columns [rows] in, outputs for those rows out."""
        rows = len(columns[0])
        place = bisect_left(self._sizes, rows)
        missing = self._sizes[place] - rows if place < len(self._sizes) else 0
        if missing == 0:
            return self._model.run(columns)
        self._added += missing
        outputs = self._model.run([np.concatenate((c, np.repeat(c[:1], missing, axis=0))) for c in columns])
        # An output of another length is the model's fault; whoever splits the batch says so.
        return [output[:rows] if len(output) == rows + missing else output for output in outputs]

    def added(self) -> int:
        """Rows filled in since the last call."""
        added, self._added = self._added, 0
        return added
