"""The change detector: its guarantee, its exactness against a loop, its indifference to chunks and restarts."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.drift.bets import IDLE
from collectors.drift.detector import Alarm, DetectorError, DetectorSettings, EDetector
from collectors.drift.fdr import e_value

KINDS = ["bernoulli", "bounded", "normal", "evalue"]


def stream(kind: str, rows: int, streams: int, seed: int, moved: float = 0.0) -> np.ndarray:
    """Null samples, or ones that are worse by about `moved` times what there is to see."""
    rng = np.random.default_rng(seed)
    if kind == "bernoulli":
        return (rng.random((rows, streams)) < 0.2 + 0.2 * moved).astype(float)
    if kind == "bounded":
        return rng.beta(2 + 2 * moved, 8, (rows, streams))
    if kind == "normal":
        return rng.normal(40 + 3 * moved, 3, (rows, streams))
    return e_value(rng.random((rows, streams)) ** (1 + 2 * moved))


@dataclass
class Loop:
    """The same detector for one stream, a sample at a time, as the formulas say it."""

    settings: DetectorSettings
    alternatives: list[float]
    cap: float

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.past: list[float] = []
        self.sums = [0.0] * len(self.alternatives)
        self.ratios = [-math.inf] * len(self.alternatives)
        self.since = [0] * len(self.alternatives)

    def bet(self, x: float, alternative: float) -> float:
        known, n = self.settings.base, len(self.past)
        if self.settings.kind == "evalue":
            return IDLE + (1 - IDLE) * min(x, self.cap)
        if self.settings.kind == "normal":
            if known is not None:
                u = (x - known[0]) / known[1]
                raw = math.exp(alternative * u - alternative**2 / 2)
            elif n < 2:
                raw = 1.0
            else:
                mean = math.fsum(self.past) / n
                deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in self.past) / (n - 1) * (1 + 1 / n))
                u = (x - mean) / deviation
                raw = ((1 + u**2 / (n - 1)) / (1 + (u - alternative) ** 2 / (n - 1))) ** (n / 2)
            return IDLE + (1 - IDLE) * min(raw, self.cap)
        mean = (math.fsum(self.past) + 0.5) / (n + 1) if known is None else known
        return (1 + (alternative - 1) * x) / (1 + (alternative - 1) * mean)

    def take(self, x: float, index: int) -> tuple[float, int | None]:
        """The weighted sum after the sample, and since when, if it is an alarm."""
        learning = self.settings.base is None and self.settings.kind != "evalue"
        if not learning or len(self.past) >= self.settings.learn:
            for j, alternative in enumerate(self.alternatives):
                e = self.bet(x, alternative)
                if self.ratios[j] <= 0:
                    self.ratios[j], self.since[j] = 0.0, index
                self.ratios[j] += math.log(e)
                self.sums[j] = (self.sums[j] + 1) * e if self.settings.form == "sr" else math.exp(self.ratios[j])
        self.past.append(x)
        total = sum(self.sums) / len(self.sums)
        if total < 1 / self.settings.alpha:
            return total, None
        since = self.since[int(np.argmax(self.ratios))]
        self.begin()
        return total, since


def looped(detector: EDetector, values: np.ndarray) -> tuple[list[tuple[int, int, float]], float]:
    """Alarms (index, since, evidence) of the loop, and the sum in the end."""
    bets = detector._bets
    loop = Loop(detector.settings, bets.values.tolist(), bets.cap)
    alarms, total = [], 0.0
    for index, x in enumerate(values.tolist()):
        total, since = loop.take(x, index)
        if since is not None:
            alarms.append((index, since, total))
            total = 0.0
    return alarms, total


@pytest.mark.parametrize("form", ["sr", "cusum"])
@pytest.mark.parametrize("side", ["up", "down", "both"])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_and_a_loop_say_the_same(kind: str, known: bool, side: str, form: str) -> None:
    if kind == "evalue" and (known or side != "up"):
        return
    base = {"bernoulli": 0.2, "bounded": 0.2, "normal": (40.0, 3.0)}[kind] if known else None
    options = DetectorSettings(kind=kind, side=side, form=form, base=base, alpha=1e-2, learn=50)
    values = np.concatenate([stream(kind, 300, 1, 1), stream(kind, 300, 1, 2, 1.0), stream(kind, 400, 1, 3)])[:, 0]
    detector = EDetector(1, options)

    alarms = detector.update(values)
    expected, last = looped(detector, values)

    assert [(alarm.index, alarm.since) for alarm in alarms] == [(index, since) for index, since, _ in expected]
    assert [alarm.evidence for alarm in alarms] == pytest.approx([evidence for _, _, evidence in expected], rel=1e-9)
    assert detector.evidence[0] == pytest.approx(last, rel=1e-9)
    assert alarms or side == "down" or form == "cusum"


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_chunking_and_any_restart_give_the_same_state_and_alarms(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    options = DetectorSettings(
        kind=kind,
        form=data.draw(st.sampled_from(["sr", "cusum"])),
        alpha=1e-2,
        learn=data.draw(st.integers(0, 300)),
        block=data.draw(st.sampled_from([1, 1, 7])) if kind == "normal" else 1,
        family=data.draw(st.booleans()),
        after_alarm=data.draw(st.sampled_from(["relearn", "keep"])),
    )
    streams, seed = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 1000))
    values = np.concatenate([stream(kind, 500, streams, seed), stream(kind, 400, streams, seed + 1, 1.0)])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=12)))
    whole, parts = EDetector(streams, options), EDetector(streams, options)

    at_once = whole.update(values)
    piecewise: list[Alarm] = []
    for chunk in np.split(values, cuts):
        piecewise += parts.update(chunk)
        parts = EDetector.from_json(parts.to_json())

    assert parts.samples == len(values)
    assert [(alarm.stream, alarm.index, alarm.since) for alarm in piecewise] == [
        (alarm.stream, alarm.index, alarm.since) for alarm in at_once
    ]
    np.testing.assert_allclose(
        [[alarm.evidence, alarm.before, alarm.after] for alarm in piecewise],
        [[alarm.evidence, alarm.before, alarm.after] for alarm in at_once],
        rtol=1e-12,
    )
    assert close(json.loads(parts.to_json()), json.loads(whole.to_json()))


def close(one: object, other: object) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(close(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-12)
    return one == other


def test_the_state_of_a_bernoulli_stream_has_the_same_bits_in_any_chunking() -> None:
    values = stream("bernoulli", 2500, 3, 5)
    states = []
    for size in (2500, 1, 37, 256, 1000):
        detector = EDetector(3, DetectorSettings(alpha=1e-2))
        for at in range(0, len(values), size):
            detector.update(values[at : at + size])
        states.append(detector.to_json())

    assert len(set(states)) == 1


@pytest.mark.parametrize(
    ("kind", "draw"),
    [
        ("bernoulli", lambda rng, shape: (rng.random(shape) < 0.02).astype(float)),
        ("bernoulli", lambda rng, shape: (rng.random(shape) < 0.2).astype(float)),
        ("bernoulli", lambda rng, shape: (rng.random(shape) < 0.7).astype(float)),
        ("bounded", lambda rng, shape: rng.beta(0.5, 2.0, shape)),
        ("normal", lambda rng, shape: rng.normal(-7e4, 0.02, shape)),
        ("evalue", lambda rng, shape: e_value(rng.random(shape))),
    ],
)
@pytest.mark.parametrize("side", ["up", "both"])
def test_false_alarms_are_as_seldom_as_promised_with_a_learned_base(kind: str, draw, side: str) -> None:  # type: ignore[no-untyped-def]
    if kind in ("evalue", "bounded") and side == "both":
        return
    alpha, streams, rows = 1e-3, 100, 6000
    detector = EDetector(streams, DetectorSettings(kind=kind, alpha=alpha, side=side))

    alarms = len(detector.update(draw(np.random.default_rng(7), (rows, streams))))

    expected = alpha * streams * rows
    assert alarms <= expected + 4 * math.sqrt(expected)
    assert alarms >= expected / 50  # it is not merely deaf


def test_a_worse_rate_is_found_soon_with_the_base_learned() -> None:
    runs = 300
    rng = np.random.default_rng(3)
    for rate, limit in ((0.3, 300), (0.4, 110)):
        detector = EDetector(runs)
        early = {alarm.stream for alarm in detector.update((rng.random((5000, runs)) < 0.2).astype(float))}
        first: dict[int, Alarm] = {}
        for alarm in detector.update((rng.random((3000, runs)) < rate).astype(float)):
            first.setdefault(alarm.stream, alarm)
        found = [first[run].index - 4999 if run in first else 3001 for run in range(runs) if run not in early]
        fair = [alarm for run, alarm in first.items() if run not in early]

        assert np.median(found) <= limit
        assert len(early) <= 5000 * runs * 1e-5 + 4 * math.sqrt(5000 * runs * 1e-5)
        assert np.median([abs(alarm.since - 5000) for alarm in fair]) <= limit / 3
        assert np.median([alarm.before for alarm in fair]) == pytest.approx(0.2, abs=0.01)
        assert np.median([alarm.after for alarm in fair]) == pytest.approx(rate, abs=0.06)


def test_one_side_is_deaf_to_the_other_and_both_hear_both() -> None:
    better = np.concatenate([stream("bernoulli", 3000, 1, 1), np.zeros((500, 1))])

    assert not EDetector().update(better)
    assert EDetector(1, DetectorSettings(side="down")).update(better)[0].index < 3150
    assert EDetector(1, DetectorSettings(side="both")).update(better)[0].index < 3150


def test_a_reference_is_learned_before_the_stream() -> None:
    reference = stream("bernoulli", 20_000, 2, 1)
    detector = EDetector(2)
    detector.learn(reference)

    alarms = detector.update(stream("bernoulli", 400, 2, 2, 1.0))

    assert detector.base == pytest.approx(0.2, abs=0.02)
    assert {alarm.stream for alarm in alarms} == {0, 1}
    assert min(alarm.since for alarm in alarms) < 40
    assert [alarm.before for alarm in alarms] == pytest.approx([0.2] * len(alarms), abs=0.02)
    with pytest.raises(DetectorError, match="before the first update"):
        detector.learn(reference)
    with pytest.raises(DetectorError, match="nothing to learn"):
        EDetector(1, DetectorSettings(base=0.2)).learn([0, 1])


def test_after_an_alarm_the_base_is_learned_anew_or_kept() -> None:
    values = np.concatenate([stream("bernoulli", 3000, 1, 1), stream("bernoulli", 3000, 1, 2, 1.0)])

    relearned = EDetector(1, DetectorSettings(after_alarm="relearn"))
    kept = EDetector(1, DetectorSettings(after_alarm="keep"))

    assert len(relearned.update(values)) == 1
    assert relearned.base == pytest.approx(0.4, abs=0.05)
    assert len(kept.update(values)) > 10
    assert kept.base == pytest.approx(0.2, abs=0.05)


def test_autocorrelated_streams_need_blocks() -> None:
    """AR(1) with coefficient 0.9 has a memory of some 20 samples: single ones alarm far too often, blocks do not."""
    rng = np.random.default_rng(4)
    streams, rows, alpha = 20, 24_000, 1e-2
    values = rng.normal(size=(rows, streams))
    for row in range(1, rows):
        values[row] += 0.9 * values[row - 1]
    single = EDetector(streams, DetectorSettings(kind="normal", alpha=alpha / 200))
    blocks = EDetector(streams, DetectorSettings(kind="normal", alpha=alpha, block=200, learn=20))
    promised = streams * rows * alpha / 200

    assert len(single.update(values[:6000])) > 5 * promised / 4
    assert len(blocks.update(values)) <= promised + 4 * math.sqrt(promised)
    moved = values[:4000] + 1.5
    fresh = EDetector(streams, DetectorSettings(kind="normal", alpha=alpha, block=200, learn=20))
    fresh.update(values[4000:])
    alarms = fresh.update(moved)
    assert len({alarm.stream for alarm in alarms if alarm.index >= 20_000}) > 0.9 * streams
    assert all((alarm.index + 1) % 200 == 0 and alarm.since % 200 == 0 for alarm in alarms)


def test_a_family_shares_one_level() -> None:
    streams, rows, alpha = 40, 20_000, 1e-2
    rng = np.random.default_rng(8)
    null = e_value(rng.random((rows, streams)))
    family = EDetector(streams, DetectorSettings(kind="evalue", alpha=alpha, family=True))

    alarms = family.update(null)

    assert len({alarm.index for alarm in alarms}) <= alpha * rows + 4 * math.sqrt(alpha * rows)
    bad = null[:30].copy()
    bad[:, :5] = 8.0
    assert {alarm.stream for alarm in family.update(bad)} == {0, 1, 2, 3, 4}


def test_extreme_streams_are_borne() -> None:
    assert not EDetector().update(np.zeros(50_000))
    assert not EDetector(1, DetectorSettings(side="both")).update(np.ones(50_000))
    constant = EDetector(1, DetectorSettings(kind="normal"))
    assert not constant.update(np.full(3000, 1e9))
    assert EDetector(1, DetectorSettings(kind="evalue")).update([0.0] * 1000 + [1e300])[0].index == 1000
    assert EDetector().update(np.concatenate([np.zeros(2000), np.ones(60)]))[0].since == 2000
    assert EDetector(2).update(np.empty((0, 2))) == []


@pytest.mark.parametrize(
    ("options", "values", "message"),
    [
        ({}, [0, 1, math.nan], "sample 2 of stream 0 is nan"),
        ({}, [0, 1, 0.5], "must be 0 or 1"),
        ({"kind": "bounded"}, [0.5, 1.5], "from 0 to 1"),
        ({"kind": "normal"}, [1.0, math.inf], "is inf"),
        ({"kind": "evalue"}, [1.0, -1.0], "at least 0"),
        ({}, ["a"], "must be numbers"),
        ({}, [[0, 1]], "shape"),
    ],
)
def test_bad_samples_are_refused_and_change_nothing(options: dict[str, object], values: object, message: str) -> None:
    detector = EDetector(1, DetectorSettings(**options))  # type: ignore[arg-type]
    before = detector.to_json()

    with pytest.raises(DetectorError, match=message):
        detector.update(values)  # type: ignore[arg-type]

    assert detector.to_json() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0}, "alpha"),
        ({"kind": "poisson"}, "kind must be one of"),
        ({"side": "left"}, "side must be one of"),
        ({"form": "glr"}, "form must be one of"),
        ({"after_alarm": "stop"}, "relearn or keep"),
        ({"base": 1.0}, "between 0 and 1"),
        ({"kind": "normal", "base": 1.0}, "mean and its deviation"),
        ({"kind": "normal", "base": (1.0, 0.0)}, "mean and its deviation"),
        ({"alternatives": (0.5,)}, "odds ratios above 1"),
        ({"weights": (1.0,)}, "2 positive numbers"),
        ({"block": 10}, "kind='normal'"),
        ({"learn": -1}, "learn"),
        ({"kind": "evalue", "base": 0.5}, "no base"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(DetectorError, match=message):
        DetectorSettings(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("stored", [b"", b"[]", b'{"format": 9}', b'{"format": 1}', b"\xff"])
def test_a_state_that_is_none_is_refused(stored: bytes) -> None:
    with pytest.raises(DetectorError):
        EDetector.from_json(stored)
    with pytest.raises(DetectorError, match="at least one stream"):
        EDetector(0)
