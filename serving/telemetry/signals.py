"""What serving counts: children of the catalogue's metrics, looked up once and fed a batch at a time."""

from __future__ import annotations

import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from observability import names
from observability.metrics import Metrics, observe_many, point_to
from serving.batching.lane_policy import LanePolicy
from serving.batching.pending import QueueState
from serving.router import Choice
from serving.routing.disagreement import Disagreement
from serving.routing.traffic import HELD_BACK
from serving.telemetry.durations import Durations
from serving.versions.memory import Footprint

if TYPE_CHECKING:
    from serving.cache import ResponseCache

Floats = npt.NDArray[np.float64]
NO_VERSION = "none"
# Of a request.
MOMENTS = 6
# Whose requests are evidence on a release.
_ARMS = ("stable", "canary", HELD_BACK)
# Each release, and each change of its weight, adds series; beyond so many the oldest go.
_RELEASE_SERIES = 1000
# Units of a release that are remembered, and those that failed, and ids of failed requests; more are not counted.
_MOST_REMEMBERED = 200_000
# Batches of a version that are counted together.
_MOST_BATCHES = 1024


def _release_labels(model: str, choice: Choice, outcome: str) -> tuple[str, ...]:
    release = str(choice.release)
    if choice.variant is not None:
        return model, release, choice.variant, str(choice.version), f"{choice.propensity:g}", outcome
    # After its promotion the candidate is the stable version, and stays the release's canary.
    arm = "canary" if choice.version == choice.candidate else "stable"
    return model, release, str(choice.candidate), str(choice.baseline), arm, f"{choice.weight:g}", outcome


def connections_dropped(metrics: Metrics) -> Callable[[str], None]:
    """Counts the connections that the server ends on slow clients, by the reason."""
    dropped = {reason: metrics[names.CONNECTIONS_DROPPED].labels(reason) for reason in names.DROP_REASONS}
    return lambda reason: dropped[reason].inc()


class VersionSignals:
    """The series of one version."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        self._requests = {
            outcome: metrics[names.INFERENCE_REQUESTS].labels(model, version, outcome) for outcome in names.OUTCOMES
        }
        self._metrics, self._labels = metrics, (model, version)
        self._duration = metrics[names.INFERENCE_DURATION].labels(model, version)
        self._queue = metrics[names.INFERENCE_QUEUE].labels(model, version)
        stages = metrics[names.INFERENCE_STAGE_DURATION]
        self._stages = [stages.labels(model, version, stage) for stage in names.STAGES]
        spans = [(stage, place, place + 1) for place, stage in enumerate(self._stages)]
        self._durations = Durations(MOMENTS, [(self._duration, 0, MOMENTS - 1), (self._queue, 0, 2), *spans])
        # Takes requests in by their moments as doubles, behind each other, seconds:
        # arrived, queued, started, ended, encoded, done.
        self.add_latencies = self._durations.add
        rows_a_batch = metrics[names.INFERENCE_BATCH_ROWS].labels(model, version)
        compute = metrics[names.INFERENCE_COMPUTE].labels(model, version)
        self._runs = Durations(3, [(rows_a_batch, 0, 1), (compute, 0, 2)])
        self._rows = metrics[names.INFERENCE_ROWS].labels(model, version)
        # The family is here before anybody reads: one that is made while the series are read is not among them.
        self._batches_by_reason = metrics[names.INFERENCE_BATCHES]
        self._reasons: dict[str, Any] = {}
        # Of batches that are not counted yet 0, rows and seconds; and how many there are for each reason.
        self._batches = array("d")
        self._why: Counter[str] = Counter()
        # From the start: of a series that begins with its first events rate() and increase() miss those.
        shed = metrics[names.REQUESTS_SHED]
        self._shed = {reason: shed.labels(model, version, reason) for reason in names.SHED_REASONS}
        self._late = metrics[names.INFERENCE_LATE_ROWS].labels(model, version)
        self._padding = metrics[names.PADDING_ROWS].labels(model, version)
        self._last, self._last_batch = metrics[names.INFERENCE_LAST], 0.0

    def requests(self, outcome: str, count: int) -> None:
        """Requests answered with this outcome."""
        self._requests[outcome].inc(count)

    def write(self) -> None:
        """Writes the durations that were added."""
        self._durations.write()

    def traced(self, moments: Sequence[float], worked: bool, trace_id: str) -> None:
        """One request's moments, with the trace that shows it."""
        self._duration.observe(moments[-1] - moments[0], {"trace_id": trace_id})
        if worked:
            self._queue.observe(moments[2] - moments[0])
        for stage, begun, ended in zip(self._stages, moments, moments[1:], strict=False):
            stage.observe(ended - begun)

    def point_to(self, seconds: float, trace_id: str) -> None:
        """The trace that shows a request of so many seconds, which is counted with others."""
        point_to(self._duration, seconds, {"trace_id": trace_id})

    def shed(self, reason: str) -> None:
        """A request that was turned away before it cost anything."""
        self._shed[reason].inc()

    def late(self, rows: int) -> None:
        """Rows that reached the model behind their deadline."""
        self._late.inc(rows)

    def padding(self, rows: int) -> None:
        """Rows that were added to a batch."""
        self._padding.inc(rows)

    def batch(self, rows: int, seconds: float, reason: str) -> None:
        """A batch that the model has run; counted with others, by `flush` at the latest."""
        self._batches.extend((0.0, rows, seconds))
        self._why[reason] += 1
        self._last_batch = time.time()
        if len(self._batches) >= 3 * _MOST_BATCHES:
            self.flush()

    def flush(self) -> None:
        """Counts the batches."""
        if not self._batches:
            return
        for reason, count in self._why.items():
            if reason not in self._reasons:
                self._reasons[reason] = self._batches_by_reason.labels(*self._labels, reason)
            self._reasons[reason].inc(count)
        self._why.clear()
        self._last.labels(*self._labels).set(self._last_batch)
        self._rows.inc(sum(self._batches[1::3]))
        self._runs.add(self._batches.tobytes())
        del self._batches[:]
        self._runs.write()


