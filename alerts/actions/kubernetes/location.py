"""A namespaced object's path in the API, and what objects have in common."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from alerts.actions.hook import Call, Confirmed
from alerts.actions.kubernetes.api_server import ACTION_ANNOTATION

_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Location:
    """A namespace and a name in it."""

    namespace: str
    name: str

    def path(self, group: str, resource: str, *, named: bool = True) -> str:
        """`/apis/GROUP/namespaces/…/RESOURCE/NAME`, or without the name the collection."""
        base = f"/apis/{group}/namespaces/{quote(self.namespace, safe='')}/{resource}"
        return f"{base}/{quote(self.name, safe='')}" if named else base


Locate = Callable[[Call], Location]


def annotations_of(found: Mapping[str, Any]) -> Mapping[str, str]:
    """The annotations of an object."""
    return found["metadata"].get("annotations") or {}


def is_done(found: Mapping[str, Any], call: Call) -> str:
    """The proof that a call is done, "" when it is not."""
    return f"the object carries {ACTION_ANNOTATION}={call.key}" if _mark(found) == call.key else ""


def marked(found: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Patch operations that hold only while the object is as it was read, and that mark it with the action's key."""
    metadata = found["metadata"]
    mark = ACTION_ANNOTATION.replace("~", "~0").replace("/", "~1")
    add: dict[str, Any] = {"op": "add", "path": f"/metadata/annotations/{mark}", "value": key}
    if not metadata.get("annotations"):
        add = {"op": "add", "path": "/metadata/annotations", "value": {ACTION_ANNOTATION: key}}
    return [{"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]}, add]


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def without_label(template: Mapping[str, Any], label: str) -> dict[str, Any]:
    """A replica set's pod template without the label that its controller added."""
    metadata = dict(template.get("metadata") or {})
    metadata["labels"] = {name: value for name, value in (metadata.get("labels") or {}).items() if name != label}
    return {**template, "metadata": metadata}


def images_of(template: Mapping[str, Any]) -> list[str]:
    """The images of a pod template."""
    return [str(container.get("image")) for container in template.get("spec", {}).get("containers") or ()]


def owned_by(item: Mapping[str, Any], owner: Mapping[str, Any]) -> bool:
    """Whether an object's controller is the owner."""
    references = item["metadata"].get("ownerReferences") or ()
    return any(one.get("uid") == owner["metadata"]["uid"] and one.get("controller", True) for one in references)


def selector_of(found: Mapping[str, Any]) -> str:
    """The label selector of an object, as a query has it."""
    labels = (found["spec"].get("selector") or {}).get("matchLabels") or {}
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))


def waited(look: Callable[[], Confirmed | None], unfinished: Callable[[], Confirmed], seconds: float,
           closing: threading.Event) -> Confirmed:  # fmt: skip
    """What `look` finds in the end; after so many seconds what `unfinished` says."""
    until = time.monotonic() + seconds
    while (found := look()) is None:
        if time.monotonic() >= until or closing.wait(_LOOK_SECONDS):
            return unfinished()
    return found


def _mark(found: Mapping[str, Any]) -> str:
    return annotations_of(found).get(ACTION_ANNOTATION, "")
