"""What is shown as a table: as wide as the terminal is."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console, RenderableType

# Where nobody looks, and at most: longer lines are hard to read.
WIDTH = 120


def printed(render: Callable[[int], RenderableType]) -> str:
    """What `render` makes for a terminal of so many cells, as text."""
    console = Console()
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    with console.capture() as capture:
        console.print(render(console.width), soft_wrap=False)
    return capture.get().rstrip("\n")
