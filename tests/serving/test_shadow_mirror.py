"""Shadows: what is compared with what, and that callers come first."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serving import Input, Output, Signature
from serving.calls import Call
from serving.errors import ModelFailed
from serving.router import Choice
from serving.routing.backlog import probe
from serving.routing.disagreement import Disagreement, Pair, compare
from serving.routing.traffic import Shadow
from serving.shadow import Mirror, ShadowLimits
from serving.v2 import parse

floats = st.floats(-(2.0**100), 2.0**100, width=32)


# --- the comparison -------------------------------------------------------------------------------------------------
def batches(width: int) -> st.SearchStrategy[list[tuple[np.ndarray, np.ndarray]]]:
    """Requests of one to three rows, each with the answer's and the shadow's output."""
    shape = st.integers(1, 3).map(lambda rows: (rows, width) if width > 1 else (rows,))
    pair = shape.flatmap(
        lambda s: st.tuples(hnp.arrays(np.float32, s, elements=floats), hnp.arrays(np.float32, s, elements=floats))
    )
    return st.lists(pair, min_size=1, max_size=5)


@given(st.sampled_from([1, 3]).flatmap(batches))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_batch_of_comparisons_is_what_each_request_gives_alone(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    found = compare([Pair(["y"], [a], ["y"], [b]) for a, b in pairs])
    other = ranked = 0
    for place, (answer, shadow) in enumerate(pairs):
        a, b = answer.astype(float).reshape(len(answer), -1), shadow.astype(float).reshape(len(answer), -1)
        gaps = [abs(x - y) for x, y in zip(a.flat, b.flat, strict=True)]
        sizes = [max(abs(x), abs(y)) for x, y in zip(a.flat, b.flat, strict=True)]
        assert found.absolute[place] == max(gaps)
        assert found.relative[place] == max(g / s if s else 0.0 for g, s in zip(gaps, sizes, strict=True)) <= 2.0
        if a.shape[1] > 1:
            ranked += len(a)
            other += sum(int(np.argmax(x) != np.argmax(y)) for x, y in zip(a, b, strict=True))
    assert (found.ranked_rows, found.other_rows, found.incomparable) == (ranked, other, 0)


def test_outputs_are_paired_by_name_and_those_of_other_shapes_are_not_compared() -> None:
    one, two, wide = np.array([1.0]), np.array([2.0]), np.array([[1.0, 2.0]])
    found = compare([
        Pair(["p", "q"], [one, two], ["q", "r"], [one, two]),
        Pair(["p"], [one], ["p"], [wide]),
        Pair(["p"], [one], ["z"], [one]),
        Pair(["w"], [wide], ["w"], [wide[:, ::-1]]),
    ])  # fmt: skip

    assert sorted(found.absolute) == [1.0, 1.0]
    assert (found.incomparable, found.ranked_rows, found.other_rows) == (2, 1, 1)
    empty = compare([])
    assert (len(empty.absolute), empty.incomparable) == (0, 0)


# --- callers first --------------------------------------------------------------------------------------------------
class Model:
    """y = scale * x, or an error for x = 13."""

    def __init__(self, scale: float) -> None:
        self.scale = scale
        self.signature = Signature((Input.of("x", "FP32"),), (Output("y"),))
        self.ran: list[int] = []

    def run(self, columns: Sequence[np.ndarray]) -> list[np.ndarray]:
        if (columns[0] == 13).any():
            raise ModelFailed("13")
        self.ran.append(len(columns[0]))
        return [self.scale * columns[0]]


class Signals:
    """Counts what a mirror says."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[int, str]] = Counter()
        self.found: list[tuple[int, int, Disagreement]] = []

    def shadowed(self, _model: str, shadow: int, outcome: str, count: int) -> None:
        self.outcomes[shadow, outcome] += count

    def disagreement(self, _model: str, version: int, shadow: int, found: Disagreement) -> None:
        self.found.append((version, shadow, found))


