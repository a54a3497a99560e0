"""Quarantine of a bad input source at our own collector: its events are kept apart, neither measured nor learned from.

The alert's label `attribute` names the member of the events' attributes (such as `source`); its value is the label
`value`, or the label that has the attribute's own name. `lift` = "yes" lets the source in again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx

from alerts.actions.hook import Call, Confirmed, HookAway, HookError, Prepared


class SourceHook:
    """`PUT` and `DELETE {collector}/v1/quarantine/{model}`, looked at before and after."""

    def __init__(self, collector_url: str, *, timeout_seconds: float = 30.0) -> None:
        self._url = collector_url.rstrip("/")
        self._client = httpx.Client(timeout=timeout_seconds)

    def prepare(self, call: Call) -> Prepared:
        attribute = call.labels.get("attribute", "")
        value = call.labels.get("value", "") or call.labels.get(attribute, "")
        if not attribute or not value:
            missing = "attribute" if not attribute else f"value (or {attribute})"
            return Prepared(problem=f"quarantine needs a label {missing}: which source is meant?")
        lift = call.labels.get("lift", "") == "yes"
        inside = self._inside(call.model, attribute, value)
        before = {"attribute": attribute, "value": value, "quarantined": inside is not None}
        undo = {"attribute": attribute, "value": value, **({} if lift else {"lift": "yes"})}
        target = dict(call.target) or {"attribute": attribute, "value": value, "quarantined": not lift, "undo": undo}
        if inside is not None and not lift and inside.get("key") == call.key:
            return Prepared(before=before, target=target, done=f"the collector has {attribute}={value} by this action")
        return Prepared(before=before, target=target)

    def run(self, call: Call) -> Mapping[str, Any]:
        target = call.target
        source = {"attribute": target["attribute"], "value": target["value"], "key": call.key,
                  "actor": call.actor or "trimtab", "reason": call.reason}  # fmt: skip
        return {"sources": self._asked("PUT" if target["quarantined"] else "DELETE", call.model, source)}

    def confirm(self, call: Call) -> Confirmed:
        target = call.target
        inside = self._inside(call.model, target["attribute"], target["value"]) is not None
        after = {"attribute": target["attribute"], "value": target["value"], "quarantined": inside}
        if inside != target["quarantined"]:
            is_in = "in" if inside else "not in"
            return Confirmed(after=after, problem=f"{target['attribute']}={target['value']} is {is_in} quarantine")
        return Confirmed(after=after)

    def close(self) -> None:
        """Nothing to stop: a request ends by its own time limit."""

    def _inside(self, model: str, attribute: str, value: str) -> Mapping[str, Any] | None:
        sources = self._asked("GET", model)
        return next((one for one in sources if (one["attribute"], one["value"]) == (attribute, value)), None)

    def _asked(self, method: str, model: str, body: Mapping[str, Any] | None = None) -> list[Mapping[str, Any]]:
        url = f"{self._url}/v1/quarantine/{quote(model, safe='')}"
        try:
            answer = self._client.request(method, url, json=body)
        except httpx.HTTPError as error:
            raise HookAway(f"{method} {url}: no answer: {error!r}", {"url": url}) from error
        if answer.status_code >= 500 or answer.status_code == 429:
            raise HookAway(f"{method} {url} answered {answer.status_code}", {"url": url, "status": answer.status_code})
        if not answer.is_success:
            raise HookError(f"{method} {url} answered {answer.status_code}: {answer.text[:300]}", {"url": url})
        sources: list[Mapping[str, Any]] = answer.json()["sources"]
        return sources
