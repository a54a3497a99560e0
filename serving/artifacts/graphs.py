"""A model's function on a GPU: one captured graph a batch size, between page-locked buffers that live as long as it.

Capture and replay: https://docs.pytorch.org/docs/2.13/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from serving.errors import ModelFailed

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)
# Graphs of one version: each keeps its activations. Batches of further shapes run kernel by kernel.
_MOST_GRAPHS = 32
_WARM_RUNS = 3

Work = Callable[[], Any]
_Key = tuple[int, tuple[tuple[Any, tuple[int, ...]], ...]]


class Gpu(Protocol):
    """What the function needs of a device; tests give one that is made of processors."""

    def on_host(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Memory of the host that the device copies from and to by itself."""

    def on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of the tensor in the device's memory."""

    def record(self, work: Work) -> tuple[Callable[[], None], Any]:
        """Runs `work` until it is warm, then notes it: what repeats it, and the result that each time overwrites."""

    def run(self, work: Work) -> Any:
        """What `work` gives, once the device has done all of it."""


class Cuda:
    """One CUDA device, by a stream of its own."""

    def __init__(self, device: str) -> None:
        import torch

        self._torch = torch
        self._device = torch.device(device)
        self._stream: Any = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        # Graphs of one version never run at a time: what one needs in passing, the next may use.
        self._pool = torch.cuda.graph_pool_handle()

    def on_host(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Page-locked memory."""
        return self._torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def on_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of the tensor on the device."""
        return tensor.to(self._device)

    def record(self, work: Work) -> tuple[Callable[[], None], Any]:
        """A CUDA graph of the work. What other threads do on the device meanwhile does not disturb it."""
        torch = self._torch
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_RUNS):
                work()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = work()
        return graph.replay, result

    def run(self, work: Work) -> Any:
        """Runs the work on the stream and waits without the interpreter's lock."""
        with self._torch.cuda.stream(self._stream):
            result = work()
        self._stream.synchronize()
        return result


class _Graph:
    """One batch size of one set of shapes."""

    def __init__(self, call: Callable[..., Any], gpu: Gpu, size: int, example: Sequence[torch.Tensor]) -> None:
        shapes = [((size, *tensor.shape[1:]), tensor.dtype) for tensor in example]
        self._gpu = gpu
        self._hosts = [gpu.on_host(shape, dtype) for shape, dtype in shapes]
        self._fill(example)
        self._inputs = [gpu.on_device(host) for host in self._hosts]
        self._replay, self._result = gpu.record(lambda: call(*self._inputs))
        outputs = _tensors(self._result)
        if any(output.ndim == 0 or len(output) != size for output in outputs):
            raise ModelFailed(f"it gave outputs of the shapes {[list(o.shape) for o in outputs]} for {size} rows")
        self._outputs = [gpu.on_host(output.shape, output.dtype) for output in outputs]

    def run(self, given: Sequence[torch.Tensor]) -> Any:
        """The result in fresh memory of the host, without the rows that fill the batch up."""
        rows = len(given[0])
        self._fill(given)
        self._gpu.run(self._work)
        return _like(self._result, [output[:rows].clone() for output in self._outputs])

    def _fill(self, given: Sequence[torch.Tensor]) -> None:
        for host, tensor in zip(self._hosts, given, strict=True):
            host[: len(tensor)] = tensor
            host[len(tensor) :] = tensor[:1]

    def _work(self) -> None:
        for tensor, host in zip(self._inputs, self._hosts, strict=True):
            tensor.copy_(host, non_blocking=True)
        self._replay()
        for host, output in zip(self._outputs, _tensors(self._result), strict=True):
            host.copy_(output, non_blocking=True)


class OnGpu:
    """Takes and gives tensors of the CPU, [rows, ...]; the work between is the device's.

    A batch is filled up to the next power of two with copies of its first row. What cannot be captured runs kernel by
    kernel; `lost` is set once the device is of no more use to this process.
    """

    def __init__(self, call: Callable[..., Any], gpu: Gpu, *, most_graphs: int = _MOST_GRAPHS) -> None:
        self.lost = False
        self._call = call
        self._gpu = gpu
        self._most_graphs = most_graphs
        self._graphs: dict[_Key, _Graph | None] = {}
        self._lock = threading.Lock()

    def __call__(self, *given: torch.Tensor) -> Any:
        with self._lock:
            try:
                graph = self._graph(given)
                return self._eager(given) if graph is None else graph.run(given)
            except Exception as error:
                if not (self.lost or self._ends(error)):
                    raise
                raise ModelFailed(f"the GPU can no longer be used by this process: {_first_line(error)}") from error

    def _graph(self, given: Sequence[torch.Tensor]) -> _Graph | None:
        rows = len(given[0])
        if not rows:
            return None
        size = 1 << (rows - 1).bit_length()
        key = size, tuple((tensor.dtype, tuple(tensor.shape[1:])) for tensor in given)
        if key in self._graphs or len(self._graphs) >= self._most_graphs:
            return self._graphs.get(key)
        try:
            self._graphs[key] = _Graph(self._call, self._gpu, size, given)
        except Exception as error:
            if self._ends(error):
                raise
            self._graphs[key] = None
            _log.warning(
                "batches of %d rows run kernel by kernel, as no graph of them could be captured: %s",
                size, _first_line(error),
            )  # fmt: skip
        return self._graphs[key]

    def _ends(self, error: Exception) -> bool:
        """Whether the device takes nothing any more, as after an index out of range in a kernel; says so in `lost`."""
        if not isinstance(error, RuntimeError) or type(error).__name__ == "OutOfMemoryError":
            return False
        import torch

        try:
            self._gpu.run(lambda: self._gpu.on_device(torch.zeros(1)))
        except RuntimeError:
            self.lost = True
        return self.lost

    def _eager(self, given: Sequence[torch.Tensor]) -> Any:
        result = self._gpu.run(lambda: self._call(*map(self._gpu.on_device, given)))
        return _like(result, [tensor.cpu() for tensor in _tensors(result)])


def _tensors(result: Any) -> list[torch.Tensor]:
    if isinstance(result, Mapping):
        return list(result.values())
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _like(result: Any, tensors: list[torch.Tensor]) -> Any:
    """The tensors in the form of the result: one, a tuple, or a dict by the same keys."""
    if isinstance(result, Mapping):
        return dict(zip(result, tensors, strict=True))
    return tuple(tensors) if isinstance(result, (tuple, list)) else tensors[0]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
