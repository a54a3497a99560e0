"""The push of a short-lived job's metrics."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from observability import names
from observability.metrics import Metrics
from observability.push import push

Receiver = Any  # conftest.py's


def test_the_group_is_put_as_text(receiver: Receiver) -> None:
    metrics = Metrics()
    metrics[names.TRAINING_STEPS].labels("delay").inc(5)

    assert push(receiver.url, "train", metrics, grouping={"model": "delay", "path": "a/b"})
    (sent,) = receiver.accepted
    assert (sent.method, sent.path) == ("PUT", "/metrics/job/train/model/delay/path@base64/YS9i")
    (family,) = text_string_to_metric_families(sent.body.decode())
    assert [(sample.name, sample.value) for sample in family.samples] == [("training_steps_total", 5)]


@pytest.mark.parametrize("failure", ["away", "refused"])
def test_a_push_that_fails_is_false_and_a_warning(
    receiver: Receiver, failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    if failure == "away":
        receiver.kill()
    receiver.answers = [(400, {})]

    with caplog.at_level(logging.WARNING):
        assert not push(receiver.url, "train", Metrics())
    assert "job train could not be pushed" in caplog.text
