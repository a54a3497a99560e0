"""A comparison as a table for the terminal: the worst column first, its distribution before above that of now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from collectors.drift.comparison import ColumnComparison, Comparison, Part
from collectors.drift.histogram import bars, sparkline

BARS = 16
# Longer names go on in the next line.
_FOLDED = {"column": 32, "method": 18}
# Longer tables show their worst parts.
MOST_PARTS = 40


def rendered(found: Comparison) -> RenderableType:
    """What `rich` prints."""
    pieces: list[RenderableType] = [headline(found), _columns(found), *_reasons(found)]
    for side, names in (("the reference", found.only_in_reference), ("the current table", found.only_in_current)):
        if names:
            pieces.append(Text(f"Only in {side}: {shown(', '.join(names))}"))
    if found.by is not None:
        pieces += [Text(""), _parts(f"{escape(shown(found.by))} (worst first)", found.values)]
        for side, values in (
            ("the reference", found.values_only_in.reference),
            ("the current table", found.values_only_in.current),
        ):
            if values:
                pieces.append(
                    Text(f"Only in {side}: {shown(', '.join(values[:20]))}" + (" …" if len(values) > 20 else ""))
                )
    if found.time is not None:
        pieces += [Text(""), _parts(f"window of {escape(shown(found.time))}", found.windows)]
        pieces += [Text(f"{shown(name)} has been drifting since {since}") for name, since in found.since.items()]
    return Group(*pieces)


def headline(found: Comparison) -> Text:
    """One line: how many columns drifted, of how many rows."""
    drifted = [name for name, column in found.columns.items() if column.drifted]
    rows = f"{found.rows.reference:,} rows against {found.rows.current:,}"
    said = [f"{len(drifted)} of {len(found.columns)} columns drifted"] if drifted else []
    gone = found.only_in_reference
    if gone:
        said.append(f"{len(gone)} column{'s are' if len(gone) > 1 else ' is'} gone: {_listed(gone)}")
    verdict = ", ".join(said) or "no column drifted"
    begun = "DRIFT" if found.drifted else "no drift"
    text = Text(f"{begun}: {verdict}; {rows}, {found.method}, {found.mode}, {found.seconds:.2f} s")
    text.stylize("bold red" if found.drifted else "bold green", 0, text.plain.index(":"))
    return text


def _columns(found: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for name in ("column", "verdict", "score", "threshold", "method", "PSI", "missing", "reference\ncurrent"):
        justify: Literal["left", "right"] = "right" if name in ("score", "threshold", "PSI") else "left"
        table.add_column(
            name, justify=justify, no_wrap=name not in _FOLDED, overflow="fold", max_width=_FOLDED.get(name)
        )
    for name, column in found.worst_first:
        verdict = Text("DRIFTED" if column.drifted else "-" if not column.judged else "ok")
        verdict.stylize("red" if column.drifted else "green" if column.judged else "dim")
        table.add_row(
            escape(shown(name)) + (f"\n[dim]{column.type}[/]"),
            verdict,
            number(column.score),
            number(column.threshold),
            column.method or "-",
            number(column.psi),
            missing(column),
            _pictures(column),
        )
    return table


def _reasons(found: Comparison) -> list[Text]:
    """A line for each column that has more to say than its verdict."""
    said = [(name, _reason(column)) for name, column in found.worst_first]
    return [Text.assemble((shown(name), "bold"), shown(f": {reason}")) for name, reason in said if reason]


def _listed(names: Sequence[str], most: int = 5) -> str:
    return shown(", ".join(names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def _reason(column: ColumnComparison) -> str:
    return "" if column.reason in ("drifted", "within threshold") else column.reason


def _pictures(column: ColumnComparison) -> Text:
    found = bars(column.cells, BARS) if column.cells is not None else None
    if found is None:
        return Text("")
    highest = max(float(found.shares.reference.max(initial=0.0)), float(found.shares.current.max(initial=0.0)))
    return Text(f"{sparkline(found.shares.reference, highest)}\n{sparkline(found.shares.current, highest)}")


def _parts(name: str, parts: tuple[Part, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for title in (name, "rows", "drifted", "worst columns"):
        table.add_column(title, justify="right" if title == "rows" else "left")
    for part in parts[:MOST_PARTS]:
        comparison = part.comparison
        worst = [column for column, found in comparison.worst_first if found.drifted]
        table.add_row(
            escape(shown(part.label)),
            f"{comparison.rows.current:,}",
            Text("DRIFTED", style="red") if comparison.drifted else Text("ok", style="green"),
            escape(shown(", ".join(worst[:5])) + (f" and {len(worst) - 5} more" if len(worst) > 5 else "")),
        )
    if len(parts) > MOST_PARTS:
        table.add_row(f"and {len(parts) - MOST_PARTS} more", "", "", "")
    return table


def missing(column: ColumnComparison) -> str:
    """The missing shares, before and now."""
    before, now = column.missing_share.reference, column.missing_share.current
    return f"{before:.1%} → {now:.1%}" if before or now else "0"


def shown(text: str) -> str:
    """A name from a file without what a terminal would obey, or take for a line's end."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def number(value: float | None) -> str:
    """Four digits, or a dash."""
    return "-" if value is None else f"{value:.4g}"
