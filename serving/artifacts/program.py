"""An exported program's graph as one plain function of tensors, made from its checked JSON.

`torch.export.load` builds the same from the same data, but imports the compiler's front (about a second and 100 MB) and
works for 150 ms in Python, which a server under load would feel. What this reader does not know, it leaves to torch.
Format: torch/_export/serde/schema.py, version 8.
"""

from __future__ import annotations

import json
import keyword
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_SCHEMA = 8
# torch._export.serde.schema: ScalarType, MemoryFormat, Layout
_DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64", 12: "bool",
    13: "bfloat16", 28: "uint16", 34: "uint32", 35: "uint64",
}  # fmt: skip
_MEMORY_FORMATS = {1: "contiguous_format", 2: "channels_last", 3: "channels_last_3d", 4: "preserve_format"}
_STRIDED = 7
_PLAIN = ("as_int", "as_float", "as_bool", "as_string", "as_ints", "as_floats", "as_bools", "as_strings")
_POSITIONAL, _KEYWORD = 1, 2
# The same operators by torch's own bindings, by the name behind `torch.ops.aten.`: an overload's call boxes its
# arguments, which costs a small model more than the work.
_DIRECT = {
    "linear.default": "_C._nn.linear", "addmm.default": "addmm", "matmul.default": "matmul", "relu.default": "relu",
    "sigmoid.default": "sigmoid", "tanh.default": "tanh", "gelu.default": "_C._nn.gelu", "silu.default": "_C._nn.silu",
}  # fmt: skip
_LINEAR, _RELU = "torch.ops.aten.linear.default", "torch.ops.aten.relu.default"
# Operators whose result is new memory, which a relu that is its only use may write to.
_FRESH = (_LINEAR, "torch.ops.aten.addmm.default")
# Values of a linear layer's weight up to which it is laid out anew: those that fit the caches take 0.5 to 0.9 of their
# time then, of two rows up to 1.3 of it; larger ones up to 1.9 with two threads.
_MOST_LAID_OUT = 256 * 1024
# It compares types that the program fixes, at the price of an operator for each conversion.
_DROPPED = "torch.ops.aten._assert_tensor_metadata.default"


class Unknown(Exception):
    """The program uses a part of the format that this reader leaves to torch."""


@dataclass(frozen=True, slots=True)
class Program:
    """`call` takes the inputs as tensors and gives a tensor, a tuple, or a dict by the outputs' names; `nbytes` is what
    its weights take in memory.
    """

    call: Callable[..., Any]
    nbytes: int


@dataclass(slots=True)
class _Source:
    """Lines of the function, the local name of each value, and the objects that the lines name."""

    device: str
    lines: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)
    last_use: dict[str, int] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)
    fresh: set[str] = field(default_factory=set)
    relus: dict[int, str] = field(default_factory=dict)
    # Weights [inputs, outputs] in place of the program's [outputs, inputs].
    laid_out: set[str] = field(default_factory=set)

    def define(self, name: str) -> str:
        local = f"v{len(self.names)}"
        if name in self.names:
            raise Unknown(f"the value {name!r} is defined twice")
        self.names[name] = local
        return local

    def use(self, name: str) -> str:
        try:
            local = self.names[name]
        except KeyError:
            raise Unknown(f"the value {name!r} is not defined") from None
        self.last_use[local] = len(self.lines)
        self.uses[local] += 1
        return local

    def constant(self, value: Any) -> str:
        if value is None or isinstance(value, (bool, int)):
            return repr(value)
        local = f"k{len(self.objects)}"
        self.objects[local] = value
        return local


