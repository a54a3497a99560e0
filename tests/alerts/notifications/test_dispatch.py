"""Telling, in injected time: group wait, interval and repeat, mutes, retries, restarts, crashes, two processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from alerts.labels import Matcher, labels_of
from alerts.notifications.alert_store import AlertStore, KnownAlert, merged
from alerts.notifications.channel import DeliveryError
from alerts.notifications.configuration import Configuration
from alerts.notifications.dispatcher import Dispatcher
from alerts.notifications.inhibition import InhibitRule
from alerts.notifications.intervals import TimeInterval
from alerts.notifications.lease import Lease
from alerts.notifications.ledger import Told, needs_update
from alerts.notifications.message import Message
from alerts.notifications.receivers import Receiver
from alerts.notifications.route import Route, keyed
from alerts.notifications.threads import DeliveryThreads
from alerts.schema import open_database
from alerts.silence import Silence, SilenceStore
from tests.inline import Inline


class Recorder:
    """A channel that keeps what it is told; `errors` are raised first, in turn."""

    kind = "recorder"

    def __init__(self, *errors: DeliveryError) -> None:
        self.told: list[tuple[str, list[str]]] = []
        self.messages: list[Message] = []
        self.errors = list(errors)
        self.tries = 0

    def close(self) -> None:
        pass

    def send(self, message: Message, timeout: float) -> None:
        self.tries += 1
        if self.errors:
            raise self.errors.pop(0)
        self.messages.append(message)
        self.told.append((message.status, [dict(alert.labels)["alertname"] for alert in message.alerts]))


class World:
    """One database, a clock, and a dispatcher that can be started again."""

    def __init__(self, folder: Path, **route: Any) -> None:
        self.url = f"sqlite:///{folder / 'alerts.db'}"
        self.now = 1_700_000_000.0
        self.channel = Recorder()
        self.send_resolved = True
        self.options = {"group_by": ("model",), "group_wait_seconds": 30.0, "group_interval_seconds": 60.0,
                        "repeat_interval_seconds": 600.0, **route}  # fmt: skip
        self.extras: dict[str, Any] = {}
        self.engine: sa.Engine | None = None
        self.holder = "first"
        self.start()

    def configuration(self) -> Configuration:
        receiver = Receiver.of("people", [self.channel], send_resolved=self.send_resolved)
        root = Route(receiver="people", **self.options)
        return Configuration(route=keyed(root), receivers={"people": receiver}, **self.extras)

    def start(self) -> None:
        """Also: forget the process that was, as after a kill."""
        if self.engine is not None:
            self.engine.dispose()
        self.engine = open_database(self.url)
        self.engine.dispose()
        sa.event.listen(self.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous = OFF").close())
        self.alerts, self.silences = AlertStore(self.engine), SilenceStore(self.engine)
        self.dispatcher = Dispatcher(
            self.engine, self.configuration(), self.alerts, self.silences, clock=lambda: self.now, executor=Inline(),
            jitter=lambda: 1.0, lease=Lease(self.engine, "notifications", holder=self.holder),
        )  # fmt: skip

    def post(self, name: str, *, starts: float = 0.0, ends: float = 86_400.0, **labels: str) -> None:
        self.alerts.put(
            [
                KnownAlert(
                    labels=labels_of({"alertname": name, "model": "m", **labels}), annotations=(),
                    starts_at=self.now + starts, ends_at=self.now + ends, updated_at=self.now,
                )
            ],
            self.now,
        )  # fmt: skip

    def run(self, seconds: float, step: float = 1.0) -> list[tuple[str, list[str]]]:
        """Let time pass; what was told meanwhile."""
        before = len(self.channel.told)
        end = self.now + seconds
        self.dispatcher.tick(self.now)
        while self.now < end:
            self.now += step
            self.dispatcher.tick(self.now)
        return self.channel.told[before:]


@pytest.fixture
def world(tmp_path: Path) -> Callable[..., World]:
    return lambda **route: World(tmp_path, **route)


def test_a_group_waits_then_follows_its_interval_and_repeats(world: Callable[..., World]) -> None:
    w = world()
    w.post("A")

    assert w.run(29) == []
    assert w.run(1) == [("firing", ["A"])]
    w.post("B")
    assert w.run(59) == []
    assert w.run(1) == [("firing", ["A", "B"])]
    # The repeat interval is looked at once each group interval: 600 s after the last are at its 11th look.
    assert w.run(645, step=15) == []
    assert w.run(15) == [("firing", ["A", "B"])]
    w.post("A", ends=0.0)
    assert w.run(60) == [("firing", ["A", "B"])]
    w.post("B", ends=0.0)
    assert w.run(60) == [("resolved", ["B"])]
    assert w.run(2000, step=5) == []


def test_an_alert_older_than_the_group_wait_does_not_wait(world: Callable[..., World]) -> None:
    w = world()
    w.post("A", starts=-31)

    assert w.run(0) == [("firing", ["A"])]


def test_an_alert_that_is_not_sent_any_more_ends_by_itself(world: Callable[..., World]) -> None:
    w = world()
    w.post("A", ends=100.0)

    assert w.run(30) == [("firing", ["A"])]
    assert w.run(120) == [("resolved", ["A"])]
    assert w.channel.messages[-1].alerts[0].ends_at == 1_700_000_100.0


def test_what_resolves_before_anybody_heard_of_it_is_not_told(world: Callable[..., World]) -> None:
    w = world()
    w.post("A", ends=10.0)

    assert w.run(700, step=5) == []


def test_a_receiver_that_does_not_want_ends_hears_of_an_alert_that_fires_again(world: Callable[..., World]) -> None:
    w = world()
    w.send_resolved = False
    w.start()
    w.post("A", ends=40.0)
    assert w.run(200) == [("firing", ["A"])]
    w.post("A", ends=900.0)

    assert w.run(100) == [("firing", ["A"])]


def test_mutes_hold_back_and_let_go(world: Callable[..., World]) -> None:
    w = world()
    target = InhibitRule(
        source=(Matcher("alertname", "=", "Down"),), target=(Matcher("alertname", "=~", "A|Down"),), equal=("model",)
    )
    w.extras = {"inhibit_rules": (target,)}
    w.start()
    w.post("Down", ends=85.0, other="1")
    w.post("A")
    assert w.run(31) == [("firing", ["Down"])]
    assert w.run(60) == [("firing", ["A", "Down"])]

    silence = Silence(
        matchers=(Matcher("model", "=", "m"),), starts_at=w.now, ends_at=w.now + 700, created_by="ada", comment=""
    )
    w.silences.set(silence, w.now)
    assert w.run(690) == []
    assert w.run(70) == [("firing", ["A"])]


def test_a_route_is_quiet_in_its_mute_times_and_outside_its_active_times(tmp_path: Path) -> None:
    # 1_700_000_000 is Tuesday 2023-11-14 22:13:20 UTC.
    office = TimeInterval(times=((9 * 60, 22 * 60 + 15),), weekdays=((1, 5),))
    late = TimeInterval(times=((22 * 60 + 15, 24 * 60),))
    for number, option in enumerate(({"active_time_intervals": ("late",)}, {"mute_time_intervals": ("office",)})):
        folder = tmp_path / str(number)
        folder.mkdir()
        w = World(folder, **option)
        w.extras = {"intervals": {"office": (office,), "late": (late,)}}
        w.start()
        w.post("A")
        assert w.run(99) == []
        assert w.run(70) == [("firing", ["A"])]


def test_tries_are_repeated_with_growing_waits_and_refusals_are_not(world: Callable[..., World]) -> None:
    w = world()
    w.channel.errors = [DeliveryError("503") for _ in range(4)]
    w.post("A", starts=-31)

    # After 0.5, 0.75, 1.125 and 1.6875 s: 4.06 s in all.
    assert w.run(4, step=0.125) == []
    assert w.channel.tries == 4
    assert w.run(1, step=0.125) == [("firing", ["A"])]

    w.channel.errors = [DeliveryError("400", final=True)]
    w.post("B")
    assert w.run(70) == []
    assert [(f.integration, f.error, f.final) for f in w.dispatcher.failures()] == [("people/recorder/0", "400", True)]
    assert w.run(60) == [("firing", ["A", "B"])]  # at the next look, as Alertmanager does
    assert w.dispatcher.failures() == []


def test_retry_after_is_honoured_even_beyond_the_next_look(world: Callable[..., World]) -> None:
    w = world()
    w.channel.errors = [DeliveryError("429", retry_after=150.0)]
    w.post("A", starts=-31)

    assert w.run(149) == []
    assert w.channel.tries == 1
    assert w.run(2) == [("firing", ["A"])]


def test_a_receiver_that_is_away_for_hours_is_told_of_the_present(world: Callable[..., World]) -> None:
    w = world()
    w.channel.errors = [DeliveryError("no route to host") for _ in range(100_000)]
    w.post("A")
    assert w.run(600, step=10) == []
    w.post("B")
    assert w.run(600, step=10) == []
    assert [len(item.message.alerts) for item in w.dispatcher.waiting()] == [2]
    w.channel.errors = []

    assert w.run(61) == [("firing", ["A", "B"])]
    assert w.run(500, step=10) == []


def test_a_restart_repeats_nothing_and_keeps_the_rhythm(world: Callable[..., World]) -> None:
    w = world()
    w.post("A")
    assert w.run(20) == []
    w.start()
    assert w.run(9) == []
    assert w.run(1) == [("firing", ["A"])]
    w.start()
    w.post("B")
    assert w.run(30) == []
    w.start()
    assert w.run(29) == []
    assert w.run(1) == [("firing", ["A", "B"])]
    w.post("A", ends=0.0)
    w.start()
    assert w.run(60) == [("firing", ["A", "B"])]
    w.start()
    w.post("C")
    assert w.run(60) == [("firing", ["B", "C"])]


def test_what_waits_in_the_outbox_is_sent_after_a_restart_however_late(world: Callable[..., World]) -> None:
    w = world()
    w.channel.errors = [DeliveryError("503") for _ in range(1000)]
    w.post("A", starts=-31, ends=60.0)
    w.run(5)
    w.channel.errors = []
    w.now += 7200.0
    w.start()

    assert w.run(70) == [("firing", ["A"]), ("resolved", ["A"])]


class Crash(BaseException):
    """The process dies here."""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before commit", "after commit", "before send", "after send"])
def test_a_process_that_dies_anywhere_loses_nothing_and_repeats_only_the_same_message(
    moment: str, tmp_path: Path
) -> None:
    deaths = 0
    for number in range(1, 100, 4 if moment.endswith("commit") else 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        w = World(folder)
        counter = {"left": number}

        def count(counter: dict[str, int] = counter) -> None:
            counter["left"] -= 1
            if counter["left"] == 0:
                raise Crash

        send = w.channel.send

        def deliver(message: Message, timeout: float, send: Any = send, count: Any = count) -> None:
            if moment == "before send":
                count()
            send(message, timeout)
            if moment == "after send":
                count()

        w.channel.send = deliver  # type: ignore[method-assign]

        def watch(w: World = w, count: Any = count) -> None:
            assert w.engine is not None
            if moment == "before commit":
                sa.event.listen(w.engine, "commit", lambda connection: count())
            if moment == "after commit":
                sa.event.listen(w.engine, "checkin", lambda *_: count())

        watch()
        crashed = False
        steps: list[Callable[[], Any]] = [
            lambda w=w: w.post("A"), lambda w=w: w.run(30, 15), lambda w=w: w.post("B"), lambda w=w: w.run(60, 30),
            lambda w=w: w.post("A", ends=0.0), lambda w=w: w.run(60, 30), lambda w=w: w.post("B", ends=0.0),
            lambda w=w: w.run(60, 30),
        ]  # fmt: skip
        for step in steps:
            try:
                step()
            except Crash:
                crashed = True
                w.start()
                step()
        deaths += crashed
        ids = [message.id for message in w.channel.messages]
        distinct = {message.id: told for message, told in zip(w.channel.messages, w.channel.told, strict=True)}
        assert list(distinct.values()) == [
            ("firing", ["A"]), ("firing", ["A", "B"]), ("firing", ["A", "B"]), ("resolved", ["B"])
        ], (number, w.channel.told)  # fmt: skip
        assert len(ids) - len(distinct) <= (crashed and moment == "after send")
        w.dispatcher.close() if w.engine is None else w.engine.dispose()
        if not crashed:
            break
    assert deaths >= 4


def test_of_two_processes_one_tells_and_the_other_takes_over(world: Callable[..., World]) -> None:
    w = world()
    w.post("A", starts=-31)
    assert w.run(1) == [("firing", ["A"])]
    first, w.holder = w.dispatcher, "second"
    w.engine = None
    w.start()

    assert w.run(10) == []  # the first holds the lease for 15 s
    w.post("B")
    first.tick(w.now)
    assert w.run(3) == []
    assert w.run(75) == [("firing", ["A", "B"])]
    told = len(w.channel.told)
    first.tick(w.now)
    w.post("C")
    for _ in range(70):
        w.now += 1
        first.tick(w.now)
        w.dispatcher.tick(w.now)
    assert w.channel.told[told:] == [("firing", ["A", "B", "C"])]


def test_a_configuration_that_changes_keeps_what_was_told(world: Callable[..., World]) -> None:
    w = world()
    w.post("A", starts=-31)
    assert w.run(1) == [("firing", ["A"])]
    w.options["group_interval_seconds"] = 20.0
    w.dispatcher.reconfigure(w.configuration(), w.now)
    assert w.run(100) == []
    w.post("B")

    assert w.run(21) == [("firing", ["A", "B"])]


@pytest.mark.parametrize(
    ("told", "firing", "resolved", "send_resolved", "due"),
    [
        (None, "", "a", True, False), (None, "a", "", True, True), (("a", ""), "ab", "", True, True),
        (("a", ""), "a", "", True, False), (("ab", ""), "a", "b", True, True), (("ab", ""), "a", "b", False, False),
        (("a", ""), "", "a", False, True), (("", "a"), "", "ab", True, False), (("ab", "c"), "a", "", True, False),
    ],
)  # fmt: skip
def test_when_a_receiver_needs_to_hear(
    told: tuple[str, str] | None, firing: str, resolved: str, send_resolved: bool, due: bool
) -> None:
    entry = None if told is None else Told(frozenset(told[0]), frozenset(told[1]), 1000.0)

    found = needs_update(
        entry, frozenset(firing), frozenset(resolved), send_resolved=send_resolved, repeat_seconds=60.0, now=1060.0
    )

    assert found is due


def test_alerts_merge_as_alertmanagers_do() -> None:
    def known(starts: float, ends: float, updated: float, timeout: bool = False) -> KnownAlert:
        return KnownAlert(
            labels=(), annotations=(), starts_at=starts, ends_at=ends, updated_at=updated, timeout=timeout
        )

    def times(alert: KnownAlert) -> tuple[float, float]:
        return alert.starts_at, alert.ends_at

    assert times(merged(known(0, 50, 1), known(10, 80, 2), 20.0)) == (0, 80)
    assert times(merged(known(0, 50, 1), known(10, 40, 2), 20.0)) == (0, 50)
    assert times(merged(known(0, 50, 1, True), known(10, 40, 2), 20.0)) == (0, 40)
    assert times(merged(known(0, 50, 1), known(0, 15, 2), 20.0)) == (0, 15)
    assert times(merged(known(0, 15, 1), known(16, 60, 2), 20.0)) == (16, 60)


def test_a_receiver_that_never_answers_does_not_keep_the_process() -> None:
    pool = DeliveryThreads(2, grace_seconds=0.05)
    gate, begun = threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        gate.wait(60)

    running, waiting = pool.submit(hang), [pool.submit(gate.wait, 60) for _ in range(2)][1]
    assert begun.wait(60)
    pool.shutdown()

    assert not running.done()
    assert pool.submit(print).cancelled()
    gate.set()
    running.result(30)
    assert not waiting.done()  # it was never begun
