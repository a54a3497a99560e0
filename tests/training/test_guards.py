from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.guards import GuardState, judge, nonfinite, skip_if


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5), st.integers(1, 60))
def test_judging_in_pieces_decides_as_judging_at_once(flags: list[bool], limit: int, size: int):
    whole = judge(GuardState(), flags, limit)
    state, decision = GuardState(), judge(GuardState(), [], limit)
    for first in range(0, len(flags), size):
        decision = judge(state, flags[first : first + size], limit)
        state = decision.state
        if decision.action == "stop":
            break

    assert (decision.action, decision.state) == (whole.action, whole.state)


def test_a_finite_step_between_starts_the_count_anew():
    assert judge(GuardState(), [True, True, False, True, True], 3).action == "continue"

    decision = judge(GuardState(skipped=4, in_a_row=2), [True, False], 3)

    assert decision.action == "stop"
    assert decision.reason == "3 steps in a row had a loss or gradient that is not finite"
    assert (decision.newly_skipped, decision.state) == (1, GuardState(5, 3))


@pytest.mark.parametrize(
    ("loss", "norm", "flag"), [(1.0, 2.0, 0.0), (float("nan"), 1.0, 1.0), (1.0, float("inf"), 1.0)]
)
def test_flags_are_raised_by_loss_and_by_gradient(loss: float, norm: float, flag: float):
    assert nonfinite(torch.tensor(loss), torch.tensor(norm)).item() == flag


def test_a_flagged_step_leaves_weights_moments_and_step_count_alone():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.ones(3)
    skip_if(optimizer, torch.tensor(0.0))
    optimizer.step()
    before = weight.detach().clone(), {k: v.clone() for k, v in optimizer.state[weight].items()}

    weight.grad = torch.full((3,), float("nan"))
    skip_if(optimizer, torch.tensor(1.0))
    optimizer.step()

    assert torch.equal(weight, before[0])
    assert all(torch.equal(optimizer.state[weight][name], value) for name, value in before[1].items())
