"""What the demo saw, judged and did, in the order of its happening, with the numbers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["seen", "judged", "done", "note"]


@dataclass(frozen=True, slots=True)
class Moment:
    at: float
    """Unix seconds."""
    kind: Kind
    text: str
    day: str | None = None
    """The flight day that the replay had reached."""


@dataclass(slots=True)
class Timeline:
    """Collects moments and passes each to `show` as it comes."""

    started_at: float = field(default_factory=time.time)
    show: Callable[[str], None] = lambda line: None
    moments: list[Moment] = field(default_factory=list)

    def add(self, kind: Kind, text: str, *, day: str | None = None, at: float | None = None) -> None:
        moment = Moment(time.time() if at is None else at, kind, text, day)
        self.moments.append(moment)
        self.show(self.line(moment))

    def line(self, moment: Moment) -> str:
        seconds = moment.at - self.started_at
        return f"{seconds:7.1f} s  {moment.day or '':10}  {moment.kind:<6}  {moment.text}"

    def text(self) -> str:
        """All moments by time."""
        return "\n".join(self.line(moment) for moment in sorted(self.moments, key=lambda moment: moment.at))