class Stand:
    """A mirror of a model with version 1 answering and shadows behind it; `busy` says that callers wait."""

    def __init__(self, *shadows: Shadow, **limits: Any) -> None:
        self.busy = False
        self.models = {shadow.version: Model(shadow.version) for shadow in shadows}
        self.signals = Signals()
        self.recorded: list[Call] = []
        self.deployment: Any = SimpleNamespace(
            model="m",
            router=SimpleNamespace(policy=SimpleNamespace(shadows=shadows)),
            versions={number: SimpleNamespace(loaded=SimpleNamespace(model=m)) for number, m in self.models.items()},
        )
        given_limits = {"gather": 0.001, "retry": 0.001, **limits}
        self.mirror = Mirror(
            self.signals,
            self.recorded.extend,
            lambda: self.busy,
            ShadowLimits(**given_limits),  # type: ignore[arg-type]
        )

    def answered(self, value: float, name: str = "x", failed: bool = False) -> Call:
        body = f'{{"id":"{value}","inputs":[{{"name":"{name}","shape":[1],"datatype":"FP32","data":[{value}]}}]}}'
        signature = Signature((Input.of(name, "FP32"),), (Output("y"),))
        call = Call(parse(body.encode()), "m", Choice(1, "stable", 1.0), signature, 0.0, None, lambda _c, _r: None)
        call.settle(ModelFailed("no") if failed else [np.array([value], np.float32)], 1.0)
        self.mirror.offer(call, self.deployment)
        return call

    async def quiet(self) -> None:
        limit = time.monotonic() + 60
        while not self.mirror.idle:
            assert time.monotonic() < limit, "the shadows did not finish"
            await asyncio.sleep(0.002)


async def test_every_answer_is_compared_with_every_shadows() -> None:
    stand = Stand(Shadow(2, 1.0), Shadow(3, 1.0))
    for value in range(1, 6):
        stand.answered(float(value))
    await stand.quiet()
    stand.mirror.close()

    assert stand.signals.outcomes == {
        (s, o): n for s in (2, 3) for o, n in {"compared": 5, "failed": 0, "incomparable": 0, "dropped": 0}.items()
    }
    gaps = {shadow: sorted(found.absolute) for _, shadow, found in stand.signals.found}
    assert gaps == {2: [1.0, 2.0, 3.0, 4.0, 5.0], 3: [2.0, 4.0, 6.0, 8.0, 10.0]}
    assert Counter(call.id for call in stand.recorded) == {f"{float(v)}": 2 for v in range(1, 6)}
    assert {call.choice.arm for call in stand.recorded} == {"shadow"}


async def test_a_shadow_that_takes_the_same_inputs_gets_the_values_that_were_read_for_the_answer() -> None:
    stand = Stand(Shadow(2, 1.0))
    offered = stand.answered(1.0)
    await stand.quiet()
    stand.mirror.close()

    assert [call.values for call in stand.recorded] == [offered.values]
    assert stand.recorded[0].values is offered.values


async def test_what_a_shadow_cannot_take_or_fails_is_counted_and_spoils_nothing_else() -> None:
    stand = Stand(Shadow(2, 1.0))
    stand.answered(1.0)
    stand.answered(2.0, name="other")  # the shadow has no such input
    stand.answered(13.0)
    stand.answered(3.0, failed=True)  # no answer to compare with
    await stand.quiet()
    stand.mirror.close()

    outcomes = {outcome: n for (_, outcome), n in stand.signals.outcomes.items() if n}
    assert outcomes == {"compared": 1, "failed": 1, "incomparable": 2}
    assert {call.id: call.outcome for call in stand.recorded} == {"1.0": "ok", "13.0": "model_error", "3.0": "ok"}


async def test_while_callers_wait_a_shadow_without_allowance_does_nothing_and_drops_what_is_too_much() -> None:
    stand = Stand(Shadow(2, 1.0), busy_share=0.0, queue_rows=8)
    stand.busy = True
    for value in range(20):
        stand.answered(float(value))
    await asyncio.sleep(0.05)
    assert stand.models[2].ran == []
    stand.busy = False
    await stand.quiet()
    stand.mirror.close()

    assert sum(stand.models[2].ran) == 8
    assert (stand.signals.outcomes[2, "compared"], stand.signals.outcomes[2, "dropped"]) == (8, 12)


