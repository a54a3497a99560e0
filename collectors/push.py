"""Pushes to `/metrics/job/…`, as a Pushgateway takes them: a group stays as it was pushed until it is deleted."""

from __future__ import annotations

import base64
import binascii
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import unquote

import msgspec
import sqlalchemy as sa

from collectors.database import PUSHES, replace
from collectors.exposition import BadExposition, Page, read_page
from collectors.journal import Journal
from collectors.scraping.relabel import is_label_name
from collectors.store import Append, MetricMetadata, Store

# How often a standing group's values are appended again: well within the look-back of queries.
REPEAT_SECONDS = 60.0
_PARTS = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
_OWN = {
    "push_time_seconds": MetricMetadata("gauge", "Last Unix time when changing this group succeeded."),
    "push_failure_time_seconds": MetricMetadata("gauge", "Last Unix time when changing this group failed."),
}
Samples = list[tuple[dict[str, str], float]]


class BadGroup(ValueError):
    """A path that does not name a group."""


def group_labels(path: str) -> dict[str, str]:
    """The grouping labels of `job/NAME{/label/value…}`; `label@base64` carries a value in URL-safe base64. BadGroup."""
    parts = path.split("/")
    if len(parts) < 2 or len(parts) % 2 or parts[0].removesuffix("@base64") != "job":
        raise BadGroup(f"the path {path!r} is not job/NAME followed by pairs of label and value")
    labels: dict[str, str] = {}
    for name, value in zip(parts[::2], parts[1::2], strict=True):
        label = name.removesuffix("@base64")
        if not is_label_name(label) or label.startswith("__"):
            raise BadGroup(f"{label!r} is not a label name that a push may set")
        labels[label] = _decoded(value) if name.endswith("@base64") else unquote(value)
    if not labels["job"]:
        raise BadGroup("the job's name is empty")
    return labels


def _decoded(value: str) -> str:
    try:
        return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise BadGroup(f"{value!r} is not URL-safe base64 of a text: {error}") from error


@dataclass(slots=True)
class Group:
    """A group as it stands: samples by metric family, and when pushes succeeded and failed (unix seconds, 0: never)."""

    labels: dict[str, str]
    families: dict[str, Samples] = field(default_factory=dict)
    pushed_at: float = 0.0
    failed_at: float = 0.0
    last_ms: int = 0

    def samples(self) -> Samples:
        """All of it, with the times of its pushes."""
        own = {"push_time_seconds": self.pushed_at, "push_failure_time_seconds": self.failed_at}
        times: Samples = [({"__name__": name, **self.labels}, value) for name, value in own.items()]
        return [sample for family in self.families.values() for sample in family] + times

    def moment(self, now: float) -> int:
        """Now in milliseconds, and always later than the last: two pushes may come at once."""
        self.last_ms = max(round(now * 1000), self.last_ms + 1)
        return self.last_ms


class PushGroups:
    """Groups of pushed series. When a method returns, what it did is durable. Thread-safe."""

    def __init__(self, store: Store, clock: Callable[[], float], journal: Journal) -> None:
        self._store = store
        self._clock = clock
        self._journal = journal
        self._lock = threading.Lock()
        with journal.engine.connect() as connection:
            rows = connection.execute(sa.select(PUSHES.c.body)).scalars().all()
        read = [msgspec.msgpack.decode(body, type=Group) for body in rows]
        self._groups = {_target(group.labels): group for group in read}

    def put(
        self, labels: dict[str, str], body: bytes, content_type: str, *, replace: bool, honor_labels: bool = False
    ) -> None:
        """Takes a page into its group: all of it with `replace`, else the metric families that the page has.

        Series that are no longer in the group get stale markers. The group's labels win over the page's. BadExposition.

        With `honor_labels` the page's series are taken as they are, the labels only name the group, and nothing stands:
        who pushes so pushes again. So it is with a page whose samples have times.
        """
        try:
            page = read_page(body, content_type)
        except BadExposition:
            if not honor_labels:
                self._fail(labels)
            raise
        with self._lock:
            if honor_labels or any(t_ms is not None for _, _, t_ms in page.samples):
                self._pass_on(labels, page, replace, honor_labels)
            else:
                self._stand(labels, page, replace)
            self._store.set_metadata(page.metadata)

    def delete(self, labels: dict[str, str]) -> None:
        """Ends all series of a group."""
        target = _target(labels)
        with self._lock:
            group = self._groups.pop(target, None)
            gone = PUSHES.delete().where(PUSHES.c.key == _key(target))
            self._journal.submit(lambda connection: connection.execute(gone)).result()
            now_ms = round(self._clock() * 1000) if group is None else group.moment(self._clock())
            self._store.mark_stale(target, now_ms)

    def repeat(self) -> None:
        """Appends the values of all standing groups again, so that queries go on to see them."""
        with self._lock:
            now = self._clock()
            appends = [
                Append(target, group.moment(now), group.samples(), replaces=True)
                for target, group in self._groups.items()
                if now - group.last_ms / 1000 >= REPEAT_SECONDS / 2
            ]
            self._store.write(appends)

    def _stand(self, labels: dict[str, str], page: Page, replace: bool) -> None:
        families: dict[str, Samples] = {}
        for series, value, _ in page.samples:
            families.setdefault(_family(series["__name__"], page), []).append(({**series, **labels}, value))
        target, before = _target(labels), self._groups.get(_target(labels)) or Group(labels)
        kept = {} if replace else before.families
        now = self._clock()
        group = Group(labels, {**kept, **families}, now, before.failed_at, before.last_ms)
        self._store.append(target, group.moment(now), group.samples())
        self._store.set_metadata(_OWN)
        self._keep(target, group)

    def _fail(self, labels: dict[str, str]) -> None:
        """Says in the group that a push could not be read."""
        with self._lock:
            target = _target(labels)
            group = self._groups.get(target) or Group(labels)
            group.failed_at = self._clock()
            self._store.append(target, group.moment(group.failed_at), group.samples())
            self._keep(target, group)

    def _keep(self, target: str, group: Group) -> None:
        row = {"key": _key(target), "body": msgspec.msgpack.encode(group)}
        self._journal.submit(lambda connection: replace(connection, PUSHES, row)).result()
        self._groups[target] = group

    def _pass_on(self, labels: dict[str, str], page: Page, replace: bool, honor_labels: bool) -> None:
        now_ms = round(self._clock() * 1000)
        by_time: dict[int, Samples] = {}
        for series, value, t_ms in page.samples:
            merged = series if honor_labels else {**series, **labels}
            by_time.setdefault(now_ms if t_ms is None else t_ms, []).append((merged, value))
        if replace and not by_time:
            by_time[now_ms] = []  # an empty page ends the whole group
        whole = replace and len(by_time) == 1
        target = _target(labels)
        self._store.write([Append(target, t_ms, by_time[t_ms], replaces=whole) for t_ms in sorted(by_time)])


def _family(name: str, page: Page) -> str:
    """The metric family that a sample belongs to."""
    for kind, parts in _PARTS.items():
        for part in parts:
            family = name.removesuffix(part)
            if family != name and family in page.metadata and page.metadata[family].type == kind:
                return family
    return name


def _target(labels: dict[str, str]) -> str:
    return f"push:{sorted(labels.items())}"


def _key(target: str) -> str:
    """The group in the database: names have any length, keys have 64 characters."""
    return hashlib.sha256(target.encode(errors="surrogatepass")).hexdigest()
