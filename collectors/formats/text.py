"""Prometheus' text format and OpenMetrics, read as Prometheus' own parser reads them (model/textparse).

A line whose series is known costs one look-up and one number: only new series, comments and lines with a time or an
exemplar are taken apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Hashable
from dataclasses import dataclass, field
from math import isfinite, isinf, isnan

from collectors.formats.lines import BadExposition, Layout, LineExemplar, Lines, normalized
from collectors.store.values import MetricMetadata

_NAME = rb"[a-zA-Z_:][a-zA-Z0-9_:]*+"
_QUOTED = rb'"(?:[^"\\]|\\.)*+"'
_BRACES = rb'\{(?:[^"}]|' + _QUOTED + rb")*+\}"
_TEXT_LINE = re.compile(
    rb"[ \t]*(" + _NAME + rb"(?:[ \t]*" + _BRACES + rb")?|" + _BRACES + rb")"
    rb"[ \t]*([^{ \t\n]++)(?:[ \t]+([0-9]+))?[ \t]*"
)
_OPENMETRICS_LINE = re.compile(
    rb"(" + _NAME + rb"(?:" + _BRACES + rb")?|" + _BRACES + rb") ([^ \n]++)(?: ([^ #\n][^ \n]*+))?"
    rb"(?: # (" + _BRACES + rb") ([^ \n]++)(?: ([^ \n]++))?)?"
)
_TEXT_META = re.compile(rb"[ \t]*#[ \t]+(HELP|TYPE)[ \t]+(" + _QUOTED + rb"|" + _NAME + rb")(.*)", re.DOTALL)
_OPENMETRICS_META = re.compile(rb"# (HELP|TYPE|UNIT) (" + _QUOTED + rb"|" + _NAME + rb")( .*)", re.DOTALL)
_TEXT_LABEL = re.compile(
    rb"[ \t]*(?:([a-zA-Z_][a-zA-Z0-9_]*)|(" + _QUOTED + rb"))(?:[ \t]*(=)[ \t]*(" + _QUOTED + rb"))?[ \t]*(,|(?=\})|)",
    re.DOTALL,
)
_OPENMETRICS_LABEL = re.compile(
    rb"(?:([a-zA-Z_][a-zA-Z0-9_]*)|(" + _QUOTED + rb"))(?:(=)(" + _QUOTED + rb"))?(,|(?=\}))", re.DOTALL
)
_TEXT_TYPES = {"counter": "counter", "gauge": "gauge", "histogram": "histogram", "summary": "summary"}
_TEXT_TYPES["untyped"] = "unknown"
_OPENMETRICS_TYPES = {"gaugehistogram", "info", "stateset", "unknown", *_TEXT_TYPES} - {"untyped"}
# Python's float() takes these around a number, and underscores in it; Prometheus does not.
_UNUSUAL_SPACE = (b"\r", b"\x0b", b"\x0c")
_ESCAPES = {b"\\\\": b"\\", b'\\"': b'"', b"\\n": b"\n"}
_ESCAPE = re.compile(rb'\\[\\"n]')
_HELP_ESCAPE = re.compile(rb"\\[\\n]")


@dataclass(slots=True)
class _Family:
    """The last TYPE line's type, and what all lines say of each name."""

    kind: str = ""
    types: dict[str, str] = field(default_factory=dict)
    helps: dict[str, str] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)

    def metadata(self, of_counter: str) -> dict[str, MetricMetadata]:
        """By name; a counter's samples have `of_counter` behind the name that its TYPE line has."""
        found = {}
        for name in {**self.types, **self.helps, **self.units}:
            kind = self.types.get(name, "unknown")
            full = f"{name}{of_counter}" if kind == "counter" and not name.endswith("_total") else name
            found[full] = MetricMetadata(kind, self.helps.get(name, ""), self.units.get(name, ""))
        return found


_TakeApart = Callable[[bytes, Lines, _Family, Container[Hashable]], None]


def read_text(body: bytes, known: Container[Hashable] = (), layout: Layout | None = None) -> Lines:
    """A page in Prometheus' text format 0.0.4 or 1.0.0. What is wrong is in `error`, with what came before it read."""
    out, family = Lines(), _Family()
    lines = body.split(b"\n")
    quick = not any(space in body for space in (*_UNUSUAL_SPACE, b"\t"))
    if quick and layout is not None and _read_numbers(lines, out, layout):
        return out
    _read_lines(lines, out, family, known, _text_line, strict=not quick)
    out.metadata = family.metadata("")
    if quick:
        out.layout = _layout(lines, out, known)
    return out


