"""What a template function is: what it does, and the Go types that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from alerts.templates.humanize import FunctionError
from alerts.templates.values import Value

ANY = "interface {}"
TEXT = "string"
VECTOR = "template.queryResult"
SAMPLE = "*template.sample"
# Go's built-in functions take values whose absence they see.
REFLECTED = "reflect.Value"


@dataclass(frozen=True, slots=True)
class Function:
    """A function, the Go types of its parameters, and whether the last may be given any number of times."""

    call: Callable[..., Value]
    parameters: tuple[str, ...]
    variadic: bool = False


def nil_pointer() -> Value:
    """What Go does with a pointer to nothing."""
    raise FunctionError("runtime error: invalid memory address or nil pointer dereference")
