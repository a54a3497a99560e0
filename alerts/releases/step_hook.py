"""The traffic of a step at our own serving: its control API as a hook that looks before and after.

What is in force must be what it was when the step was decided on: a change that somebody made since stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alerts.actions import Call, Confirmed, HookError, HttpHook, Prepared
from alerts.actions.traffic import ServingHook
from alerts.releases.sight import Page, close


class StepHook(ServingHook):
    """Carries out the action `step`. Its labels: `traffic` (shadow, canary, experiment, switch or hold_back), `share`
    (0 ends it), `candidate`, `sticky`, and `generation`, serving's when it was decided on.
    """

    def __init__(self, url: str, *, secret: str = "", timeout_seconds: float = 60.0) -> None:
        super().__init__(url, secret=secret, timeout_seconds=timeout_seconds)
        headers = {"X-Trimtab-Actor": "trimtab"}
        address = f"{url.rstrip('/')}/api/v1/models/{{model}}"
        self._hooks = {
            traffic: HttpHook(
                f"{address}/{traffic}", body=_body, secret=secret, timeout_seconds=timeout_seconds, headers=headers
            )
            for traffic in ("shadow", "canary", "experiment", "switch", "hold_back")
        }

    def prepare(self, call: Call) -> Prepared:
        self._started()
        page = self._page(call.model)
        if page is None:
            return Prepared(
                before={"unread": "serving shows no page of the model"}, problem="steps need Trimtab's serving"
            )
        seen = Page.of(page)
        before = {
            name: page.get(name) for name in ("generation", "stable", "canary", "shadows", "experiment", "hold_back")
        }
        version, share = int(call.labels["candidate"]), float(call.labels["share"])
        target = {"version": version, "share": share, "stable": page.get("stable"), "generation": seen.generation}
        target = dict(call.target) or target
        if proof := _done(call, page):
            return Prepared(before=before, target=target, done=proof)
        decided = int(call.labels.get("generation", "-1"))
        if seen.generation != decided:
            why = (
                f"somebody changed the traffic since this was decided on (generation {seen.generation}, was {decided})"
            )
            return Prepared(before=before, target=target, problem=why)
        if call.labels["traffic"] in ("canary", "experiment", "switch") and seen.release not in ("", call.release):
            return Prepared(before=before, target=target, problem=f"release {seen.release} is in progress")
        if call.labels["traffic"] == "canary" and seen.release and not call.release:
            return Prepared(before=before, target=target, problem=f"release {seen.release} was begun by somebody else")
        return Prepared(before=before, target=target)

    def run(self, call: Call) -> Mapping[str, Any]:
        return self._hooks[call.labels["traffic"]].run(call)

    def confirm(self, call: Call) -> Confirmed:
        page = self._page(call.model)
        if page is None:
            return Confirmed(problem="serving shows no page of the model")
        seen = Page.of(page)
        version, share = call.target["version"], call.target["share"]
        after: dict[str, Any] = {"generation": seen.generation, "stable": page.get("stable"), "release": seen.release}
        match call.labels["traffic"]:
            case "shadow":
                good = close(seen.shadows.get(version, 0.0), share)
            case "switch":
                good = page.get("stable") == version
                after["release"] = _release_of_switch(call, page)
            case "hold_back":
                good = close(seen.hold_back, share)
            case _:
                good = close(seen.arms.get(version, 0.0), share)
        if not good:
            if _done(call, page):
                return Confirmed(after={**after, "since": "changed again since"})
            return Confirmed(after=after, problem="serving has other traffic in force than the step's")
        if share > 0 and not self._ready(call.model, version):
            return Confirmed(after=after, problem=f"version {version} is in force and not ready")
        return Confirmed(after=after)

    def close(self) -> None:
        super().close()
        for hook in self._hooks.values():
            hook.close()


def _mark(call: Call) -> str:
    """What tells serving's line of this very call from others: it stands in the reason."""
    return f"[{call.key}]"


def _done(call: Call, page: Mapping[str, Any]) -> str:
    for line in reversed(page.get("history") or ()):
        if _mark(call) in str(line.get("reason")):
            return f"serving's history has this step as generation {line['generation']}"
    return ""


def _release_of_switch(call: Call, page: Mapping[str, Any]) -> str:
    lines = [line for line in page.get("history") or () if _mark(call) in str(line.get("reason"))]
    return str(lines[-1].get("release") or "") if lines else ""


def _body(call: Call) -> Mapping[str, Any]:
    version, share = call.target["version"], call.target["share"]
    reason = {"reason": f"{call.reason} {_mark(call)}"}
    sticky = {"sticky": call.labels["sticky"]} if call.labels.get("sticky") else {}
    match call.labels["traffic"]:
        case "shadow":
            return {"version": version, "fraction": share, **reason}
        case "canary":
            return {"version": version, "weight": share, **sticky, **reason}
        case "switch":
            return {"version": version, **reason}
        case "hold_back":
            return {"weight": share, "release": call.release, **sticky, **reason}
        case "experiment":
            if not share:
                return {"end": True, **reason}
            weights = ((call.target["stable"], 1.0 - share), (version, share))
            variants = [{"name": f"v{of}", "version": of, "weight": round(weight, 4)} for of, weight in weights]
            return {"variants": variants, **sticky, **reason}
        case other:
            raise HookError(f"a step gives shadow, canary, experiment, switch or hold_back its traffic, not {other!r}")
