"""Templates of notifications: Go's text/template over a message, with Alertmanager's defaults, functions and files.

Source: Alertmanager, template/template.go; `default.tmpl` and `email.tmpl` are its own (Apache-2.0).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import ClassVar

from alerts.notifications.fingerprints import fingerprint_of
from alerts.notifications.message import Message, MessageAlert
from alerts.templates.builtins import BUILTINS
from alerts.templates.calls import REFLECTED, TEXT, Function
from alerts.templates.evaluation import Execution
from alerts.templates.functions import FUNCTIONS
from alerts.templates.nodes import Action, Node
from alerts.templates.parsing import Tree, parse_template
from alerts.templates.printing import printed
from alerts.templates.values import Html, LabelMap, QueryResult, Time, Value

_DEFAULTS = tuple(Path(__file__).with_name(name) for name in ("default.tmpl", "email.tmpl"))
_TEXTS = "[]string"
# As Go's html/template writes text.
_SAFE = str.maketrans(
    {"\0": "\ufffd", '"': "&#34;", "'": "&#39;", "&": "&amp;", "<": "&lt;", ">": "&gt;", "+": "&#43;"}
)
_BEFORE_URL = ('href="', 'src="')
_NOT_IN_URL = re.compile(r"[^A-Za-z0-9!#$&*+,/:;=?@\[\]._~%-]|%(?![0-9A-Fa-f]{2})")
_COMMENT = re.compile("<!--.*?-->", re.DOTALL)  # html/template leaves comments out
_NAMES = ("toUpper", "toLower", "title", "match", "safeHtml", "reReplaceAll")
_ZERO_TIME = Time(-62_135_596_800 * 1_000_000_000)

Methods = Mapping[str, Function]


@dataclass(frozen=True, slots=True)
class Struct:
    """A value with fields."""

    go_type: str
    fields: Mapping[str, Value]
    methods: ClassVar[Methods] = {}


class Items(QueryResult):
    """A list: the engine knows how to go through the results of queries, and so through these."""

    def __init__(self, items: Iterable[Value] = ()) -> None:
        super().__init__(items)


class TextList(Items):
    """Texts, such as the values of labels."""

    go_type = _TEXTS
    methods: ClassVar[Methods] = {}


class LabelPairs(Items):
    """Labels in order, each a name and a value."""

    go_type = "template.Pairs"
    methods: ClassVar[Methods] = {
        "Names": Function(lambda pairs: _column(pairs, "Name"), ()),
        "Values": Function(lambda pairs: _column(pairs, "Value"), ()),
    }


def _column(pairs: Iterable[Value], name: str) -> TextList:
    return TextList(pair.fields[name] for pair in pairs)


def _sorted_pairs(labels: LabelMap) -> LabelPairs:
    """`alertname` first, then by name."""
    names = sorted(labels, key=lambda name: (name != "alertname", name))
    return LabelPairs(Struct("template.Pair", {"Name": name, "Value": labels[name]}) for name in names)


def _without(labels: LabelMap, names: Collection[str]) -> LabelSet:
    return LabelSet((name, value) for name, value in labels.items() if name not in names)


class LabelSet(LabelMap):
    """Labels or annotations: `.SortedPairs`, `.Remove`, `.Names`, `.Values`, or a label by its name."""

    go_type = "template.KV"
    methods: ClassVar[Methods] = {
        "SortedPairs": Function(_sorted_pairs, ()),
        "Remove": Function(_without, (_TEXTS,)),
        "Names": Function(lambda labels: _column(_sorted_pairs(labels), "Name"), ()),
        "Values": Function(lambda labels: _column(_sorted_pairs(labels), "Value"), ()),
    }


def _of_status(status: str) -> Function:
    return Function(lambda alerts: AlertList(alert for alert in alerts if alert.fields["Status"] == status), ())


class AlertList(Items):
    """Alerts: `.Firing` and `.Resolved` are those of a kind."""

    go_type = "template.Alerts"
    methods: ClassVar[Methods] = {"Firing": _of_status("firing"), "Resolved": _of_status("resolved")}


class _NotificationExecution(Execution):
    """An execution that knows the values of a message; with `escaped`, what actions print is made safe for HTML."""

    escaped = False

    def _walk(self, dot: Value, node: Node) -> None:
        if self.escaped and isinstance(node, Action):
            value = self._pipeline(dot, node.pipe)
            if not node.pipe.declared:
                self._node = node
                text = printed(value)
                if self._out and self._out[-1].endswith(_BEFORE_URL):
                    text = _NOT_IN_URL.sub(_percent, text)
                self._out.append(text if isinstance(value, Html) else text.translate(_SAFE))
            return
        super()._walk(dot, node)

    def _field(
        self, dot: Value, name: str, node: Node, receiver: Value, arguments: Sequence[Node], final: Value
    ) -> Value:
        method = getattr(receiver, "methods", {}).get(name)
        if method is not None:
            bound = Function(lambda *given: method.call(receiver, *given), method.parameters, method.variadic)
            return self._call(dot, name, bound, node, arguments, final)
        if not isinstance(receiver, Struct):
            return super()._field(dot, name, node, receiver, arguments, final)
        self._no_function(node, arguments, final)
        if name not in receiver.fields:
            self._node = node
            raise self._error(f"can't evaluate field {name} in type {receiver.go_type}")
        return receiver.fields[name]

    def _validated(self, value: Value, wanted: str) -> Value:
        own = getattr(value, "go_type", None)
        if own is None or wanted == REFLECTED:
            return super()._validated(value, wanted)
        if wanted in (own, "interface {}"):
            return value
        raise self._error(f"wrong type for value; expected {wanted}; got {own}")


def _percent(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02x}" for byte in found[0].encode())


class Templates:
    """What texts of receivers are made with: the defaults, and the files of the configuration."""

    def __init__(self, patterns: Sequence[str] = (), folder: Path = Path()) -> None:
        self._shared: dict[str, Tree] = {}
        for path in _DEFAULTS:
            self._read(path)
        for pattern in patterns:
            for name in sorted(glob(str(folder / pattern))):
                self._read(Path(name))

    def _read(self, path: Path) -> None:
        """Take the definitions of a file; raises TemplateError, and OSError if it cannot be read."""
        found = parse_template(path.name, path.read_text(), _knows)
        self._shared |= {name: tree for name, tree in found.items() if name == path.name or not tree.is_empty
                         or name not in self._shared}  # fmt: skip

    def check(self, text: str) -> str:
        """The text, if it parses; raises TemplateError, which is a ValueError."""
        if "{{" in text:
            parse_template("", text, _knows)
        return text

    def expand(self, text: str, message: Message, *, escaped: bool = False) -> str:
        """The text for a message; raises TemplateError."""
        if "{{" not in text:
            return text
        trees = {**self._shared, **parse_template("", text, _knows)}
        execution = _NotificationExecution("", text, trees, _functions())
        execution.escaped = escaped
        text = execution.run(_data(message))
        return _COMMENT.sub("", text) if escaped else text


def _functions() -> Mapping[str, Function]:
    def unused(*values: Value) -> Value:
        raise AssertionError("and, or are evaluated argument by argument")

    return {
        **BUILTINS,
        **{name: FUNCTIONS[name] for name in _NAMES},
        "and": Function(unused, (REFLECTED, REFLECTED), True),
        "or": Function(unused, (REFLECTED, REFLECTED), True),
        "join": Function(lambda separator, texts: separator.join(texts), (TEXT, _TEXTS)),
        "stringSlice": Function(lambda *texts: TextList(texts), (TEXT,), True),
    }


_KNOWN = frozenset(_functions())


def _knows(word: str) -> bool:
    return word in _KNOWN


def _data(message: Message) -> Struct:
    shared = message.to_json()
    return Struct(
        "*template.Data",
        {
            "Receiver": shared["receiver"],
            "Status": shared["status"],
            "Alerts": AlertList(map(_alert, message.alerts)),
            "GroupLabels": LabelSet(shared["groupLabels"]),
            "CommonLabels": LabelSet(shared["commonLabels"]),
            "CommonAnnotations": LabelSet(shared["commonAnnotations"]),
            "ExternalURL": shared["externalURL"],
        },
    )


def _alert(alert: MessageAlert) -> Struct:
    return Struct(
        "template.Alert",
        {
            "Status": alert.status,
            "Labels": LabelSet(alert.labels),
            "Annotations": LabelSet(alert.annotations),
            "StartsAt": _time(alert.starts_at),
            "EndsAt": _time(alert.ends_at),
            "GeneratorURL": alert.generator_url,
            "Fingerprint": fingerprint_of(alert.labels),
        },
    )


def _time(at: float | None) -> Time:
    return _ZERO_TIME if at is None else Time(round(at * 1_000_000) * 1000)
