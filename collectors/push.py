"""Pushes in the text format to `/metrics/job/…`, as a Pushgateway takes them."""

from __future__ import annotations

import base64
import binascii
import threading
from collections.abc import Callable
from urllib.parse import unquote

from collectors.exposition import read_page
from collectors.store.store import Store


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
        if not label.isidentifier() or label.startswith("__"):
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


class PushGroups:
    """Groups of pushed series. When a method returns, what it did is durable."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()

    def put(
        self, labels: dict[str, str], body: str, content_type: str, *, replace: bool, honor_labels: bool = False
    ) -> int:
        """Stores a page; with `replace` the group's series that are not in it get stale markers. BadExposition.

        Samples without a time get the time of their arrival. The group's labels win over the page's; with
        `honor_labels` the page's series are taken as they are, and the labels only name the group.
        """
        page = read_page(body, content_type)
        now_ms = round(self._clock() * 1000)
        by_time: dict[int, list[tuple[dict[str, str], float]]] = {}
        for series, value, t_ms in page.samples:
            merged = series if honor_labels else {**series, **labels}
            by_time.setdefault(now_ms if t_ms is None else t_ms, []).append((merged, value))
        if replace and not by_time:
            by_time[now_ms] = []  # an empty page ends the whole group
        target = _target(labels)
        with self._lock:
            taken = 0
            for t_ms in sorted(by_time):
                whole = replace and len(by_time) == 1
                taken += self._store.append(target, t_ms, by_time[t_ms], stale=whole)
            self._store.set_metadata(page.metadata)
        return taken

    def delete(self, labels: dict[str, str]) -> int:
        """Ends all series of a group."""
        with self._lock:
            return self._store.mark_stale(_target(labels), round(self._clock() * 1000))


def _target(labels: dict[str, str]) -> str:
    return f"push:{sorted(labels.items())}"
