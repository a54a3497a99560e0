"""The look: one palette that colour-blind people can tell apart (after Okabe and Ito), and the pages' CSS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Theme = Literal["light", "dark"]

# Okabe and Ito's eight, black left out, ordered so that neighbours differ in lightness as well as in hue.
SERIES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C")


@dataclass(frozen=True, slots=True)
class Palette:
    """The colours of a theme that charts and cards are drawn with."""

    background: str
    surface: str
    border: str
    text: str
    muted: str
    grid: str
    accent: str
    good: str
    warning: str
    critical: str
    sequential: tuple[str, ...]  # from nothing to much


LIGHT = Palette(
    background="#F6F7F9",
    surface="#FFFFFF",
    border="#E1E5EA",
    text="#1B2733",
    muted="#5F6C7B",
    grid="#EBEEF2",
    accent="#0072B2",
    good="#00795A",
    warning="#B97A00",
    critical="#C2410C",
    sequential=("#F3F6F9", "#CFE1EE", "#8FBEDC", "#4592C0", "#0F6297", "#0B3C61"),
)
DARK = Palette(
    background="#0F141A",
    surface="#171D25",
    border="#2A333E",
    text="#E4E9EF",
    muted="#94A1B0",
    grid="#242C36",
    accent="#56B4E9",
    good="#2CC295",
    warning="#F0B840",
    critical="#FF7A45",
    sequential=("#1B232D", "#1C3C55", "#1F5F8B", "#3A8FC4", "#7CC0EA", "#D3ECFB"),
)


def palette(theme: Theme) -> Palette:
    """The palette of a theme."""
    return DARK if theme == "dark" else LIGHT


def version_color(version: str) -> str:
    """The colour that a version wears on every page. The registry's numbers count from 1."""
    number = int(version) - 1 if version.isdigit() else sum(map(ord, version))
    return SERIES[number % len(SERIES)]


def severity_color(severity: str, colors: Palette) -> str:
    """The colour of an alert's `severity` label; what is not known counts as a warning."""
    known = {"critical": colors.critical, "page": colors.critical, "info": colors.accent, "none": colors.muted}
    return known.get(severity, colors.warning)


def streamlit_options(theme: Theme) -> dict[str, str]:
    """Streamlit's own theme options, for its command line."""
    colors = palette(theme)
    return {
        "theme.base": theme,
        "theme.primaryColor": colors.accent,
        "theme.backgroundColor": colors.surface,
        "theme.secondaryBackgroundColor": colors.background,
        "theme.textColor": colors.text,
        "theme.borderColor": colors.border,
        "theme.sidebar.backgroundColor": colors.surface,
        "theme.showSidebarBorder": "true",
        "theme.baseRadius": "6px",
        "theme.baseFontSize": "14",
        "theme.dataframeBorderColor": colors.border,
    }


def css(theme: Theme) -> str:
    """The style sheet that makes a page: tight, calm, nothing that blinks while it refreshes."""
    colors = palette(theme)
    return f"""<style>
:root {{ --tt-border: {colors.border}; --tt-surface: {colors.surface}; --tt-muted: {colors.muted};
  --tt-text: {colors.text}; --tt-good: {colors.good}; --tt-warning: {colors.warning};
  --tt-critical: {colors.critical}; --tt-accent: {colors.accent}; --tt-grid: {colors.grid};
  --tt-background: {colors.background}; }}
{_RULES}</style>"""


