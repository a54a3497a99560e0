"""Counts what versions are given and answer, off the hot path, and posts profiles of it to the collector.

A batch only leaves its arrays here: nothing changes them any more. A thread counts them by the reference that the
version was registered with, with the operators of `observability.Probe`, and sends a profile every few seconds. The
reference is sent with the names of the columns that come so (`"from_profiles"`): events need not have their values.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import observability
from observability import names
from observability.exporter import BufferedExporter
from observability.metrics import Metrics
from observability.sinks import BATCH_ID_HEADER, Batch
from serving.batching.execution import Runnable
from serving.garbage import load_arrow
from serving.protocol.signature import Signature
from serving.protocol.tensors import Array
from serving.registry import ModelVersion
from serving.telemetry.delivery import Delivery
from serving.telemetry.tally import Columns, Left, Tally

if TYPE_CHECKING:
    from observability.profile import Profile


# Rows of a version that wait to be counted; beyond, the thread does not wait for its time. So many are still in the
# processor's caches, and what the model writes to next is memory that was just let go.
_MOST_ROWS = 8_192
# A version whose reference has not come by then has none.
_REFERENCE_SECONDS = 60.0
# While the collector is away so many profiles are kept.
_MAX_PROFILES = 1_000
_SETTLING = (404, 408, 409, 429, 502, 503, 504)

_log = logging.getLogger(__name__)
_Key = tuple[str, int]


class Counter:
    """What one version has been given and has answered since the last look. `add` is called by any thread."""

    def __init__(self, full: threading.Event) -> None:
        self.active = True
        self.begun = time.monotonic()
        self.reference: Profile | None = None
        self._tally: Tally | None = None
        self._full = full
        self._rows = 0
        self._inputs = True
        self._left: deque[Left] = deque()

    def add(self, columns: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Leaves a batch to be counted: columns [rows, …] in the order of the inputs, and the outputs' rows."""
        if self.active:
            # Inputs of which nothing is counted are let go: their memory is used again.
            self._left.append((columns if self._inputs else (), outputs))
            self._rows += len(columns[0])
            if self._rows >= _MOST_ROWS:
                self._full.set()

    def expect(self, reference: Profile, columns: Columns) -> None:
        """Sets by what batches are counted from now on."""
        self.reference = observability.Profile({name: reference.columns[name] for name in columns.names})
        self._tally, self.active = Tally(self.reference, columns), bool(columns.names)
        self._inputs = bool(columns.inputs)

    def count(self) -> None:
        """Counts what was left."""
        left: list[Left] = []
        while self._left:
            batch = self._left.popleft()
            # One that was left while a reference without inputs was in force lacks what another one counts.
            if batch[0] or not self._inputs:
                left.append(batch)
        self._rows = 0
        if self._tally is not None and left:
            self._tally.add(left)

    def take(self) -> Profile | None:
        """What has been counted since the last call; None when there is nothing."""
        self.count()
        taken = None if self._tally is None else self._tally.take()
        return taken if taken is not None and taken.rows else None

    def give_up(self) -> None:
        """Says that no reference will come."""
        if self.reference is None:
            self.active = False
            self._left.clear()


class Counted:
    """A model whose batches are left to a counter once they are answered."""

    def __init__(self, model: Runnable, counter: Counter) -> None:
        self._model = model
        self.counter = counter

    @property
    def signature(self) -> Signature:
        """The model's."""
        return self._model.signature

    @signature.setter
    def signature(self, signature: Signature) -> None:
        self._model.signature = signature

    @property
    def solo(self) -> bool:
        """The model's."""
        return bool(getattr(self._model, "solo", False))

    def run(self, columns: Sequence[Array]) -> list[Array]:
        """Columns [rows] in, outputs for those rows out."""
        outputs = self._model.run(columns)
        if all(len(output) == len(columns[0]) for output in outputs):
            self.counter.add(columns, outputs)
        return outputs


@dataclass(frozen=True, slots=True)
class Posted(Batch):
    """A profile on its way: of which version, and between which unix times its rows were answered."""

    owner: str = ""
    start: float = 0.0
    end: float = 0.0


class ProfileSink:
    """POSTs profiles to `{url}/v1/profiles/{owner}`. One whose reference is not there yet is sent again."""

    def __init__(self, url: str, timeout: float = 10.0) -> None:
        self._url = url.rstrip("/")
        self._delivery = Delivery(timeout)
        self.close = self._delivery.close

    def send(self, batch: Batch) -> None:
        """Raises Rejected for good, Unavailable or DeliveryError to be tried again."""
        assert isinstance(batch, Posted)
        span = {"X-Profile-Start": repr(batch.start), "X-Profile-End": repr(batch.end)}
        url = f"{self._url}/v1/profiles/{batch.owner}"
        self._delivery.deliver("POST", url, batch, _SETTLING, {BATCH_ID_HEADER: batch.id, **span})


