"""A comparison as one HTML page that needs nothing else: worst column first, both its histograms in one picture."""

from __future__ import annotations

import math
from html import escape

from collectors.drift.comparison import ColumnComparison, Comparison, Part
from collectors.drift.histogram import Bars, bars_of
from collectors.drift.reasons import is_plain
from collectors.drift.terminal import NAMELESS, headline, missing, number

BARS = 40
_WIDTH, _HEIGHT = 360, 90
# About the width of a letter of a label.
_LETTER = 7
_STYLE = """
:root { color-scheme: light dark; --ink: #1a1d21; --dim: #667; --paper: #fff; --line: #d9dde3; --before: #8a94a6;
  --now: #1f6feb; --bad: #c62828; --good: #2e7d32; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --dim: #9aa4b2; --paper: #14171a; --line: #30363d;
  --before: #7d8796; --now: #58a6ff; --bad: #ff7b72; --good: #56d364; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 70rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 0; } .dim { color: var(--dim); }
.bad { color: var(--bad); font-weight: 600; } .good { color: var(--good); font-weight: 600; }
section { border-top: 1px solid var(--line); padding: 1rem 0; display: grid; gap: 0 2rem;
  grid-template-columns: minmax(14rem, 1fr) minmax(18rem, 24rem); }
@media (max-width: 46rem) { section { grid-template-columns: 1fr; } }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; margin: .5rem 0 0; }
dt { color: var(--dim); } dd { margin: 0; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2rem 1rem .2rem 0; }
th { color: var(--dim); font-weight: 500; } svg { width: 100%; height: auto; }
.before { fill: var(--before); opacity: .55; } .now { fill: var(--now); opacity: .55; }
svg text { font: 10px system-ui, sans-serif; fill: var(--dim); }
.key::before { content: ""; display: inline-block; width: .8em; height: .8em; margin-right: .4em; opacity: .7; }
.key.a::before { background: var(--before); } .key.b::before { background: var(--now); }
"""
_STATISTICS = (
    ("psi", "PSI"),
    ("js_distance", "Jensen–Shannon"),
    ("hellinger", "Hellinger"),
    ("total_variation", "total variation"),
    ("ks", "Kolmogorov–Smirnov"),
    ("ks_pvalue", "its p-value"),
    ("wasserstein", "Wasserstein"),
    ("wasserstein_normed", "in deviations"),
    ("chi2_pvalue", "chi-square p-value"),
)


def page(found: Comparison, title: str) -> str:
    """The page. It holds no script and loads nothing."""
    body = [f"<h1>{escape(title)}</h1>", f"<p>{_verdict(found.alarms)} {escape(headline(found).plain)}</p>"]
    for side, names in (("the reference", found.only_in_reference), ("the current table", found.only_in_current)):
        if names:
            body.append(f"<p>Only in {side}: {escape(', '.join(names))}</p>")
    body.append('<p class="dim"><span class="key a">reference</span> &nbsp; <span class="key b">current</span></p>')
    body += [_column(name, column) for name, column in found.worst_first]
    if found.by is not None:
        body += [f"<h1>By {escape(found.by)}, worst first</h1>", _parts(found.by, found.values)]
    if found.time is not None:
        body += [f"<h1>Over {escape(found.time)}</h1>", _parts("window", found.windows)]
        body += [f"<p>{escape(name)} has been drifting since {escape(when)}</p>" for name, when in found.since.items()]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _verdict(drifted: bool) -> str:
    return '<span class="bad">●</span>' if drifted else '<span class="good">●</span>'


def _column(name: str, column: ColumnComparison) -> str:
    word = '<span class="bad">drifted</span>' if column.drifted else '<span class="good">no drift</span>'
    if not column.judged:
        word = '<span class="dim">not judged</span>'
    entries = [("reason", column.reason)] if not is_plain(column.reason) else []
    if column.score is not None:
        limit = "" if column.threshold is None else f" (threshold {number(column.threshold)})"
        entries.append((column.method or "score", number(column.score) + limit))
    statistics = [(label, getattr(column, key)) for key, label in _STATISTICS]
    # Distances of numbers near the largest that there are may be larger than any.
    entries += [(label, number(value)) for label, value in statistics if value is not None and math.isfinite(value)]
    entries.append(("missing", missing(column)))
    listed = "".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in entries)
    drawn = bars_of(column, BARS)
    picture = _picture(drawn) if drawn is not None else ""
    return (
        f'<section><div><h2>{escape(name or NAMELESS)} <small class="dim">{escape(column.type)}</small> {word}</h2>'
        f"<dl>{listed}</dl></div><div>{picture}</div></section>"
    )


def _picture(drawn: Bars) -> str:
    """Both histograms over each other; below each label where they fit, else the first, the middle and the last."""
    count = len(drawn.labels)
    highest = max(float(drawn.shares.reference.max()), float(drawn.shares.current.max()), math.ulp(1.0))
    width = _WIDTH / count
    rectangles = []
    for style, shares in (("before", drawn.shares.reference), ("now", drawn.shares.current)):
        for place, share in enumerate(shares):
            if share > 0:
                height = max(float(share) / highest * _HEIGHT, 0.7)
                label = escape(f"{drawn.labels[place]}: {share:.2%}")
                rectangles.append(
                    f'<rect class="{style}" x="{place * width:.1f}" y="{_HEIGHT - height:.1f}" '
                    f'width="{max(width - 1, 1):.1f}" height="{height:.1f}"><title>{label}</title></rect>'
                )
    fit = width >= _LETTER * max(map(len, drawn.labels))
    shown = range(count) if fit or count <= 2 else (0, count // 2, count - 1)
    texts = "".join(
        f'<text x="{(place + 0.5) * width:.1f}" y="{_HEIGHT + 12}" text-anchor="{_anchor(place, count, fit)}">'
        f"{escape(drawn.labels[place][:24])}</text>"
        for place in shown
    )
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 16}" role="img">{"".join(rectangles)}{texts}</svg>'


def _anchor(place: int, count: int, fit: bool) -> str:
    if fit or 0 < place < count - 1:
        return "middle"
    return "end" if place else "start"


def _parts(name: str, parts: tuple[Part, ...]) -> str:
    rows = []
    for part in parts:
        comparison = part.comparison
        worst = [column for column, found in comparison.worst_first if found.drifted]
        rows.append(
            f"<tr><td>{escape(part.label)}</td><td>{comparison.rows.current:,}</td>"
            f"<td>{_verdict(comparison.drifted)} {comparison.drifted_share:.0%}</td>"
            f"<td>{escape(', '.join(worst[:8]))}</td></tr>"
        )
    head = f"<tr><th>{escape(name)}</th><th>rows</th><th>columns drifted</th><th>worst columns</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"
