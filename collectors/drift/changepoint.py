"""Change points of a series as it comes: Bayesian, online, for levels, spreads and trends that nobody told it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from collectors.drift.segment_evidence import LogGammas, Segments, log_evidence, pooled
from collectors.drift.shiryaev_roberts import Floats, Integers

FORMAT = 1
# What is stored of the detector, and of its segments.
ARRAYS = ("shift", "pooled_totals", "pooled_squares", "starts", "sums", "bests", "posterior")
SEGMENT_ARRAYS = ("counts", "totals", "squares", "moments")


class ChangePointError(ValueError):
    """Settings, samples or a stored state that a change-point detector cannot work with."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change that is now believed. Indices count the samples from 0."""

    index: int
    """The sample after which it was believed."""
    since: int
    """The most likely first sample of the new segment."""
    probability: float
    """Of a change since the last one that was reported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangePointSettings:
    """What is taken for granted about the series. Scales are learned, so that units do not matter."""

    spacing: float = 200.0
    """Samples between changes that one expects: the hazard is its inverse."""
    trend: float = 0.2
    """Prior probability that a dimension of a segment has a trend besides a level."""
    strength: float = 1.0
    """How many samples the prior of a segment's level is worth."""
    shape: float = 1.0
    """Shape of the inverse-gamma prior of a segment's variance, about the variance of the whole series so far."""
    shortest: int = 2
    """Samples of a segment at least."""
    warm_up: int = 20
    """Samples that are waited for before the first is judged, to learn the scales."""
    confidence: float = 0.95
    """Posterior probability from which `update` reports a change."""
    apart: int = 10
    """A change within so many samples after the last reported one is the same."""
    prune: float = 30.0
    """Nats, and 5 more a dimension, by which a possible change may be worse than the best before it is given up."""
    candidates: int = 2000
    """Possible changes kept at most: bounds time and memory of a sample."""

    def __post_init__(self) -> None:
        positive = (self.strength, self.shape, self.prune)
        if not self.spacing > 1 or not all(value > 0 and math.isfinite(value) for value in positive):
            raise ChangePointError(f"spacing must be above 1, strength, shape and prune above 0: {self}")
        if not 0 <= self.trend < 1 or not 0 < self.confidence < 1:
            raise ChangePointError(f"trend must be in [0, 1) and confidence in (0, 1): {self}")
        if self.shortest < 1 or self.warm_up < 2 or self.apart < 0 or self.candidates < 2 * self.shortest + 2:
            raise ChangePointError(f"shortest must be at least 1, warm_up 2, and candidates more than both: {self}")


