"""After promotion: has the version that now answers become worse, at any time since?

An e-process asks whether something was wrong from the beginning; a version that was good for a day and is bad now needs
an e-detector: the sum over all possible beginnings of the e-processes since, `M <- L (M + 1)` with L a look's
likelihood ratio (Shiryaev-Roberts), an alarm at 1 / alpha. While nothing is wrong, the mean number of looks to an alarm
is at least 1 / alpha (Shin, Ramdas & Rinaldo, "E-detectors", 2023). Kept by alternative and mixed, in logarithms.
For slower answers `latency.Pace` does the same with its bets (`since_any`); the weighted mean of e-detectors is one.

With a small hold-back on the last good version (1 to 2 %) the comparison stays one of two arms, and an incident common
to both is no alarm. Without one, only a rate known from before is left to compare with: `alone`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from alerts.evidence.segments import HARM_RATIOS, NOTHING, Bets, Segment, log_mean_exp, log_plus_one

# A look gains at most so many times what there was: a batch that fails as a whole proves nothing.
MOST = 8.0
_MOST_STEP = math.log(MOST)


@dataclass(frozen=True, slots=True)
class Detector:
    """The sums by alternative, as logarithms; `looks` since the promotion. A new one has seen nothing."""

    sums: tuple[float, ...] = (-math.inf,) * len(HARM_RATIOS)
    looks: int = 0

    @property
    def log_evidence(self) -> float:
        """Logarithm of the mean of the sums: an alarm when it reaches ln(1 / alpha)."""
        return log_mean_exp(self.sums)

    def beside(self, segments: Iterable[Segment], tolerance: float = 1.0) -> Detector:
        """After a look at failures of the new version ("canary") and of the hold-back ("stable").

        `propensity` is the probability of the new version, such as 0.98.
        """
        bets = Bets.of(HARM_RATIOS, tolerance)
        steps = [0.0] * len(self.sums)
        for segment in segments:
            if 0.0 < segment.propensity < 1.0:
                norms = bets.normalizers(segment.propensity)
                for place, (slope, norm) in enumerate(zip(bets.slopes, norms, strict=True)):
                    steps[place] += segment.canary_events * slope - segment.total_events * norm
        return self._after(steps)

    def alone(self, requests: float, errors: float, usual_rate: float) -> Detector:
        """After a look at all requests, against "they fail at `usual_rate` or less" (known from before, its upper
        bound); alternatives are the multiples of `HARM_RATIOS`, at most half of the way to 1.
        """
        if not 0.0 < usual_rate < 1.0 or not 0 <= errors <= requests:
            raise ValueError(f"impossible rate or counts: {usual_rate}, {errors} of {requests}")
        steps = []
        for ratio in HARM_RATIOS.tolist():
            rate = min(usual_rate * ratio, (1.0 + usual_rate) / 2)
            steps.append(
                errors * math.log(rate / usual_rate)
                + (requests - errors) * (math.log1p(-rate) - math.log1p(-usual_rate))
            )
        return self._after(steps)

    def to_json(self) -> str:
        """The state as text; `from_json` gives the same bits."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Detector:
        """The state again. ValueError when it is none."""
        try:
            body = json.loads(text)
            return Detector(tuple(float(value) for value in body["sums"]), int(body["looks"]))
        except (TypeError, KeyError) as error:
            raise ValueError(f"this is no state of a detector: {error!r}") from error

    def _after(self, steps: list[float]) -> Detector:
        # A likelihood ratio that is cut off has a mean of at most 1 still.
        gains = [min(step, _MOST_STEP) for step in steps]
        sums = tuple([max(log_plus_one(m) + gain, NOTHING) for m, gain in zip(self.sums, gains, strict=True)])
        return Detector(sums, self.looks + 1)