_RULES = """
[data-testid="stApp"] { background: var(--tt-background); }
[data-testid="stMain"] .react-aria-ComboBox > [role="group"] { background: var(--tt-surface); }
[data-testid="stSidebarHeader"]::after { content: "Trimtab"; font-size: 1.35rem; font-weight: 650;
  letter-spacing: -.01em;
  color: var(--tt-text); margin-left: .55rem; flex: 1; }
[data-testid="stSidebarHeader"] { justify-content: flex-start; align-items: center; }
header[data-testid="stHeader"] { height: 0; min-height: 0; background: transparent; }
[data-testid="stToolbar"], [data-testid="stDecoration"], [data-testid="stStatusWidget"], #MainMenu, footer
  { display: none !important; }
[data-testid="stMainBlockContainer"] { padding: 1.1rem 1.6rem 2.5rem; max-width: 1760px; }
[data-testid="stSidebar"] { width: 232px !important; min-width: 232px !important; }
[data-testid="stSidebarHeader"] { padding: 1rem 1.1rem .4rem; height: auto; min-height: 0; }
[data-testid="stSidebarCollapseButton"] { display: none; }
[data-testid="stSidebarUserContent"] { padding: .6rem 1.1rem 1rem; }
[data-testid="stSidebarNav"] { padding: 0 .6rem; }
/* A fragment that runs again must not fade what it is about to replace. */
[data-stale="true"] { opacity: 1 !important; transition: none !important; }
[data-testid="stMainBlockContainer"] [data-testid="stVerticalBlock"] { gap: .7rem; }
.st-key-cards [data-testid="stHorizontalBlock"] { gap: .7rem; }
[class*="st-key-card-"] { background: var(--tt-surface); border: 1px solid var(--tt-border); border-radius: 8px;
  padding: .7rem .9rem .6rem; height: 100%; gap: .35rem !important; }
.tt-stats { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: .7rem; }
.tt-stat { background: var(--tt-surface); border: 1px solid var(--tt-border); border-radius: 8px; overflow: hidden;
  padding: .6rem .9rem 0; display: flex; flex-direction: column; min-width: 0; }
.tt-flat { height: calc(34px + .25rem); }
.tt-stat img { display: block; width: calc(100% + 1.8rem); max-width: none; height: 34px; margin: .25rem -.9rem 0; }
.tt-stat .tt-sub { padding-bottom: .6rem; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
[data-testid="stPlotlyChart"] { overflow: hidden; }
.tt-title { font-size: 1.5rem; font-weight: 650; letter-spacing: -.01em; line-height: 1.2; margin: 0; }
.tt-subtitle { color: var(--tt-muted); font-size: .9rem; margin: .1rem 0 0; }
.tt-card-title { display: flex; align-items: baseline; justify-content: space-between; gap: .8rem; margin: 0; }
.tt-card-title b { font-weight: 600; font-size: .95rem; }
.tt-card-title span { color: var(--tt-muted); font-size: .8rem; text-align: right; }
.tt-notice { border: 1px solid var(--tt-border); border-left: 3px solid var(--tt-warning); border-radius: 6px;
  background: var(--tt-surface); padding: .5rem .8rem; font-size: .88rem; color: var(--tt-text); }
.tt-notice code, .tt-empty code { font-size: .84em; background: var(--tt-grid); border-radius: 4px;
  padding: .08em .35em;
  color: var(--tt-text); }
.tt-notice + .tt-notice { margin-top: .35rem; }
.tt-empty { color: var(--tt-muted); font-size: .9rem; text-align: center; padding: 1.6rem 1rem; line-height: 1.5;
  border: 1px dashed var(--tt-border); border-radius: 6px; }
.tt-empty b { color: var(--tt-text); font-weight: 600; display: block; }
.tt-dot { display: inline-block; width: .55rem; height: .55rem; border-radius: 50%; margin-right: .5rem; flex: none; }
.tt-services { font-size: .84rem; line-height: 1.9; }
.tt-services div { display: flex; align-items: center; }
.tt-services i { font-style: normal; color: var(--tt-muted); margin-left: auto; font-size: .8rem; }
.tt-label { color: var(--tt-muted); font-size: .74rem; letter-spacing: .04em; text-transform: uppercase;
  font-weight: 600; }
.tt-wide { overflow-x: auto; }
.tt-rows { width: 100%; border-collapse: collapse; font-size: .86rem; }
.tt-rows th { text-align: left; font-weight: 500; color: var(--tt-muted); font-size: .78rem;
  padding: .25rem .6rem .25rem 0;
  border-bottom: 1px solid var(--tt-border); white-space: nowrap; }
.tt-rows td { padding: .34rem .6rem .34rem 0; border-bottom: 1px solid var(--tt-grid); vertical-align: top;
  font-variant-numeric: tabular-nums; }
.tt-rows tr:last-child td { border-bottom: 0; }
.tt-rows .num { text-align: right; }
.tt-rows .num + :not(.num) { padding-left: 1.1rem; }
.tt-rows .dim { color: var(--tt-muted); }
.tt-tag { display: inline-block; border-radius: 4px; padding: 0 .42rem; font-size: .77rem; line-height: 1.25rem;
  font-weight: 600; border: 1px solid currentColor; white-space: nowrap; }
.tt-rows .nw { white-space: nowrap; }
.tt-rows code, .tt-code { font-family: "Source Code Pro", monospace; font-size: .84rem; background: none;
  color: inherit;
  overflow-wrap: anywhere; }
.tt-bar { height: .5rem; border-radius: 3px; background: var(--tt-grid); overflow: hidden; margin: .35rem 0 .2rem; }
.tt-bar div { height: 100%; float: left; }
.tt-big { font-size: 1.45rem; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.25; }
.tt-sub { color: var(--tt-muted); font-size: .82rem; }
.tt-stages { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .5rem; }
.tt-stage { border-top: 4px solid; border-radius: 2px; padding: .3rem .1rem 0; font-size: .84rem; line-height: 1.3; }
.tt-stage.tt-later { color: var(--tt-muted); }
.tt-stage.tt-now, .tt-stage.tt-waits, .tt-stage.tt-bad { font-weight: 600; }
.tt-said { margin: .45rem 0 0; padding-left: 1.1rem; font-size: .9rem; line-height: 1.55; overflow-wrap: anywhere; }
.tt-said code { font-family: "Source Code Pro", monospace; font-size: .86em; background: var(--tt-grid);
  border-radius: 4px; padding: .05rem .3rem; color: var(--tt-text); }
.tt-split { display: flex; justify-content: space-between; gap: 1rem; }
"""