@dataclass(slots=True)
class ChangePointDetector:
    """Posterior of the time since the last change, and the most likely segmentation, after every sample.

    The run-length recursion of Adams & MacKay 2007 ("Bayesian online changepoint detection") and beside it the same
    with maxima (Fearnhead & Liu 2007, "On-line inference for multiple changepoint problems"), for whole
    segmentations. The prior of a segment's level and spread is the mean and variance of all samples so far, worth
    one sample by default (unit information), and so has no scale to set. Dimensions change together and are
    independent given that. Time and memory of a sample are those of the possible changes that are left (some tens
    to hundreds). Segments are normal: of heavy tails, a far outlier is taken for a short segment of its own.
    """

    dimensions: int = 1
    settings: ChangePointSettings = field(default_factory=ChangePointSettings)
    samples: int = 0
    """Samples judged; those of an unfinished warm-up are not."""
    _waiting: list[list[float]] = field(init=False, default_factory=list)
    _shift: Floats = field(init=False)
    _pooled_totals: Floats = field(init=False)
    _pooled_squares: Floats = field(init=False)
    _pooled: int = field(init=False, default=0)
    _starts: Integers = field(init=False)
    _segments: Segments = field(init=False)
    _sums: Floats = field(init=False)
    _bests: Floats = field(init=False)
    _parents: dict[int, int] = field(init=False, default_factory=dict)
    _posterior: Floats = field(init=False)
    _last: int = field(init=False, default=0)
    _reported: int = field(init=False, default=-1)
    _gammas: LogGammas = field(init=False)

    def __post_init__(self) -> None:
        if self.dimensions < 1:
            raise ChangePointError(f"a series has at least one dimension, not {self.dimensions}")
        self._shift, self._pooled_totals, self._pooled_squares = (np.zeros(self.dimensions) for _ in range(3))
        self._starts = np.zeros(1, np.int64)
        self._segments = Segments.none(self.dimensions).begun()
        # The first segment begins at 0 for certain.
        self._sums, self._bests, self._posterior = np.zeros(1), np.zeros(1), np.ones(1)
        self._gammas = LogGammas(self.settings.shape)

    @property
    def changes(self) -> list[int]:
        """First samples of the segments, but for the first, of the most likely segmentation of all samples so far."""
        found: list[int] = []
        at = self._last
        while at > 0:
            found.append(at)
            at = self._parents[at]
        return found[::-1]

    @property
    def run_lengths(self) -> tuple[Integers, Floats]:
        """Samples since the last change, and the posterior probability of each such number."""
        return self.samples - self._starts, self._posterior

    def update(self, samples: ArrayLike) -> list[Change]:
        """Take samples, (time,) for one dimension or (time, dimensions), and return the changes that became believable.

        Raises ChangePointError, and changes nothing, for values that are not finite numbers of that shape.
        """
        rows = self._checked(samples)
        if self._waiting or not self.samples:
            self._waiting += rows.tolist()
            if len(self._waiting) < self.settings.warm_up:
                return []
            rows, self._waiting = np.array(self._waiting), []
            self._warm(rows[: self.settings.warm_up])
        changes: list[Change] = []
        for row in rows - self._shift:
            self._step(row)
            if (change := self._believed()) is not None:
                changes.append(change)
        return changes

    def _warm(self, rows: Floats) -> None:
        """Learn the scales from the first samples; sums are about their mean, against cancellation."""
        self._shift = rows.mean(axis=0)
        centred = rows - self._shift
        self._pooled_totals, self._pooled_squares = centred.sum(axis=0), (centred * centred).sum(axis=0)
        self._pooled = len(rows)

    def _step(self, row: Floats) -> None:
        """One sample: every possible segment takes it, then one more may begin after it."""
        settings = self.settings
        self._segments.add(row)
        self.samples += 1
        if self.samples > self._pooled:
            self._pooled_totals, self._pooled_squares = self._pooled_totals + row, self._pooled_squares + row * row
            self._pooled = self.samples
        mean, variance = pooled(self._pooled, self._pooled_totals, self._pooled_squares)
        evidence = log_evidence(
            self._segments, mean, variance, settings.strength, settings.shape, settings.trend, self._gammas
        )
        counts = self._segments.counts
        evidence += (counts - 1) * math.log1p(-1 / settings.spacing)
        sums, bests = self._sums + evidence, self._bests + evidence
        top = float(sums.max())
        weights = np.exp(sums - top)
        total = float(weights.sum())
        self._posterior = weights / total
        long_enough = np.flatnonzero(counts >= settings.shortest)
        if len(long_enough):
            place = int(long_enough[bests[long_enough].argmax()])
            self._last = int(self._starts[place])
            self._begin(place, top + math.log(total), float(bests[place]))
            bests, sums = np.append(bests, self._bests[-1]), np.append(sums, self._sums[-1])
        self._prune(bests, sums)

    def _begin(self, place: int, total: float, best: float) -> None:
        """A possible change after the sample just taken; before it the segmentation that ends with segment `place`."""
        hazard = -math.log(self.settings.spacing)
        self._parents[self.samples] = int(self._starts[place])
        self._starts = np.append(self._starts, self.samples)
        self._sums = np.append(self._sums, total + hazard)
        self._bests = np.append(self._bests, best + hazard)
        self._posterior = np.append(self._posterior, 0.0)
        self._segments = self._segments.begun()

    def _prune(self, bests: Floats, sums: Floats) -> None:
        """Give up what can hardly become the best, and what is too much."""
        settings = self.settings
        slack = settings.prune + 5 * self.dimensions
        young = self._segments.counts < settings.shortest
        keep = young | (bests >= bests.max() - slack) | (sums >= sums.max() - slack)
        if np.count_nonzero(keep) > settings.candidates:
            order = np.argsort(-np.where(young, np.inf, np.where(keep, bests, -np.inf)), kind="stable")
            keep = np.zeros(len(keep), np.bool_)
            keep[order[: settings.candidates]] = True
        if keep.all():
            return
        self._segments = self._segments.kept(keep)
        self._starts, self._posterior = self._starts[keep], self._posterior[keep]
        self._sums, self._bests = self._sums[keep], self._bests[keep]
        if len(self._parents) > 4 * len(self._starts) + 1000:
            self._forget()

    def _forget(self) -> None:
        """Keep the ancestors of the changes that are still possible, and of the last segmentation."""
        needed: dict[int, int] = {}
        for start in [*self._starts.tolist(), self._last]:
            at = start
            while at > 0 and at not in needed:
                needed[at] = self._parents[at]
                at = needed[at]
        self._parents = needed

    def _believed(self) -> Change | None:
        """The change that the posterior now says there was, after the last one that was reported."""
        settings = self.settings
        after = self._reported + settings.apart if self._reported >= 0 else 0
        newer = self._starts > after
        probability = float(self._posterior[newer].sum())
        if probability < settings.confidence:
            return None
        since = int(self._starts[newer][self._posterior[newer].argmax()])
        self._reported = since
        return Change(self.samples - 1, since, probability)

    def _checked(self, samples: ArrayLike) -> Floats:
        """The samples as (time, dimensions)."""
        try:
            array = np.asarray(samples, np.float64)
        except (TypeError, ValueError) as error:
            raise ChangePointError(f"samples must be numbers: {error}") from error
        if array.ndim == 1 and self.dimensions == 1:
            array = array[:, None]
        if array.ndim != 2 or array.shape[1] != self.dimensions:
            raise ChangePointError(f"samples must have the shape (time, {self.dimensions}), not {np.shape(samples)}")
        if not np.isfinite(array).all():
            place = np.argwhere(~np.isfinite(array))[0]
            value = array[tuple(place)]
            raise ChangePointError(f"sample {place[0]} of dimension {place[1]} is {value}: leave out what is missing")
        if array.size and float(np.abs(array).max()) > 1e150:
            raise ChangePointError("samples beyond 1e150 have squares that no float holds: rescale them")
        return array

    def to_json(self) -> bytes:
        """The settings and the state, from which `from_json` goes on as if nothing had happened."""
        self._forget()
        body = {
            "format": FORMAT,
            "dimensions": self.dimensions,
            "settings": asdict(self.settings),
            "samples": self.samples,
            "waiting": self._waiting,
            "pooled": self._pooled,
            "last": self._last,
            "reported": self._reported,
            "parents": sorted(self._parents.items()),
        }
        for name in ARRAYS:
            body[name] = getattr(self, f"_{name}").tolist()
        for name in SEGMENT_ARRAYS:
            body[name] = getattr(self._segments, name).tolist()
        return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, stored: bytes | str) -> ChangePointDetector:
        """The detector that `to_json` wrote. Raises ChangePointError when it is not one, or of another format."""
        try:
            body = json.loads(stored)
            if body["format"] != FORMAT:
                raise ChangePointError(f"a detector of format {body['format']}, not {FORMAT}: begin a new one")
            detector = cls(body["dimensions"], ChangePointSettings(**body["settings"]), body["samples"])
            detector._waiting = body["waiting"]
            detector._pooled, detector._last, detector._reported = body["pooled"], body["last"], body["reported"]
            detector._parents = {int(start): int(parent) for start, parent in body["parents"]}
            for name in ARRAYS:
                kind = np.int64 if name == "starts" else np.float64
                setattr(detector, f"_{name}", np.array(body[name], kind))
            count, size = len(detector._starts), detector.dimensions
            for name in SEGMENT_ARRAYS:
                kind, shape = (np.int64, (count,)) if name == "counts" else (np.float64, (count, size))
                setattr(detector._segments, name, np.array(body[name], kind).reshape(shape))
        except ChangePointError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ChangePointError(f"not a stored change-point detector: {error!r}") from error
        return detector
