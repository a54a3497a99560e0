"""How much of a device a training uses: operations that a model asks for, and what devices can do at most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# Dense peak in operations a second, by what the driver's name of the device contains and the type that is multiplied.
# From NVIDIA's and AMD's data sheets, without sparsity; float32 is the rate outside the tensor cores, tf32 within.
_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    ("B200", {"bfloat16": 2250e12, "float16": 2250e12, "tf32": 1125e12, "float32": 75e12}),
    ("H200", {"bfloat16": 989.4e12, "float16": 989.4e12, "tf32": 494.7e12, "float32": 66.9e12}),
    ("H100 NVL", {"bfloat16": 835.5e12, "float16": 835.5e12, "tf32": 417.8e12, "float32": 60e12}),
    ("H100 PCIe", {"bfloat16": 756e12, "float16": 756e12, "tf32": 378e12, "float32": 51.2e12}),
    ("H100", {"bfloat16": 989.4e12, "float16": 989.4e12, "tf32": 494.7e12, "float32": 66.9e12}),
    ("A100", {"bfloat16": 312e12, "float16": 312e12, "tf32": 156e12, "float32": 19.5e12}),
    ("L40S", {"bfloat16": 362.05e12, "float16": 362.05e12, "tf32": 183e12, "float32": 91.6e12}),
    ("L4", {"bfloat16": 121e12, "float16": 121e12, "tf32": 60e12, "float32": 30.3e12}),
    ("A10G", {"bfloat16": 70e12, "float16": 70e12, "tf32": 35e12, "float32": 31.2e12}),
    ("A10", {"bfloat16": 125e12, "float16": 125e12, "tf32": 62.5e12, "float32": 31.2e12}),
    ("V100", {"float16": 125e12, "float32": 15.7e12}),
    ("T4", {"float16": 65e12, "float32": 8.1e12}),
    ("MI300X", {"bfloat16": 1307.4e12, "float16": 1307.4e12, "tf32": 653.7e12, "float32": 163.4e12}),
    ("MI250X", {"bfloat16": 383e12, "float16": 383e12, "float32": 47.9e12}),
)


def peak_flops(device_name: str, dtype: str) -> float | None:
    """The dense peak of a device in operations a second; None where it is not known, so that nothing is made up.

    `device_name` is what `torch.cuda.get_device_name()` says; `dtype` is bfloat16, float16, tf32 or float32.
    """
    for name, peaks in _PEAKS:
        if name in device_name:
            return peaks.get(dtype)
    return None


def training_flops(step: Callable[[], Any]) -> int:
    """Operations of one step, counted by torch while `step` runs forward and backward on a batch of the usual size.

    A multiplication and an addition are two. Counted is what torch knows a formula for: matrix products, convolutions
    and attention, which is what the peak is of (Chowdhery et al. 2022, appendix B, counts so). What is computed twice
    to save memory is counted twice: for the utilisation of the model rather than of the hardware, count a step without
    recomputing.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())
