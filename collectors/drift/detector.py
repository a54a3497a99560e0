"""Change detection that may be looked at after every sample: e-detectors over many streams at once."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from collectors.drift.bets import Seen
from collectors.drift.detector_settings import Alarm, Bets, DetectorError, DetectorSettings
from collectors.drift.detector_state import State, arrays, having_seen, restore, scan
from collectors.drift.fdr import e_bh
from collectors.drift.shiryaev_roberts import Floats, Sums

__all__ = ["Alarm", "DetectorError", "DetectorSettings", "EDetector"]

FORMAT = 1
# Values that one pass works on: about what the second-level cache holds.
PASS = 1 << 15


@dataclass(slots=True)
class EDetector:
    """Watches C streams for a change of their mean: `1 / alpha` samples at least, on average, to a false alarm of each.

    That is guaranteed for a known base, for e-values, and for `normal` streams with a learned base (independent
    normal values of any mean and deviation). For `bernoulli` with a learned rate it is guaranteed on average over
    rates drawn from Jeffreys' prior: the bets use the predictive rate of all samples so far, whose error shrinks as
    the stream goes on. For `bounded` with a learned mean it is only measured. A slow creep is learned as well, and
    so found late: give a known base, or a long reference, where that matters. `update` with any cutting of the same
    samples into chunks gives the same state and the same alarms.
    """

    streams: int = 1
    settings: DetectorSettings = field(default_factory=DetectorSettings)
    clock: int = 0
    """Observations judged so far: samples, or whole blocks of them."""
    _state: State = field(init=False)
    _bets: Bets = field(init=False)
    _reference: Seen = field(init=False)
    _partial: Floats = field(init=False)
    _partial_count: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.streams < 1:
            raise DetectorError(f"a detector needs at least one stream, not {self.streams}")
        self._bets = Bets.of(self.settings, self.streams)
        self._state = State(Seen.nothing(self.streams), Sums.zero(len(self._bets.values), self.streams))
        self._reference = Seen.nothing(self.streams)
        self._partial = np.zeros(self.streams)

    @property
    def samples(self) -> int:
        """Samples of each stream so far."""
        return self.clock * self.settings.block + self._partial_count

    @property
    def evidence(self) -> Floats:
        """The sum of each stream now (C,), to be compared with `1 / alpha`."""
        sums: Floats = self._bets.weights @ self._state.sums.evidence(self.settings.form)
        return sums

    @property
    def base(self) -> Floats:
        """The known base or the learned mean of each stream (C,); NaN before the first sample."""
        if self.settings.base is not None:
            return np.full(self.streams, np.ravel(self.settings.base)[0])
        seen = self._state.seen
        with np.errstate(invalid="ignore"):
            return seen.total / seen.count + seen.shift

    def learn(self, values: ArrayLike) -> None:
        """Learn the base from reference samples, shaped as for `update`, before the stream begins.

        Raises DetectorError for values of the wrong kind, after the first `update`, or when the base is known.
        """
        if self.samples:
            raise DetectorError("the reference must be learned before the first update")
        if self.settings.base is not None or self.settings.kind == "evalue":
            raise DetectorError("there is nothing to learn: the base is known, or the stream is one of e-values")
        rows = self._checked(values)
        blocks = rows[:, : rows.shape[1] // self.settings.block * self.settings.block]
        observed, self._partial_count = self._blocked(blocks), 0
        self._partial = np.zeros(self.streams)
        self._reference = having_seen(self._reference, observed, self.settings.kind)
        self._state.seen.put(slice(0, self.streams), self._reference)

    def update(self, values: ArrayLike) -> list[Alarm]:
        """Take samples, (time,) for one stream or (time, streams), and return the alarms in them, by index and stream.

        After an alarm the stream's evidence begins again from 0. Among e-values NaN stands for "could not be judged"
        and leaves the stream's sum as it is. Raises DetectorError, and changes nothing, for values that are not finite
        or not of the kind that was promised.
        """
        observed = self._blocked(self._checked(values))
        block = self._bets.block
        width = max(1, PASS // (self.streams * len(self._bets.values) * block)) * block
        alarms: list[Alarm] = []
        at = 0
        while at < observed.shape[1]:
            # Cuts lie on the clock's grid of blocks, so that whole ones stay whole.
            end = min(observed.shape[1], at + width - self.clock % block)
            alarms += self._pass(observed[:, at:end])
            self.clock += end - at
            at = end
        return sorted(alarms, key=lambda alarm: (alarm.index, alarm.stream))

    def _pass(self, observed: Floats) -> list[Alarm]:
        everything = slice(0, self.streams)
        if self.settings.family and self.streams > 1:
            return self._together(observed)
        after, shown = scan(self.settings, self._bets, self._state, observed, self.clock)
        found = shown >= self.settings.threshold
        alarms: list[Alarm] = []
        if not found.any():
            self._state.put(everything, after)
            return alarms
        for stream in range(self.streams):
            one = slice(stream, stream + 1)
            if found[stream].any():
                alarms += self._alone(stream, observed[one])
            else:
                self._state.put(one, after.of(one))
        return alarms

    def _alone(self, stream: int, observed: Floats) -> list[Alarm]:
        """One stream that has alarms in this pass: from each of them on, again from nothing."""
        one, at, alarms = slice(stream, stream + 1), 0, []
        while at < observed.shape[1]:
            state = self._state.of(one)
            after, shown = scan(self.settings, self._bets, state, observed[:, at:], self.clock + at)
            places = np.flatnonzero(shown[0] >= self.settings.threshold)
            if not len(places):
                self._state.put(one, after)
                break
            upto = at + int(places[0]) + 1
            after, shown = scan(self.settings, self._bets, state, observed[:, at:upto], self.clock + at)
            alarms.append(self._alarm(stream, after, float(shown[0, -1]), self.clock + upto))
            at = upto
        return alarms

    def _together(self, observed: Floats) -> list[Alarm]:
        """All streams as one family: at each sample those alarm that e-BH rejects at level alpha."""
        at, alarms = 0, []
        everything = slice(0, self.streams)
        while at < observed.shape[1]:
            after, shown = scan(self.settings, self._bets, self._state, observed[:, at:], self.clock + at)
            candidates = np.flatnonzero(shown.sum(axis=0) >= self.settings.threshold * (1 - 1e-9))
            rejected = next(
                ((int(c), r) for c in candidates if (r := e_bh(shown[:, c], self.settings.alpha)).any()),
                None,
            )
            if rejected is None:
                self._state.put(everything, after)
                break
            upto = at + rejected[0] + 1
            after, shown = scan(self.settings, self._bets, self._state, observed[:, at:upto], self.clock + at)
            self._state.put(everything, after)
            for stream in np.flatnonzero(rejected[1]):
                one = slice(int(stream), int(stream) + 1)
                alarms.append(self._alarm(int(stream), after.of(one), float(shown[stream, -1]), self.clock + upto))
            at = upto
        return alarms

    def _alarm(self, stream: int, state: State, evidence: float, clock: int) -> Alarm:
        """The alarm of one stream at `clock` (the observations so far), whose evidence is then begun again."""
        one, block = slice(stream, stream + 1), self.settings.block
        ratios, since, totals = (array[:, 0] for array in state.sums.change())
        best = int(np.argmax(ratios + np.log(self._bets.weights)))
        first, seen = int(since[best]), state.seen
        count = int(seen.count[0]) - (clock - first)
        shift = float(seen.shift[0])
        total = float(totals[best])
        base = self.settings.base
        before = float(np.ravel(base)[0]) if base is not None else total / count + shift if count else math.nan
        after = (float(seen.total[0]) - total) / (clock - first) + shift
        fresh = State(self._reference.of(one), Sums.zero(len(self._bets.values), 1))
        if self.settings.after_alarm == "keep":
            # The squares before the change are not kept: their mean since the beginning errs towards more spread.
            squares = seen.squares * (count / int(seen.count[0]))
            fresh.seen = Seen(np.full(1, count), np.full(1, total), squares, seen.shift)
        self._state.put(one, fresh)
        return Alarm(stream, clock * block - 1, first * block, evidence, before, after)

    def _checked(self, values: ArrayLike) -> Floats:
        """The samples as (C, time); DetectorError when they are not what the settings promise."""
        try:
            array = np.asarray(values, np.float64)
        except (TypeError, ValueError) as error:
            raise DetectorError(f"samples must be numbers: {error}") from error
        if array.ndim == 1 and self.streams == 1:
            array = array[:, None]
        if array.ndim != 2 or array.shape[1] != self.streams:
            raise DetectorError(f"samples must have the shape (time, {self.streams}), not {np.shape(values)}")
        kind = self.settings.kind
        known = np.isfinite(array)
        if kind == "evalue":
            known |= np.isnan(array)
        if not known.all():
            place = np.argwhere(~known)[0]
            raise DetectorError(
                f"sample {place[0]} of stream {place[1]} is {array[tuple(place)]}: leave out what is missing"
            )
        if kind != "normal" and array.size:
            low, high = float(array.min()), float(array.max())
            if low < 0 or (high > 1 and kind != "evalue"):
                wanted = "at least 0" if kind == "evalue" else "from 0 to 1"
                raise DetectorError(f"values of a {kind} stream must be {wanted}, not {low if low < 0 else high}")
            if kind == "bernoulli" and not ((array == 0) | (array == 1)).all():
                raise DetectorError("values of a bernoulli stream must be 0 or 1: use kind='bounded' for shares")
        return np.ascontiguousarray(array.T)

    def _blocked(self, rows: Floats) -> Floats:
        """Means of whole blocks (C, blocks); what is left over waits. Added in order, so that chunks leave no trace."""
        length = self.settings.block
        if length == 1:
            return rows
        blocks = []
        at = 0
        while at < rows.shape[1]:
            if not self._partial_count and (whole := (rows.shape[1] - at) // length):
                cut = rows[:, at : at + whole * length].reshape(self.streams, whole, length)
                blocks.append(np.add.accumulate(cut, axis=2)[..., -1] / length)
                at += whole * length
                continue
            end = min(rows.shape[1], at + length - self._partial_count)
            for column in range(at, end):
                self._partial = self._partial + rows[:, column] if self._partial_count else rows[:, column].copy()
                self._partial_count += 1
            if self._partial_count == length:
                blocks.append(self._partial[:, None] / length)
                self._partial_count = 0
            at = end
        return np.concatenate(blocks, axis=1) if blocks else np.empty((self.streams, 0))

    def to_json(self) -> bytes:
        """The settings and the state, from which `from_json` goes on as if nothing had happened."""
        return json.dumps(
            {
                "format": FORMAT,
                "streams": self.streams,
                "settings": asdict(self.settings),
                "clock": self.clock,
                "partial": self._partial.tolist(),
                "partial_count": self._partial_count,
                "reference": arrays(self._reference),
                "seen": arrays(self._state.seen),
                "sums": arrays(self._state.sums),
            },
            allow_nan=False,
            separators=(",", ":"),
        ).encode()

    @classmethod
    def from_json(cls, stored: bytes | str) -> EDetector:
        """The detector that `to_json` wrote. Raises DetectorError when it is not one, or of another format."""
        try:
            body = json.loads(stored)
            if body["format"] != FORMAT:
                raise DetectorError(f"a detector of format {body['format']}, not {FORMAT}: begin a new one")
            settings = body["settings"]
            for name in ("alternatives", "weights"):
                settings[name] = tuple(settings[name])
            if isinstance(settings["base"], list):
                settings["base"] = tuple(settings["base"])
            detector = cls(body["streams"], DetectorSettings(**settings), body["clock"])
            restore(detector._reference, body["reference"])
            restore(detector._state.seen, body["seen"])
            restore(detector._state.sums, body["sums"])
            detector._partial[:] = body["partial"]
            detector._partial_count = int(body["partial_count"])
        except DetectorError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise DetectorError(f"not a stored detector: {error!r}") from error
        return detector
