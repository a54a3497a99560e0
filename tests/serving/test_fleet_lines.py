"""A replica's end of a front's connection."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from serving.fleet.lines import Line


def test_the_shortcut_may_arm_a_fronts_line_as_it_does_a_clients_connection() -> None:
    """Whatever came in frames raised behind the answers of each batch, since a line could not be armed."""
    replica: Any = SimpleNamespace(lines=set())
    line = Line(replica)
    line.arm(object())

    assert line.active() == 0
