"""Probe: a profile counted on the device, inside the model, so that a few kilobytes leave it instead of the rows.

probe = Probe(reference, ["amount", "age", "country"])
model = nn.Sequential(probe, model)          # or call it anywhere in `forward`: it returns what it is given
model = nn.Sequential(probe, torch.compile(model))   # costs about half of what it does as a part of a compiled graph
…
window = probe.snapshot()                    # never waits for the device; probe.profile() does
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn.modules import module

from observability.cells import Counts, Floats, ProfileError
from observability.native import library
from observability.probe_kernels import count, count_codes, count_codes_on_cpu, count_waiting, exact
from observability.probe_layout import ProbeLayout
from observability.probe_memory import ProbeMemory, copied_on_cpu
from observability.probe_readback import ReadBack
from observability.probe_state import NUM_MOMENTS, NUM_SPECIAL, Views, forget, state_of, views_of
from observability.profile import Profile

_BUFFERS = ("state", "codes")
# Hooks on every module; the two are never replaced.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS, _GLOBAL_PRE_HOOKS = module._global_forward_hooks, module._global_forward_pre_hooks
_in_a_trace = torch.compiler.is_dynamo_compiling
# So many rows of a whole tensor are counted at a time, for what the operators allocate on the device.
_CHUNK_ROWS = 1 << 22


class Probe(nn.Module):
    """Counts the columns it is shown over the bins and categories of a reference profile, and returns them unchanged.

    `names` are the columns in the order of the inputs. Inputs are one tensor a column, of shape [rows] or [rows, 1], or
    one tensor [..., columns]. Numeric columns are of any real type; boolean ones of any, NaN missing; categorical ones
    are codes: 0 for what is not in the list, else 1 + the position in it, negative for missing. The list is the
    reference's categories unless `categories` names another for the column (that of the model's signature, say). A
    tensor has no nulls, so NaN counts as NaN, or, with `nan_is_missing`, as missing.

    Counts are exact, equal to `Profile.updated` of the same values; they live in buffers that checkpoints leave out.
    Raises ProfileError for a column that the reference lacks or whose kind is not one of these three. A module on a
    GPU is called from one stream at a time; on the CPU, any number of threads may call it at once.
    """

    state: Tensor
    codes: Tensor

    def __init__(
        self,
        reference: Profile,
        names: Sequence[str],
        *,
        categories: Mapping[str, Sequence[str]] | None = None,
        nan_is_missing: bool = False,
    ) -> None:
        super().__init__()
        self._layout = ProbeLayout.of(reference, names, categories or {}, nan_is_missing)
        self._read_back = ReadBack()
        self._memory: ProbeMemory | None = None
        # Whole numbers, since a compiled graph checks each item of a list at each call.
        self._num_columns, self._num_numeric = len(self._layout.names), len(self._layout.numeric)
        # Columns of a matrix that is counted as it lies; none where some are codes.
        self._direct = 0 if self._layout.coded else self._num_columns
        edges = self._layout.edges()
        self._width = edges[0].shape[1]
        # Buffers made in inference mode could not be updated outside it.
        with torch.inference_mode(False):
            self.register_buffer("state", state_of(*edges), persistent=False)
            shape = len(self._layout.sizes), max(self._layout.sizes, default=0) + 1
            self.register_buffer("codes", torch.zeros(shape, dtype=torch.int64), persistent=False)

    def __call__(self, *inputs: Tensor) -> Any:
        """`forward`, after the hooks if there are any; the usual batch of the usual model is taken before them."""
        if not _in_a_trace():
            memory = self._memory
            if memory is not None and memory.offer(inputs):
                return inputs[0]
        return super().__call__(*inputs)

    def forward(self, *inputs: Tensor) -> Any:
        """Counts `inputs` and returns them: the tensor where there is one, else the tuple."""
        if not torch.compiler.is_compiling() and self._counted_at_once(inputs):
            return inputs[0] if len(inputs) == 1 else inputs
        if self._direct and len(inputs) == 1 < self._num_columns:
            count(self._matrix(inputs[0]), self.state, self._width)
            return inputs[0]
        layout, columns = self._layout, self._columns(inputs)
        if self._num_numeric:
            count(_stacked([columns[place] for place in layout.numeric]), self.state, self._width)
        if not self._direct:
            count_codes([columns[place] for place in layout.coded], layout.sizes, layout.booleans, self.codes)
        return inputs[0] if len(inputs) == 1 else inputs

    def _counted_at_once(self, inputs: tuple[Tensor, ...]) -> bool:
        """Counts a tensor a column, numbers in float32; and sees to it that the next batch finds its memory."""
        if self._memory is None or self._memory.state is not self._buffers["state"]:
            self._memory = ProbeMemory.of(self._num_numeric, self.state)
            if self._memory is not None:
                hooks = [getattr(self, name) for name in _HOOKS]
                self._memory.offered_by([*hooks, _GLOBAL_HOOKS, _GLOBAL_PRE_HOOKS], self._buffers, self._direct)
        memory, layout = self._memory, self._layout
        if memory is None or len(inputs) != len(layout.names) or type(inputs[0]) is not Tensor or inputs[0].ndim == 0:
            return False
        rows = len(inputs[0])
        for place in layout.numeric:
            column = inputs[place]
            if type(column) is not Tensor or column.dtype is not torch.float32 or not column.is_cpu:
                return False
            if column.numel() != rows or not column.is_contiguous():
                return False
        coded = [inputs[place].detach().reshape(-1) for place in layout.coded]
        if any(type(codes) is not Tensor or not codes.is_cpu or len(codes) != rows for codes in coded):
            return False
        if layout.numeric:
            memory.add_columns([inputs[place] for place in layout.numeric], rows)
        if coded:
            count_codes_on_cpu(coded, layout.sizes, layout.booleans, self.codes)
        return True

    def profile(self) -> Profile:
        """What has been counted since the start or the last `reset`; waits until the device has counted it."""
        return self._profile(self._buffers)

    def snapshot(self) -> Profile:
        """The latest finished read-back, without waiting for the device; starts the next one. At first it is empty.

        Each call returns what the call before had asked for, once the device has passed that point. On the CPU it is
        `profile`.
        """
        if not self.state.is_cuda:
            return self.profile()
        found = self._read_back.latest((*self._views()[:2], self.codes))
        return self._layout.empty() if found is None else self._layout.profile(*(tensor.numpy() for tensor in found))

    def profile_in(self, model: nn.Module, path: str = "") -> Profile:
        """What the copy of this probe at `path` in `model` has counted: a program from `torch.export`, say."""
        buffers = dict(model.named_buffers())
        prefix = f"{path}." if path else ""
        if missing := [prefix + name for name in _BUFFERS if prefix + name not in buffers]:
            raise KeyError(f"the module has no buffers {', '.join(missing)}: is there a probe at {path!r}?")
        return self._profile({name: buffers[prefix + name] for name in _BUFFERS})

    def reset(self) -> None:
        """Forgets what has been counted, on the device and in its order."""
        self._count_waiting()
        with torch.no_grad():
            forget(self._views())
            self.codes.zero_()
        self._read_back = ReadBack()

    def extra_repr(self) -> str:
        return ", ".join(self._layout.names)

    def _profile(self, buffers: Mapping[str, Tensor | None]) -> Profile:
        """What is counted and what waits in these buffers."""
        state, codes = copied_on_cpu([_there(buffers, name) for name in _BUFFERS])
        count_waiting(state, self._width)
        counts, moments, *_ = views_of(state, self._num_numeric, self._width)
        return self._layout.profile(counts.numpy(), moments.numpy(), codes.numpy())

    def _count_waiting(self) -> None:
        if type(self.state) is Tensor and self.state.is_cpu:
            count_waiting(self.state, self._width)

    def _views(self) -> Views:
        return views_of(self.state, self._num_numeric, self._width)

    def _columns(self, inputs: tuple[Tensor, ...]) -> Sequence[Tensor]:
        """The columns as tensors of shape [rows]."""
        if len(inputs) != self._num_columns:
            return self._matrix(*inputs).unbind(1)
        columns = [tensor.detach().reshape(-1) for tensor in inputs]
        if any(len(column) != len(columns[0]) for column in columns):
            raise ValueError(f"the columns have {', '.join(str(len(column)) for column in columns)} rows")
        return columns

    def _matrix(self, *inputs: Tensor) -> Tensor:
        """The one input as a tensor of shape [rows, columns]."""
        num_columns = self._num_columns
        if len(inputs) != 1 or inputs[0].ndim == 0 or inputs[0].shape[-1] != num_columns:
            shapes = ", ".join(str(list(tensor.shape)) for tensor in inputs)
            raise ValueError(
                f"the probe counts {num_columns} columns, one tensor each or [rows, columns], not {shapes}"
            )
        return inputs[0].detach().reshape(-1, num_columns)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Probe:
        """Moves to another device; no other type is taken, as the state is made of whole numbers."""
        self._count_waiting()
        self._memory = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._read_back = ReadBack()
        return self


def profile_of_tensors(
    reference: Profile,
    tensors: Mapping[str, Tensor],
    *,
    categories: Mapping[str, Sequence[str]] | None = None,
    nan_is_missing: bool = False,
) -> Profile:
    """The profile of whole tensors in the reference's layout, counted where they lie. Columns as in `Probe`.

    A column of the reference that is not among `tensors` is missing in all rows; others are left out. Datetime columns
    are int64 nanoseconds since 1970, embeddings [rows, dimensions]; both, and text, are counted by `Profile.updated`.
    """
    if unknown := sorted(set(categories or {}) - set(tensors)):
        raise ProfileError(f"categories of columns that are not among the tensors: {', '.join(unknown)}")
    chosen = {name: tensor for name, tensor in tensors.items() if name in reference.columns}
    lengths = {name: len(tensor) for name, tensor in chosen.items()}
    if len(set(lengths.values())) > 1:
        raise ProfileError(f"the tensors have different numbers of rows: {lengths}")
    direct = [name for name in chosen if _is_direct(reference.columns[name].kind, chosen[name], nan_is_missing)]
    counted = Profile({})
    if direct:
        layout = ProbeLayout.of(reference, direct, categories or {}, nan_is_missing)
        counted = layout.profile(*_whole(layout, [chosen[name].detach().reshape(-1) for name in direct]))
    others = Profile({name: column.empty() for name, column in reference.columns.items() if name not in direct})
    rows = max(lengths.values(), default=0)
    arrays = {name: _arrow(chosen[name], reference.columns[name].kind) for name in chosen if name not in direct}
    rest = others.updated(pa.table(arrays) if arrays else pa.table({"": pa.nulls(rows)})).columns
    return Profile({name: counted.columns.get(name) or rest[name] for name in reference.columns})


def ignored_by_ddp(model: nn.Module) -> None:
    """Tells DistributedDataParallel, before it wraps `model`, to leave the probes of each process alone.

    It would copy the first process's counts over those of all others; profiles are summed when they are read.
    """
    probes = [name for name, module in model.named_modules() if isinstance(module, Probe)]
    ignored = [f"{name}.{buffer}".lstrip(".") for name in probes for buffer in _BUFFERS]
    # What torch's own `_set_params_and_buffers_to_ignore_for_model` sets.
    known: list[str] = getattr(model, "_ddp_params_and_buffers_to_ignore", [])
    model._ddp_params_and_buffers_to_ignore = [*known, *ignored]  # type: ignore[assignment]


def _whole(layout: ProbeLayout, columns: list[Tensor]) -> tuple[Counts, Floats, Counts]:
    """Counts, moments and codes of whole columns, each where it lies, some millions of rows at a time."""
    edges, edges_float32 = layout.edges()
    rows, width = edges.shape
    counts, moments = np.zeros((rows, width + NUM_SPECIAL), np.int64), np.zeros((rows, NUM_MOMENTS))
    codes = torch.zeros(len(layout.sizes), max(layout.sizes, default=0) + 1, dtype=torch.int64)
    for row, place in enumerate(layout.numeric):
        state = state_of(edges[row : row + 1], edges_float32[row : row + 1]).to(columns[place].device)
        for values in columns[place].split(_CHUNK_ROWS):  # type: ignore[no-untyped-call]
            count(exact(values).unsqueeze(1), state, width)
        state = state.cpu()
        count_waiting(state, width)
        views = views_of(state, 1, width)
        counts[row], moments[row] = views.counts[0].numpy(), views.moments[0].numpy()
    for row, place in enumerate(layout.coded):
        found = codes[row : row + 1].to(columns[place].device)
        for values in columns[place].split(_CHUNK_ROWS):  # type: ignore[no-untyped-call]
            count_codes([values], layout.sizes[row : row + 1], layout.booleans[row : row + 1], found)
        codes[row] = found[0].cpu()
    return counts, moments, codes.numpy()


def _there(buffers: Mapping[str, Tensor | None], name: str) -> Tensor:
    tensor = buffers[name]
    assert tensor is not None, name
    return tensor


def _is_direct(kind: str, values: Tensor, nan_is_missing: bool) -> bool:
    """Whether the kernels count the column; what the numpy engine counts faster on the CPU is left to it."""
    if kind == "numeric" and not nan_is_missing and (library() is None or values.dtype is torch.float64):
        return not values.is_cpu or values.ndim != 1 or values.dtype is torch.bfloat16
    return kind in ("numeric", "categorical", "boolean")


def _arrow(values: Tensor, kind: str) -> pa.Array:
    numbers = values.detach().cpu().contiguous()
    if kind == "datetime":
        return pa.array(numbers.numpy()).cast(pa.timestamp("ns"))
    if numbers.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(numbers.reshape(-1).numpy()), numbers.shape[1])
    return pa.array(numbers.numpy())


def _stacked(columns: list[Tensor]) -> Tensor:
    """The columns as one tensor [rows, columns] of a type that the kernels count."""
    numbers = [exact(column) for column in columns]
    if any(column.dtype != numbers[0].dtype for column in numbers):
        numbers = [column.double() for column in numbers]
    return numbers[0].unsqueeze(1) if len(numbers) == 1 else torch.stack(numbers).t()
