"""The gate in front of `torch.export.load`: rebuilds a .pt2 archive from its data, so that nothing in it can run code.

`torch.export.load` unpickles custom objects and example inputs, evaluates symbolic expressions and resolves operator
names in `torch`. The gate takes plain tensors and aten operators only, and hands torch a new archive without the rest.
"""

from __future__ import annotations

import io
import json
import logging
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serving.artifacts import program as reader
from serving.artifacts.placement import CPU, moved
from serving.artifacts.program import Program
from serving.errors import ArtifactError

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)
_ROOT_MEMBERS = {"archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id"}
_WEIGHTS_CONFIG = "data/weights/model_weights_config.json"
_CONSTANTS_CONFIG = "data/constants/model_constants_config.json"
_GRAPH = "models/model.json"
_SAMPLE_INPUTS = "data/sample_inputs/model.pt"
_TENSOR_MEMBER = re.compile(r"data/(weights/weight_\d+|constants/tensor_\d+)")

_OPERATOR_NAMES = (
    "add|sub|mul|truediv|floordiv|mod|neg|pow|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_|pos|index|lshift|rshift"
)
_TARGET = re.compile(
    # Names with two underscores are Python's own attributes of the operators' objects, but for a few operators.
    rf"torch\.ops\.(aten|prims)\.((?!from_file|__)\w+|__(i?and|i?or|i?xor|i?lshift|i?rshift)__)(\.(?!_)\w+)?"
    rf"|_operator\.({_OPERATOR_NAMES})"
    # Their graphs are in the program, and checked as the rest of it is.
    r"|torch\.ops\.higher_order\.(cond|while_loop|map_impl|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|math\.(ceil|floor|trunc|sqrt)|torch\.sym_(max|min|not|int|float|ite|sum)"
)
# fmt: off
_EXPRESSION_NAMES = frozenset({
    "Max", "Min", "FloorDiv", "CleanDiv", "CeilDiv", "IntTrueDiv", "FloatTrueDiv", "Mod", "PythonMod",
    "ModularIndexing", "Where", "ToFloat", "TruncToInt", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not",
    "Pow", "PowByNatural", "LShift", "RShift", "oo", "int_oo", "True", "False", "Symbol", "Integer", "Rational",
    "Float", "Add", "Mul", "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan",
    "GreaterThan", "positive", "nonnegative", "integer", "s",
})
# fmt: on
_EXPRESSION = re.compile(r"[\w\s()+\-*/<>=!,&|~.]*")
_GRAPH_NAME = re.compile(r"[a-z]+(_[a-z0-9]+)+", re.ASCII)
_SYMBOL = re.compile(r"(s|u|zuf)\d+")
_QUOTED_SYMBOL = re.compile(r"'(s|u|zuf)\d+'")
_TREE_TYPES = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}


@dataclass(frozen=True, slots=True)
class _Checked:
    """An archive that passed the gate: its members as bytes, and of its program only what was checked."""

    members: dict[str, bytes]
    program: dict[str, Any]


def load_program(content: bytes, device: str = CPU) -> Program:
    """The program in a .pt2 archive as a function of tensors on the device.

    Raises ArtifactError where it holds pickles, native code or foreign operators, and where it is cut off or
    inconsistent.
    """
    checked = _checked(content)
    try:
        return reader.build(checked.program, _tensors(checked.members, device), device)
    except reader.Unknown as unknown:
        _log.debug("the program is left to torch's own loader: %s", unknown)
    except ArtifactError:
        raise
    except Exception as error:
        raise ArtifactError(f"model.pt2 is not a program of torch.export.save: {error!r}") from error
    found = _exported(checked)
    module = (found if device == CPU else moved(found, device)).module(check_guards=False)
    # The guards and the pytree hooks of the module cost more than a small model: call its forward.
    return Program(module.forward, reader.weight_bytes((*module.parameters(), *module.buffers())))


def load_exported(content: bytes) -> torch.export.ExportedProgram:
    """The program in a .pt2 archive as torch has it, to be changed and exported again. Raises ArtifactError."""
    return _exported(_checked(content))


