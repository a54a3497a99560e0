"""The parser of Go templates: text to trees, one for the template itself and one for each `define` in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alerts.templates.cursor import Cursor
from alerts.templates.lexing import Token, tokens_of
from alerts.templates.literals import LiteralError, character, number, raw_text, text
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
from alerts.templates.printing import quoted
from alerts.templates.values import Value

_OPERANDS = ("bool", "charConstant", "dot", "field", "identifier", "number", "nil", "rawString", "string", "variable")


@dataclass(frozen=True, slots=True)
class Tree:
    """A template's name and what it holds."""

    name: str
    root: Sequence[Node]

    @property
    def is_empty(self) -> bool:
        """Whether it holds only white space."""
        return all(isinstance(node, Text) and not node.text.strip() for node in self.root)


def parse_template(name: str, source: str, knows: Callable[[str], bool]) -> dict[str, Tree]:
    """The trees by name, the template's own among them; `knows` says what functions there are. Raises TemplateError."""
    trees: dict[str, Tree] = {}
    _Parser(name, tokens_of(source), knows, trees).whole()
    return trees


class _End:
    """`{{end}}` or `{{else}}`, which close a list of nodes; `kind` is what follows an else: if, with or nothing."""

    def __init__(self, word: str, kind: str = "") -> None:
        self.word = word
        self.kind = kind

    def __str__(self) -> str:
        return f"{{{{{self.word}}}}}"


