"""The functions that Prometheus adds to Go's templates; those that ask for their surroundings are in `expansion`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from urllib.parse import quote_plus

from alerts.templates.calls import ANY, SAMPLE, TEXT, VECTOR, Function, nil_pointer
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
from alerts.templates.values import ArgumentMap, Html, QueryResult, SamplePointer
from collectors.store.regex import compile_go


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
        raise FunctionError(f"{prefix}error parsing regexp: {_regexp_error(text, error.__cause__)}") from error


def _regexp_error(pattern: str, error: BaseException | None) -> str:
    """The error in Go's words, as far as they are known."""
    if not isinstance(error, re.error):
        return f"invalid: `{pattern}`"
    place = error.pos or 0
    for ours, theirs, part in (
        ("missing )", "missing closing )", pattern),
        ("unterminated character set", "missing closing ]", pattern[place:]),
        ("nothing to repeat", "missing argument to repetition operator", pattern[place : place + 1]),
        ("unbalanced parenthesis", "unexpected )", pattern),
    ):
        if error.msg.startswith(ours):
            return f"{theirs}: `{part}`"
    return f"{error.msg}: `{pattern}`"


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

    out: list[str] = []
    place, last = 0, -1
    for match in found.finditer(text):
        if match.end() == match.start() == last:  # Go passes over an empty match right behind another match
            continue
        out += text[place : match.start()], expanded(match)
        place = last = match.end()
    return "".join(out) + text[place:]


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
}
