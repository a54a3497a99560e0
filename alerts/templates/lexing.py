"""The text of a Go template as tokens: literal text, and what stands between `{{` and `}}`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from alerts.templates.printing import quoted

KEYWORDS = ("block", "break", "continue", "define", "else", "end", "if", "nil", "range", "template", "with")
_SPACE = " \t\r\n"
_NUMBER = re.compile(
    r"[+-]?(?:0[xX][0-9a-fA-F_]*(?:\.[0-9a-fA-F_]*)?(?:[pP][+-]?[0-9_]*)?|0[oO][0-7_]*|0[bB][01_]*"
    r"|[0-9_]*(?:\.[0-9_]*)?(?:[eE][+-]?[0-9_]*)?)"
)


@dataclass(frozen=True, slots=True)
class Token:
    """One token: its kind, where it begins (in characters), its text and the line that it is on, from 1.

    An `error` token ends the tokens; its text says what is wrong.
    """

    kind: str
    position: int
    text: str
    line: int

    def __str__(self) -> str:
        if self.kind == "EOF":
            return "EOF"
        if self.kind == "error":
            return self.text
        if self.kind in KEYWORDS or self.kind == "dot":
            return f"<{self.text}>"
        return f"{quoted(self.text[:10])}..." if len(self.text.encode()) > 10 else quoted(self.text)


def tokens_of(text: str) -> list[Token]:
    """All tokens; the last is `EOF` or `error`."""
    lexer = _Lexer(text)
    state: _State | None = lexer.literal
    while state is not None:
        state = state()
    return lexer.tokens


_State = Callable[[], "_State | None"]


class _Lexer:
    """Each method is a state that emits tokens and gives the next state; None ends."""

    def __init__(self, text: str) -> None:
        self.tokens: list[Token] = []
        self._text = text
        self._place = 0
        self._start = 0
        self._depth = 0

    def literal(self) -> _State | None:
        opening = self._text.find("{{", self._place)
        if opening < 0:
            self._place = len(self._text)
            self._emit_unless_empty("text")
            self._emit("EOF")
            return None
        self._place = opening
        if self._trims_left(opening + 2):
            self._place = self._start + len(self._text[self._start : opening].rstrip(_SPACE))
        self._emit_unless_empty("text")
        self._place = self._start = opening
        return self._opening

    def _opening(self) -> _State | None:
        self._place += 2
        marker = 2 if self._trims_left(self._place) else 0
        if self._text.startswith("/*", self._place + marker):
            self._place = self._start = self._place + marker
            return self._comment
        self._emit("leftDelim")
        self._place += marker
        self._start = self._place
        self._depth = 0
        return self._inside

    def _comment(self) -> _State | None:
        end = self._text.find("*/", self._place + 2)
        if end < 0:
            return self._fail("unclosed comment")
        self._place = end + 2
        closing = self._closing_length()
        if not closing:
            return self._fail("comment ends before closing delimiter")
        self._leave(closing)
        return self.literal

    def _leave(self, length: int) -> None:
        self._place += length
        if length > 2:  # a trim marker: the white space that follows goes
            rest = self._text[self._place :]
            self._place += len(rest) - len(rest.lstrip(_SPACE))
        self._start = self._place

    def _inside(self) -> _State | None:
        closing = self._closing_length()
        if closing:
            if self._depth:
                return self._fail("unclosed left paren")
            end = self._place + closing
            self._start = self._place = end - 2
            self._place = end
            self._emit("rightDelim")
            self._place -= closing
            self._leave(closing)
            return self.literal
        character = self._next()
        if character == "":
            return self._fail("unclosed action")
        if character in _SPACE:
            return self._space()
        if character == ":":
            if self._next() != "=":
                return self._fail("expected :=")
            return self._emit("declare")
        if character in "\"`'":
            return self._literal_text(character)
        if character in "$." and not (character == "." and self._peek().isdigit()):
            return self._name(character)
        if character in "+-." or "0" <= character <= "9":
            self._place -= 1
            return self._number()
        if _is_word(character):
            return self._word()
        if character in "()":
            self._depth += 1 if character == "(" else -1
            if self._depth < 0:
                return self._fail("unexpected right paren")
            return self._emit("leftParen" if character == "(" else "rightParen")
        if character in "|=":
            return self._emit("pipe" if character == "|" else "assign")
        if " " <= character <= "~":
            return self._emit("char")
        return self._fail(f"unrecognized character in action: {_code_point(character)}")

    def _space(self) -> _State | None:
        while self._peek() and self._peek() in _SPACE:
            self._place += 1
        if self._text.startswith("-}}", self._place):  # `x -}}`: the last space belongs to the trim marker
            self._place -= 1
            if self._place == self._start:
                return self._inside
        return self._emit("space")

    def _literal_text(self, quote: str) -> _State | None:
        kind, name = {
            '"': ("string", "quoted string"),
            "`": ("rawString", "raw quoted string"),
            "'": ("charConstant", "character constant"),
        }[quote]
        while (character := self._next()) != quote:
            if character == "\\" and quote != "`":
                character = self._next()
            if character == "" or (character == "\n" and quote != "`"):
                return self._fail(f"unterminated {name}")
        return self._emit(kind)

    def _name(self, sign: str) -> _State | None:
        kind = "variable" if sign == "$" else "field"
        if self._at_end_of_word():
            return self._emit("variable" if sign == "$" else "dot")
        while _is_word(self._peek()):
            self._place += 1
        return self._emit(kind) if self._at_end_of_word() else self._bad_character()

    def _word(self) -> _State | None:
        while _is_word(self._peek()):
            self._place += 1
        if not self._at_end_of_word():
            return self._bad_character()
        word = self._text[self._start : self._place]
        return self._emit(word if word in KEYWORDS else "bool" if word in ("true", "false") else "identifier")

    def _number(self) -> _State | None:
        found = _NUMBER.match(self._text, self._place)
        assert found is not None
        self._place = found.end()
        if _is_word(self._peek()) or self._peek() in ("+", "-"):
            self._place += 1
            return self._fail(f"bad number syntax: {quoted(self._text[self._start : self._place])}")
        return self._emit("number")

    def _bad_character(self) -> _State | None:
        return self._fail(f"bad character {_code_point(self._peek())}")

    def _at_end_of_word(self) -> bool:
        return self._peek() == "" or self._peek() in _SPACE + ".,|:)(}"

    def _trims_left(self, place: int) -> bool:
        return self._text[place : place + 1] == "-" and self._text[place + 1 : place + 2] in tuple(_SPACE)

    def _closing_length(self) -> int:
        if self._text.startswith("}}", self._place):
            return 2
        trimmed = self._text[self._place : self._place + 1] in tuple(_SPACE)
        return 4 if trimmed and self._text.startswith("-}}", self._place + 1) else 0

    def _next(self) -> str:
        character = self._peek()
        self._place += len(character)
        return character

    def _peek(self) -> str:
        return self._text[self._place : self._place + 1]

    def _emit(self, kind: str) -> _State:
        line = 1 + self._text.count("\n", 0, self._start)
        self.tokens.append(Token(kind, self._start, self._text[self._start : self._place], line))
        self._start = self._place
        return self._inside

    def _emit_unless_empty(self, kind: str) -> None:
        if self._place > self._start:
            self._emit(kind)

    def _fail(self, message: str) -> _State | None:
        self.tokens.append(Token("error", self._start, message, 1 + self._text.count("\n", 0, self._start)))
        return None


def _is_word(character: str) -> bool:
    return character == "_" or (
        (character != "" and unicodedata.category(character)[0] in "L") or character.isdecimal()
    )


def _code_point(character: str) -> str:
    return f"U+{ord(character):04X} '{character}'" if character else "U+FFFFFFFFFFFFFFFF"
