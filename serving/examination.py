"""A version tried before it has traffic: the same batch several times, its outputs, its times, are they equal?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from serving.errors import InvalidRequest
from serving.models import LoadedModel
from serving.protocol.tensors import Array


def examined(
    model: LoadedModel,
    inputs: Mapping[str, Any] | None,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """`inputs` are values by the inputs' names, the manifest's example without them; blocks for `repeats` answers.

    `{"rows", "seconds": [one an answer], "outputs": {name: values}, "deterministic"}`, or `{"error"}` when it does not
    answer with finite outputs. The first answer's time is left out. Raises InvalidRequest for inputs that do not fit.
    """
    columns = _columns(model, inputs)
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


def _columns(model: LoadedModel, inputs: Mapping[str, Any] | None) -> list[Array]:
    if inputs is None:
        return model.signature.example(model.manifest["example"])
    try:
        columns = model.signature.example(inputs)
    except Exception as error:  # whatever a caller may have sent
        raise InvalidRequest(f"the inputs do not fit the version's: {error}") from error
    if not len(columns[0]) or len({len(column) for column in columns}) > 1:
        raise InvalidRequest("the inputs have no rows, or not all the same number: give a list of values an input")
    return columns
