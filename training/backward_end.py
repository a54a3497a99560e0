"""Tells a rank's own backward pass from its waiting for others' gradients, which DDP does within the same call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from training.pipeline import Mark, unmarked


class BackwardEnd:
    """Ends the phase `backward` when the last gradient of this rank's own is there; what follows is `communication`.

    The first pass shows which parameter's gradient comes last; later ones pay for one hook. Where that parameter has
    no gradient, the whole pass counts as `backward`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._mark: Mark = unmarked
        self._latest, self._ended = -1, False
        self._hooks: list[Any] = [_behind(parameter, self._noted(index)) for index, parameter in enumerate(parameters)]
        self._parameters = list(parameters)
        self._learned = False

    def following(self, mark: Mark) -> Mark:
        """What to tell of the phases of the next pass, so that `mark` hears of them taken apart."""
        self._mark, self._ended = mark, False

        def told(phase: str) -> None:
            if phase == "backward" and not self._learned:
                self._learn()
            mark("communication" if phase == "backward" and self._ended else phase)

        return told

    def _noted(self, index: int) -> Any:
        def note(_: Tensor) -> None:
            self._latest = index

        return note

    def _learn(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._learned = [], True
        if self._latest >= 0:
            self._hooks = [_behind(self._parameters[self._latest], self._end)]

    def _end(self, _: Tensor) -> None:
        self._ended = True
        self._mark("backward")


def _behind(parameter: nn.Parameter, told: Callable[[Tensor], None]) -> Any:
    return parameter.register_post_accumulate_grad_hook(told)  # type: ignore[no-untyped-call]
