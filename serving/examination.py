"""A version tried before it has traffic: the same batch several times, its outputs, its times, are they equal?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from serving.models import LoadedModel


def examined(
    model: LoadedModel,
    inputs: Mapping[str, Any] | None,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """`inputs` are values by the inputs' names, the manifest's example without them; blocks for `repeats` answers.

    `{"rows", "seconds": [one an answer], "outputs": {name: values}, "deterministic"}`, or `{"error"}` when it does not
    answer with finite outputs. The first answer's time is left out. Raises ArtifactError for inputs that do not fit.
    """
    columns = model.signature.example(model.manifest["example"] if inputs is None else inputs)
    names = [output.name for output in model.signature.outputs]
    try:
        first = model.run(columns)
        seconds, same = [], True
        for _ in range(repeats - 1):
            began = clock()
            again = model.run(columns)
            seconds.append(clock() - began)
            same = same and all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    except Exception as error:
        return {"rows": len(columns[0]), "error": f"it does not answer: {error!r}"}
    if len(first) != len(names) or not all(np.isfinite(values).all() for values in first):
        return {"rows": len(columns[0]), "error": "it answers with other outputs than declared, or not finite ones"}
    outputs = {name: values.tolist() for name, values in zip(names, first, strict=True)}
    return {"rows": len(columns[0]), "seconds": seconds, "outputs": outputs, "deterministic": same}
