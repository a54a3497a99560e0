"""The functions that templates may call: Prometheus' own and Go's built-in ones, with the types that they take."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote_plus

from alerts.templates.humanize import (
    FunctionError,
    duration_seconds,
    humanize,
    humanize1024,
    humanize_duration,
    humanize_percentage,
    humanize_timestamp,
    to_duration,
    to_time,
)
from alerts.templates.printing import go_text, printed, sprint, sprintf
from alerts.templates.values import (
    ArgumentMap,
    Byte,
    Html,
    LabelMap,
    QueryResult,
    SamplePointer,
    Value,
    truth,
    type_name,
)
from collectors.store.regex import compile_go

ANY = "interface {}"
TEXT = "string"
VECTOR = "template.queryResult"
SAMPLE = "*template.sample"
# Go's built-in functions take values whose absence they see.
REFLECTED = "reflect.Value"

_NIL_POINTER = "runtime error: invalid memory address or nil pointer dereference"
_JS = {"\\": "\\\\", "'": "\\'", '"': '\\"', "<": "\\u003C", ">": "\\u003E", "&": "\\u0026", "=": "\\u003D"}
_HTML = {"\0": "\ufffd", '"': "&#34;", "'": "&#39;", "&": "&amp;", "<": "&lt;", ">": "&gt;"}


@dataclass(frozen=True, slots=True)
class Function:
    """A function, the Go types of its parameters, and whether the last may be given any number of times."""

    call: Callable[..., Value]
    parameters: tuple[str, ...]
    variadic: bool = False


def nil_pointer() -> Value:
    """What Go does with a pointer to nothing."""
    raise FunctionError(_NIL_POINTER)


# --- Prometheus ---------------------------------------------------------------------------------------------------------
def _first(vector: QueryResult) -> SamplePointer:
    if not vector:
        raise FunctionError("first() called on vector with no elements")
    return vector[0]


def _label(name: str, sample: SamplePointer | None) -> str:
    return sample.labels.get(name, "") if sample is not None else str(nil_pointer())


def _sorted(name: str, vector: QueryResult) -> QueryResult:
    vector.sort(key=lambda sample: sample.labels.get(name, "").encode())
    return vector


def _pattern(text: str, prefix: str = "") -> re.Pattern[str]:
    try:
        return re.compile(compile_go(text).pattern)
    except ValueError as error:
        reason = re.sub(r", unterminated subpattern| at position \d+.*", "", str(error), flags=re.DOTALL)
        known = {"missing )": "missing closing )", "nothing to repeat": "missing argument to repetition operator"}
        raise FunctionError(f"{prefix}error parsing regexp: {known.get(reason, reason)}: `{text}`") from error


def _replaced(pattern: str, replacement: str, text: str) -> str:
    found = _pattern(pattern, f"regexp: Compile(`{pattern}`): ")

    def expanded(match: re.Match[str]) -> str:
        def group(reference: re.Match[str]) -> str:
            if reference[0] == "$$":
                return "$"
            name = reference[1] or reference[2]
            if name.isdigit():
                return (match[int(name)] or "") if int(name) <= (match.re.groups) else ""
            return (match[name] or "") if name in match.re.groupindex else ""

        return re.sub(r"\$\$|\$\{(\w+)\}|\$(\w+)", group, replacement, flags=re.ASCII)

    return found.sub(expanded, text)


def _matches(pattern: str, text: str) -> bool:
    return _pattern(pattern).search(text) is not None


def _title(text: str) -> str:
    return re.sub(r"(?<![\w])\w", lambda found: found[0].upper(), text)


def _split_host(address: str) -> tuple[str, str] | None:
    """Host and port; None where Go's SplitHostPort fails."""
    found = re.fullmatch(r"\[([^\[\]]*)\]:([^\[\]:]*)|([^\[\]:]*):([^\[\]:]*)", address, re.DOTALL)
    if found is None:
        return None
    return (found[1], found[2]) if found[1] is not None else (found[3], found[4])


