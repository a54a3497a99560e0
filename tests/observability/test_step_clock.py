"""The compiled clock of steps writes what the one in Python writes, and both refuse what is no phase."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability.names import PHASES
from observability.native import extension
from observability.step_clock import PlainClock, StepClock, step_clock
from observability.step_ring import DURATION, FIRST_PHASE, NUMBER, SAMPLES, StepRing

_CALLS = st.lists(
    st.one_of(
        st.sampled_from([("start",), ("resume",), ("end", 32), ("end",)]),
        st.tuples(st.sampled_from(["mark", "entering"]), st.sampled_from(PHASES)),
    ),
    max_size=60,
)


def clocks(capacity: int = 4) -> list[tuple[StepRing, StepClock]]:
    found: list[tuple[StepRing, StepClock]] = []
    for make in (step_clock, lambda ring: PlainClock(ring, lambda: 0)):
        ring = StepRing.in_memory(capacity=capacity)
        found.append((ring, make(ring)))
    return found


def test_the_clock_is_compiled_where_there_is_a_compiler() -> None:
    compiled = extension(Path(__file__).parents[2] / "observability" / "step_clock.c")
    ((_, found), _) = clocks()
    assert isinstance(found, PlainClock) == (compiled is None)


@given(_CALLS)
def test_both_clocks_leave_the_same_in_the_ring_but_for_the_time(calls: list[tuple[object, ...]]) -> None:
    seen = []
    for ring, clock in clocks():
        for name, *arguments in calls:
            getattr(clock, str(name))(*arguments)
        now = ring.view().now()
        kept = ring.view().records()
        seen.append(
            (now.num_steps, now.num_samples, now.num_tokens, now.step, now.phase, clock.step,
             kept[:, [NUMBER, SAMPLES]].tolist())
        )  # fmt: skip
    assert seen[0] == seen[1]


def test_phases_add_up_to_no_more_than_their_step() -> None:
    for ring, clock in clocks(64)[:1]:
        for _ in range(30):
            clock.start()
            for phase in ("data_wait", "forward", "backward", "forward", "optimizer"):
                clock.mark(phase)
            clock.end(1)
        records = ring.view().records()
        spent = records[:, FIRST_PHASE:].sum(1)
        assert (spent > 0).all()
        assert (spent <= records[:, DURATION]).all()
        assert not records[:, FIRST_PHASE + PHASES.index("checkpoint")].any()
        assert (np.diff(records[:, 1]) > 0).all()


def test_what_is_no_phase_is_a_key_error_and_what_is_no_number_is_refused() -> None:
    for ring, clock in clocks():
        clock.start()
        with pytest.raises(KeyError, match=r"no phase 'lunch'; there are .*'data_wait', 'host_to_device'"):
            clock.mark("lunch")
        with pytest.raises(KeyError, match=r"no phase 'lunch'; there are .*'data_wait', 'host_to_device'"):
            clock.entering("lunch")
        clock.mark("".join(["for", "ward"]))
        with pytest.raises(Exception, match=r"integer|int"):
            clock.end("many")  # type: ignore[arg-type]
        assert ring.view().now().num_steps == 0
