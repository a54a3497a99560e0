"""`torch.compile` for a version that asks for it: compiled where there is a compiler, as it is where there is none."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)


def compiler() -> str | None:
    """The C++ compiler that torch's inductor would use (g++, or what CXX names); None where there is none."""
    import torch._inductor.config as inductor

    return next((found for name in inductor.cpp.cxx if name and (found := shutil.which(name))), None)


def compiled(eager: Callable[..., Any]) -> Callable[..., Any]:
    """A function or module compiled for any number of rows; itself, with a warning, where it cannot be compiled.

    Compiling happens in the first calls, that is while the version is warmed up: one row has its own code.
    """
    if compiler() is None:
        _log.warning(
            "a version asks to be compiled, and there is no C++ compiler (g++, or what CXX names): it runs as it is; "
            "install one, for example: apt-get install g++"
        )
        return eager
    import torch
    import torch._inductor.config as inductor

    # No pool of compiler processes that would stay beside the server.
    inductor.compile_threads = 1
    return _Compiled(torch.compile(eager, dynamic=True), eager)


class _Compiled:
    """Calls the compiled function, and for good the eager one if compiling failed."""

    def __init__(self, fast: Callable[..., Any], eager: Callable[..., Any]) -> None:
        self._call = fast
        self._eager = eager
        self._proved = False

    def __call__(self, *tensors: torch.Tensor) -> Any:
        if self._proved:
            return self._call(*tensors)
        try:
            result = self._call(*tensors)
        except Exception as error:
            _log.warning("a version could not be compiled and runs as it is: %s", str(error)[:500])
            self._call = self._eager
            result = self._eager(*tensors)
        self._proved = True
        return result
