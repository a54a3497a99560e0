"""What an e-detector knows of its streams, and what observations make of it: pure, and kept as JSON."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from collectors.drift.bets import Seen, bounded, known_normal, learned_means, learned_normal, prefix_sums, tamed
from collectors.drift.detector_settings import Bets, DetectorError, DetectorSettings, Kind
from collectors.drift.shiryaev_roberts import Booleans, Floats, Sums, advance


@dataclass(slots=True)
class State:
    """What is known of C streams."""

    seen: Seen
    sums: Sums

    def of(self, streams: slice) -> State:
        return State(self.seen.of(streams), self.sums.of(streams))

    def put(self, streams: slice, other: State) -> None:
        self.seen.put(streams, other.seen)
        self.sums.put(streams, other.sums)


def scan(settings: DetectorSettings, bets: Bets, state: State, observed: Floats, clock: int) -> tuple[State, Floats]:
    """The state after the observations (C, t) and the sum after each; pure."""
    judged: Booleans | None = None
    if settings.kind == "evalue" and np.isnan(observed).any():
        judged = ~np.isnan(observed)
        observed = np.where(judged, observed, 1.0)
    seen = begun(state.seen, observed) if settings.kind == "normal" else state.seen
    shifted = observed - seen.shift[:, None] if settings.kind == "normal" else observed
    totals = prefix_sums(seen.total, shifted)
    counts = seen.count[:, None] + np.arange(observed.shape[1])
    may_change: Booleans | None = None
    squares = prefix_sums(seen.squares, shifted * shifted) if settings.kind == "normal" else None
    if settings.kind == "evalue":
        evalues = tamed(observed, bets.cap)[None]
    elif settings.kind == "normal":
        if settings.base is not None:
            mean, deviation = np.ravel(settings.base)
            raw = known_normal(observed, np.full(len(observed), mean), np.full(len(observed), deviation), bets.values)
        else:
            assert squares is not None
            raw = learned_normal(shifted, totals[:, :-1], squares[:, :-1], counts, bets.values)
        evalues = tamed(raw, bets.cap)
    else:
        known = settings.base is not None
        means = np.full((1, 1), settings.base) if known else learned_means(totals[:, :-1], counts)
        evalues = bounded(observed, means, bets.values)
    if settings.base is None and settings.kind != "evalue" and int(seen.count.min()) < settings.learn:
        may_change = counts >= settings.learn
    elif judged is not None:
        may_change = judged
    if may_change is not None:
        evalues = np.where(may_change, evalues, 1.0)
    sums, shown = advance(
        state.sums,
        evalues,
        totals[:, :-1],
        bets.weights,
        clock=clock,
        block=bets.block,
        form=settings.form,
        may_change=may_change,
    )
    after = Seen(
        seen.count + observed.shape[1],
        totals[:, -1].copy(),
        seen.squares if squares is None else squares[:, -1].copy(),
        seen.shift,
    )
    return State(after, sums), shown


def begun(seen: Seen, observed: Floats) -> Seen:
    """Streams without a sample take the first one as their zero, against cancellation in the sums of squares."""
    return Seen(seen.count, seen.total, seen.squares, np.where(seen.count == 0, observed[:, 0], seen.shift))


def having_seen(seen: Seen, observed: Floats, kind: Kind) -> Seen:
    """What has been seen after the observations, without judging them."""
    if not observed.shape[1]:
        return seen
    started = begun(seen, observed) if kind == "normal" else seen
    shifted = observed - started.shift[:, None]
    return Seen(
        seen.count + observed.shape[1],
        prefix_sums(seen.total, shifted)[:, -1].copy(),
        prefix_sums(seen.squares, shifted * shifted)[:, -1].copy(),
        started.shift,
    )


def arrays(state: Seen | Sums) -> dict[str, Any]:
    """Arrays as lists; −inf becomes null, which JSON has a word for."""
    found: dict[str, Any] = {}
    for item in fields(state):
        array = getattr(state, item.name).astype(object)
        array[array == -np.inf] = None
        found[item.name] = array.tolist()
    return found


def restore(state: Seen | Sums, stored: dict[str, Any]) -> None:
    """Fill a state's arrays in place; null becomes −inf."""
    for item in fields(state):
        array = getattr(state, item.name)
        values = np.array(stored[item.name], object)
        if values.shape != array.shape:
            raise DetectorError(f"{item.name} has the shape {values.shape}, not {array.shape}")
        array[...] = np.where(values == None, -np.inf, values).astype(array.dtype)  # noqa: E711