def read_openmetrics(body: bytes, known: Container[Hashable] = (), layout: Layout | None = None) -> Lines:
    """A page in OpenMetrics 0.0.1 or 1.0.0. What is wrong is in `error`, with what came before it read."""
    out, family = Lines(), _Family()
    text, marker, rest = body.partition(b"# EOF")
    while marker and text and not text.endswith(b"\n"):  # inside a help text or a label
        more, marker, rest = rest.partition(b"# EOF")
        text += b"# EOF" + more
    quick = not any(space in body for space in (*_UNUSUAL_SPACE, b"\t"))
    lines = text.split(b"\n")[:-1]
    whole = bool(marker) and rest in (b"", b"\n")
    if quick and whole and layout is not None and _read_numbers(lines, out, layout):
        return out
    _read_lines(lines, out, family, known, _openmetrics_line, strict=not quick)
    out.metadata = family.metadata("_total")
    if quick and whole:
        out.layout = _layout(lines, out, known)
    if out.error is None and not marker:
        out.error = "data does not end with # EOF"
    elif out.error is None and rest not in (b"", b"\n"):
        out.error = "unexpected data after # EOF"
    return out


def _layout(lines: list[bytes], out: Lines, known: Container[Hashable]) -> Layout | None:
    """What a page that differs in its numbers alone will have in common with this one."""
    if out.error is not None or out.new or out.times or out.exemplars:
        return None
    keys = [line.rpartition(b" ")[0] for line in lines]
    sampled = [key in known for key in keys]
    if sum(sampled) != len(out.keys):
        return None
    others = [(number, line) for number, line in enumerate(lines) if not sampled[number]]
    heads = [key + b" " if there else line for key, there, line in zip(keys, sampled, lines, strict=True)]
    return Layout(heads, [slice(len(head), None) for head in heads], others, out.keys, out.metadata)


def _read_numbers(lines: list[bytes], out: Lines, layout: Layout) -> bool:
    """Reads a page of this layout; whether it is one, all of whose numbers are plain ones."""
    if len(lines) != len(layout.heads) or not all(map(bytes.startswith, lines, layout.heads)):
        return False
    if any(lines[number] != line for number, line in layout.others):
        return False
    numbers = [number for number in map(bytes.__getitem__, lines, layout.numbers) if number]
    values = _plain(numbers)
    if values is None or len(values) != len(layout.keys) or b" " in b"".join(numbers):
        return False
    out.keys, out.values, out.numbers = layout.keys, values, numbers
    out.metadata, out.layout = layout.metadata, layout
    return True


def _plain(numbers: list[bytes]) -> list[float] | None:
    """The numbers, if Python's `float` and Go read all of them alike."""
    try:
        values = list(map(float, numbers))
    except ValueError:
        return None
    return values if isfinite(sum(values)) and b"_" not in b"".join(numbers) else None


def _read_lines(
    lines: list[bytes],
    out: Lines,
    family: _Family,
    known: Container[Hashable],
    take_apart: _TakeApart,
    *,
    strict: bool,
) -> None:
    """Reads the lines; with `strict` each number is looked at for spaces that Python's `float` would not mind."""
    keys, numbers, new = out.keys, out.numbers, out.new
    for line in lines:
        key, _, number = line.rpartition(b" ")
        if (key in known or key in new) and b"\t" not in number:
            keys.append(key)
            numbers.append(number)
            continue
        try:
            take_apart(line, out, family, known)
        except (BadExposition, UnicodeDecodeError) as error:
            out.error = f"{error} while parsing: {line[:200]!r}"
            break
    values = None if strict else _plain(numbers)
    out.values = _one_by_one(out) if values is None else values


def _one_by_one(out: Lines) -> list[float]:
    """The values up to the first that is no number."""
    values: list[float] = []
    for number in out.numbers:
        try:
            values.append(_number(number))
        except BadExposition as error:
            out.error = f"{error} while parsing the value of {out.keys[len(values)]!r}"
            del out.keys[len(values) :]
            break
    return values


def _number(text: bytes) -> float:
    """A number as Go reads one: Python's `float` also takes underscores, spaces, `-nan` and numbers out of range."""
    try:
        value = float(text)
    except ValueError:
        raise BadExposition(f"{text!r} is not a number") from None
    if b"_" in text or text.strip() != text or (isnan(value) and text[:1] in b"+-"):
        raise BadExposition(f"{text!r} is not a number")
    if isinf(value) and b"n" not in text.lower():
        raise BadExposition(f"{text!r} is out of range")
    return value


def _text_line(line: bytes, out: Lines, family: _Family, known: Container[Hashable]) -> None:
    start = line.lstrip(b" \t")
    if not start:
        return
    if start.startswith(b"#"):
        _text_comment(line, family)
        return
    match = _TEXT_LINE.fullmatch(line)
    if match is None:
        raise BadExposition("expected a metric, its value, and perhaps a time in milliseconds")
    key, number, at = match.groups()
    if key not in known and key not in out.new:
        out.new[key] = normalized(family.kind, _labels(key, _TEXT_LABEL))
    if at is not None:
        out.times[len(out.keys)] = _milliseconds(int(at))
    out.keys.append(key)
    out.numbers.append(number)


