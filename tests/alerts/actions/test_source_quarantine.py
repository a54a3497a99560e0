"""Quarantine of a source at a collector, and its undo by a person: once, looked at, and in the journal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from alerts.actions import ActionPolicy, ActionRunner, ActionState, NotWaiting
from alerts.actions.sources import SourceHook
from alerts.states import Alert
from tests.loopback import Quiet, served

ALERT = Alert(
    labels=(("action", "quarantine"), ("alertname", "SensorBad"), ("attribute", "source"), ("model", "m"),
            ("source", "sensor-7")),
    annotations=(), value=1.0, state="firing", active_at=100.0, fired_at=100.0,
)  # fmt: skip


class Collector:
    """The quarantine of a collector; `stuck` answers as if all were well and does nothing."""

    def __init__(self) -> None:
        self.sources: list[dict[str, Any]] = []
        self.changes: list[str] = []
        self.stuck = False
        self.url = ""

    def answer(self, verb: str, body: bytes) -> bytes:
        if verb != "GET":
            self.changes.append(verb)
        if verb != "GET" and not self.stuck:
            source = json.loads(body)
            place = (source["attribute"], source["value"])
            self.sources = [one for one in self.sources if (one["attribute"], one["value"]) != place]
            self.sources += [source] if verb == "PUT" else []
        return json.dumps({"sources": self.sources}).encode()


@pytest.fixture
def collector() -> Iterator[Collector]:
    state = Collector()

    class Handler(Quiet):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_body(200, state.answer(self.command, body))

        do_PUT = do_DELETE = do_GET

    with served(Handler) as state.url:
        yield state


def runner(database: sa.Engine, clock: Any, collector: Collector) -> ActionRunner:
    return ActionRunner(
        database, policies={"quarantine": ActionPolicy(cooldown_seconds=0.0)}, clock=clock,
        hooks={"quarantine": SourceHook(collector.url)},
    )  # fmt: skip


def finish(actor: ActionRunner) -> None:
    """Wait for what runs, and stop."""
    actor._others.shutdown(wait=True)
    actor.close()


def test_a_source_is_kept_apart_and_let_in_again_by_a_person(
    database: sa.Engine, clock: Any, collector: Collector
) -> None:
    actor = runner(database, clock, collector)
    actor.consider(ALERT)
    finish(actor)
    (done,) = actor.actions()
    assert done.state is ActionState.DONE
    assert (collector.sources[0]["value"], collector.sources[0]["key"]) == ("sensor-7", done.key)

    later = runner(database, clock, collector)
    undone = later.undo(done.id, "ada")
    assert later.undo(done.id, "ada").id == undone.id
    finish(later)
    assert (later.action(undone.id).state, later.action(undone.id).actor) == (ActionState.DONE, "ada")
    assert collector.sources == []
    assert collector.changes == ["PUT", "DELETE"]


def test_an_effect_that_is_not_there_is_a_failure_and_cannot_be_undone(
    database: sa.Engine, clock: Any, collector: Collector
) -> None:
    collector.stuck = True
    actor = runner(database, clock, collector)
    begun = actor.consider(ALERT)
    assert begun is not None
    finish(actor)
    failed = actor.action(begun.id)
    assert failed.state is ActionState.FAILED
    assert "source=sensor-7 is not in quarantine" in str(failed.result)
    with pytest.raises(NotWaiting, match="cannot be undone"):
        actor.undo(failed.id, "ada")


def test_an_alert_that_names_no_source_is_not_acted_on(database: sa.Engine, clock: Any, collector: Collector) -> None:
    actor = runner(database, clock, collector)
    labels = tuple(pair for pair in ALERT.labels if pair[0] != "source")
    begun = actor.consider(replace(ALERT, labels=labels))
    assert begun is not None
    finish(actor)
    assert actor.action(begun.id).state is ActionState.FAILED
    assert "value (or source)" in str(actor.action(begun.id).result)
    assert collector.changes == []
