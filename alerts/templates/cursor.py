"""The place in the tokens of a template, and errors that say where it is."""

from __future__ import annotations

from collections.abc import Sequence

from alerts.templates.lexing import Token


class TemplateError(ValueError):
    """A template that cannot be parsed, or fails when it is expanded."""


class Cursor:
    """Tokens, and the place of the next one; `action_line` is where the action began that is being read."""

    def __init__(self, name: str, tokens: Sequence[Token]) -> None:
        self.place = 0
        self.action_line = 0
        self._name = name
        self._tokens = tokens

    def next(self) -> Token:
        """The next token, which is then past."""
        token = self.peek()
        self.place += 1
        return token

    def peek(self) -> Token:
        """The next token; the last stays the next."""
        return self._tokens[min(self.place, len(self._tokens) - 1)]

    def next_token(self) -> Token:
        """The next token that is not white space, which is then past."""
        self.peek_token()
        return self.next()

    def peek_token(self) -> Token:
        """The next token that is not white space; it stays the next."""
        while self.peek().kind == "space":
            self.place += 1
        return self.peek()

    def expect(self, kinds: tuple[str, ...], context: str) -> Token:
        """The next token, which must be of one of the kinds."""
        token = self.next_token()
        if token.kind not in kinds:
            raise self.unexpected(token, context)
        return token

    def unexpected(self, token: Token, context: str) -> TemplateError:
        """The error for a token that does not belong."""
        if token.kind != "error":
            return self.error(f"unexpected {token} in {context}")
        extra = ""
        if self.action_line and self.action_line != token.line:
            extra = f" in action started at {self._name}:{self.action_line}"
            extra = extra.removeprefix(" in action") if token.text.endswith(" action") else extra
        return self.error(f"{token}{extra}")

    def error(self, message: str) -> TemplateError:
        """An error at the token last taken, in Go's words."""
        last = self._tokens[min(max(self.place - 1, 0), len(self._tokens) - 1)]
        return TemplateError(f"template: {self._name}:{last.line}: {message}")
