"""The flights as live traffic: an open loop of V2 requests at a stated rate, and labels that arrive when flights do.

Time is compressed: the flights of the sample are sent one by one, evenly spaced, in the order of their schedule; the
`position` is the scheduled time of the newest one sent. A flight's label is posted once the position is past its
arrival.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import pyarrow as pa

from serving.clients.quick import Answer, QuickClient
from trimtab.demo.flights import CATEGORICAL, GROUP, LABEL, NUMERIC

# A server that answers nothing for this long has failed its callers; the open loop does not wait for it.
MAX_OUTSTANDING = 2000
LABEL_INTERVAL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Sample:
    """The flights to send, column by column."""

    columns: Mapping[str, list[Any]]
    scheduled: list[int]
    """Unix nanoseconds."""
    known_at: list[int | None]
    labels: list[float | None]
    days: list[str]
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)


def sample(flights: pa.Table, since: str, share: float, seed: int) -> Sample:
    """A random `share` of the flights from the day `since` (YYYY-MM-DD) on, still in time order."""
    days = flights[GROUP].cast(pa.string()).to_pylist()
    generator = random.Random(seed)
    rows = [row for row, day in enumerate(days) if day >= since and generator.random() < share]
    table = flights.take(pa.array(rows))
    scheduled = table["scheduled"].cast(pa.timestamp("ns", tz="UTC")).cast(pa.int64()).to_pylist()
    known_at = table["known_at"].cast(pa.timestamp("ns", tz="UTC")).cast(pa.int64()).to_pylist()
    labels = [None if value is None else float(value) for value in table[LABEL].to_pylist()]
    columns = {name: table[name].to_pylist() for name in (*CATEGORICAL, *NUMERIC)}
    return Sample(columns, scheduled, known_at, labels, [days[row] for row in rows], table["id"].to_pylist())


@dataclass(slots=True)
class Tally:
    """What became of the requests, as the client saw it."""

    sent: int = 0
    answered: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(version, "ok" or the HTTP status) -> requests; the version is "-" where no server said one."""
    failures: list[tuple[float, str, str]] = field(default_factory=list)
    """(unix time sent, version, what)"""
    seconds: list[float] = field(default_factory=list)
    """From the moment a request was due to its answer: a stalled server is not flattered."""

    served: list[tuple[float, str]] = field(default_factory=list)
    """(unix time sent, version that answered)"""

    def note(self, due: float, answer: Answer, done: float) -> None:
        version = answer.version or "-"
        self.served.append((done - answer.seconds, version))
        self.answered[version, "ok" if answer.status == 200 else str(answer.status)] += 1
        self.seconds.append(done - due)
        if answer.status != 200:
            self.failures.append((due, version, f"{answer.status} {answer.error or ''}".strip()))

    def failed(self, *, version: str | None = None, other_than: str | None = None, since: float = 0.0) -> int:
        return sum(
            1
            for due, by, _ in self.failures
            if due >= since and (version is None or by == version) and (other_than is None or by != other_than)
        )

    def served_since(self, version: str, since: float) -> int:
        """Requests sent after the unix time `since` that the version answered."""
        return sum(1 for sent, by in self.served if by == version and sent > since)

    def summary(self) -> dict[str, Any]:
        seconds = sorted(self.seconds) or [0.0]
        return {
            "sent": self.sent,
            "answered": {f"v{version} {what}": count for (version, what), count in sorted(self.answered.items())},
            "failed": len(self.failures),
            "p50_seconds": round(seconds[len(seconds) // 2], 5),
            "p99_seconds": round(seconds[min(int(len(seconds) * 0.99), len(seconds) - 1)], 5),
        }


class Replay:
    """Sends the sample; `run` ends when `stop` is set or the sample is used up."""

    def __init__(
        self,
        flights: Sample,
        client: QuickClient,
        *,
        model: str,
        rate: float,
        intake_url: str,
        trace_share: float,
        seed: int,
    ) -> None:
        self.tally = Tally()
        self._flights = flights
        self._client = client
        self._model = model
        self._rate = rate
        self._labels_url = f"{intake_url}/v1/labels"
        self._trace_share = trace_share
        self._random = random.Random(seed)
        self._next = 0
        self._run_id = uuid.uuid4().hex[:8]
        self._outstanding: set[asyncio.Task[None]] = set()
        self._due_labels: list[tuple[int, str, float]] = []
        self._ready_labels: list[dict[str, Any]] = []
        self.labels_sent = 0

    @property
    def position(self) -> datetime:
        """Scheduled departure of the newest flight sent."""
        row = min(self._next, len(self._flights) - 1)
        return datetime.fromtimestamp(self._flights.scheduled[row] / 1e9, UTC)

    @property
    def day(self) -> str:
        return self._flights.days[min(self._next, len(self._flights) - 1)]

    @property
    def finished(self) -> bool:
        return self._next >= len(self._flights)

    def summary(self) -> dict[str, Any]:
        return self.tally.summary() | {"labels": self.labels_sent, "last_flight_day": self.day}

    async def run(self, stop: asyncio.Event) -> None:
        answered = asyncio.Event()
        labels = asyncio.create_task(self._send_labels(answered))
        start = time.time()
        while not stop.is_set() and not self.finished and not labels.done():
            due = start + self._next / self._rate
            delay = due - time.time()
            if delay > 0:
                await asyncio.sleep(delay)
            self._send(self._next, due)
            self._next += 1
        if self._outstanding:
            await asyncio.wait(self._outstanding, timeout=10.0)
        answered.set()
        await labels

    def _send(self, row: int, due: float) -> None:
        self.tally.sent += 1
        if len(self._outstanding) >= MAX_OUTSTANDING:
            self.tally.failures.append((due, "-", "not sent: too many requests unanswered"))
            return
        task = asyncio.create_task(self._infer(row, due))
        self._outstanding.add(task)
        task.add_done_callback(self._outstanding.discard)

    async def _infer(self, row: int, due: float) -> None:
        flights = self._flights
        identity = f"{self._run_id}-{row}-{flights.ids[row]}"
        answer = await self._client.infer(
            self._model,
            {name: [values[row]] for name, values in flights.columns.items()},
            id=identity,
            attributes={GROUP: flights.days[row]},
            traceparent=self._traceparent(),
        )
        self.tally.note(due, answer, time.time())
        label, known = flights.labels[row], flights.known_at[row]
        if answer.status == 200 and label is not None and known is not None:
            heapq.heappush(self._due_labels, (known, identity, label))

    def _traceparent(self) -> str | None:
        if self._random.random() >= self._trace_share:
            return None
        return f"00-{self._random.getrandbits(128):032x}-{self._random.getrandbits(64):016x}-01"

    async def _send_labels(self, answered: asyncio.Event) -> None:
        """Posts labels until all that was sent is answered: what is answered last has labels, too."""
        async with httpx.AsyncClient(timeout=5.0) as http:
            while True:
                ending = answered.is_set()
                self._collect_labels()
                while self._ready_labels:
                    body = self._ready_labels[:2000]
                    if not await self._post_labels(http, body):
                        break
                    del self._ready_labels[: len(body)]
                    self.labels_sent += len(body)
                if ending:
                    return
                await asyncio.sleep(LABEL_INTERVAL_SECONDS)

    def _collect_labels(self) -> None:
        now = int(self.position.timestamp() * 1e9)
        while self._due_labels and self._due_labels[0][0] <= now:
            _, identity, label = heapq.heappop(self._due_labels)
            self._ready_labels.append({"id": identity, "model": self._model, "label": label, "time": time.time()})

    async def _post_labels(self, http: httpx.AsyncClient, body: Iterable[Mapping[str, Any]]) -> bool:
        # A collector that is away or busy gets the same labels again: a label that comes twice counts once.
        try:
            answer = await http.post(
                self._labels_url, content=json.dumps(list(body)), headers={"Content-Type": "application/json"}
            )
        except httpx.HTTPError:
            return False
        if answer.status_code >= 400 and answer.status_code not in (429, 503):
            raise RuntimeError(f"the collector refused labels: {answer.status_code} {answer.text}")
        return answer.status_code < 300
