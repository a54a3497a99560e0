"""A comparison as a table for the terminal: the worst column first, its distribution before above that of now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from collectors.drift.comparison import ColumnComparison, Comparison, Part
from collectors.drift.histogram import bars_of, sparkline
from collectors.drift.reasons import is_plain

BARS = 16
# How a column is called whose name is empty.
NAMELESS = '""'
# Longer names go on in the next line.
_FOLDED = {"column": 32, "method": 18}
# So much of a name stands in one line where the terminal is narrow; between columns are so many blanks.
_NAME, _GAP = 20, 2
# Longer tables show their worst parts.
MOST_PARTS = 40


def rendered(found: Comparison, width: int = 120) -> RenderableType:
    """What `rich` prints, for a terminal of so many cells."""
    pieces: list[RenderableType] = [headline(found), _columns(found, width), *_reasons(found)]
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
    begun = "DRIFT" if found.drifted else "DRIFT in parts" if found.alarms else "no drift"
    if found.alarms and not found.drifted:
        verdict = f"{_drifted_parts(found)}; of the whole, {verdict}"
    text = Text(f"{begun}: {verdict}; {rows}, {found.method}, {found.mode}, {found.seconds:.2f} s")
    text.stylize("bold red" if found.alarms else "bold green", 0, text.plain.index(":"))
    return text


def _drifted_parts(found: Comparison) -> str:
    """How many values and windows drifted, of those that there are."""
    both = (("values of " + shown(found.by or ""), found.values), ("windows", found.windows))
    counted = [(what, sum(part.comparison.drifted for part in parts), len(parts)) for what, parts in both]
    return ", ".join(f"{drifted} of {of} {what} drifted" for what, drifted, of in counted if drifted)


def _columns(found: Comparison, width: int) -> RenderableType:
    """The columns as a table; what a narrow terminal has no room for gives way to their names, and is told."""
    shares = "reference\ncurrent"
    cells: dict[str, list[Text]] = {
        title: [] for title in ("column", "verdict", "score", "threshold", "method", "PSI", "missing", shares)
    }
    for name, column in found.worst_first:
        verdict = Text("DRIFTED" if column.drifted else "-" if not column.judged else "ok")
        verdict.stylize("red" if column.drifted else "green" if column.judged else "dim")
        cells["column"].append(Text.assemble(shown(name or NAMELESS), "\n", (column.type, "dim")))
        cells["verdict"].append(verdict)
        cells["score"].append(Text(number(column.score)))
        cells["threshold"].append(Text(number(column.threshold)))
        cells["method"].append(Text(column.method or "-"))
        cells["PSI"].append(Text(number(column.psi)))
        cells["missing"].append(Text(missing(column)))
        cells[shares].append(_pictures(column))
    widths = {title: _width(title, texts) for title, texts in cells.items()}
    left_out = []
    for title in ("PSI", "method", "missing", "threshold", shares, "score"):
        if sum(widths.values()) + _GAP * (len(widths) - 1) <= width:
            break
        widths["column"] = min(widths["column"], _NAME)
        if sum(widths.values()) + _GAP * (len(widths) - 1) > width:
            left_out.append("the distributions" if title == shares else title)
            del widths[title]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for title in widths:
        justify: Literal["left", "right"] = "right" if title in ("score", "threshold", "PSI") else "left"
        most = _FOLDED.get(title)
        table.add_column(title, justify=justify, no_wrap=most is None, overflow="fold", max_width=most)
    for row in zip(*(cells[title] for title in widths), strict=True):
        table.add_row(*row)
    told = Text(f"A wider terminal, --json and --html show also {', '.join(left_out)}.", style="dim")
    return Group(table, told) if left_out else table


def _width(title: str, texts: Sequence[Text]) -> int:
    """The cells that a column takes, at most; longer lines go on in the next."""
    widest = max(cell_len(line) for text in (title, *(t.plain for t in texts)) for line in text.split("\n"))
    return min(widest, _FOLDED.get(title, widest))


def _reasons(found: Comparison) -> list[Text]:
    """A line for each column that has more to say than its verdict."""
    said = [(name, _reason(column)) for name, column in found.worst_first]
    return [Text.assemble((shown(name or NAMELESS), "bold"), shown(f": {reason}")) for name, reason in said if reason]


def _listed(names: Sequence[str], most: int = 5) -> str:
    return shown(", ".join(names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def _reason(column: ColumnComparison) -> str:
    return "" if is_plain(column.reason) else column.reason


def _pictures(column: ColumnComparison) -> Text:
    found = bars_of(column, BARS)
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
