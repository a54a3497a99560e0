"""Where a version's tensors are: on the processors, or on a GPU that the settings name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CPU = "cpu"
_DEVICE = re.compile(r"cpu|cuda(:\d+)?", re.ASCII)


def require_name(device: str) -> None:
    """Raises ValueError unless the text names a device: cpu, cuda or cuda:N."""
    if not _DEVICE.fullmatch(device):
        raise ValueError(f"device is {device!r}; it is cpu, cuda or cuda:N")


def require_device(device: str) -> None:
    """Raises ValueError where the machine, or this torch, has no such device."""
    require_name(device)
    if device == CPU:
        return
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        built = "" if torch.version.cuda else f" (torch {torch.__version__} is built without CUDA)"
        raise ValueError(f"device is {device!r}, and torch finds no GPU{built}; set device = 'cpu'")
    if ":" in device and int(device.partition(":")[2]) >= count:
        raise ValueError(f"device is {device!r}, and torch finds {count} GPUs, cuda:0 to cuda:{count - 1}")


def of_process(device: str, number: int) -> str:
    """The device of one process among several: `cuda` spreads them over all GPUs, a number is for all of them."""
    if device != "cuda":
        return device
    import torch

    return f"cuda:{number % max(1, torch.cuda.device_count())}"


def moved(program: torch.export.ExportedProgram, device: str) -> torch.export.ExportedProgram:
    """The program with its weights, constants and the devices that it names on the device."""
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(program, device)