def build(program: Mapping[str, Any], constants: Mapping[str, torch.Tensor], device: str = "cpu") -> Program:
    """The function of a checked program whose parameters, buffers and constants are given by name, on the device that
    it is to run on.

    Raises Unknown for what only torch's own loader can rebuild.
    """
    if program.get("schema_version", {}).get("major") != _SCHEMA:
        raise Unknown(f"schema version {program.get('schema_version')}")
    module = program["graph_module"]
    graph, signature = module["graph"], module["signature"]
    source = _Source(device)
    held: dict[str, torch.Tensor] = {}
    arguments: list[str] = []
    for spec in signature["input_specs"]:
        kind, body = next(iter(spec.items()))
        if kind == "user_input":
            arguments.append(source.define(_tensor_name(body["arg"])))
        elif kind in ("parameter", "buffer", "tensor_constant"):
            held[source.define(body["arg"]["name"])] = constants[body[f"{kind}_name"]]
        else:
            raise Unknown(f"an input of kind {kind!r}")
    if device == "cpu":
        source.laid_out = _laid_out(graph, {name: held[local] for name, local in source.names.items() if local in held})
    for name in source.laid_out:
        held[source.names[name]] = held[source.names[name]].t().contiguous()
    for node in graph["nodes"]:
        if node["target"] != _DROPPED:
            source.lines.append(_call(source, node))
            _note(source, node)
    results = []
    for spec in signature["output_specs"]:
        kind, body = next(iter(spec.items()))
        if kind != "user_output":
            raise Unknown(f"an output of kind {kind!r}")
        results.append(source.use(_tensor_name(body["arg"])))
    _write_in_place(source)
    result = _result(source, results, _outputs(module))
    return Program(_compiled(source, held, arguments, result), weight_bytes(held.values()))


def weight_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the tensors' storages, those that are shared counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def _compiled(
    source: _Source, held: Mapping[str, torch.Tensor], arguments: Sequence[str], result: str
) -> Callable[..., Any]:
    body = []
    spent: dict[int, list[str]] = {}
    for local, at in source.last_use.items():
        if local not in held:
            spent.setdefault(at, []).append(local)
    for at, line in enumerate(source.lines):
        body.append(line)
        # Large activations go as soon as nothing needs them, as they do in a module's own forward.
        if gone := spent.get(at):
            body.append(f"del {', '.join(gone)}")
    body.append(f"return {result}")
    # The tensors are in the function's closure, not in its globals: no cycle, so they are freed when the function is.
    text = f"def make({', '.join(held)}):\n def call({', '.join(arguments)}):\n  " + "\n  ".join(body)
    text += "\n return call\n"
    namespace = dict(source.objects)
    exec(compile(text, "<exported program>", "exec"), namespace)
    made: Callable[..., Any] = namespace["make"](*held.values())
    return made


def _laid_out(graph: Mapping[str, Any], held: Mapping[str, torch.Tensor]) -> set[str]:
    """Weights that linear layers of rows read faster the other way round, and that nothing else reads.

    The products are those of `linear`; where rows are few, the processor's library adds them up in another order.
    """
    import torch

    ranks = {name: len(value["sizes"]) for name, value in graph["tensor_values"].items()}
    read = Counter(_named(graph["outputs"]))
    weights: Counter[str] = Counter()
    for node in graph["nodes"]:
        read.update(_named([argument["arg"] for argument in node["inputs"]]))
        if node["target"] != _LINEAR or any(argument.get("kind") != _POSITIONAL for argument in node["inputs"]):
            continue
        given = [argument["arg"].get("as_tensor", {}).get("name") for argument in node["inputs"]]
        if len(given) in (2, 3) and None not in given and ranks.get(given[0]) == 2:
            weights[given[1]] += 1
    places = Counter(tensor.untyped_storage().data_ptr() for tensor in held.values())
    return {
        name
        for name, count in weights.items()
        if count == read[name] and name in held
        and held[name].dtype == torch.float32 and held[name].numel() <= _MOST_LAID_OUT
        and places[held[name].untyped_storage().data_ptr()] == 1
    }  # fmt: skip


