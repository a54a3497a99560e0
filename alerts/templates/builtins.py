"""The functions that Go's templates have of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from urllib.parse import quote_plus

from alerts.templates.calls import ANY, REFLECTED, TEXT, Function
from alerts.templates.humanize import FunctionError
from alerts.templates.printing import go_text, sprint, sprintf
from alerts.templates.values import ArgumentMap, Byte, LabelMap, QueryResult, Value, truth, type_name

_JS = {"\\": "\\\\", "'": "\\'", '"': '\\"', "<": "\\u003C", ">": "\\u003E", "&": "\\u0026", "=": "\\u003D"}
_HTML = {"\0": "\ufffd", '"': "&#34;", "'": "&#39;", "&": "&amp;", "<": "&lt;", ">": "&gt;"}


def _kind(value: Value) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, Byte):
        return "uint"
    kinds = (("int", int), ("float", float), ("string", str))
    return next((kind for kind, types in kinds if isinstance(value, types)), "")


def _equal(first: Value, *others: Value) -> bool:
    if not others:
        raise FunctionError("missing argument for comparison")
    _comparable(first)
    return any(_equal_to(first, other) for other in others)


def _comparable(value: Value) -> None:
    if isinstance(value, (LabelMap, ArgumentMap, QueryResult)):
        raise FunctionError(f"non-comparable type {go_text(value)}: {type_name(value)}")


def _equal_to(left: Value, right: Value) -> bool:
    kinds = _kind(left), _kind(right)
    if kinds[0] != kinds[1]:
        if set(kinds) != {"int", "uint"} and left is not None and right is not None:
            raise FunctionError("incompatible types for comparison")
        return bool(left == right) if set(kinds) == {"int", "uint"} else False
    if not kinds[0]:
        _comparable(right)
        return left is right
    return bool(left == right)


def _different(left: Value, right: Value) -> bool:
    return not _equal(left, right)


def _less(left: Value, right: Value) -> bool:
    kinds = _kind(left), _kind(right)
    if not all(kinds):
        raise FunctionError("invalid type for comparison")
    if kinds[0] != kinds[1] and set(kinds) != {"int", "uint"}:
        raise FunctionError("incompatible types for comparison")
    if kinds[0] == "bool":
        raise FunctionError("invalid type for comparison")
    return bool(left < right)


def _at_most(left: Value, right: Value) -> bool:
    return _less(left, right) or _equal(left, right)


def _index(item: Value, *keys: Value) -> Value:
    if item is None:
        raise FunctionError("index of untyped nil")
    for key in keys:
        if isinstance(item, Mapping):
            if not isinstance(key, str):
                name = "value is nil; should be of type string" if key is None else f"value has type {type_name(key)}"
                raise FunctionError(name if key is None else f"{name}; should be string")
            item = item[key] if key in item else "" if isinstance(item, LabelMap) else None
        elif isinstance(item, (QueryResult, str)):
            place = _position(key, len(item.encode()) if isinstance(item, str) else len(item))
            item = Byte(item.encode()[place]) if isinstance(item, str) else item[place]
        else:
            raise FunctionError(f"can't index item of type {type_name(item)}")
    return item


def _position(key: Value, length: int, *, extra: int = 0) -> int:
    if key is None:
        raise FunctionError("cannot index slice/array with nil")
    if _kind(key) not in ("int", "uint"):
        raise FunctionError(f"cannot index slice/array with type {type_name(key)}")
    if not 0 <= key < length + extra:
        raise FunctionError(f"index out of range: {int(key)}")
    return int(key)


def _slice(item: Value, *bounds: Value) -> Value:
    if not isinstance(item, (str, QueryResult)):
        raise FunctionError("slice of untyped nil" if item is None else f"can't slice item of type {type_name(item)}")
    if len(bounds) > 3:
        raise FunctionError(f"too many slice indexes: {len(bounds)}")
    if len(bounds) == 3 and isinstance(item, str):
        raise FunctionError("cannot 3-index slice a string")
    length = len(item.encode()) if isinstance(item, str) else len(item)
    places = [_position(bound, length, extra=1) for bound in bounds]
    first, last = [*places, *(0, length)[len(places) :]][:2] if places else (0, length)
    if first > last:
        raise FunctionError(f"invalid slice index: {first} > {last}")
    return (
        item.encode()[first:last].decode(errors="replace") if isinstance(item, str) else QueryResult(item[first:last])
    )


def _length(item: Value) -> int:
    if isinstance(item, str):
        return len(item.encode())
    if isinstance(item, (Mapping, QueryResult)):
        return len(item)
    raise FunctionError("len of nil pointer" if item is None else f"len of type {type_name(item)}")


def _escaped(table: Mapping[str, str]) -> Callable[..., str]:
    def escape(*values: Value) -> str:
        def one(character: str) -> str:
            return table.get(character) or (
                f"\\u{ord(character):04X}" if "\\" in table and character < " " else character
            )

        return "".join(map(one, _joined(values)))

    return escape


def _joined(values: Sequence[Value]) -> str:
    return sprint(["<no value>" if value is None else value for value in values])


def _print_line(*values: Value) -> str:
    return " ".join(map(go_text, values)) + "\n"


BUILTINS: Mapping[str, Function] = {
    "html": Function(_escaped(_HTML), (ANY,), True),
    "js": Function(_escaped(_JS), (ANY,), True),
    "urlquery": Function(lambda *values: quote_plus(_joined(values), safe=""), (ANY,), True),
    "print": Function(lambda *values: sprint(values), (ANY,), True),
    "printf": Function(lambda template, *values: sprintf(template, values), (TEXT, ANY), True),
    "println": Function(_print_line, (ANY,), True),
    "len": Function(_length, (REFLECTED,)),
    "index": Function(_index, (REFLECTED, REFLECTED), True),
    "slice": Function(_slice, (REFLECTED, REFLECTED), True),
    "not": Function(lambda value: not truth(value), (REFLECTED,)),
    "eq": Function(_equal, (REFLECTED, REFLECTED), True),
    "ne": Function(_different, (REFLECTED, REFLECTED)),
    "lt": Function(_less, (REFLECTED, REFLECTED)),
    "le": Function(_at_most, (REFLECTED, REFLECTED)),
    "gt": Function(lambda left, right: not _at_most(left, right), (REFLECTED, REFLECTED)),
    "ge": Function(lambda left, right: not _less(left, right), (REFLECTED, REFLECTED)),
}
