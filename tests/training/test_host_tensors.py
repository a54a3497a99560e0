"""What is read of the host's tensors in one pass is what torch's operators say, or nothing is said."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from observability.native import extension
from training.guards import gradient_norm, host_tensors, total_norm
from training.guards.activations import _CHANNELS_SECOND, ActivationLook, _bounds, _units, looking

made = host_tensors.host_tensors()
pytestmark = pytest.mark.skipif(made is None, reason="there is no compiler")


def norm_in_double(tensors: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float(one.detach().double().square().sum()) for one in tensors))


def test_it_is_compiled_where_anything_is() -> None:
    assert extension(Path(host_tensors.__file__).with_suffix(".c"), "-O3") is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25, 0.0])
@pytest.mark.parametrize("sizes", [(1,), (63, 65), (4096,), (4097, 3, 10_000), (0, 7)])
def test_the_norm_is_that_of_double_precision(dtype: torch.dtype, scale: float, sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    tensors = [(torch.randn(size, dtype=torch.float64) * scale).to(dtype) for size in sizes]

    told = made.norm(tensors)

    assert told == pytest.approx(norm_in_double(tensors), rel=1e-6)


@pytest.mark.parametrize("place", [0, 70, 4096, 9999])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_one_number_that_is_none_is_found_anywhere(place: int, odd: float, dtype: torch.dtype) -> None:
    values = torch.ones(10_000, dtype=dtype)
    assert made.is_finite(values) is True
    values[place] = odd

    assert made.is_finite(values) is False
    assert not math.isfinite(made.norm([values]))
    weight = nn.Parameter(torch.zeros(10_000, dtype=dtype))
    weight.grad = values
    assert not math.isfinite(float(gradient_norm([weight])))


def test_parameters_without_a_gradient_are_left_out_and_the_norm_is_that_of_the_rest() -> None:
    weights = [nn.Parameter(torch.ones(3)) for _ in range(3)]
    assert gradient_norm(weights) == 0.0
    weights[1].grad = torch.tensor([3.0, 0.0, 4.0])

    assert gradient_norm(weights) == pytest.approx(5.0)


class Marked(torch.Tensor):
    """A class of somebody's own, whose values may not be what its memory holds."""


def test_of_what_it_does_not_know_it_says_nothing_and_torch_is_asked() -> None:
    unknown = [
        torch.ones(4, 4)[:, :2],
        torch.ones(4, dtype=torch.float16),
        torch.ones(4, dtype=torch.int64),
        torch.ones(4, device="meta"),
        torch.eye(3).to_sparse(),
        torch.ones(4).as_subclass(Marked),
    ]
    for one in unknown:
        assert made.norm([torch.ones(2), one]) is None
        assert made.is_finite(one) is None
        assert made.look(one, 0) is None
        assert made.begin(one, torch.tensor(1.0)) is None
    assert float(total_norm([unknown[0], unknown[1]])) == pytest.approx(math.sqrt(12))
    # The squares of these are infinite even in double precision.
    assert float(total_norm([torch.full((4,), 1e200, dtype=torch.float64)])) > 1e200


def test_large_ones_are_torchs_where_it_has_several_threads() -> None:
    threads, large = torch.get_num_threads(), torch.ones(1 << 20)
    try:
        torch.set_num_threads(1)
        assert made.norm([large]) == 1024.0
        torch.set_num_threads(2)
        assert made.norm([large]) is None
        assert made.norm([large[:100]]) == 10.0
    finally:
        torch.set_num_threads(threads)


def test_what_is_no_list_of_tensors_is_refused() -> None:
    with pytest.raises(TypeError, match="list"):
        made.norm(torch.ones(3))
    with pytest.raises(AttributeError, match="grad"):
        made.gradient_norm([object()])
    for arguments in ((torch.ones(2),), (torch.ones(2), -1), (torch.ones(2), 0, 1)):
        with pytest.raises(TypeError, match="look"):
            made.look(*arguments)
    assert made.look(torch.ones(2), 1) is None


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.ReLU(), (32, 10)),
        (nn.ReLU(), (4, 6, 10)),
        (nn.ReLU(), (4, 6, 5, 3)),
        (nn.BatchNorm1d(6), (8, 6)),
        (nn.Conv1d(6, 6, 1), (8, 6, 9)),
        (nn.Conv2d(6, 7, 1), (3, 6, 4, 5)),
        (nn.ReLU(), (1, 10)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_look_is_what_torch_sees(layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer.to(dtype)
    given = torch.randn(shape, dtype=dtype)
    given[:, 1] = 2.5
    given[..., 2] = -1.0
    with looking({"one": layer}) as look:
        output = layer(given)
    plain = ActivationLook(("one",), {"one": _bounds(output.detach(), isinstance(layer, _CHANNELS_SECOND))})

    assert set(look.known) == {"one"}
    assert look.read()[0] == pytest.approx(plain.read()[0], rel=1e-5)


def test_layers_that_gave_nothing_to_look_at_are_unknown_and_in_their_places() -> None:
    layers = {"a": nn.ReLU(), "b": nn.Tanh(), "c": nn.ReLU(), "d": nn.Sigmoid()}
    with looking(layers) as look:
        layers["c"](torch.ones(3, 4))
        layers["b"](torch.ones(8, 4)[:, :2])
    found = look.read()

    assert [math.isnan(rms) for _, rms in found] == [True, False, False, True]
    assert found[2] == (1.0, 1.0)
    assert found[1] == pytest.approx((1.0, math.tanh(1)))
    assert _units(torch.ones(2, 3, 4), channels_second=False) == 2