class Counting:
    """The counters of all versions, and the thread that looks at them every `seconds`, at whole multiples of them.

    `publish` sends a version's reference on; with `features` events carry the features that are counted here, too.
    """

    def __init__(
        self,
        collector_url: str,
        metrics: Metrics,
        publish: Callable[[ModelVersion, bytes], None],
        *,
        seconds: float,
        features: bool,
    ) -> None:
        self._publish = publish
        self._seconds = seconds
        self._features = features
        self._metrics = metrics
        self._counters: dict[_Key, Counter] = {}
        self._signatures: dict[_Key, Signature] = {}
        self._left_out: dict[_Key, frozenset[str]] = {}
        self._references: deque[tuple[ModelVersion, bytes]] = deque()
        self._due = threading.Event()
        self._closing = False
        self._since = time.time()
        self._exporter: BufferedExporter[Posted] = BufferedExporter(
            ProfileSink(collector_url),
            signal="profiles",
            encode=lambda posted: posted[0],
            measure=lambda posted: (len(posted.body), posted.rows),
            together=lambda first, other: False,
            max_batches=_MAX_PROFILES,
            linger_seconds=0.0,
            metrics=metrics,
        )
        self._thread = threading.Thread(target=self._run, name="trimtab-counting", daemon=True)
        self._thread.start()

    def counted(self, model: str, number: int, runnable: Runnable) -> Counted:
        """The version's model, whose batches are counted from now on."""
        key = model, number
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = Counter(self._due)
        self._signatures[key] = runnable.signature
        return Counted(runnable, counter)

    def publish(self, version: ModelVersion, profile: bytes | None) -> None:
        """Takes a version's reference, to count by it and to send it on; without one nothing of it is counted."""
        if profile is None:
            counter = self._counters.get((version.model, version.version))
            if counter is not None:
                counter.give_up()
            return
        self._references.append((version, profile))
        self._due.set()

    def left_out(self, model: str, number: int) -> frozenset[str]:
        """The features that events of a version need not carry."""
        return frozenset() if self._features else self._left_out.get((model, number), frozenset())

    def close(self, timeout: float = 2.0) -> None:
        """Counts and sends what there is, and ends the thread."""
        self._closing = True
        self._due.set()
        self._thread.join(timeout)
        self._exporter.close(timeout)

    def _run(self) -> None:
        while not self._closing:
            if self._due.wait(self._seconds - time.time() % self._seconds):
                # A reference came, or too many rows wait, or it is the end.
                self._due.clear()
                self._guarded(self._take_references)
                for counter in list(self._counters.values()):
                    self._guarded(counter.count)
            if self._closing or time.time() // self._seconds > self._since // self._seconds:
                self._guarded(self._send)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            # Telemetry must not end with one odd batch; the counter says that something was lost.
            _log.exception("what a version was given could not be counted")
            self._metrics[names.TELEMETRY_DROPPED].labels("profiles", "invalid").inc()

    def _take_references(self) -> None:
        while self._references:
            version, body = self._references.popleft()
            load_arrow()
            key = version.model, version.version
            signature, counter = self._signatures.get(key), self._counters.get(key)
            try:
                reference = observability.Profile.from_json(body)
            except observability.ProfileError as error:
                _log.warning("what %s:%d is given is not counted: its reference: %s", *key, error)
                reference = observability.Profile({})
            columns = Columns({}, {}, {}) if signature is None else Columns.of(reference, signature)
            if counter is not None:
                counter.expect(reference, columns)
            if columns.names:
                value: dict[str, Any] = json.loads(body)
                body = json.dumps({**value, "from_profiles": columns.names}, separators=(",", ":")).encode()
                self._left_out[key] = frozenset(columns.inputs)
            self._publish(version, body)

    def _send(self) -> None:
        end = time.time()
        # A machine that was asleep must not make the span of a profile longer than a window.
        start, self._since = max(self._since, end - 2 * self._seconds), end
        for (model, number), counter in list(self._counters.items()):
            if counter.reference is None and time.monotonic() - counter.begun > _REFERENCE_SECONDS:
                counter.give_up()
            profile = counter.take()
            if profile is not None:
                self._exporter.put(
                    Posted(profile.to_json(), profile.rows, owner=f"{model}/{number}", start=start, end=end)
                )
