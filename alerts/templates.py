"""Templates of alert labels and annotations: the part of Go's text/template that rule files use.

Actions if / else if / else, range, with, define, template, variables, pipelines, comments and trimming; the functions
are those of `template_functions`, and `query`, which asks the store. A failure never stops an alert: the text becomes
`<error expanding template: …>`. Checked against promtool.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from alerts.labels import Labels
from alerts.querier import QueryError, Sample
from alerts.template_functions import FUNCTIONS, FunctionError, Value, go_text, truth

_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)
    |(?P<variable>\$\w*)|(?P<field>\.\w+)|(?P<word>\w+)|(?P<mark>:=|[=|().,]))""",
    re.VERBOSE,
)
_ACTION = re.compile(
    r"\{\{(?P<left>-\s)?\s*(?P<body>/\*.*?\*/|(?:`[^`]*`|\"(?:[^\"\\]|\\.)*\"|[^`\"])*?)\s*(?P<right>(?<=\s)-)?\}\}",
    re.DOTALL,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "'": "'"}
_CONSTANTS: dict[str, Value] = {"true": True, "false": False, "nil": None}
_PRELUDE = ("labels", "externalLabels", "externalURL", "value")
_MAX_DEPTH = 50


class TemplateError(ValueError):
    """A template that cannot be parsed, or fails when it is expanded."""


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of an action. `spaced` says that white space stood before it: `.a .b` is not `.a.b`."""

    kind: str
    text: str
    spaced: bool


@dataclass(slots=True)
class Scope:
    """Variables, the dot, and the functions in force while a template is expanded."""

    dot: Value
    functions: Mapping[str, Callable[..., Value]]
    definitions: Mapping[str, Sequence[Node]]
    variables: list[tuple[str, Value]] = field(default_factory=list)
    depth: int = 0

    def get(self, name: str) -> Value:
        """The innermost variable of the name."""
        for known, value in reversed(self.variables):
            if known == name:
                return value
        raise TemplateError(f"undefined variable {name!r}")

    def set(self, name: str, value: Value) -> None:
        """Assign to the innermost variable of the name."""
        for place in range(len(self.variables) - 1, -1, -1):
            if self.variables[place][0] == name:
                self.variables[place] = (name, value)
                return
        raise TemplateError(f"undefined variable {name!r}")


# An expression and a node are closures: parse once, expand each second.
Expression = Callable[[Scope], Value]
Node = Callable[[Scope, list[str]], None]


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template."""

    nodes: Sequence[Node]
    definitions: Mapping[str, Sequence[Node]]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Parse; raises TemplateError."""
        definitions: dict[str, Sequence[Node]] = {}
        parser = _Parser(list(_pieces(text)), definitions)
        nodes, end = parser.block(("",))
        assert end == ""
        return cls(nodes, definitions)

    def expand(
        self, labels: Labels, value: float, *, query: Callable[[str], Sequence[Sample]], external_url: str = ""
    ) -> str:
        """The text for a result with these labels (its name among them) and this value; raises TemplateError."""
        known = _Labels(labels)
        dot = {"Labels": known, "ExternalLabels": _Labels(()), "ExternalURL": external_url, "Value": value}
        functions: dict[str, Callable[..., Value]] = {
            **FUNCTIONS,
            "query": lambda expr: [{"Labels": _Labels(s.labels), "Value": s.value} for s in query(expr)],
            "externalURL": lambda: external_url,
        }
        values = (known, _Labels(()), external_url, value)
        scope = Scope(dot, functions, self.definitions, [("$", dot)])
        scope.variables += [(f"${name}", item) for name, item in zip(_PRELUDE, values, strict=True)]
        out: list[str] = []
        _run(self.nodes, scope, out)
        return "".join(out)


class _Labels(dict[str, str]):
    """Labels in a template: an absent one is the empty text (Go's `missingkey=zero`)."""

    def __missing__(self, name: str) -> str:
        return ""


def expand(
    text: str, labels: Labels, value: float, *, query: Callable[[str], Sequence[Sample]], external_url: str = ""
) -> str:
    """Parse and expand; a failure is told in the text instead of raised."""
    if "{{" not in text:
        return text
    try:
        return Template.parse(text).expand(labels, value, query=query, external_url=external_url)
    except (TemplateError, FunctionError, QueryError) as error:
        return f"<error expanding template: {error}>"


def _run(nodes: Sequence[Node], scope: Scope, out: list[str]) -> None:
    for node in nodes:
        node(scope, out)


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """("text", …) and ("action", …) in turn; comments are dropped and `{{-`, `-}}` trim the text beside them."""
    place, trim = 0, False
    for found in _ACTION.finditer(text):
        before = text[place : found.start()]
        if "{{" in before:
            raise TemplateError(f"unclosed action in {before!r}")
        before = before.lstrip() if trim else before
        yield "text", before.rstrip() if found["left"] else before
        if not found["body"].startswith("/*"):
            yield "action", found["body"]
        place, trim = found.end(), bool(found["right"])
    rest = text[place:]
    if "{{" in rest:
        raise TemplateError(f"unclosed action in {rest!r}")
    yield "text", rest.lstrip() if trim else rest


def _tokens(action: str) -> list[Token]:
    tokens, place = [], 0
    while place < len(action.rstrip()):
        found = _TOKEN.match(action, place)
        if found is None:
            if action[place:].strip() and action[place:].lstrip().startswith("."):
                raise TemplateError(f"unexpected <.> in {action!r}")
            raise TemplateError(f"unexpected {action[place:].strip()[:10]!r} in {action!r}")
        kind = str(found.lastgroup)
        tokens.append(Token(kind, found[kind], found.start(kind) > place))
        place = found.end()
    return tokens


class _Parser:
    """Turns the pieces of a template into nodes."""

    def __init__(self, pieces: list[tuple[str, str]], definitions: dict[str, Sequence[Node]]) -> None:
        self._pieces = pieces
        self._place = 0
        self._definitions = definitions
        self._names: list[str] = ["$", *(f"${name}" for name in _PRELUDE)]

    def block(self, ends: tuple[str, ...]) -> tuple[list[Node], str]:
        """Nodes up to an action in `ends` ("" is the end of the text), and that action."""
        nodes: list[Node] = []
        while self._place < len(self._pieces):
            kind, body = self._pieces[self._place]
            self._place += 1
            if kind == "text":
                if body:
                    nodes.append(_text_node(body))
                continue
            word = body.split(None, 1)[0] if body else ""
            if word in ("end", "else"):
                if word not in ends:
                    raise TemplateError(f"unexpected {{{{{word}}}}}")
                return nodes, body
            nodes.append(self._action(word, body))
        if "" not in ends:
            raise TemplateError("unexpected EOF: an {{if}}, {{range}}, {{with}} or {{define}} has no {{end}}")
        return nodes, ""

    def _action(self, word: str, body: str) -> Node:
        if not body:
            raise TemplateError("missing value for command")
        rest = body[len(word) :]
        if word in ("if", "with", "range"):
            return self._control(word, rest)
        if word == "define":
            name = _literal(rest)
            self._definitions[name], _ = self.block(("end",))
            return _text_node("")
        if word == "template":
            return self._call(rest)
        names, declares, pipeline = self._pipeline(rest if word == "" else body)
        return _assign_node(names, declares, pipeline) if names else _output_node(pipeline)

    def _control(self, word: str, rest: str) -> Node:
        known = len(self._names)
        names, declares, pipeline = self._pipeline(rest)
        body, end = self.block(("end", "else"))
        otherwise: list[Node] = []
        if end.startswith("else"):
            following = end[4:].strip()
            if following.startswith(("if ", "with ")):
                otherwise = [self._control(*following.split(None, 1))]  # shares this block's {{end}}
            else:
                otherwise, _ = self.block(("end",))
        del self._names[known:]
        if word == "range":
            return _range_node(names, pipeline, body, otherwise)
        return _branch_node(names, declares, pipeline, body, otherwise, rebinds=word == "with")

    def _call(self, rest: str) -> Node:
        name_token, *others = _tokens(rest)
        name = _unquoted(name_token)
        pipeline = _Pipeline(others, self._names).whole() if others else _constant(None)

        def node(scope: Scope, out: list[str]) -> None:
            if name not in scope.definitions:
                raise TemplateError(f"template {name!r} not defined")
            if scope.depth >= _MAX_DEPTH:
                raise TemplateError(f"template {name!r} calls itself more than {_MAX_DEPTH} deep")
            dot = pipeline(scope)
            inner = Scope(dot, scope.functions, scope.definitions, [("$", dot)], scope.depth + 1)
            _run(scope.definitions[name], inner, out)

        return node

    def _pipeline(self, text: str) -> tuple[list[str], bool, Expression]:
        """Variables set by the pipeline, whether it declares them, and its value."""
        tokens = _tokens(text)
        names: list[str] = []
        marks = [place for place, token in enumerate(tokens) if token.kind == "mark" and token.text in (":=", "=")]
        declares = bool(marks) and tokens[marks[0]].text == ":="
        if marks:
            names = [token.text for token in tokens[: marks[0]] if token.kind == "variable"]
            tokens = tokens[marks[0] + 1 :]
        expression = _Pipeline(tokens, self._names).whole()
        if declares:
            self._names.extend(names)
        return names, declares, expression


class _Pipeline:
    """Parses the tokens of one pipeline into an expression."""

    def __init__(self, tokens: list[Token], names: Sequence[str]) -> None:
        self._tokens = tokens
        self._names = names
        self._place = 0

    def whole(self) -> Expression:
        """The pipeline, which must take all tokens."""
        expression = self._commands()
        if self._place < len(self._tokens):
            raise TemplateError(f"unexpected {self._tokens[self._place].text!r}")
        return expression

    def _peek(self) -> Token | None:
        return self._tokens[self._place] if self._place < len(self._tokens) else None

    def _commands(self) -> Expression:
        expression = self._command(None)
        while (token := self._peek()) is not None and token.text == "|" and token.kind == "mark":
            self._place += 1
            expression = self._command(expression)
        return expression

    def _command(self, piped: Expression | None) -> Expression:
        token = self._peek()
        if token is None:
            raise TemplateError("missing value for command")
        if token.kind == "word" and token.text not in _CONSTANTS:
            self._place += 1
            args = self._operands()
            return _call_expression(token.text, [*args, piped] if piped else args)
        operand = self._operand()
        if piped or self._operands():
            raise TemplateError(f"can't give argument to non-function {token.text}")
        return operand

    def _operands(self) -> list[Expression]:
        operands = []
        while (token := self._peek()) is not None and not (token.kind == "mark" and token.text in "|)"):
            operands.append(self._operand())
        return operands

    def _operand(self) -> Expression:
        token = self._tokens[self._place]
        self._place += 1
        if token.kind == "string":
            return self._fields(_constant(_unquoted(token)))
        if token.kind == "number":
            return _constant(float(token.text) if re.search(r"[.eE]", token.text) else int(token.text))
        if token.kind == "variable":
            if token.text not in self._names:
                raise TemplateError(f"undefined variable {token.text!r}")
            return self._fields(lambda scope: scope.get(token.text))
        if token.kind == "field":
            return self._fields(_field(lambda scope: scope.dot, token.text[1:]))
        if token.kind == "word":
            return _constant(_CONSTANTS[token.text]) if token.text in _CONSTANTS else _call_expression(token.text, [])
        if token.text == ".":
            return lambda scope: scope.dot
        if token.text == "(":
            inner = self._commands()
            closing = self._peek()
            if closing is None or closing.text != ")":
                raise TemplateError("unclosed left paren")
            self._place += 1
            return self._fields(inner)
        raise TemplateError(f"unexpected {token.text!r}")

    def _fields(self, expression: Expression) -> Expression:
        while (token := self._peek()) is not None and token.kind == "field" and not token.spaced:
            self._place += 1
            expression = _field(expression, token.text[1:])
        return expression


def _constant(value: Value) -> Expression:
    return lambda scope: value


def _field(expression: Expression, name: str) -> Expression:
    def get(scope: Scope) -> Value:
        holder = expression(scope)
        if isinstance(holder, _Labels):
            return holder[name]
        if isinstance(holder, Mapping) and name in holder:
            return holder[name]
        raise TemplateError(f"can't evaluate field {name} in {go_text(holder)}")

    return get


def _call_expression(name: str, args: Sequence[Expression]) -> Expression:
    if name in ("and", "or"):
        return _short_circuit(name == "or", args)
    if name not in FUNCTIONS and name not in ("query", "externalURL"):
        raise TemplateError(f"function {name!r} not defined")

    def call(scope: Scope) -> Value:
        try:
            return scope.functions[name](*(arg(scope) for arg in args))
        except (TemplateError, FunctionError, QueryError):
            raise
        except (TypeError, AttributeError, KeyError, re.error, OverflowError, ValueError) as error:
            raise TemplateError(f"error calling {name}: {error}") from error

    return call


def _short_circuit(stop: bool, args: Sequence[Expression]) -> Expression:
    if not args:
        raise TemplateError("wrong number of args for and/or: want at least 1 got 0")

    def call(scope: Scope) -> Value:
        value: Value = None
        for arg in args:
            value = arg(scope)
            if truth(value) == stop:
                break
        return value

    return call


def _text_node(text: str) -> Node:
    return lambda scope, out: out.append(text)


def _output_node(expression: Expression) -> Node:
    return lambda scope, out: out.append(go_text(expression(scope)))


def _assign_node(names: list[str], declares: bool, expression: Expression) -> Node:
    def node(scope: Scope, out: list[str]) -> None:
        value = expression(scope)
        if declares:
            scope.variables.append((names[0], value))
        else:
            scope.set(names[0], value)

    return node


def _branch_node(
    names: list[str],
    declares: bool,
    expression: Expression,
    body: Sequence[Node],
    otherwise: Sequence[Node],
    *,
    rebinds: bool,
) -> Node:
    def node(scope: Scope, out: list[str]) -> None:
        known, dot = len(scope.variables), scope.dot
        value = expression(scope)
        if names and declares:
            scope.variables.append((names[0], value))
        elif names:
            scope.set(names[0], value)
        if truth(value) and rebinds:
            scope.dot = value
        _run(body if truth(value) else otherwise, scope, out)
        scope.dot = dot
        del scope.variables[known:]

    return node


def _range_node(names: list[str], expression: Expression, body: Sequence[Node], otherwise: Sequence[Node]) -> Node:
    def node(scope: Scope, out: list[str]) -> None:
        known, dot = len(scope.variables), scope.dot
        items = _ranged(expression(scope))
        for key, item in items:
            scope.dot = item
            scope.variables += list(zip(names, (item,) if len(names) == 1 else (key, item), strict=False))
            _run(body, scope, out)
            del scope.variables[known:]
        scope.dot = dot
        if not items:
            _run(otherwise, scope, out)

    return node


def _ranged(value: Value) -> list[tuple[Value, Value]]:
    if isinstance(value, Mapping):
        return sorted(value.items())
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if value is None:
        return []
    raise TemplateError(f"range can't iterate over {go_text(value)}")


def _literal(text: str) -> str:
    tokens = _tokens(text)
    if len(tokens) != 1:
        raise TemplateError(f"a template's name is one string, got {text.strip()!r}")
    return _unquoted(tokens[0])


def _unquoted(token: Token) -> str:
    if token.kind != "string":
        raise TemplateError(f"expected a string, got {token.text!r}")
    if token.text.startswith("`"):
        return token.text[1:-1]
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[0]), token.text[1:-1])
