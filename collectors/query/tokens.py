"""The tokens of PromQL with their places, and Prometheus' complaints about what is none (promql/parser/lex.go)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from collectors.query.errors import ParseError

AGGREGATORS = frozenset(
    ("sum", "avg", "count", "min", "max", "group", "stddev", "stdvar", "topk", "bottomk", "count_values", "quantile",
     "limitk", "limit_ratio")
)  # fmt: skip
WORD_OPERATORS = frozenset(("and", "or", "unless", "atan2"))
KEYWORDS = frozenset(("offset", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "start", "end"))
_SPACE = re.compile(r"(?:\s+|#[^\n]*)+")
_DURATION = re.compile(r"(?:[0-9]+(?:ms|[smhdwy]))+(?![A-Za-z0-9_])")
_BEGUN = re.compile(r"(?:[0-9]+(?:ms|[smhdwy]))*[0-9]*")
_NUMBER = re.compile(
    r"(?:0[xX][0-9a-fA-F]+|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)(?![A-Za-z0-9_.])", re.S
)
_WORD = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*")
_STRING = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|`[^`]*`', re.S)
_OPERATOR = re.compile(r"==|!=|<=|>=|[-+*/%^<>]")
_INSIDE = re.compile(r"=~|!~|!=|=|,")


@dataclass(frozen=True, slots=True)
class Token:
    """`kind` is `end`, `identifier`, `metric identifier`, `string`, `number`, `duration`, `word` or the sign itself."""

    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    @property
    def description(self) -> str:
        """As Prometheus names it in errors."""
        if self.kind == "end":
            return "end of input"
        if self.kind in ("identifier", "metric identifier"):
            return f"{self.kind} {quoted(self.text)}"
        if self.kind in ("string", "number", "duration"):
            short = quoted(self.text) if len(self.text) <= 10 else f"{quoted(self.text[:10])}..."
            return f"{self.kind} {short}"
        if self.kind == "word":
            word = self.text.lower()
            if word in AGGREGATORS:
                return f"<aggr:{self.text}>"
            return f"<op:{self.text}>" if word in WORD_OPERATORS else f"<{self.text}>"
        if _OPERATOR.fullmatch(self.text) or self.text in ("=~", "!~"):
            return f"<op:{self.text}>"
        return quoted(self.text)


def quoted(text: str) -> str:
    """The text in double quotes, as Go writes it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def located(expr: str, position: int, message: str) -> ParseError:
    """The error with line and column of a position in the text."""
    return ParseError(f"{place(expr, position)}: parse error: {message}")


def place(expr: str, position: int) -> str:
    """`line:column` of a position in the text, both from 1."""
    before = expr[:position]
    return f"{before.count(chr(10)) + 1}:{position - (before.rfind(chr(10)) + 1) + 1}"


def tokens(expr: str) -> Iterator[Token]:
    """The tokens, an `end` last. Raises ParseError where the text has none, once the reader comes to that."""
    position = depth = 0
    braces = brackets = colon = False
    while True:
        space = _SPACE.match(expr, position)
        position = space.end() if space else position
        if position >= len(expr):
            if braces:
                raise located(expr, position, "unexpected end of input inside braces")
            if depth:
                raise located(expr, position, "unclosed left parenthesis")
            if brackets:
                raise located(expr, position, "unclosed left bracket")
            yield Token("end", "", position)
            return
        token = _inside(expr, position) if braces else _token(expr, position, brackets)
        position = token.end
        if token.kind == ")":
            depth -= 1
            if depth < 0:
                raise located(expr, position, "unexpected right parenthesis ')'")
        depth += token.kind == "("
        if token.kind == "[" and brackets:
            raise located(expr, token.start, "unexpected left bracket '['")
        if token.kind == "]" and not brackets:
            raise located(expr, token.start, "unexpected right bracket ']'")
        if token.kind == ":" and colon:
            raise located(expr, token.start, "unexpected colon ':'")
        colon = token.kind == ":" or (colon and token.kind != "[")
        braces = {"{": True, "}": False}.get(token.kind, braces)
        brackets = {"[": True, "]": False}.get(token.kind, brackets)
        yield token
        if token.kind == "[":
            _check_duration(expr, position)


def _check_duration(expr: str, position: int) -> None:
    space = _SPACE.match(expr, position)
    position = space.end() if space else position
    if _DURATION.match(expr, position) or _NUMBER.match(expr, position):
        return
    if not expr[position : position + 1].isalnum():
        raise located(expr, position, "missing unit character in duration")
    raise located(expr, position, f"bad duration syntax: {quoted(_begun(expr, position))}")


def _begun(expr: str, position: int) -> str:
    """As much of a duration as there is."""
    match = _BEGUN.match(expr, position)
    return match[0] if match else ""


def _string(expr: str, position: int) -> Token:
    match = _STRING.match(expr, position)
    if match is None:
        raise located(expr, position, f"unterminated {'raw' if expr[position] == '`' else 'quoted'} string")
    return Token("string", match[0], position)


def _inside(expr: str, position: int) -> Token:
    """A token between braces."""
    sign = expr[position]
    if sign in "\"'`":
        return _string(expr, position)
    word = re.compile(r"[A-Za-z_][A-Za-z0-9_]*").match(expr, position)
    if word:
        return Token("identifier", word[0], position)
    operator = _INSIDE.match(expr, position)
    if operator or sign == "}":
        text = operator[0] if operator else sign
        return Token(text, text, position)
    if sign == "{":
        raise located(expr, position, "unexpected left brace '{'")
    if sign == "!":
        following = expr[position + 1 : position + 2]
        raise located(expr, position, f"unexpected character after '!' inside braces: {_rune(following)}")
    raise located(expr, position, f"unexpected character inside braces: {_rune(sign)}")


def _token(expr: str, position: int, brackets: bool) -> Token:
    sign = expr[position]
    if sign in "\"'`":
        return _string(expr, position)
    if sign in "(){}[],@":
        return Token(sign, sign, position)
    if sign == ":" and brackets:
        return Token(sign, sign, position)
    operator = _OPERATOR.match(expr, position)
    if operator:
        return Token(operator[0], operator[0], position)
    if sign == "=":
        if expr[position + 1 : position + 2] == "~":
            raise located(expr, position, "unexpected character after '=': '~'")
        return Token("=", "=", position)
    if sign == "!":
        raise located(expr, position, f"unexpected character after '!': {_rune(expr[position + 1 : position + 2])}")
    if sign.isdigit() or (sign == "." and expr[position + 1 : position + 2].isdigit()):
        return _number(expr, position)
    word = _WORD.match(expr, position)
    if word is None:
        raise located(expr, position, f"unexpected character: {_rune(sign)}")
    return _word(word[0], position)


def _number(expr: str, position: int) -> Token:
    for kind, pattern in (("duration", _DURATION), ("number", _NUMBER)):
        match = pattern.match(expr, position)
        if match:
            return Token(kind, match[0], position)
    raise located(expr, position, f"bad number or duration syntax: {quoted(_begun(expr, position))}")


def _word(text: str, position: int) -> Token:
    lower = text.lower()
    if lower in ("inf", "nan"):
        return Token("number", text, position)
    if lower in AGGREGATORS or lower in WORD_OPERATORS or lower in KEYWORDS:
        return Token("word", text, position)
    return Token("metric identifier" if ":" in text else "identifier", text, position)


def _rune(sign: str) -> str:
    return "'\\x00'" if not sign else f"'{sign}'"
