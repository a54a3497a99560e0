from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.guards import GuardState, begin, clipped_step, judge, nonfinite, skip_if, total_norm, weight_of


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


@given(
    st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=5), min_size=1, max_size=4),
    st.floats(0.1, 1e5),
    st.floats(0.1, 1e5),
)
@settings(deadline=None)
def test_a_step_is_clipped_or_left_out_as_gradients_clipped_by_torch_say(
    values: list[list[float]], limit: float, ceiling: float
):
    ours, theirs = ([torch.nn.Parameter(torch.ones(len(one))) for one in values] for _ in range(2))
    for weights in (ours, theirs):
        for weight, one in zip(weights, values, strict=True):
            weight.grad = torch.tensor(one)
    told = total_norm([weight.grad for weight in ours])
    # Plain gradient descent, in which a factor of the gradient shows.
    found, flag = clipped_step(torch.optim.SGD(ours, lr=0.1, fused=True), told, limit, ceiling)
    norm = torch.nn.utils.clip_grad_norm_(theirs, limit).item()
    if not found > ceiling:
        torch.optim.SGD(theirs, lr=0.1).step()

    assert flag == 0.0
    assert found == pytest.approx(norm, rel=1e-5)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * max(1.0, limit))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_left_out_and_told(bad: float):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.tensor([1.0, bad, 1.0])

    _, flag = clipped_step(optimizer, total_norm([weight.grad]), 1.0)

    assert flag == 1.0
    assert torch.equal(weight, torch.ones(3))
    assert not optimizer.state


@pytest.mark.parametrize(
    ("outputs", "loss", "is_finite"),
    [
        ([1.0, 2.0], 0.5, True),
        ([3e38, 3e38], 0.5, True),  # a sum that is infinite, of numbers that are not
        ([1.0, float("-inf")], 0.5, False),
        ([1.0, float("nan")], 0.5, False),
        ([1.0, 2.0], float("inf"), False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strided", [False, True])
def test_a_backward_pass_begins_with_no_number_where_outputs_or_loss_are_not_finite(
    outputs: list[float], loss: float, is_finite: bool, dtype: torch.dtype, strided: bool
):
    if dtype == torch.float16 and max(outputs) > 65504:
        pytest.skip("no such number of this type")
    given = torch.tensor([outputs, outputs], dtype=dtype, requires_grad=True)
    seen, begun_loss = given.T if strided else given, torch.tensor(loss, dtype=dtype, requires_grad=True)

    begun = weight_of(seen, begun_loss)
    told, also = begin(seen, begun_loss)

    assert told == loss
    for one in (begun, also):
        assert (one is None) == is_finite
        assert one is None or (one.isnan().all() and one.shape == begun_loss.shape and one.dtype == dtype)


def test_a_loss_with_outputs_of_no_floating_point_or_none_at_all_begins_as_usual():
    for outputs in (None, torch.tensor([1, 2]), [torch.ones(2)], torch.ones(0)):
        assert begin(outputs, torch.tensor(0.5)) == (0.5, None)
    assert math.isnan(float(begin(None, torch.tensor(math.nan))[1]))
