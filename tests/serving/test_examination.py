"""A version tried before it has traffic."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.errors import InvalidRequest
from serving.examination import examined
from serving.models import load_artifact


def test_a_version_answers_the_same_batch_the_same_way_and_inputs_must_fit(artifacts: list[Path]) -> None:
    model = load_artifact(artifacts[1])

    example = examined(model, None, 4)
    given = examined(model, {"amount": [1.0, 1.0], "carrier": ["AA", "UA"]}, 2)

    assert (example["rows"], example["deterministic"], len(example["seconds"])) == (1, True, 3)
    assert given["outputs"] == {"score": [10.0, 20.0]}
    assert "not finite" in examined(model, {"amount": [-1.0], "carrier": ["AA"]}, 2)["error"]
    for wrong in ({"amount": [1.0]}, {"amount": [], "carrier": []}, {"amount": ["x"], "carrier": ["AA"]}):
        with pytest.raises(InvalidRequest, match="inputs"):
            examined(model, wrong, 2)