def _strip_port(address: str) -> str:
    split = _split_host(address)
    return split[0] if split else address


def _strip_domain(address: str) -> str:
    host, port = _split_host(address) or (address, "")
    try:
        ipaddress.ip_address(host)
        return address
    except ValueError:
        host = host.split(".")[0]
    return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}") if port else host


def _link(tab: int) -> Callable[[str], str]:
    return lambda expr: f"/graph?g0.expr={quote_plus(expr, safe='')}&g0.tab={tab}"


# --- Go -----------------------------------------------------------------------------------------------------------------
def _kind(value: Value) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, Byte):
        return "uint"
    return next((kind for kind, types in (("int", int), ("float", float), ("string", str)) if isinstance(value, types)), "")


def _equal(first: Value, *others: Value) -> bool:
    _comparable(first)
    if not others:
        raise FunctionError("missing argument for comparison")
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
    first, last = [*places, *(0, length)[len(places):]][:2] if places else (0, length)
    if first > last:
        raise FunctionError(f"invalid slice index: {first} > {last}")
    return item.encode()[first:last].decode(errors="replace") if isinstance(item, str) else QueryResult(item[first:last])


def _length(item: Value) -> int:
    if isinstance(item, str):
        return len(item.encode())
    if isinstance(item, (Mapping, QueryResult)):
        return len(item)
    raise FunctionError("len of nil pointer" if item is None else f"len of type {type_name(item)}")


def _escaped(table: Mapping[str, str]) -> Callable[..., str]:
    def escape(*values: Value) -> str:
        def one(character: str) -> str:
            return table.get(character) or (f"\\u{ord(character):04X}" if "\\" in table and character < " " else character)

        return "".join(map(one, _joined(values)))

    return escape


def _joined(values: Sequence[Value]) -> str:
    return printed(values[0]) if len(values) == 1 else sprint(values)


def _print_line(*values: Value) -> str:
    return " ".join(map(go_text, values)) + "\n"


FUNCTIONS: Mapping[str, Function] = {
    "first": Function(_first, (VECTOR,)),
    "label": Function(_label, (TEXT, SAMPLE)),
    "value": Function(lambda sample: nil_pointer() if sample is None else sample.value, (SAMPLE,)),
    "strvalue": Function(lambda sample: _label("__value__", sample), (SAMPLE,)),
    "args": Function(lambda *items: ArgumentMap((f"arg{n}", item) for n, item in enumerate(items)), (ANY,), True),
    "reReplaceAll": Function(_replaced, (TEXT, TEXT, TEXT)),
    "safeHtml": Function(Html, (TEXT,)),
    "match": Function(_matches, (TEXT, TEXT)),
    "title": Function(_title, (TEXT,)),
    "toUpper": Function(lambda text: text.upper(), (TEXT,)),
    "toLower": Function(lambda text: text.lower(), (TEXT,)),
    "graphLink": Function(_link(0), (TEXT,)),
    "tableLink": Function(_link(1), (TEXT,)),
    "sortByLabel": Function(_sorted, (TEXT, VECTOR)),
    "stripPort": Function(_strip_port, (TEXT,)),
    "stripDomain": Function(_strip_domain, (TEXT,)),
    "humanize": Function(humanize, (ANY,)),
    "humanize1024": Function(humanize1024, (ANY,)),
    "humanizeDuration": Function(humanize_duration, (ANY,)),
    "humanizePercentage": Function(humanize_percentage, (ANY,)),
    "humanizeTimestamp": Function(humanize_timestamp, (ANY,)),
    "toTime": Function(to_time, (ANY,)),
    "toDuration": Function(to_duration, (ANY,)),
    "parseDuration": Function(duration_seconds, (TEXT,)),
    "urlQueryEscape": Function(lambda text: quote_plus(text, safe=""), (TEXT,)),
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