class Remembered:
    """What a model's release in progress has seen, by hash; the next release begins anew."""

    __slots__ = ("_seen",)

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, set[int]]] = {}

    def news(self, model: str, release: str, name: str) -> bool:
        """Whether the name is new, and there was room to remember it."""
        of, seen = self._seen.get(model, ("", set()))
        if of != release:
            seen = set()
            self._seen[model] = release, seen
        key = hash(name)
        if key in seen or len(seen) >= _MOST_REMEMBERED:
            return False
        seen.add(key)
        return True


class _Unwritten(Collector):
    """Asks for what is kept back to be counted in bulk, before the series of the same registry are read.

    Only on the event loop's thread, to which the counts belong; others see what was written last.
    """

    def __init__(self, settle: Callable[[], None]) -> None:
        self._settle = settle
        self._thread = threading.get_ident()

    def describe(self) -> Iterable[Family]:
        """Nothing: it has no series."""
        return ()

    def collect(self) -> Iterable[Family]:
        """Nothing, after everything was written."""
        if threading.get_ident() == self._thread:
            self._settle()
        return ()


class Signals:
    """All series of the server."""

    def before_reading(self, settle: Callable[[], None]) -> None:
        """From now on `settle` is called on this thread before anybody reads the series."""

        def write() -> None:
            settle()
            self.flush()

        self.metrics.registry.register(_Unwritten(write))
        # A family that is made while the series are read is not among them: these must be there, and behind it.
        for family in (names.RELEASE_REQUESTS, names.RELEASE_DURATION, names.EXPERIMENT_REQUESTS):
            self.metrics[family]

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self._versions: dict[tuple[str, str], VersionSignals] = {}
        self._releases: dict[tuple[str, Choice, str], Any] = {}
        self._units = Remembered()
        self._failed_units = Remembered()
        self._failed_ids = Remembered()
        self._release_durations: dict[tuple[str, Choice], Any] = {}

    def version(self, model: str, version: int | None) -> VersionSignals:
        """The series of a version; of `none` for requests that no version could take."""
        key = (model, NO_VERSION if version is None else str(version))
        found = self._versions.get(key)
        if found is None:
            found = self._versions[key] = VersionSignals(self.metrics, *key)
        return found

    def flush(self) -> None:
        """Counts the batches of all versions."""
        for version in self._versions.values():
            version.flush()

    def release(self, model: str, choice: Choice, outcome: str, count: int) -> None:
        """Live requests of a release in progress, for the canary's test; only what a version answered or failed."""
        if choice.release is None or choice.arm == "shadow" or not (outcome == "ok" or outcome in names.FAULTS):
            return
        key = (model, choice, "ok" if outcome == "ok" else "error")
        child = self._releases.get(key)
        if child is None:
            child = self._releases[key] = self._release_family(choice).labels(*_release_labels(*key))
            if len(self._releases) > _RELEASE_SERIES:
                oldest = next(iter(self._releases))
                del self._releases[oldest]
                self._release_family(oldest[1]).remove(*_release_labels(*oldest))
        child.inc(count)

    def failed_unit(self, model: str, choice: Choice, outcome: str, unit: str) -> None:
        """A request that failed where units keep their arm: a unit ("" when it has no name) counts once a release."""
        if choice.release is None or choice.arm not in _ARMS or outcome not in names.FAULTS:
            return
        if not unit or self._failed_units.news(model, choice.release, unit):
            self.metrics[names.RELEASE_FAILED_UNITS].labels(*_release_labels(model, choice, "")[:-1]).inc()

    def first_of_unit(self, model: str, choice: Choice, unit: str) -> bool:
        """Whether this is a unit's first request in a release, where units keep their arm; counts it if it is.

        A unit without a name ("") is one a request.
        """
        if choice.release is None or choice.arm not in _ARMS:
            return False
        if unit and not self._units.news(model, choice.release, unit):
            return False
        self.metrics[names.RELEASE_UNITS].labels(*_release_labels(model, choice, "")[:-1]).inc()
        return True

    def failed_again(self, model: str, choice: Choice, outcome: str, request: str) -> bool:
        """Whether a request with this id ("" has none) has failed in the release before: its client sent it again."""
        if not request or choice.release is None or outcome not in names.FAULTS:
            return False
        return not self._failed_ids.news(model, choice.release, request)

    def release_latencies(self, model: str, choice: Choice, seconds: Floats) -> None:
        """Durations of live requests of a release in progress, for the canary's latency test."""
        if choice.release is None or choice.variant is not None or choice.arm not in _ARMS:
            return
        key = (model, choice)
        child = self._release_durations.get(key)
        if child is None:
            family = self.metrics[names.RELEASE_DURATION]
            child = self._release_durations[key] = family.labels(*_release_labels(*key, "")[:-1])
            if len(self._release_durations) > _RELEASE_SERIES:
                oldest = next(iter(self._release_durations))
                del self._release_durations[oldest]
                family.remove(*_release_labels(*oldest, "")[:-1])
        observe_many(child, seconds)

    def _release_family(self, choice: Choice) -> Any:
        return self.metrics[names.RELEASE_REQUESTS if choice.variant is None else names.EXPERIMENT_REQUESTS]

    def loaded(self, model: str, version: int, digest: str, seconds: float) -> None:
        """A version is loaded, verified and warm."""
        self.metrics[names.MODEL_READY].labels(model, str(version)).set(1)
        self.metrics[names.MODEL_INFO].labels(model, str(version), digest).set(1)
        self.metrics[names.MODEL_LOAD_DURATION].labels(model, str(version)).set(seconds)

    def unloaded(self, model: str, version: int, digest: str) -> None:
        """A version has left the memory."""
        self.metrics[names.MODEL_READY].labels(model, str(version)).set(0)
        self.metrics[names.MODEL_INFO].remove(model, str(version), digest)

    def load(self, model: str, reason: str, outcome: str) -> None:
        """A version was loaded, or failed to be."""
        self.metrics[names.MODEL_LOADS].labels(model, reason, outcome).inc()

    def memory(self, model: str, version: int, footprint: Footprint) -> None:
        """The bytes of a version that is in memory."""
        self.metrics[names.MODEL_MEMORY].labels(model, str(version), "weights").set(footprint.weights)
        self.metrics[names.MODEL_MEMORY].labels(model, str(version), "resident").set(footprint.resident)

    def unload(self, model: str, version: int, reason: str) -> None:
        """A version has gone: retired, evicted or unloaded by a call."""
        self.metrics[names.MODEL_UNLOADS].labels(model, reason).inc()
        for kind in ("weights", "resident"):
            self.metrics[names.MODEL_MEMORY].remove(model, str(version), kind)

    def memory_budget(self, limit: int) -> None:
        """Bytes that versions may take together; 0 when there is no limit."""
        self.metrics[names.MODEL_MEMORY_BUDGET].set(limit)

    def traffic(self, model: str, generation: int, weights: dict[tuple[int, str], float], *, sticky: bool) -> None:
        """The policy in force: weight by (version, role); roles that are gone fall to 0."""
        self.metrics[names.TRAFFIC_STICKY].labels(model).set(sticky)
        self.metrics[names.TRAFFIC_GENERATION].labels(model).set(generation)
        family = self.metrics[names.TRAFFIC_WEIGHT]
        for sample_model, version, role in list(family._metrics):
            if sample_model == model:
                family.labels(model, version, role).set(0)
        for (number, role), weight in weights.items():
            family.labels(model, str(number), role).set(weight)

    def in_flight(self, model: str, version: int, requests: int) -> None:
        """Requests that are queued or with the model."""
        self.metrics[names.INFERENCE_IN_FLIGHT].labels(model, str(version)).set(requests)

    def queue(self, model: str, version: int, state: QueueState) -> None:
        """What waits now."""
        labels = (model, str(version))
        for name, value in (
            (names.QUEUE_ROWS, state.rows), (names.QUEUE_BYTES, state.bytes),
            (names.QUEUE_OLDEST, state.oldest_seconds), (names.QUEUE_EXPECTED, state.expected_seconds),
            (names.BATCH_LIMIT_ROWS, state.batch_rows), (names.ADAPTIVE_LIMIT_ROWS, state.limit_rows),
        ):  # fmt: skip
            self.metrics[name].labels(*labels).set(value)

    def queue_limits(self, model: str, policy: LanePolicy) -> None:
        """What may wait."""
        self.metrics[names.QUEUE_LIMIT_ROWS].labels(model).set(policy.limit_rows)
        self.metrics[names.QUEUE_LIMIT_BYTES].labels(model).set(policy.limit_bytes)
        self.metrics[names.CONCURRENCY_LIMIT].labels(model).set(policy.limit_requests)

    def stalled(self, model: str, version: int, stalled: bool) -> None:
        """A loaded version's batches have stopped coming back, or move again."""
        self.metrics[names.MODEL_READY].labels(model, str(version)).set(0 if stalled else 1)

    def cache(self, model: str, cache: ResponseCache) -> None:
        """What a model's response cache has counted since the last time, and what it holds."""
        counts, cache.counts = cache.counts, Counter()
        for (version, result), count in counts.items():
            self.metrics[names.RESPONSE_CACHE_REQUESTS].labels(model, str(version), result).inc(count)
        evicted, cache.entries.evicted = cache.entries.evicted, Counter()
        for reason, count in evicted.items():
            self.metrics[names.RESPONSE_CACHE_EVICTIONS].labels(model, reason).inc(count)
        self.metrics[names.RESPONSE_CACHE_HIT_RATIO].labels(model).set(cache.admission.ratio)
        self.metrics[names.RESPONSE_CACHE_BYTES].labels(model).set(cache.entries.bytes)
        self.metrics[names.RESPONSE_CACHE_LIMIT_BYTES].labels(model).set(cache.policy.bytes)
        self.metrics[names.RESPONSE_CACHE_ENTRIES].labels(model).set(len(cache.entries))

    def shadowed(self, model: str, shadow: int, outcome: str, count: int) -> None:
        """What became of requests copied to a shadow: compared, incomparable, failed or dropped."""
        if count:
            self.metrics[names.SHADOW_REQUESTS].labels(model, str(shadow), outcome).inc(count)

    def disagreement(self, model: str, version: int, shadow: int, found: Disagreement) -> None:
        """How much a shadow's outputs differ from a version's answers."""
        labels = (model, str(version), str(shadow))
        observe_many(self.metrics[names.SHADOW_DIFFERENCE].labels(*labels), found.absolute)
        observe_many(self.metrics[names.SHADOW_RELATIVE_DIFFERENCE].labels(*labels), found.relative)
        if found.ranked_rows:
            self.metrics[names.SHADOW_RANKED_ROWS].labels(*labels).inc(found.ranked_rows)
            self.metrics[names.SHADOW_OTHER_ROWS].labels(*labels).inc(found.other_rows)