def _named(value: Any) -> Iterator[str]:
    """Every name in an argument, or in several."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "name" and isinstance(inner, str):
                yield inner
            else:
                yield from _named(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _named(inner)


def _call(source: _Source, node: Mapping[str, Any]) -> str:
    given = []
    for argument in node["inputs"]:
        text = _argument(source, argument["arg"])
        kind = argument.get("kind")
        if kind == _KEYWORD and argument["name"].isidentifier() and not keyword.iskeyword(argument["name"]):
            text = f"{argument['name']}={text}"
        elif kind != _POSITIONAL:
            raise Unknown(f"an argument {argument['name']!r} of kind {kind}")
        given.append(text)
    if node["target"] == _LINEAR and node["inputs"][1]["arg"].get("as_tensor", {}).get("name") in source.laid_out:
        rows, weight, *bias = given
        call = f"{source.constant(_rows_by(bias))}({', '.join([*bias, rows, weight])})"
    else:
        call = f"{source.constant(_operator(node['target']))}({', '.join(given)})"
    outputs = [next(iter(output.items())) for output in node["outputs"]]
    if not outputs:
        return call
    if len(outputs) == 1 and outputs[0][0] == "as_tensors":
        return f"({', '.join(source.define(tensor['name']) for tensor in outputs[0][1])},) = {call}"
    names = [_defined(source, kind, value) for kind, value in outputs]
    return f"{names[0]} = {call}" if len(names) == 1 else f"({', '.join(names)},) = {call}"


def _note(source: _Source, node: Mapping[str, Any]) -> None:
    """Notes what a line is to `_write_in_place`."""
    outputs = [output["as_tensor"]["name"] for output in node["outputs"] if "as_tensor" in output]
    given = [argument["arg"]["as_tensor"]["name"] for argument in node["inputs"] if "as_tensor" in argument["arg"]]
    if node["target"] in _FRESH and len(outputs) == 1:
        source.fresh.add(source.names[outputs[0]])
    elif node["target"] == _RELU and len(outputs) == len(given) == 1:
        source.relus[len(source.lines) - 1] = source.names[given[0]]


def _write_in_place(source: _Source) -> None:
    """Lets a relu overwrite what nothing else needs: a batch's activations are as large as the caches."""
    import torch

    for at, local in source.relus.items():
        if local in source.fresh and source.uses[local] == 1:
            defined, _, call = source.lines[at].partition(" = ")
            source.lines[at] = f"{defined} = {source.constant(torch.relu_)}({call.partition('(')[2]}"


def _defined(source: _Source, kind: str, value: Any) -> str:
    if kind == "as_tensor":
        return source.define(value["name"])
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool") and "as_name" in value:
        return source.define(value["as_name"])
    if kind == "as_none":
        return "_"
    raise Unknown(f"an output of kind {kind!r}")


def _argument(source: _Source, argument: Mapping[str, Any]) -> str:
    import torch

    kind, value = next(iter(argument.items()))
    if kind == "as_none":
        return "None"
    if kind == "as_tensor":
        return source.use(value["name"])
    if kind in _PLAIN:
        return source.constant(_number(kind, value))
    if kind == "as_tensors":
        return f"[{', '.join(source.use(tensor['name']) for tensor in value)}]"
    if kind == "as_nested_tensors":
        return f"[{', '.join(_argument(source, {'as_tensors': inner}) for inner in value)}]"
    if kind == "as_optional_tensors":
        return f"[{', '.join(_argument(source, item) for item in value)}]"
    if kind == "as_optional_tensor":
        return _argument(source, value)
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool"):
        return _symbol(source, value)
    if kind in ("as_sym_ints", "as_sym_floats", "as_sym_bools"):
        return f"[{', '.join(_symbol(source, item) for item in value)}]"
    if kind == "as_scalar_type" and value in _DTYPES:
        return source.constant(getattr(torch, _DTYPES[value]))
    if kind == "as_memory_format" and value in _MEMORY_FORMATS:
        return source.constant(getattr(torch, _MEMORY_FORMATS[value]))
    if kind == "as_layout" and value == _STRIDED:
        return source.constant(torch.strided)
    if kind == "as_device":
        if value["type"] != "cpu":
            raise Unknown(f"the device {value['type']!r}")
        return source.constant(torch.device(source.device))
    if kind == "as_complex":
        return source.constant(complex(float(value["real"]), float(value["imag"])))
    raise Unknown(f"an argument of kind {kind!r}")


def _rows_by(bias: Sequence[str]) -> Callable[..., Any]:
    """What a linear layer is whose weight is laid out."""
    import torch

    return torch.addmm if bias else torch.mm