def _text_comment(line: bytes, family: _Family) -> None:
    match = _TEXT_META.fullmatch(line)
    if match is None:
        words = line.split()
        if words[:1] == [b"#"] and words[1:2] in ([b"HELP"], [b"TYPE"]):
            raise BadExposition(f"expected metric name after {words[1].decode()}")
        return
    name, text = _metric_name(match[2]), match[3][1:]
    if match[1] == b"HELP":
        family.helps[name] = _HELP_ESCAPE.sub(lambda found: _ESCAPES[found[0]], text).decode()
        return
    kind = text.decode()
    if kind not in _TEXT_TYPES:
        raise BadExposition(f"invalid metric type {kind!r}")
    family.kind = _TEXT_TYPES[kind]
    family.types[name] = family.kind


def _openmetrics_line(line: bytes, out: Lines, family: _Family, known: Container[Hashable]) -> None:
    if line.startswith(b"#"):
        _openmetrics_comment(line, family)
        return
    match = _OPENMETRICS_LINE.fullmatch(line)
    if match is None:
        raise BadExposition("expected a metric, its value, and perhaps a time in seconds and an exemplar")
    key, number, at, exemplar, exemplar_number, exemplar_at = match.groups()
    index = len(out.keys)
    if key not in known and key not in out.new:
        out.new[key] = normalized(family.kind, _labels(key, _OPENMETRICS_LABEL))
    if at is not None:
        out.times[index] = _seconds(at)
    if exemplar is not None:
        labels = _pairs(exemplar, _OPENMETRICS_LABEL)
        if any(name is None for name, _ in labels):
            raise BadExposition("expected label name")
        exemplar_ms = None if exemplar_at is None else _seconds(exemplar_at)
        named = {str(name): text for name, text in labels}
        out.exemplars.append(LineExemplar(index, named, _number(exemplar_number), exemplar_ms))
    out.keys.append(key)
    out.numbers.append(number)


def _openmetrics_comment(line: bytes, family: _Family) -> None:
    match = _OPENMETRICS_META.fullmatch(line)
    if match is None:
        raise BadExposition("expected HELP, TYPE or UNIT with a metric name and its text")
    name, text = _metric_name(match[2]), match[3][1:]
    if match[1] == b"HELP":
        family.helps[name] = _ESCAPE.sub(lambda found: _ESCAPES[found[0]], text).decode()
    elif match[1] == b"UNIT":
        unit = text.decode()
        if unit and not name.endswith(f"_{unit}"):
            raise BadExposition(f"unit {unit!r} not a suffix of metric {name!r}")
        family.units[name] = unit
    else:
        kind = text.decode()
        if kind not in _OPENMETRICS_TYPES:
            raise BadExposition(f"invalid metric type {kind!r}")
        family.kind = family.types[name] = kind


def _metric_name(text: bytes) -> str:
    return text.strip(b'"').decode()


def _labels(key: bytes, label: re.Pattern[bytes]) -> dict[str, str]:
    """The labels of `name{…}` or `{"name",…}`, the metric's name among them."""
    brace = key.find(b"{")
    name = None if brace == 0 else (key if brace < 0 else key[:brace].rstrip(b" \t")).decode()
    labels: dict[str, str] = {} if name is None else {"__name__": name}
    for label_name, value in _pairs(key[brace:], label) if brace >= 0 else ():
        if label_name is None and "__name__" in labels:
            raise BadExposition("metric name already set")
        full = "__name__" if label_name is None else label_name
        if full in labels:
            raise BadExposition(f"label name {full!r} is not unique")
        labels[full] = value
    if "__name__" not in labels:
        raise BadExposition("metric name not set")
    return labels


def _pairs(braces: bytes, label: re.Pattern[bytes]) -> list[tuple[str | None, str]]:
    """The pairs in `{…}`; a quoted name without a value is (None, name)."""
    pairs: list[tuple[str | None, str]] = []
    position, end = 1, len(braces) - 1
    while braces[position:end].strip(b" \t") if label is _TEXT_LABEL else position < end:
        match = label.match(braces, position)
        if match is None:
            raise BadExposition("expected label name, equals sign and quoted value")
        name, quoted, equals, value, _ = match.groups()
        if equals is None:
            if quoted is None:
                raise BadExposition("expected equal")
            pairs.append((None, _unescaped(quoted)))
        else:
            pairs.append((name.decode() if quoted is None else _unescaped(quoted), _unescaped(value)))
        position = match.end()
    return pairs


def _unescaped(quoted: bytes) -> str:
    return _ESCAPE.sub(lambda found: _ESCAPES[found[0]], quoted[1:-1]).decode()


def _seconds(text: bytes) -> int:
    seconds = _number(text)
    if not isfinite(seconds):
        raise BadExposition(f"invalid timestamp {text!r}")
    return _milliseconds(int(seconds * 1000))


def _milliseconds(value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise BadExposition(f"the time {value} is out of range")
    return value
