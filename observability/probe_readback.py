"""Reads a few tensors back from a GPU without ever waiting for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class ReadBack:
    """Two sets of pinned memory: one holds the latest finished copy while the other is being filled.

    The current stream only clones the tensors (kilobytes), so that the copy is of one moment; a stream of its own
    brings the clone to the host. Not copied or pickled with the module that holds it: a copy starts anew.
    """

    def __init__(self) -> None:
        self._pinned: list[tuple[Tensor, ...]] = []
        self._clone: tuple[Tensor, ...] = ()
        self._stream: Any = None
        self._event: Any = None
        self._finished: tuple[Tensor, ...] | None = None

    def latest(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """The latest copy that the device has finished, or None; starts another one if none is on its way."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(tensors[0].device)  # type: ignore[no-untyped-call]
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._pinned = [
                tuple(torch.empty_like(t, device="cpu", pin_memory=True) for t in tensors) for _ in range(2)
            ]
        if self._clone:
            if not self._event.query():
                return self._finished
            self._finished, self._clone = self._pinned[0], ()
            self._pinned.reverse()
        with torch.no_grad(), torch.cuda.device(tensors[0].device):
            self._clone = tuple(tensor.clone() for tensor in tensors)
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for pinned, clone in zip(self._pinned[0], self._clone, strict=True):
                    pinned.copy_(clone, non_blocking=True)
                    # The allocator must not hand the clone's memory on before this stream has read it.
                    clone.record_stream(self._stream)
                self._event.record(self._stream)
        return self._finished

    def __deepcopy__(self, memo: dict[int, Any]) -> ReadBack:
        return ReadBack()

    def __reduce__(self) -> tuple[type[ReadBack], tuple[()]]:
        return ReadBack, ()
