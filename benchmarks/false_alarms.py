"""How often the drift rules alarm when nothing changed, and how often when something did: ours beside fixed thresholds.

The reference is drawn afresh every time. Ours is `collectors.drift.auto` at 1 % and 5 %: first by significance alone
(the rate that should be nominal), then the whole rule with its smallest effects. The fixed rule is Evidently's default
for such columns: Wasserstein distance of at least 0.1 standard deviations, Jensen–Shannon distance of at least 0.1.
Columns over cells are drawn as multinomial counts, which is the same as drawing rows; continuous ones are rows.

    python benchmarks/false_alarms.py [--draws 1000] [--seed 7]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from collectors.drift.auto import AutoVerdict, judge_cells
from collectors.drift.calibration import Calibration
from collectors.drift.cells import Cells
from collectors.drift.jensen_shannon import jensen_shannon
from collectors.drift.null import cells_of_sorted
from collectors.drift.rows import wasserstein_rows
from collectors.drift.thresholds import DriftThresholds
from collectors.evidence import Evidence
from collectors.history import Against, History
from collectors.windows import Pane
from observability.profile import Profile

WINDOWS = (50, 100, 200, 500, 1000, 5000, 100_000, 1_000_000)
REFERENCES = (5_000, 50_000)
CATEGORIES = (2, 5, 10, 50, 100, 1000)
# Draws of continuous rows above this many values are not made: counts over cells say the same.
MOST_ROWS = 5_000
FIXED = 0.1
TOGETHER = 250

Shares = NDArray[np.float64]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--draws", type=int, default=1000)
    arguments.add_argument("--seed", type=int, default=7)
    options = arguments.parse_args()
    began, random = time.process_time(), np.random.default_rng(options.seed)
    print(f"{options.draws} draws a cell; 95 % of honest cells at 1 % lie in {interval(0.01, options.draws)}")
    outside = categories(random, options.draws) + ordered(random, options.draws) + continuous(random, options.draws)
    rates = [rate for rate, _ in outside]
    print(
        f"\nrate / nominal over {len(rates)} cells: median {np.median(rates):.2f}, "
        f"range {min(rates):.2f} … {max(rates):.2f}; outside 0.5 … 1.5 by more than chance (3 standard errors): "
        f"{sum(far for _, far in outside)}"
    )
    power(random, options.draws)
    many_columns(random, options.draws)
    over_time(random, options.draws)
    print(f"\n{time.process_time() - began:.0f} processor seconds")


def categories(random: np.random.Generator, draws: int) -> list[tuple[float, bool]]:
    print("\nCategories: false alarms at nominal 1 % / 5 % by significance, the whole rule at 1 %, fixed JS >= 0.1")
    found = []
    for law, shares in (("uniform", lambda k: np.ones(k) / k), ("Zipf", zipf)):
        for count in CATEGORIES:
            found += table(random, draws, f"{count} {law}", shares(count), is_ordered=False)
    return found


def ordered(random: np.random.Generator, draws: int) -> list[tuple[float, bool]]:
    print("\nOrdered columns over cells: the same; fixed W1/sd >= 0.1")
    laws = {
        "128 cells": np.ones(128) / 128,
        "10 values, Zipf": zipf(10),
        "60 % zeros": np.append(0.6, np.full(51, 0.4 / 51)),
        "95 % zeros": np.append(0.95, np.full(6, 0.05 / 6)),
    }
    return [one for name, shares in laws.items() for one in table(random, draws, name, shares, is_ordered=True)]


def table(
    random: np.random.Generator, draws: int, name: str, shares: Shares, *, is_ordered: bool
) -> list[tuple[float, bool]]:
    found = []
    for reference in REFERENCES:
        for window in WINDOWS:
            pairs = [(random.multinomial(reference, shares), random.multinomial(window, shares)) for _ in range(draws)]
            verdicts = judged([Cells(before, now, is_ordered) for before, now in pairs])
            fixed = np.mean([(grid_wasserstein if is_ordered else jensen_shannon)(*pair) >= FIXED for pair in pairs])
            found += row(f"{name:>18} {reference:>6} {window:>8}", verdicts, float(fixed), draws, is_ordered)
    return found


def continuous(random: np.random.Generator, draws: int) -> list[tuple[float, bool]]:
    print("\nContinuous columns from rows (normal, log-normal): the same; fixed W1/sd >= 0.1")
    found = []
    for name, draw in (("normal", random.standard_normal), ("log-normal", lambda n: np.exp(random.standard_normal(n)))):
        for window in (n for n in WINDOWS if n <= MOST_ROWS):
            verdicts, fixed = from_rows(draw, draw, 5_000, window, draws)
            found += row(f"{name:>18} {5_000:>6} {window:>8}", verdicts, fixed, draws)
    return found


def row(
    name: str, verdicts: list[AutoVerdict], fixed: float, draws: int, is_ordered: bool = True
) -> list[tuple[float, bool]]:
    p = np.array([verdict.p_value for verdict in verdicts])
    rates = {level: float(np.mean(p <= level)) for level in (0.01, 0.05)}
    whole = np.mean([alarms_alone(verdict, is_ordered) for verdict in verdicts])
    print(f"{name}  {rates[0.01]:7.2%} {rates[0.05]:7.2%}   rule {whole:7.2%}   fixed {fixed:7.2%}", flush=True)
    return [(rate / level, is_outside(rate, level, draws)) for level, rate in rates.items()]


def is_outside(rate: float, level: float, draws: int) -> bool:
    """Whether a rate is outside 0.5 … 1.5 of its level by more than three standard errors."""
    error = 3 * math.sqrt(level * (1 - level) / draws)
    return not 0.5 * level - error <= rate <= 1.5 * level + error


def power(random: np.random.Generator, draws: int) -> None:
    print("\nPower at 1 %, normal rows against 5,000; the rate of false alarms is measured beside it")
    for window in (200, 500, 1000, 5000):
        null, fixed_null = from_rows(random.standard_normal, random.standard_normal, 5_000, window, 2 * draws)
        rate = np.mean([verdict.p_value <= ALONE.alpha for verdict in null])
        print(f"n {window:>5}: measured false alarms {rate:6.2%}, fixed rule {fixed_null:6.2%}")
        for shift in (0.1, 0.25):
            moved, fixed = from_rows(random.standard_normal, shifted(random, shift), 5_000, window, draws)
            found = np.mean([verdict.p_value <= ALONE.alpha for verdict in moved])
            whole = np.mean([alarms_alone(verdict, True) for verdict in moved])
            note = "  the fixed rule finds more, at its own rate of false alarms" if fixed > found else ""
            print(
                f"         shift {shift:.2f} sd: ours {found:7.2%}, whole rule {whole:7.2%}, fixed {fixed:7.2%}{note}"
            )


def shifted(random: np.random.Generator, shift: float) -> Callable[[int], Shares]:
    return lambda rows: random.normal(shift, 1.0, rows)


def many_columns(random: np.random.Generator, draws: int) -> None:
    print("\nTicks of 200 columns without change, n 500 against 5,000: share of ticks with any alarm")
    any_raw = any_rule = 0
    ticks = max(draws // 2, 20)
    for _ in range(ticks):
        before = random.multinomial(5_000, np.ones(128) / 128, 200)
        now = random.multinomial(500, np.ones(128) / 128, 200)
        cells = {str(i): (Cells(before[i], now[i], True),) for i in range(200)}
        found = judge_cells(cells, DriftThresholds(alpha=0.05, distance=0.0))
        any_raw += any(verdict.p_value <= 0.05 for verdict in found.values())
        any_rule += any(verdict.drifted for verdict in found.values())
    print(
        f"p <= 0.05 by itself {any_raw / ticks:.1%}; Benjamini–Hochberg at 5 % {any_rule / ticks:.1%} of {ticks} ticks"
    )


def over_time(random: np.random.Generator, draws: int) -> None:
    print("\nAlarms over windows of 10 columns without change: share of the windows in which one stands, and how many")
    windows = max(draws // 5, 20)
    for name, reference, rows in (("short", 1_000, 1_000), ("longer", 5_000, 2_000), ("few rows", 5_000, 100)):
        against = Against(Profile.of(columns(random, reference, np.zeros(10))), None, DriftThresholds())
        told(name, against, [columns(random, rows, np.zeros(10)) for _ in range(windows)])
    # Offsets of a tenth of a deviation that remember the last window's: nine tenths of them are left.
    means = [random.normal(0, 0.1, 10)]
    for _ in range(2 * windows):
        means.append(0.9 * means[-1] + random.normal(0, 0.1 * math.sqrt(0.19), 10))
    wandering = [columns(random, 400, mean) for mean in means]
    blocks, live = wandering[:windows], wandering[windows:]
    whole = Profile.of({column: np.concatenate([block[column] for block in blocks]) for column in blocks[0]})
    calibration = Calibration.of([whole.empty().updated(block) for block in blocks])
    for name, known in (("wandering", None), ("calibrated", calibration)):
        told(name, Against(whole, known, DriftThresholds()), live)


def columns(random: np.random.Generator, rows: int, means: Shares) -> dict[str, Shares]:
    return {f"feature.{place}": random.normal(mean, 1.0, rows) for place, mean in enumerate(means)}


def told(name: str, against: Against, windows: Sequence[Mapping[str, Shares]]) -> None:
    evidence, history = Evidence(1000.0, 0.0), History(1.0, 1, len(windows))
    standing, raised = 0, set()
    for number, rows in enumerate(windows):
        pane = Pane("m", "1", number, number + 1)
        pane.profile = against.profile.empty().updated(rows)
        pane.rows = len(next(iter(rows.values())))
        history.put(pane)
        evidence.put(pane, against, history)
        active = evidence.standing(("m", "1"))[1]
        standing += bool(active)
        raised |= {(alarm.column, alarm.at) for alarm in active}
    print(f"{name:>12}: {standing / len(windows):6.1%} of {len(windows)} windows, {len(raised)} alarms", flush=True)


def from_rows(
    draw_before: Callable[[int], Shares], draw_now: Callable[[int], Shares], reference: int, window: int, draws: int
) -> tuple[list[AutoVerdict], float]:
    """The verdicts on rows drawn afresh, and the share on which the fixed rule alarms."""
    cells, fixed = [], 0
    for _ in range(draws):
        before, now = np.sort(draw_before(reference)), np.sort(draw_now(window))
        cells.append(Cells(*cells_of_sorted(before, now), True))
        fixed += wasserstein_rows(before, now) / float(np.std(before)) >= FIXED
    return judged(cells), fixed / draws


def judged(cells: list[Cells]) -> list[AutoVerdict]:
    """The verdicts; p-values and effects of a column depend on no other."""
    return [
        verdict
        for at in range(0, len(cells), TOGETHER)
        for verdict in judge_cells({str(i): (one,) for i, one in enumerate(cells[at : at + TOGETHER])}).values()
    ]


def alarms_alone(verdict: AutoVerdict, is_ordered: bool) -> bool:
    """Whether the column would drift in a table of its own, in which its level is `alpha`."""
    smallest = ALONE.distance if is_ordered else ALONE.association
    return verdict.p_value <= ALONE.alpha and verdict.effect >= smallest


def grid_wasserstein(before: NDArray[np.int64], now: NDArray[np.int64]) -> float:
    """W1 in standard deviations of the reference, for values 0, 1, 2 …: the sum of |F − G|."""
    r, c = before / before.sum(), now / now.sum()
    at = np.arange(len(r))
    mean = float(r @ at)
    deviation = math.sqrt(float(r @ np.square(at - mean)))
    return float(np.abs(np.cumsum(r - c)).sum()) / max(deviation, 0.001)


def zipf(count: int) -> Shares:
    shares = 1 / np.arange(1, count + 1)
    return np.asarray(shares / shares.sum(), np.float64)


def interval(level: float, draws: int) -> str:
    error = 1.96 * math.sqrt(level * (1 - level) / draws)
    return f"{max(level - error, 0):.2%} … {level + error:.2%}"


ALONE = DriftThresholds()

if __name__ == "__main__":
    main()