async def test_while_callers_wait_a_shadow_keeps_to_its_share() -> None:
    stand = Stand(Shadow(2, 1.0), busy_share=0.02, step_rows=2)
    stand.busy = True
    for value in range(6):
        stand.answered(float(value))
    await stand.quiet()
    stand.mirror.close()

    assert stand.models[2].ran == [2, 2, 2]


async def test_a_batch_gives_way_to_callers_after_each_step() -> None:
    stand = Stand(Shadow(2, 1.0), busy_share=0.0, step_rows=2, queue_rows=100)
    model, device = stand.models[2], [0.0]
    waited: list[float] = []

    def run(columns: Sequence[np.ndarray]) -> list[np.ndarray]:
        """A step of the shadow takes the device 1 s; a caller comes in the midst of the second."""
        model.ran.append(len(columns[0]))
        if len(model.ran) == 2:
            stand.busy, came = True, device[0] + 0.5
        device[0] += 1.0
        if len(model.ran) == 2:
            waited.append(device[0] - came)
        return [2.0 * columns[0]]

    model.run = run  # type: ignore[method-assign]
    for value in range(20):
        stand.answered(float(value))
    limit = time.monotonic() + 60
    while not stand.busy or stand.mirror._running:
        assert time.monotonic() < limit
        await asyncio.sleep(0.002)
    await asyncio.sleep(0.02)

    assert model.ran == [2, 2]
    assert waited == [0.5]
    stand.busy = False
    await stand.quiet()
    stand.mirror.close()
    assert model.ran == [2] * 10
    assert stand.signals.outcomes[2, "compared"] == 20


async def test_a_fraction_is_a_share_of_the_requests_and_closing_drops_what_waits() -> None:
    stand = Stand(Shadow(2, 0.5), gather=10.0, batch_rows=10_000, queue_rows=10_000)
    for value in range(400):
        stand.answered(float(value))
    stand.mirror.close()
    stand.answered(1.0)

    assert 120 < stand.signals.outcomes[2, "dropped"] < 280


@pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_a_loop_knows_that_a_socket_has_something_to_read(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def look() -> tuple[bool, bool, bool]:
        here, there = socket.socketpair()
        here.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=here)
        waits = probe(asyncio.get_running_loop())
        await asyncio.sleep(0.01)
        before = waits()
        there.send(b"x")
        sent = waits()
        await reader.readexactly(1)
        await asyncio.sleep(0.01)
        after = waits()
        writer.close()
        await writer.wait_closed()
        there.close()
        return before, sent, after

    loop = new_loop()
    try:
        assert loop.run_until_complete(look()) == (False, True, False)
    finally:
        loop.close()


async def test_a_batch_runs_as_soon_as_there_are_so_many_rows_whatever_time_is_left_to_gather() -> None:
    stand = Stand(Shadow(2, 1.0), gather=1000.0, batch_rows=4, queue_rows=6)
    for value in range(1, 4):
        stand.answered(float(value))
    await asyncio.sleep(0.02)
    assert stand.models[2].ran == []
    stand.answered(4.0)
    await stand.quiet()
    stand.mirror.close()

    assert sum(stand.models[2].ran) == 4


async def test_a_shadows_batches_begin_a_pause_apart() -> None:
    stand = Stand(Shadow(2, 1.0), gather=1000.0, batch_rows=2, step_rows=2, queue_rows=6, pause=1000.0)
    for value in range(1, 7):
        stand.answered(float(value))
    await asyncio.sleep(0.05)
    limit = time.monotonic() + 60
    while stand.models[2].ran != [2] or stand.mirror._running:
        assert time.monotonic() < limit
        await asyncio.sleep(0.002)
    first = list(stand.models[2].ran)
    stand.mirror._lanes["m", 2].begun -= 1000.0
    stand.mirror._look()
    while stand.models[2].ran == [2] or stand.mirror._running:
        assert time.monotonic() < limit
        await asyncio.sleep(0.002)
    await asyncio.sleep(0.02)
    stand.mirror.close()

    assert (first, stand.models[2].ran) == ([2], [2, 2])


@pytest.mark.parametrize(
    "wrong", [{"pause": -1.0}, {"gather": -1.0}, {"busy_share": 1.5}, {"nice": 20}, {"step_rows": 0}]
)
def test_limits_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ShadowLimits(**wrong)
