"""Probe: a profile counted on the device, inside the model, so that a few kilobytes leave it instead of the rows.

probe = Probe(reference, ["amount", "age", "country"])
model = nn.Sequential(probe, model)          # or call it anywhere in `forward`: it returns what it is given
…
window = probe.snapshot()                    # never waits for the device; probe.profile() does
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn.modules import module

from observability.cells import Counts, Floats, ProfileError
from observability.native import library
from observability.probe_kernels import (
    NUM_MOMENTS,
    NUM_SPECIAL,
    count,
    count_codes,
    count_codes_on_cpu,
    count_with_numpy,
)
from observability.probe_layout import ProbeLayout
from observability.probe_memory import ProbeMemory, copied_on_cpu, tables_of, waiting_of
from observability.probe_readback import ReadBack
from observability.profile import Profile

_COUNTED = ("counts", "moments", "codes")
_MEMORY = ("counts", "moments", "tables", "waiting", "filled")
_LOOKED_UP = ("edges", "edges_float32", "tables")
_EXACT = ("edges", "edges_float32", "moments", "waiting")
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

    edges: Tensor
    edges_float32: Tensor
    tables: Tensor
    counts: Tensor
    moments: Tensor
    codes: Tensor
    waiting: Tensor
    filled: Tensor

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
        # Columns of a matrix that is counted as it lies; none where some are codes.
        self._direct = 0 if self._layout.coded else len(self._layout.names)
        # Buffers made in inference mode could not be updated outside it.
        with torch.inference_mode(False):
            edges, edges_float32 = (torch.from_numpy(array) for array in self._layout.edges())
            rows, width = edges.shape
            self.register_buffer("edges", edges, persistent=False)
            self.register_buffer("edges_float32", edges_float32, persistent=False)
            self.register_buffer("counts", torch.zeros(rows, width + NUM_SPECIAL, dtype=torch.int64), persistent=False)
            self.register_buffer("moments", torch.zeros(rows, NUM_MOMENTS, dtype=torch.float64), persistent=False)
            shape = len(self._layout.sizes), max(self._layout.sizes, default=0) + 1
            self.register_buffer("codes", torch.zeros(shape, dtype=torch.int64), persistent=False)
            self.register_buffer("tables", tables_of(edges, edges_float32), persistent=False)
            for name, tensor in zip(("waiting", "filled"), waiting_of(rows), strict=True):
                self.register_buffer(name, tensor, persistent=False)
        self.reset()

    def __call__(self, *inputs: Tensor) -> Any:
        """`forward`, after the hooks if there are any; the usual batch of the usual model is taken before them."""
        memory = self._memory
        if memory is not None and not _in_a_trace() and memory.offer(inputs):
            return inputs[0]
        return super().__call__(*inputs)

    def forward(self, *inputs: Tensor) -> Any:
        """Counts `inputs` and returns them: the tensor where there is one, else the tuple."""
        if not torch.compiler.is_compiling() and self._counted_at_once(inputs):
            return inputs[0] if len(inputs) == 1 else inputs
        layout = self._layout
        columns: Sequence[Tensor] = ()
        if len(inputs) == 1 and len(layout.names) == len(layout.numeric) > 1:
            numbers = _exact(self._matrix(inputs[0]).t())
        else:
            columns = self._columns(inputs)
            numbers = _stacked([columns[place] for place in layout.numeric])
        if layout.numeric:
            edges = self.edges_float32 if numbers.dtype == torch.float32 else self.edges
            count(numbers, edges, self.counts, self.moments, self.tables, self.waiting, self.filled)
        if layout.coded:
            count_codes([columns[place] for place in layout.coded], layout.sizes, layout.booleans, self.codes)
        return inputs[0] if len(inputs) == 1 else inputs

    def _counted_at_once(self, inputs: tuple[Tensor, ...]) -> bool:
        """Counts a tensor a column, numbers in float32; and sees to it that the next batch finds its memory."""
        if self._memory is None or self._memory.counts is not self._buffers["counts"]:
            self._memory = ProbeMemory.of(*(getattr(self, name) for name in _MEMORY))
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
        if not self.counts.is_cuda:
            return self.profile()
        found = self._read_back.latest(self._state())
        return self._layout.empty() if found is None else self._layout.profile(*(tensor.numpy() for tensor in found))

    def profile_in(self, model: nn.Module, path: str = "") -> Profile:
        """What the copy of this probe at `path` in `model` has counted: a program from `torch.export`, say."""
        buffers = dict(model.named_buffers())
        prefix = f"{path}." if path else ""
        wanted = dict.fromkeys((*_COUNTED, *_MEMORY, *_LOOKED_UP))
        if missing := [prefix + name for name in wanted if prefix + name not in buffers]:
            raise KeyError(f"the module has no buffers {', '.join(missing)}: is there a probe at {path!r}?")
        return self._profile({name: buffers[prefix + name] for name in wanted})

    def reset(self) -> None:
        """Forgets what has been counted, on the device and in its order."""
        self._count_waiting()
        with torch.no_grad():
            self.counts.zero_()
            self.codes.zero_()
            self.moments.zero_()
            self.moments[:, 3].fill_(torch.inf)
            self.moments[:, 4].fill_(-torch.inf)
        self._read_back = ReadBack()

    def extra_repr(self) -> str:
        return ", ".join(self._layout.names)

    def _profile(self, buffers: Mapping[str, Tensor | None]) -> Profile:
        """What is counted and what waits in these buffers."""
        counts, moments, codes, waiting, filled = copied_on_cpu(
            [_there(buffers, name) for name in (*_COUNTED, "waiting", "filled")]
        )
        memory = counts, moments, _there(buffers, "tables").cpu(), waiting, filled
        _count_waiting(memory, _there(buffers, "edges_float32").cpu())
        return self._layout.profile(counts.numpy(), moments.numpy(), codes.numpy())

    def _count_waiting(self) -> None:
        if type(self.counts) is Tensor and self.counts.is_cpu:
            _count_waiting(tuple(getattr(self, name) for name in _MEMORY), self.edges_float32)

    def _state(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.counts, self.moments, self.codes

    def _columns(self, inputs: tuple[Tensor, ...]) -> Sequence[Tensor]:
        """The columns as tensors of shape [rows]."""
        if len(inputs) != len(self._layout.names):
            return self._matrix(*inputs).unbind(1)
        columns = [tensor.detach().reshape(-1) for tensor in inputs]
        if any(len(column) != len(columns[0]) for column in columns):
            raise ValueError(f"the columns have {', '.join(str(len(column)) for column in columns)} rows")
        return columns

    def _matrix(self, *inputs: Tensor) -> Tensor:
        """The one input as a tensor of shape [rows, columns]."""
        num_columns = len(self._layout.names)
        if len(inputs) != 1 or inputs[0].ndim == 0 or inputs[0].shape[-1] != num_columns:
            shapes = ", ".join(str(list(tensor.shape)) for tensor in inputs)
            raise ValueError(
                f"the probe counts {num_columns} columns, one tensor each or [rows, columns], not {shapes}"
            )
        return inputs[0].detach().reshape(-1, num_columns)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Probe:
        """Moves to another device, but not to another type: `half()` would round the edges and the moments."""
        self._count_waiting()
        self._memory = None
        exact = {name: self._buffers[name] for name in _EXACT}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in exact.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
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
    buffers = dict.fromkeys((*_COUNTED, *_MEMORY, *_LOOKED_UP))
    ignored = [f"{name}.{buffer}".lstrip(".") for name in probes for buffer in buffers]
    # What torch's own `_set_params_and_buffers_to_ignore_for_model` sets.
    known: list[str] = getattr(model, "_ddp_params_and_buffers_to_ignore", [])
    model._ddp_params_and_buffers_to_ignore = [*known, *ignored]  # type: ignore[assignment]


def _whole(layout: ProbeLayout, columns: list[Tensor]) -> tuple[Counts, Floats, Counts]:
    """Counts, moments and codes of whole columns, each where it lies, some millions of rows at a time."""
    probe_edges = layout.edges()
    rows, width = probe_edges[0].shape
    counts = torch.zeros(rows, width + NUM_SPECIAL, dtype=torch.int64)
    moments = torch.tensor([0.0, 0.0, 0.0, torch.inf, -torch.inf], dtype=torch.float64).repeat(rows, 1)
    codes = torch.zeros(len(layout.sizes), max(layout.sizes, default=0) + 1, dtype=torch.int64)
    nothing = torch.zeros(0, 1), torch.zeros(1, dtype=torch.int64)
    for row, place in enumerate(layout.numeric):
        device = columns[place].device
        of_column = [torch.from_numpy(array[row : row + 1]) for array in probe_edges]
        edges, tables = [tensor.to(device) for tensor in of_column], tables_of(*of_column).to(device)
        state = counts[row : row + 1].to(device), moments[row : row + 1].to(device)
        for values in columns[place].split(_CHUNK_ROWS):  # type: ignore[no-untyped-call]
            exact = _exact(values).unsqueeze(0)
            count(exact, edges[exact.dtype == torch.float32], *state, tables, *nothing)
        counts[row], moments[row] = state[0][0].cpu(), state[1][0].cpu()
    for row, place in enumerate(layout.coded):
        found = codes[row : row + 1].to(columns[place].device)
        for values in columns[place].split(_CHUNK_ROWS):  # type: ignore[no-untyped-call]
            count_codes([values], layout.sizes[row : row + 1], layout.booleans[row : row + 1], found)
        codes[row] = found[0].cpu()
    return counts.numpy(), moments.numpy(), codes.numpy()


def _count_waiting(memory: tuple[Tensor, ...], edges: Tensor) -> None:
    """Counts what waits in a probe's memory (as named in `_MEMORY`) on the CPU."""
    counts, moments, _, waiting, filled = memory
    if native := ProbeMemory.of(*memory):
        native.count_waiting()
    elif rows := int(filled):
        # A copy from where there is C code.
        count_with_numpy(waiting[:rows].t().numpy(), edges.numpy(), counts.numpy(), moments.numpy())
        filled.zero_()


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


def _exact(values: Tensor) -> Tensor:
    """`values` in a type that the kernels count: float32 where it holds them exactly, else float64."""
    if values.dtype in (torch.float32, torch.float64):
        return values
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values.double()


def _stacked(columns: list[Tensor]) -> Tensor:
    """The columns as one tensor [columns, rows] of a type that the kernels count."""
    if not columns:
        return torch.empty(0, 0)
    exact = [_exact(column) for column in columns]
    if any(column.dtype != exact[0].dtype for column in exact):
        exact = [column.double() for column in exact]
    return exact[0].unsqueeze(0) if len(exact) == 1 else torch.stack(exact)