def _checked(content: bytes) -> _Checked:
    members = _members(content)
    for name in (_GRAPH, _WEIGHTS_CONFIG, _CONSTANTS_CONFIG, "archive_version"):
        if name not in members:
            raise ArtifactError(f"model.pt2 has no member {name!r}; write it with torch.export.save")
    try:
        _check_payloads(members, _WEIGHTS_CONFIG, "weight_")
        _check_payloads(members, _CONSTANTS_CONFIG, "tensor_")
        return _Checked(members, _checked_graph(members[_GRAPH]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"model.pt2 is not a program of torch.export.save: {error!r}") from error


def _exported(checked: _Checked) -> torch.export.ExportedProgram:
    import torch
    from torch.export.pt2_archive._package import PT2ArchiveWriter

    buffer = io.BytesIO()
    with PT2ArchiveWriter(buffer) as writer:
        for name, data in checked.members.items():
            if name in (_WEIGHTS_CONFIG, _CONSTANTS_CONFIG) or _TENSOR_MEMBER.fullmatch(name):
                writer.write_bytes(name, data)
        writer.write_bytes(_GRAPH, json.dumps(checked.program).encode())
        writer.write_bytes(_SAMPLE_INPUTS, _no_inputs())
    buffer.seek(0)
    try:
        return torch.export.load(buffer)
    except Exception as error:
        raise ArtifactError(f"torch.export cannot load model.pt2: {error!r}") from error


def _tensors(members: Mapping[str, bytes], device: str = CPU) -> dict[str, torch.Tensor]:
    """Every parameter, buffer and constant by its name, on the device; those that share a member share its memory."""
    if members.get("byteorder", b"little").strip() != b"little":
        raise reader.Unknown("numbers of another byte order")
    storages: dict[str, torch.Tensor] = {}
    found: dict[str, torch.Tensor] = {}
    for config, folder in ((_WEIGHTS_CONFIG, "weights"), (_CONSTANTS_CONFIG, "constants")):
        for name, payload in json.loads(members[config])["config"].items():
            member = f"data/{folder}/{payload['path_name']}"
            if member not in members:
                raise ArtifactError(f"model.pt2 has no member {member!r}, in which it keeps {name!r}: it is incomplete")
            if member not in storages:
                storages[member] = _storage(members[member]).to(device)
            try:
                found[name] = reader.tensor(payload, storages[member])
            except (RuntimeError, KeyError, TypeError) as error:
                raise ArtifactError(f"model.pt2: {member} does not hold {name!r} as described: {error}") from error
    return found


def _storage(data: bytes) -> torch.Tensor:
    import torch

    # torch's own allocation, because its kernels like theirs aligned; frombuffer does not take an empty buffer.
    storage = torch.empty(len(data), dtype=torch.uint8)
    if data:
        storage.numpy()[:] = memoryview(data)
    return storage


def _members(content: bytes) -> dict[str, bytes]:
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        infos = archive.infolist()
    except Exception as error:
        raise ArtifactError(f"model.pt2 is not an archive of torch.export.save, or is cut off: {error}") from error
    # torch stores its members as they are, one behind the other: what claims to hold more than the file is a bomb.
    claimed = sum(info.file_size for info in infos)
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos) or claimed > len(content):
        raise ArtifactError(
            f"model.pt2 has {len(content)} bytes and claims {claimed} in compressed or overlapping members, "
            "which torch.export.save does not write"
        )
    members: dict[str, bytes] = {}
    for info in infos:
        name = info.filename.partition("/")[2]
        known = name in _ROOT_MEMBERS or name in (_WEIGHTS_CONFIG, _CONSTANTS_CONFIG, _GRAPH, _SAMPLE_INPUTS)
        if name.startswith(("data/extra/", "extra/")):
            continue
        if name in members or not (known or _TENSOR_MEMBER.fullmatch(name)):
            raise ArtifactError(
                f"model.pt2 holds {info.filename!r}, which a plain program does not need (pickled objects and native "
                "code are refused); export a module of ordinary tensors"
            )
        try:
            members[name] = archive.read(info)
        except Exception as error:
            raise ArtifactError(f"model.pt2: its member {info.filename!r} cannot be read: {error}") from error
    return members


def _check_payloads(members: dict[str, bytes], config: str, prefix: str) -> None:
    for name, payload in json.loads(members[config])["config"].items():
        if payload.get("use_pickle") or not str(payload["path_name"]).startswith(prefix):
            raise ArtifactError(
                f"model.pt2 keeps {name!r} as a pickle ({payload['path_name']}), which is never loaded; "
                "export the module with ordinary dense tensors"
            )


def _checked_graph(content: bytes) -> dict[str, Any]:
    program: dict[str, Any] = json.loads(content)
    _walk(program)
    program["graph_module"]["module_call_graph"] = [
        entry for entry in program["graph_module"].get("module_call_graph", []) if entry.get("fqn") == ""
    ]
    return program


def _walk(value: Any) -> None:
    """Refuses what a deserializer would resolve or evaluate, and drops metadata (source names, stack traces)."""
    if isinstance(value, list):
        for item in value:
            _walk(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key in ("target", "as_operator") and isinstance(item, str):
                _require(_TARGET.fullmatch(item) is not None, "operator", item)
            elif key == "expr_str":
                _require(_plain_expression(str(item)), "expression", item)
            elif key in ("in_spec", "out_spec") and item:
                _require(_plain_tree(json.loads(item)), "tree", item)
            elif key == "as_graph":
                # torch writes the name of a graph within the graph into the Python that it makes of it.
                _require(_GRAPH_NAME.fullmatch(str(item["name"])) is not None, "graph", item["name"])
                _walk(item)
            elif key == "metadata" and isinstance(item, dict):
                value[key] = {}
            elif key != "config":
                _walk(item)


def _require(allowed: bool, what: str, found: object) -> None:
    if not allowed:
        raise ArtifactError(f"model.pt2 names the {what} {found!r}, which is outside the allowed set (aten programs)")


def _plain_expression(text: str) -> bool:
    text = _QUOTED_SYMBOL.sub("s", text)
    names = re.findall(r"[A-Za-z_]\w*", text)
    attribute = re.search(r"\.(?!\d)|(?<!\d)\.", text)
    return (
        _EXPRESSION.fullmatch(text) is not None
        and attribute is None
        and all(_SYMBOL.fullmatch(name) or name in _EXPRESSION_NAMES for name in names)
    )


def _plain_tree(spec: Any) -> bool:
    if isinstance(spec, list):
        return all(_plain_tree(item) for item in spec)
    if isinstance(spec, dict):
        return spec.get("type") in _TREE_TYPES and _plain_tree(spec.get("children_spec", []))
    return True


def _no_inputs() -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(((), {}), buffer)
    return buffer.getvalue()
