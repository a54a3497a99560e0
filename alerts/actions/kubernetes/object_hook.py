"""What the hooks for Kubernetes' objects share: reading, doing once what was judged, and waiting until it shows."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from alerts.actions.hook import Call, Confirmed, HookError, Prepared
from alerts.actions.kubernetes.api_server import ApiServer, Conflict
from alerts.actions.kubernetes.location import (
    Locate,
    Location,
    annotations_of,
    digest_of,
    is_done,
    owned_by,
    selector_of,
    waited,
    without_label,
)

_TRIES = 5


class ObjectHook(ABC):
    """A change of one object. The key is written onto it in the patch that completes it, which proves the effect."""

    group: str
    resource: str
    unsettled: str
    """What is wrong when the object has not settled in time."""

    def __init__(self, server: ApiServer, locate: Locate, *, ready_seconds: float = 300.0) -> None:
        self._server = server
        self._locate = locate
        self._ready_seconds = ready_seconds
        self._closing = threading.Event()

    @abstractmethod
    def prepare(self, call: Call) -> Prepared:
        """See `VerifyingHook.prepare`."""

    @abstractmethod
    def do(self, call: Call, location: Location, found: Mapping[str, Any]) -> Mapping[str, Any]:
        """Changes the object, which is as it was `found`, and gives it as it is then. Conflict: it is tried again."""

    @abstractmethod
    def seen(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """What the journal keeps of an object."""

    @abstractmethod
    def settled(self, found: Mapping[str, Any], call: Call) -> Confirmed | None:
        """The end of a call, None while it is awaited."""

    @abstractmethod
    def overtaken(self, found: Mapping[str, Any], call: Call) -> str:
        """The words for an object that was changed since it was judged."""

    def run(self, call: Call) -> Mapping[str, Any]:
        location = self._locate(call)
        for _ in range(_TRIES):
            found = self.found(location)
            if is_done(found, call):
                return {"already": True, **self.seen(found)}
            if found["metadata"].get("generation") != call.target["from_generation"]:
                raise HookError(self.overtaken(found, call))
            try:
                return self.seen(self.do(call, location, found))
            except Conflict:
                continue  # its status moves all the time: read it again
        raise HookError(f"{self.path(location)} was changed by others at each of {_TRIES} tries")

    def confirm(self, call: Call) -> Confirmed:
        location = self._locate(call)
        problem = f"{self.unsettled} after {self._ready_seconds:g} s"
        return waited(
            lambda: self.settled(self.found(location), call),
            lambda: Confirmed(after=self.seen(self.found(location)), problem=problem),
            self._ready_seconds,
            self._closing,
        )

    def close(self) -> None:
        self._closing.set()

    def path(self, location: Location) -> str:
        """Where the object is in the API."""
        return location.path(self.group, self.resource)

    def found(self, location: Location) -> dict[str, Any]:
        """The object as it is now."""
        return self._server.get(self.path(location))


class TemplateHook(ObjectHook):
    """A change of an object that keeps the pod templates of its revisions in replica sets."""

    kind: str
    revision_annotation: str
    hash_label: str

    def sets(self, location: Location, owner: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The replica sets of the object."""
        path = location.path("apps/v1", "replicasets", named=False)
        listed = self._server.get(path, {"labelSelector": selector_of(owner)})
        return [one for one in listed["items"] if owned_by(one, owner)]

    def template(self, location: Location, found: Mapping[str, Any], target: Mapping[str, Any]) -> dict[str, Any]:
        """The pod template of the replica set that was chosen. HookError where it is another now, or gone."""
        for one in self.sets(location, found):
            if one["metadata"]["name"] == target["replica_set"]:
                template = without_label(one["spec"]["template"], self.hash_label)
                if digest_of(template) != target["digest"]:
                    raise HookError(f"replica set {target['replica_set']} is not what it was when it was chosen")
                return template
        raise HookError(f"replica set {target['replica_set']} is gone: raise the {self.kind}'s revisionHistoryLimit")

    def revision(self, found: Mapping[str, Any]) -> int:
        """The number of an object's or a replica set's revision, 0 without one."""
        text = annotations_of(found).get(self.revision_annotation, "0")
        return int(text) if text.isdigit() else 0
