"""What is wrong with a text that is not PromQL, and where, in Prometheus' words.

`promql-parser` says what is wrong, but not where and in its own words. A text that it refuses is read again here, by
the rules of promql/parser/generated_parser.y and the checks of parse.go, up to the first error.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from collectors.query.errors import ParseError
from collectors.query.signatures import SIGNATURES, TYPES, Signature
from collectors.query.tokens import AGGREGATORS, Token, located, quoted, tokens
from collectors.store.regex import compile_go
from observability.durations import duration_ms

_LEVELS = {
    "or": 1, "and": 2, "unless": 2,
    "==": 3, "!=": 3, "<": 3, "<=": 3, ">": 3, ">=": 3,
    "+": 4, "-": 4, "*": 5, "/": 5, "%": 5, "atan2": 5, "^": 6,
}  # fmt: skip
_COMPARISONS = ("==", "!=", "<", "<=", ">", ">=")
_SETS = ("and", "or", "unless")
_WITH_PARAMETER = {"topk": "s", "bottomk": "s", "quantile": "s", "limitk": "s", "limit_ratio": "s", "count_values": "t"}
_GROUPINGS = ("by", "without")
_REASONS = {
    "missing ), unterminated subpattern": "missing closing )",
    "unbalanced parenthesis": "unexpected )",
    "unterminated character set": "missing closing ]",
    "nothing to repeat": "missing argument to repetition operator",
    "bad escape (end of pattern)": "trailing backslash at end of expression",
}
# Words that stand for themselves alone: no metric has such a name.
_NO_NAMES = ("bool", "on", "ignoring", "group_left", "group_right", "atan2")
# As many milliseconds as a signed 64-bit number holds.
_FARTHEST_SECONDS = 2**63 / 1000
_LARGE = re.compile(r"[0-9][eE]\+?[0-9]{3}|[0-9]{3}y|[0-9]{5}w|[0-9]{6}d|[0-9]{7}h|[0-9]{9}m|[0-9]{10}s")
_MATCHES_EMPTY = ("!=", "!~")


def complaint(expr: str, message: str) -> str:
    """Where and why a text is refused; the parser's own `message` where nothing is found to be wrong here."""
    if not expr.strip():
        return "unknown position: parse error: no expression found in input"
    try:
        _Reader(expr).read()
    except ParseError as error:
        return str(error)
    return f"1:1: parse error: {message}"


def selector_complaint(text: str) -> str:
    """Why a text is no series selector."""
    try:
        _Reader(text).read_selector()
    except ParseError as error:
        return str(error)
    return f"1:1: parse error: {quoted(text)} is no series selector"


def _number(text: str) -> float:
    return float(int(text, 16)) if text[:2].lower() == "0x" else float(text)


def refuse_overflow(expr: str) -> None:
    """Raises ParseError for numbers and durations that are too large: `promql-parser` takes them for infinite."""
    if _LARGE.search(expr):
        _Reader(expr).read()


def argument_places(expr: str) -> list[list[int]]:
    """Where the arguments of each call and aggregation begin; calls in the order in which they begin. ParseError."""
    reader = _Reader(expr)
    reader.read()
    return [arguments for _, arguments in sorted(reader.calls)]


@dataclass(frozen=True, slots=True)
class _Piece:
    """An expression: its type (a letter of TYPES), its place, and what it is for the checks of what is around it."""

    type: str
    start: int
    end: int
    form: str = ""


@dataclass(frozen=True, slots=True)
class _Matching:
    """The labels of on() or ignoring(), whether a group modifier follows, and what is in on() and in that one."""

    labels: list[str]
    grouped: bool
    twice: list[str]