def _symbol(source: _Source, value: Mapping[str, Any]) -> str:
    if "as_name" in value:
        return source.use(value["as_name"])
    return source.constant(_number(*next(iter(value.items()))))


def _number(kind: str, value: Any) -> Any:
    """A constant as the operator takes it: torch writes floats that JSON has no number for as texts."""
    if kind == "as_float":
        return float(value)
    if kind == "as_floats":
        return [float(item) for item in value]
    return list(value) if isinstance(value, list) else value


def _operator(target: str) -> Callable[..., Any]:
    """The operator of a target that the gate has checked against its own list."""
    import torch

    parts = target.split(".")
    if parts[:2] == ["torch", "ops"] and len(parts) == 5:
        found = getattr(getattr(getattr(torch.ops, parts[2]), parts[3], None), parts[4], None)
        if isinstance(found, torch._ops.OpOverload):
            direct = _DIRECT.get(".".join(parts[3:])) if parts[2] == "aten" else None
            return found if direct is None else operator.attrgetter(direct)(torch)
    roots: dict[str, Any] = {"_operator": operator, "math": math, "torch": torch}
    if len(parts) == 2 and parts[0] in roots:
        plain: Callable[..., Any] = getattr(roots[parts[0]], parts[1])
        return plain
    raise Unknown(f"the operator {target!r}")


def _tensor_name(argument: Mapping[str, Any]) -> str:
    if "as_tensor" not in argument:
        raise Unknown(f"an input or output of kind {next(iter(argument))!r}")
    return str(argument["as_tensor"]["name"])


def _result(source: _Source, results: Sequence[str], keys: Sequence[str] | None) -> str:
    """What the function gives: one tensor, a tuple of them, or a dict."""
    if keys is None:
        return results[0]
    if not keys:
        return f"({', '.join(results)},)"
    return f"{{{', '.join(f'{source.constant(key)}: {one}' for key, one in zip(keys, results, strict=True))}}}"


def _outputs(module: Mapping[str, Any]) -> Sequence[str] | None:
    """The keys of a dict of outputs; none of a tuple; None where the program gives one tensor.

    Its inputs must be plain tensors in order.
    """
    calls = [entry for entry in module["module_call_graph"] if entry["fqn"] == ""]
    if len(calls) != 1 or not calls[0].get("signature"):
        raise Unknown("the program does not say how it is called")
    given, taken = (json.loads(calls[0]["signature"][name])[1] for name in ("out_spec", "in_spec"))
    if not all(_flat(child) for child in taken["children_spec"]):
        raise Unknown("an input that is not a tensor")
    if given["type"] is None:
        return None
    leaves = all(child["type"] is None for child in given["children_spec"])
    if given["type"] == "builtins.dict" and given["children_spec"] and leaves:
        return [str(key) for key in json.loads(given["context"])]
    if not _flat(given):
        raise Unknown("outputs that are not a flat tuple")
    return ()


def _flat(spec: Mapping[str, Any]) -> bool:
    """Whether it is a tuple or list of tensors, or an empty dict of keywords."""
    if not spec["children_spec"]:
        return spec["type"] in ("builtins.tuple", "builtins.list", "builtins.dict")
    leaves = all(child["type"] is None for child in spec["children_spec"])
    return leaves and spec["type"] in ("builtins.tuple", "builtins.list")


def tensor(payload: Mapping[str, Any], storage: torch.Tensor) -> torch.Tensor:
    """A weight over its storage (bytes), as its `tensor_meta` describes it. Raises Unknown for other than dense CPU."""
    import torch

    meta = payload["tensor_meta"]
    if meta["dtype"] not in _DTYPES or meta["layout"] != _STRIDED or meta["device"]["type"] != "cpu":
        raise Unknown(f"a weight of type {meta['dtype']}, layout {meta['layout']} on {meta['device']}")
    try:
        sizes, strides = ([size["as_int"] for size in meta[name]] for name in ("sizes", "strides"))
        offset = meta["storage_offset"]["as_int"]
    except KeyError as error:
        raise Unknown("a weight whose size is not a number") from error
    return storage.view(getattr(torch, _DTYPES[meta["dtype"]])).as_strided(sizes, strides, offset)