class _Parser(Cursor):
    def __init__(
        self, name: str, tokens: Sequence[Token], knows: Callable[[str], bool], trees: dict[str, Tree]
    ) -> None:
        super().__init__(name, tokens)
        self._knows = knows
        self._trees = trees
        self._variables = ["$"]
        self._ranges = 0

    def whole(self) -> None:
        """Parse everything, definitions included, into the trees."""
        nodes: list[Node] = []
        while self.peek().kind != "EOF":
            token = self.peek()
            if token.kind == "leftDelim":
                start = self.place
                self.next()
                if self.next_token().kind == "define":
                    self._definition()
                    continue
                self.place = start
            node = self._text_or_action()
            if isinstance(node, _End):
                raise self.error(f"unexpected {node}")
            nodes.append(node)
        self._add(Tree(self._name, nodes))

    # --- structure ----------------------------------------------------------------------------------------------------
    def _definition(self) -> None:
        name = self._unquoted(self.expect(("string", "rawString"), "define clause"))
        self.expect(("rightDelim",), "define clause")
        variables, ranges = self._variables, self._ranges
        self._variables, self._ranges = ["$"], 0
        nodes, end = self._list()
        if end.word != "end":
            raise self.error(f"unexpected {end} in define clause")
        self._variables, self._ranges = variables, ranges
        self._add(Tree(name, nodes))

    def _add(self, tree: Tree) -> None:
        known = self._trees.get(tree.name)
        if known is None or known.is_empty:
            self._trees[tree.name] = tree
        elif not tree.is_empty:
            raise self.error(f"template: multiple definition of template {quoted(tree.name)}")

    def _list(self) -> tuple[list[Node], _End]:
        nodes: list[Node] = []
        while self.peek_token().kind != "EOF":
            node = self._text_or_action()
            if isinstance(node, _End):
                return nodes, node
            nodes.append(node)
        raise self.error("unexpected EOF")

    def _text_or_action(self) -> Node | _End:
        token = self.next_token()
        if token.kind == "text":
            return Text(token.position, token.text)
        if token.kind == "leftDelim":
            self.action_line = token.line
            node = self._action()
            self.action_line = 0
            return node
        raise self.unexpected(token, "input")

    def _action(self) -> Node | _End:
        token = self.next_token()
        match token.kind:
            case "if" | "with":
                return self._branch(token.kind)
            case "range":
                self._ranges += 1
                node = self._branch("range")
                self._ranges -= 1
                return node
            case "end":
                self.expect(("rightDelim",), "end")
                return _End("end")
            case "else":
                following = self.peek_token().kind
                if following in ("if", "with"):
                    return _End("else", following)
                self.expect(("rightDelim",), "else")
                return _End("else")
            case "template":
                return self._template_call()
            case "block":
                return self._block()
            case "break" | "continue":
                if (extra := self.next_token()).kind != "rightDelim":
                    raise self.unexpected(extra, f"{{{{{token.kind}}}}}")
                if not self._ranges:
                    raise self.error(f"{{{{{token.kind}}}}} outside {{{{range}}}}")
                return Leave(token.position, token.kind)
        self.place -= 1
        return Action(token.position, self._pipeline("command", "rightDelim"))

    def _branch(self, kind: str) -> Node:
        known = len(self._variables)
        pipe = self._pipeline(kind, "rightDelim")
        body, end = self._list()
        otherwise: Sequence[Node] = ()
        if end.word == "else":
            if end.kind:
                if end.kind != kind:
                    raise self.unexpected(self.peek_token(), "else")
                self.next_token()
                otherwise = [self._branch(end.kind)]  # shares this block's {{end}}
            else:
                otherwise, end = self._list()
                if end.word != "end":
                    raise self.error(f"expected end; found {end}")
        del self._variables[known:]
        return Branch(pipe.position, kind, pipe, body, otherwise)

    def _template_call(self) -> Node:
        token = self.expect(("string", "rawString"), "template clause")
        name = self._unquoted(token)
        if self.peek_token().kind == "rightDelim":
            self.next_token()
            return TemplateCall(token.position, name, None)
        return TemplateCall(token.position, name, self._pipeline("template clause", "rightDelim"))

    def _block(self) -> Node:
        token = self.expect(("string", "rawString"), "block clause")
        name = self._unquoted(token)
        pipe = self._pipeline("block clause", "rightDelim")
        variables, ranges = self._variables, self._ranges
        self._variables, self._ranges = ["$"], 0
        nodes, end = self._list()
        if end.word != "end":
            raise self.error(f"unexpected {end} in block clause")
        self._variables, self._ranges = variables, ranges
        self._add(Tree(name, nodes))
        return TemplateCall(token.position, name, pipe)

    # --- pipelines ----------------------------------------------------------------------------------------------------
    def _pipeline(self, context: str, end: str) -> Pipe:
        position = self.peek_token().position
        declared, assigns = self._declarations(context)
        commands: list[Command] = []
        while True:
            token = self.next_token()
            if token.kind == end:
                break
            if token.kind not in (*_OPERANDS, "leftParen"):
                raise self.unexpected(token, context)
            self.place -= 1
            commands.append(self._command())
        if not commands:
            raise self.error(f"missing value for {context}")
        for stage, command in enumerate(commands[1:], start=2):
            if isinstance(command.arguments[0], (Literal, Dot, Nil)):
                raise self.error(f"non executable command in pipeline stage {stage}")
        return Pipe(position, declared, assigns, tuple(commands))

    def _declarations(self, context: str) -> tuple[tuple[str, ...], bool]:
        declared: list[str] = []
        while self.peek_token().kind == "variable":
            start = self.place
            variable = self.next_token()
            following = self.next_token()
            if following.kind in ("assign", "declare"):
                declared.append(variable.text)
                self._variables.append(variable.text)
                return tuple(declared), following.kind == "assign"
            if following.kind == "char" and following.text == ",":
                declared.append(variable.text)
                self._variables.append(variable.text)
                if context == "range" and len(declared) < 2:
                    if self.peek_token().kind not in ("variable", "rightDelim", "rightParen"):
                        raise self.error("range can only initialize variables")
                    continue
                raise self.error(f"too many declarations in {context}")
            self.place = start
            break
        return tuple(declared), False

    def _command(self) -> Command:
        position = self.peek_token().position
        arguments: list[Node] = []
        while True:
            self.peek_token()
            operand = self._operand()
            if operand is not None:
                arguments.append(operand)
            token = self.next()
            if token.kind == "space":
                continue
            if token.kind in ("rightDelim", "rightParen"):
                self.place -= 1
            elif token.kind != "pipe":
                raise self.unexpected(token, "operand")
            break
        if not arguments:
            raise self.error("empty command")
        return Command(position, tuple(arguments))

    def _operand(self) -> Node | None:
        node = self._term()
        if node is None or self.peek().kind != "field":
            return node
        position = self.peek().position
        names: list[str] = []
        while self.peek().kind == "field":
            names.append(self.next().text[1:])
        if isinstance(node, (Field, Variable)):
            return type(node)(position, (*node.names, *names))
        if isinstance(node, (Literal, Nil, Dot)):
            raise self.error(f"unexpected . after term {quoted(str(node))}")
        return Chain(position, node, tuple(names))

    def _term(self) -> Node | None:
        token = self.next_token()
        match token.kind:
            case "identifier":
                if not self._knows(token.text):
                    raise self.error(f"function {quoted(token.text)} not defined")
                return Identifier(token.position, token.text)
            case "dot":
                return Dot(token.position)
            case "nil":
                return Nil(token.position)
            case "variable":
                if token.text not in self._variables:
                    raise self.error(f"undefined variable {quoted(token.text)}")
                return Variable(token.position, (token.text,))
            case "field":
                return Field(token.position, (token.text[1:],))
            case "bool":
                return Literal(token.position, token.text, token.text == "true")
            case "number":
                return Literal(token.position, token.text, self._number(token))
            case "charConstant":
                return Literal(token.position, token.text, self._read(character, token.text))
            case "string" | "rawString":
                return Literal(token.position, token.text, self._unquoted(token))
            case "leftParen":
                return self._pipeline("parenthesized pipeline", "rightParen")
        self.place -= 1
        return None

    # --- literals -----------------------------------------------------------------------------------------------------
    def _number(self, token: Token) -> Value:
        return self._read(number, token.text)

    def _unquoted(self, token: Token) -> str:
        return str(self._read(raw_text if token.kind == "rawString" else text, token.text))

    def _read(self, read: Callable[[str], Value], source: str) -> Value:
        try:
            return read(source)
        except LiteralError as error:
            raise self.error(str(error)) from error