class _Reader:
    """Reads one expression; every error is a ParseError with its place."""

    def __init__(self, expr: str) -> None:
        self._expr = expr
        self._tokens = tokens(expr)
        self._ahead: Token = next(self._tokens)
        self._end = 0
        # Errors of types are only looked for in what is well formed: the first of them is raised at the end.
        self._wrong: ParseError | None = None
        self.calls: list[tuple[int, list[int]]] = []

    def read(self) -> None:
        if self._ahead.kind == "end":
            raise located(self._expr, 0, "no expression found in input")
        self._binary(0)
        if self._ahead.kind != "end":
            self._unexpected()
        if self._wrong is not None:
            raise self._wrong

    def read_selector(self) -> None:
        """Reads a series selector: it may match everything, but has no modifier."""
        token = self._ahead
        if token.kind not in ("{", "word", "identifier", "metric identifier"):
            self._unexpected()
        if token.kind != "{":
            self._next()
        self._selector(token, named=token.kind != "{")
        if self._ahead.kind != "end":
            self._unexpected()
        if self._wrong is not None:
            raise self._wrong

    # --- tokens -------------------------------------------------------------------------------------------------------
    def _next(self) -> Token:
        token = self._ahead
        self._end = token.end
        if token.kind != "end":
            self._ahead = next(self._tokens)
        return token

    def _word(self) -> str:
        return self._ahead.text.lower() if self._ahead.kind == "word" else ""

    def _unexpected(self, context: str = "", expected: str = "") -> None:
        text = f"unexpected {self._ahead.description}"
        text += f" in {context}" if context else ""
        text += f", expected {expected}" if expected else ""
        raise located(self._expr, self._ahead.start, text)

    def _expect(self, kind: str, context: str = "", expected: str = "") -> Token:
        if self._ahead.kind != kind:
            self._unexpected(context, expected)
        return self._next()

    def _mistyped(self, position: int, text: str) -> None:
        self._wrong = self._wrong or located(self._expr, position, text)

    # --- operators ----------------------------------------------------------------------------------------------------
    def _operator(self) -> str:
        token = self._ahead
        name = token.text.lower() if token.kind == "word" else token.kind
        return name if name in _LEVELS else ""

    def _binary(self, level: int) -> _Piece:
        left = self._unary()
        while (operator := self._operator()) and _LEVELS[operator] > level:
            self._next()
            return_bool, matching = self._modifiers()
            # `^` alone takes what follows first.
            right = self._binary(_LEVELS[operator] - (operator == "^"))
            left = self._combined(operator, left, right, return_bool, matching)
        return left

    def _modifiers(self) -> tuple[bool, _Matching]:
        return_bool, on, grouped = False, False, False
        labels: list[str] = []
        include: list[str] = []
        if self._word() == "bool":
            self._next()
            return_bool = True
        if self._word() in ("on", "ignoring"):
            on = self._word() == "on"
            self._next()
            labels = self._labels()
            if self._word() in ("group_left", "group_right"):
                self._next()
                grouped = True
                if self._ahead.kind == "(":
                    include = self._labels()
        return return_bool, _Matching(labels, grouped, [name for name in labels if on and name in include])

    def _combined(self, operator: str, left: _Piece, right: _Piece, return_bool: bool, matching: _Matching) -> _Piece:
        place = left.end
        while self._expr[place : place + 1].isspace():
            place += 1
        if return_bool and operator not in _COMPARISONS:
            self._mistyped(place, "bool modifier can only be used on comparison operators")
        scalars = left.type == right.type == "s"
        if operator in _COMPARISONS and scalars and not return_bool:
            self._mistyped(place, "comparisons between scalars must use BOOL modifier")
        for name in matching.twice:
            self._mistyped(place, f"label {quoted(name)} must not occur in ON and GROUP clause at once")
        for side in (left, right):
            if side.type not in "sv":
                self._mistyped(side.start, "binary expression must contain only scalar and instant vector types")
        if "s" in (left.type, right.type) and matching.labels:
            self._mistyped(left.start, "vector matching only allowed between instant vectors")
        elif operator in _SETS and matching.grouped:
            self._mistyped(left.start, f"no grouping allowed for {quoted(operator)} operation")
        if "s" in (left.type, right.type) and operator in _SETS:
            self._mistyped(left.start, f"set operator {quoted(operator)} not allowed in binary scalar expression")
        return _Piece("s" if scalars else "v", left.start, right.end)

    def _unary(self) -> _Piece:
        if self._ahead.kind not in ("+", "-"):
            return self._suffixed(self._primary())
        start = self._next().start
        inner = self._binary(_LEVELS["*"])
        if inner.type not in "sv":
            text = "unary expression only allowed on expressions of type scalar or instant vector"
            self._mistyped(start, f"{text}, got {quoted(TYPES[inner.type])}")
        return _Piece(inner.type, start, inner.end)

    # --- suffixes -----------------------------------------------------------------------------------------------------
    def _suffixed(self, piece: _Piece) -> _Piece:
        while True:
            if self._ahead.kind == "[":
                piece = self._range(piece)
            elif self._word() == "offset":
                self._next()
                if self._ahead.kind == "-":
                    self._next()
                if self._ahead.kind not in ("duration", "number"):
                    self._unexpected("offset", "duration")
                self._length()
                self._check_modified(piece, "offset")
                piece = _Piece(piece.type, piece.start, self._end, piece.form)
            elif self._ahead.kind == "@":
                self._next()
                self._time(piece)
                self._check_modified(piece, "@")
                piece = _Piece(piece.type, piece.start, self._end, piece.form)
            else:
                return piece

    def _check_modified(self, piece: _Piece, modifier: str) -> None:
        if piece.form not in ("selector", "range", "subquery"):
            text = "must be preceded by an instant vector selector or range vector selector or a subquery"
            raise located(self._expr, piece.start, f"{modifier} modifier {text}")

    def _time(self, piece: _Piece) -> None:
        if self._word() in ("start", "end"):
            self._next()
            self._expect("(")
            self._expect(")")
            return
        negative = self._ahead.kind == "-"
        if self._ahead.kind in ("-", "+"):
            self._next()
        if self._ahead.kind not in ("number", "duration"):
            self._unexpected("@", "timestamp")
        token = self._next()
        seconds = _number(token.text) if token.kind == "number" else 0.0
        if not abs(seconds) < _FARTHEST_SECONDS:
            text = f"{-seconds if negative else seconds:+f}" if math.isinf(seconds) else f"{seconds:f}"
            text = text.replace("nan", "NaN").replace("inf", "Inf")
            self._mistyped(piece.start, f"timestamp out of bounds for @ modifier: {text}")

    def _length(self) -> float:
        """Reads a duration, or a number of seconds: how long it is, in no unit."""
        token = self._next()
        if token.kind == "number":
            return _number(token.text)
        try:
            return duration_ms(token.text)
        except ValueError as error:
            out_of_range = "out of range" in str(error)
            reason = "duration out of range" if out_of_range else f"not a valid duration string: {quoted(token.text)}"
            raise located(self._expr, token.start, reason) from error

    def _duration(self) -> None:
        """Reads a duration that must be above 0."""
        start = self._ahead.start
        if self._length() <= 0:
            raise located(self._expr, start, "duration must be greater than 0")

    def _range(self, piece: _Piece) -> _Piece:
        bracket = self._next()
        if self._ahead.kind not in ("duration", "number"):
            self._unexpected("subquery selector", "duration")
        self._duration()
        if self._ahead.kind == "]":
            self._next()
            if piece.form != "selector":
                raise located(self._expr, bracket.start, "ranges only allowed for vector selectors")
            return _Piece("m", piece.start, self._end, "range")
        if self._ahead.kind != ":":
            self._unexpected("subquery or range", '":" or "]"')
        self._next()
        if self._ahead.kind in ("duration", "number"):
            self._duration()
            if self._ahead.kind != "]":
                self._unexpected("subquery selector", '"]"')
        elif self._ahead.kind != "]":
            self._unexpected("subquery selector", 'duration or "]"')
        self._next()
        if piece.type != "v":
            kind = {"s": "scalar", "m": "matrix", "t": "string"}[piece.type]
            self._mistyped(piece.start, f"subquery is only allowed on instant vector, got {kind} instead")
        return _Piece("m", piece.start, self._end, "subquery")

    # --- what stands alone --------------------------------------------------------------------------------------------
    def _primary(self) -> _Piece:
        token = self._ahead
        if token.kind in ("number", "duration"):
            if math.isinf(self._length()) and token.text[0].isdigit():
                text = f"strconv.ParseFloat: parsing {quoted(token.text)}: value out of range"
                raise located(self._expr, token.start, f"error parsing number: {text}")
            return _Piece("s", token.start, token.end)
        if token.kind == "string":
            self._next()
            return _Piece("t", token.start, token.end)
        if token.kind == "(":
            self._next()
            inner = self._binary(0)
            self._expect(")")
            return _Piece(inner.type, token.start, self._end)
        if token.kind == "{":
            return self._selector(token, named=False)
        if token.kind not in ("word", "identifier", "metric identifier"):
            self._unexpected()
        if token.kind == "word" and token.text.lower() in _NO_NAMES:
            self._unexpected()
        # Every other word is a metric name, too.
        self._next()
        name = token.text.lower()
        if token.kind == "word" and name in AGGREGATORS and (self._ahead.kind == "(" or self._word() in _GROUPINGS):
            return self._aggregate(token)
        if self._ahead.kind == "(" and (token.kind == "identifier" or name in ("start", "end")):
            return self._call(token)
        return self._selector(token, named=True)

    def _selector(self, token: Token, *, named: bool) -> _Piece:
        empty = not named
        if self._ahead.kind == "{":
            self._next()
            while self._ahead.kind != "}":
                empty = self._matcher(token) and empty
                if self._ahead.kind == ",":
                    self._next()
                elif self._ahead.kind != "}":
                    self._unexpected("label matching", '"," or "}"')
            self._next()
        if empty:
            self._mistyped(token.start, "vector selector must contain at least one non-empty matcher")
        return _Piece("v", token.start, self._end, "selector")

    def _matcher(self, owner: Token) -> bool:
        """Reads one; gives whether it may match series without the label."""
        if self._ahead.kind == "string":
            self._next()
            return False
        if self._ahead.kind != "identifier":
            self._unexpected("label matching", 'identifier or "}"')
        name = self._next()
        operator = self._ahead.kind
        if operator not in ("=", "!=", "=~", "!~"):
            self._unexpected("label matching", "label matching operator")
        self._next()
        if self._ahead.kind != "string":
            self._unexpected("label matching", "string")
        value = self._next().text[1:-1]
        if operator in ("=~", "!~"):
            self._check_regex(name, value)
        if name.text == "__name__" and owner.kind != "{":
            text = f"metric name must not be set twice: {quoted(owner.text)} or {quoted(value)}"
            self._mistyped(owner.start, text)
        return not value or operator in _MATCHES_EMPTY or (operator == "=~" and value in (".*", ""))

    def _check_regex(self, name: Token, value: str) -> None:
        try:
            compile_go(value)
        except ValueError as error:
            reason = next((go for python, go in _REASONS.items() if python in str(error)), str(error))
            raise located(self._expr, name.start, f"error parsing regexp: {reason}: `^(?:{value})$`") from error

    def _labels(self) -> list[str]:
        if self._ahead.kind != "(":
            self._unexpected("grouping opts", '"("')
        self._next()
        found: list[str] = []
        while self._ahead.kind != ")":
            if self._ahead.kind not in ("identifier", "word"):
                self._unexpected("grouping opts", "label")
            found.append(self._next().text)
            if self._ahead.kind == ",":
                self._next()
            elif self._ahead.kind != ")":
                self._unexpected("grouping opts", '"," or ")"')
        self._next()
        return found

    def _arguments(self) -> list[_Piece]:
        self._next()
        found: list[_Piece] = []
        if self._ahead.kind == ")":
            self._next()
            return found
        while True:
            found.append(self._binary(0))
            if self._ahead.kind != ",":
                break
            comma = self._next()
            if self._ahead.kind == ")":
                raise located(self._expr, comma.start, "trailing commas not allowed in function call args")
        self._expect(")")
        return found

    def _aggregate(self, token: Token) -> _Piece:
        if self._word() in _GROUPINGS:
            self._next()
            self._labels()
            if self._ahead.kind != "(":
                self._unexpected("aggregation")
        elif self._ahead.kind != "(":
            self._unexpected("aggregation")
        arguments = self._arguments()
        self.calls.append((token.start, [argument.start for argument in arguments]))
        if self._word() in _GROUPINGS:
            self._next()
            self._labels()
        name = token.text.lower()
        if not arguments:
            raise located(self._expr, token.start, "no arguments for aggregate expression provided")
        wanted = 2 if name in _WITH_PARAMETER else 1
        if len(arguments) != wanted:
            text = f"wrong number of arguments for aggregate expression provided, expected {wanted}, got"
            raise located(self._expr, token.start, f"{text} {len(arguments)}")
        self._check_type(arguments[-1], "v", "aggregation expression")
        if wanted == 2:
            self._check_type(arguments[0], _WITH_PARAMETER[name], "aggregation parameter")
        return _Piece("v", token.start, self._end)

    def _call(self, token: Token) -> _Piece:
        # Found wrong before its arguments are, if it is: they are checked after their number.
        before, self._wrong = self._wrong, None
        arguments = self._arguments()
        inner, self._wrong = self._wrong, before
        self.calls.append((token.start, [argument.start for argument in arguments]))
        signature = SIGNATURES.get(token.text)
        if signature is None:
            raise located(self._expr, token.start, f"unknown function with name {quoted(token.text)}")
        self._check_count(token, signature, len(arguments))
        self._wrong = self._wrong or inner
        for position, argument in enumerate(arguments):
            if position >= len(signature.arguments) and not signature.variadic:
                break
            wanted = signature.arguments[min(position, len(signature.arguments) - 1)]
            self._check_type(argument, wanted, f"call to function {quoted(token.text)}")
        return _Piece(signature.result, token.start, self._end)

    def _check_count(self, token: Token, signature: Signature, given: int) -> None:
        known = len(signature.arguments)
        call = f"argument(s) in call to {quoted(token.text)}, got {given}"
        if not signature.variadic:
            if given != known:
                self._mistyped(token.start, f"expected {known} {call}")
        elif given < known - 1:
            self._mistyped(token.start, f"expected at least {known - 1} {call}")
        elif 0 < signature.variadic < given - known + 1:
            self._mistyped(token.start, f"expected at most {known - 1 + signature.variadic} {call}")

    def _check_type(self, piece: _Piece, wanted: str, context: str) -> None:
        if piece.type != wanted:
            self._mistyped(piece.start, f"expected type {TYPES[wanted]} in {context}, got {TYPES[piece.type]}")
