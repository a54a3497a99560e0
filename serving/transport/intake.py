"""What the compiled way past Python may take: requests like one that was read in Python, but for their values.

A header whose bytes were met before means the same but for the digits of its content-length, and a body the same but
for its values. So a form is what stands before, between and behind them; `intake.c` compares bytes and reads numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from observability.native import extension
from serving import v2

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,11})[ \t]*(?=\r\n)", re.IGNORECASE)
# Lists in a body that are looked at: its values are in one of the first.
_MAX_LISTS = 8


@dataclass(frozen=True, slots=True)
class Form:
    """The bytes around a request's content-length and its values; `rows` of them, packed when `binary`."""

    before: bytes
    behind: bytes
    prefix: bytes
    suffix: bytes
    rows: int
    binary: bool

    def fits(self, header: bytes, body: bytes) -> bool:
        """Whether a request begins like this."""
        return header.startswith(self.before) and body.startswith(self.prefix)


def native() -> ModuleType | None:
    """The compiled `Slot` and `Intake`; None where there is no compiler."""
    return extension(Path(__file__).with_name("intake.c"))


def binary_form(header: bytes, body: bytes, header_length: int, rows: int) -> Form | None:
    """The form of a request whose one tensor is all that follows the body's JSON part."""
    around = _around(header)
    return None if around is None else Form(*around, body[:header_length], b"", rows, True)


def json_form(header: bytes, body: bytes, values: int, rows: int) -> Form | None:
    """The form of a JSON request with so many values in one flat list; None where the list is not found for certain."""
    around, read = _around(header), v2.decoded_floats(body)
    if around is None or read is None or len(read.inputs) != 1:
        return None
    others = [place + 0.5 for place in range(values)]
    text = b",".join(b"%.1f" % value for value in others)
    for found, _ in zip(re.finditer(rb"\[([^\[\]{}\"]*)\]", body), range(_MAX_LISTS), strict=False):
        if found[1].count(b",") != values - 1:
            continue
        prefix, suffix = body[: found.start(1)], body[found.end(1) :]
        # With other values in this place everything must be read as before but the values.
        changed = v2.decoded_floats(prefix + text + suffix)
        if changed is not None and len(changed.inputs) == 1 and changed.inputs[0].data == others:
            changed.inputs[0].data = read.inputs[0].data
            if changed == read:
                return Form(*around, prefix, suffix, rows, False)
    return None


def _around(header: bytes) -> tuple[bytes, bytes] | None:
    found = list(_LENGTH.finditer(header))
    return (header[: found[0].start(1)], header[found[0].end(1) :]) if len(found) == 1 else None
