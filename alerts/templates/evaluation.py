"""Execution of a parsed template: Go's rules for fields, arguments, pipelines and scopes, and its error messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from alerts.samples import QueryError
from alerts.templates.calls import ANY, REFLECTED, SAMPLE, TEXT, VECTOR, Function
from alerts.templates.cursor import TemplateError
from alerts.templates.humanize import FunctionError
from alerts.templates.nodes import (
    Action,
    Branch,
    Chain,
    Command,
    Dot,
    Field,
    Identifier,
    Leave,
    Literal,
    Nil,
    Node,
    Pipe,
    TemplateCall,
    Text,
    Variable,
)
from alerts.templates.parsing import Tree
from alerts.templates.printing import go_text, printed, quoted
from alerts.templates.times import METHODS
from alerts.templates.values import (
    ArgumentMap,
    Data,
    LabelMap,
    QueryResult,
    SamplePointer,
    Time,
    Value,
    members,
    truth,
    type_name,
)

_MAX_DEPTH = 50
# The first command of a pipeline gets no value, which is not the same as nil.
_MISSING = object()


class _Left(Exception):
    """`{{break}}` or `{{continue}}` leaves a range's body."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


class Execution:
    """One execution; `text` is the source, for the places in errors."""

    def __init__(self, name: str, text: str, trees: Mapping[str, Tree], functions: Mapping[str, Function]) -> None:
        self._parse_name = name
        self._text = text
        self._trees = trees
        self._functions = functions
        self._tree = trees[name]
        self._variables: list[tuple[str, Value]] = []
        self._node: Node = Text(0, "")
        self._depth = 0
        self._out: list[str] = []

    def run(self, data: Value, variables: Sequence[tuple[str, Value]] = (), passed: int = 0) -> str:
        """The text that the template makes of the data; raises TemplateError.

        The first `passed` nodes are taken as done already, with these variables as what they declared.
        """
        self._variables = [("$", data), *variables]
        self._walk_all(data, self._tree.root[passed:] if passed else self._tree.root)
        return "".join(self._out)

    # --- structure ----------------------------------------------------------------------------------------------------
    def _walk_all(self, dot: Value, nodes: Sequence[Node]) -> None:
        for node in nodes:
            self._walk(dot, node)

    def _walk(self, dot: Value, node: Node) -> None:
        self._node = node
        if isinstance(node, Text):
            self._out.append(node.text)
        elif isinstance(node, Action):
            value = self._pipeline(dot, node.pipe)
            if not node.pipe.declared:
                self._node = node
                self._out.append(printed(value))
        elif isinstance(node, Branch):
            known = len(self._variables)
            (self._range if node.kind == "range" else self._choose)(dot, node)
            del self._variables[known:]
        elif isinstance(node, TemplateCall):
            self._call_template(dot, node)
        elif isinstance(node, Leave):
            raise _Left(node.kind)

    def _choose(self, dot: Value, node: Branch) -> None:
        value = self._pipeline(dot, node.pipe)
        if truth(value):
            self._walk_all(value if node.kind == "with" else dot, node.body)
        else:
            self._walk_all(dot, node.otherwise)

    def _range(self, dot: Value, node: Branch) -> None:
        value = self._pipeline(dot, node.pipe)
        items: list[tuple[Value, Value]]
        if isinstance(value, Mapping):
            items = sorted(value.items())
        elif isinstance(value, QueryResult):
            items = list(enumerate(value))
        elif value is None:
            items = []
        else:
            raise self._error(f"range can't iterate over {go_text(value)}")
        known, names = len(self._variables), node.pipe.declared
        for key, item in items:
            for place, (name, own) in enumerate(zip(names, (item,) if len(names) == 1 else (key, item), strict=False)):
                self._variables[known - len(names) + place] = (name, own)
            try:
                self._walk_all(item, node.body)
            except _Left as left:
                if left.kind == "break":
                    break
            finally:
                del self._variables[known:]
        if not items:
            self._walk_all(dot, node.otherwise)

    def _call_template(self, dot: Value, node: TemplateCall) -> None:
        tree = self._trees.get(node.name)
        if tree is None:
            raise self._error(f"template {quoted(node.name)} not defined")
        if self._depth >= _MAX_DEPTH:
            raise self._error(f"exceeded maximum template depth ({_MAX_DEPTH})")
        inner = self._pipeline(dot, node.pipe) if node.pipe else None
        outer, variables = self._tree, self._variables
        self._tree, self._variables, self._depth = tree, [("$", inner)], self._depth + 1
        self._walk_all(inner, tree.root)
        self._tree, self._variables, self._depth = outer, variables, self._depth - 1

    # --- pipelines ----------------------------------------------------------------------------------------------------
    def _pipeline(self, dot: Value, pipe: Pipe) -> Value:
        self._node = pipe
        value: Value = _MISSING
        for command in pipe.commands:
            value = self._command(dot, command, value)
        for name in pipe.declared:
            if pipe.assigns:
                self._assign(name, value)
            else:
                self._variables.append((name, value))
        return value

    def _assign(self, name: str, value: Value) -> None:
        for place in range(len(self._variables) - 1, -1, -1):
            if self._variables[place][0] == name:
                self._variables[place] = (name, value)
                return
        raise self._error(f"undefined variable: {name}")

    def _variable(self, name: str) -> Value:
        for known, value in reversed(self._variables):
            if known == name:
                return value
        raise self._error(f"undefined variable: {name}")

    def _command(self, dot: Value, command: Command, final: Value) -> Value:
        first, *arguments = command.arguments
        if isinstance(first, Identifier):
            self._node = first
            return self._call(dot, first.name, self._functions[first.name], command, arguments, final)
        if isinstance(first, (Field, Variable, Chain)):
            return self._operand(dot, first, arguments, final)
        if not isinstance(first, Pipe):
            self._node = first
        self._no_function(first, arguments, final)
        if isinstance(first, Pipe):
            return self._pipeline(dot, first)
        if isinstance(first, Dot):
            return dot
        if isinstance(first, Literal):
            return first.value
        raise self._error("nil is not a command")

    def _no_function(self, node: Node, arguments: Sequence[Node], final: Value) -> None:
        if arguments or final is not _MISSING:
            raise self._error(f"can't give argument to non-function {node}")

    def _operand(
        self, dot: Value, node: Field | Variable | Chain, arguments: Sequence[Node] = (), final: Value = _MISSING
    ) -> Value:
        self._node = node
        names = node.names
        if isinstance(node, Field):
            receiver = dot
        elif isinstance(node, Variable):
            receiver, names = self._variable(names[0]), names[1:]
            if not names:
                self._no_function(node, arguments, final)
                return receiver
        elif isinstance(node.node, Nil):
            raise self._error(f"indirection through explicit nil in {node}")
        else:
            receiver = self._argument(dot, REFLECTED, node.node)
        for place, name in enumerate(names):
            last = place == len(names) - 1
            receiver = self._field(dot, name, node, receiver, arguments if last else (), final if last else _MISSING)
        return receiver

    def _field(
        self, dot: Value, name: str, node: Node, receiver: Value, arguments: Sequence[Node], final: Value
    ) -> Value:
        if receiver is None:
            return None
        if type(receiver) is LabelMap and not arguments and final is _MISSING:  # nearly always
            return receiver.get(name, "")
        if isinstance(receiver, Time) and name in METHODS:
            method = METHODS[name]
            bound = replace(method, call=lambda *given: method.call(receiver, *given))
            return self._call(dot, name, bound, node, arguments, final)
        has_arguments = bool(arguments) or final is not _MISSING
        if isinstance(receiver, (SamplePointer, Data)) and name in (known := members(receiver)):
            if has_arguments:
                raise self._error(f"{name} has arguments but cannot be invoked as function")
            return known[name]
        if isinstance(receiver, (LabelMap, ArgumentMap)):
            if has_arguments:
                raise self._error(f"{name} is not a method but has arguments")
            return receiver.get(name, "" if isinstance(receiver, LabelMap) else None)
        raise self._error(f"can't evaluate field {name} in type {type_name(receiver)}")

    # --- calls --------------------------------------------------------------------------------------------------------
    def _call(
        self, dot: Value, name: str, function: Function, node: Node, arguments: Sequence[Node], final: Value
    ) -> Value:
        types = function.parameters
        given = len(arguments) + (final is not _MISSING)
        if function.variadic and given < len(types) - 1:
            raise self._error(f"wrong number of args for {name}: want at least {len(types) - 1} got {len(arguments)}")
        if not function.variadic and given != len(types):
            raise self._error(f"wrong number of args for {name}: want {len(types)} got {given}")
        wanted = [types[min(place, len(types) - 1)] for place in range(given)]
        if name in ("and", "or"):
            return self._short_circuit(dot, name == "or", arguments, final)
        values = [self._argument(dot, wanted[place], argument) for place, argument in enumerate(arguments)]
        if final is not _MISSING:
            values.append(self._validated(final, wanted[-1]))
        try:
            return function.call(*values)
        except (FunctionError, QueryError) as error:
            self._node = node
            raise self._error(f"error calling {name}: {error}") from error

    def _short_circuit(self, dot: Value, stop: bool, arguments: Sequence[Node], final: Value) -> Value:
        value: Value = None
        for argument in arguments:
            value = self._argument(dot, REFLECTED, argument)
            if truth(value) == stop:
                return value
        return value if final is _MISSING else self._validated(final, REFLECTED)

    def _argument(self, dot: Value, wanted: str, node: Node) -> Value:
        self._node = node
        if isinstance(node, Dot):
            return self._validated(dot, wanted)
        if isinstance(node, Nil):
            if wanted == TEXT:
                raise self._error(f"cannot assign nil to {wanted}")
            return QueryResult() if wanted == VECTOR else None
        if isinstance(node, (Field, Variable, Chain)):
            return self._validated(self._operand(dot, node), wanted)
        if isinstance(node, Pipe):
            return self._validated(self._pipeline(dot, node), wanted)
        if isinstance(node, Identifier):
            value = self._call(dot, node.name, self._functions[node.name], node, (), _MISSING)
            return self._validated(value, wanted)
        assert isinstance(node, Literal)
        if wanted in (ANY, REFLECTED):
            return node.value
        if wanted == TEXT:
            if not isinstance(node.value, str):
                raise self._error(f"expected string; found {node}")
            return node.value
        raise self._error(f"can't handle {node} for arg of type {wanted}")

    def _validated(self, value: Value, wanted: str) -> Value:
        if value is None:
            if wanted == TEXT:
                raise self._error(f"invalid value; expected {wanted}")
            return QueryResult() if wanted == VECTOR else None
        if wanted in (ANY, REFLECTED) or type_name(value) == wanted:
            return value
        assert wanted in (TEXT, VECTOR, SAMPLE)
        raise self._error(f"wrong type for value; expected {wanted}; got {type_name(value)}")

    def _error(self, message: str) -> TemplateError:
        before = self._text[: self._node.position]
        line, column = 1 + before.count("\n"), len(before[before.rfind("\n") + 1 :].encode())
        place = f"{self._parse_name}:{line}:{column}"
        return TemplateError(f"template: {place}: executing {quoted(self._tree.name)} at <{self._node}>: {message}")
