"""Rollback, promotion and advance on our own serving: its control API as hooks, looked at before and after."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx

from alerts.actions.action import ADVANCE, PAUSE, PROMOTE, ROLLBACK
from alerts.actions.hook import Call, Confirmed, FunctionHook, Hook, HookAway, HookError, Prepared
from alerts.actions.webhook import HttpHook

# What the control API calls those who change traffic and are not people; `api` gave no name.
_MACHINES = ("trimtab", "serving", "api", "")
_DECISIONS = ("promote", "rollback", "switch")
# A server that has no such page is told what to do, and not looked at.
_NO_PAGE = (404, 405, 501)
# What a server says while it starts, for how long that is waited for at a time, and how often it is looked at.
_STARTING, _STARTING_SECONDS, _LOOK_SECONDS = 503, 2.0, 0.1


class ServingHook:
    """One action by `POST {url}/api/v1/models/{model}/{action}`; what is in force is read from `GET` of the model.

    The target of a rollback is the last good version with its digest: serving loads it and lets it answer its example
    before it switches, and the page and the version's readiness are looked at after.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: str = "",
        timeout_seconds: float = 30.0,
        person_seconds: float = 3600.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url = url.rstrip("/")
        self._person_seconds = person_seconds
        self._clock = clock
        verb = f"{self._url}/api/v1/models/{{model}}/{{action}}"
        canary = f"{self._url}/api/v1/models/{{model}}/canary"
        common: dict[str, Any] = {
            "secret": secret, "timeout_seconds": timeout_seconds, "headers": {"X-Trimtab-Actor": "trimtab"},
            # Beyond a moment it is put off: the next try looks first, and is not kept from it by a long wait here.
            "tries": 2, "backoff_seconds": 0.2,
        }  # fmt: skip
        self._change = HttpHook(verb, body=_control_body, **common)
        self._advance = HttpHook(canary, body=_advance_body, **common)
        self._client = httpx.Client(timeout=timeout_seconds)
        self._closing = threading.Event()

    def prepare(self, call: Call) -> Prepared:
        self._started()
        page = self._page(call.model)
        if page is None:
            return Prepared(before={"unread": "serving shows no page of the model"}, target=call.target)
        before = {name: page.get(name) for name in ("generation", "stable", "previous", "canary", "experiment")}
        done = _done(call, page)
        if done:
            return Prepared(before=before, target=call.target or _in_force(page), done=done)
        try:
            target = dict(call.target) or _target(call, page)
        except ValueError as error:
            return Prepared(before=before, problem=str(error))
        return Prepared(before=before, target=target, person=self._person(call, page))

    def run(self, call: Call) -> Mapping[str, Any]:
        return self._advance.run(call) if call.action == ADVANCE else self._change.run(call)

    def confirm(self, call: Call) -> Confirmed:
        page = self._page(call.model)
        if page is None or "version" not in call.target:
            return Confirmed(after={"unread": "serving shows no page of the model"})
        after = {name: page.get(name) for name in ("generation", "stable", "previous", "canary", "experiment")}
        version, digest = call.target["version"], call.target.get("digest")
        if call.action == ADVANCE:
            canary = page.get("canary") or {}
            as_it_should = canary.get("version") == version and _close(canary.get("weight"), call.target["weight"])
        else:
            as_it_should = page.get("stable") == version
        if not as_it_should:
            return self._overtaken(call, page, after)
        if _digest_of(version, page.get("versions") or ()) != digest:
            return Confirmed(after=after, problem=f"version {version} has another digest than the {digest} it had")
        if not self._ready(call.model, version):
            return Confirmed(after=after, problem=f"version {version} is in force and not ready")
        return Confirmed(after={**after, "digest": digest, "answers": True})

    def close(self) -> None:
        self._closing.set()
        self._change.close()
        self._advance.close()

    def _overtaken(self, call: Call, page: Mapping[str, Any], after: Mapping[str, Any]) -> Confirmed:
        """The history tells a change that was undone by a later one from a change that was never made."""
        if proof := _done(call, page):
            return Confirmed(after={**after, "since": "changed again since", "proof": proof})
        return Confirmed(after=after, problem=f"serving has version {page.get('stable')} as stable, not the target")

    def _person(self, call: Call, page: Mapping[str, Any]) -> str:
        if call.actor or not call.release:
            return ""
        for line in reversed(page.get("history") or ()):
            named = line.get("actor") not in _MACHINES and line.get("event") in _DECISIONS
            recent = self._clock() - float(line.get("time") or 0.0) < self._person_seconds
            if named and recent and line.get("release") == call.release:
                return f"{line['actor']} decided on {line['event']} of release {call.release} at serving"
        return ""

    def _page(self, model: str) -> Mapping[str, Any] | None:
        url = f"{self._url}/api/v1/models/{quote(model, safe='')}"
        try:
            answer = self._client.get(url)
        except httpx.HTTPError as error:
            raise HookAway(f"GET {url}: no answer: {error!r}", {"url": url}) from error
        if answer.status_code in _NO_PAGE:
            return None
        if answer.status_code >= 500 or answer.status_code == 429:
            raise HookAway(f"GET {url} answered {answer.status_code}", {"url": url, "status": answer.status_code})
        if not answer.is_success:
            raise HookError(f"GET {url} answered {answer.status_code}: {answer.text[:300]}", {"url": url})
        try:
            page = answer.json()
        except ValueError:
            return None
        return page if isinstance(page, dict) and "generation" in page else None

    def _started(self) -> None:
        """A server that is still taking up its stored policy shows less than is in force. Raises HookAway.

        It is nearly there, so it is waited for a moment instead of being put off.
        """
        until = time.monotonic() + _STARTING_SECONDS
        while True:
            try:
                return self._is_ready()
            except HookAway as error:
                starts = error.result.get("status") == _STARTING
                if not starts or time.monotonic() >= until or self._closing.wait(_LOOK_SECONDS):
                    raise

    def _is_ready(self) -> None:
        url = f"{self._url}/v2/health/ready"
        try:
            answer = self._client.get(url)
        except httpx.HTTPError as error:
            raise HookAway(f"GET {url}: no answer: {error!r}", {"url": url}) from error
        if not answer.is_success and answer.status_code not in _NO_PAGE:
            found = {"url": url, "status": answer.status_code}
            raise HookAway(f"serving is not ready: {url} answered {answer.status_code}", found)

    def _ready(self, model: str, version: int) -> bool:
        try:
            answer = self._client.get(f"{self._url}/v2/models/{quote(model, safe='')}/versions/{version}/ready")
        except httpx.HTTPError as error:
            raise HookAway(f"version {version} of {model} cannot be looked at: {error!r}") from error
        return answer.is_success


def serving_hooks(serving_url: str, *, secret: str = "", timeout_seconds: float = 30.0) -> dict[str, Hook]:
    """Hooks for rollback, promote and advance on our serving; a pause is kept by the journal alone."""
    hook = ServingHook(serving_url, secret=secret, timeout_seconds=timeout_seconds)
    return {ROLLBACK: hook, PROMOTE: hook, ADVANCE: hook, PAUSE: FunctionHook(_paused)}


def _paused(call: Call) -> Mapping[str, Any]:
    return {"paused": call.release, "until": "a person lets it go on (advance)"}


def _target(call: Call, page: Mapping[str, Any]) -> dict[str, Any]:
    """The version that will be in force, with its digest. Raises ValueError when there is none."""
    running = page.get("canary") or page.get("experiment")
    concerned = running is not None and call.release in ("", running.get("release"))
    version: Any
    if call.action == ADVANCE:
        if running is None or not concerned or "version" not in running:
            raise ValueError(f"release {call.release or '(any)'} has no canary to advance")
        weight = call.labels.get("weight", "")
        try:
            share = float(weight)
        except ValueError:
            raise ValueError(f"advance needs a label `weight` with the share of traffic, got {weight!r}") from None
        version, extra = running["version"], {"weight": share}
    elif call.action == PROMOTE:
        if running is None or not concerned or "version" not in running:
            raise ValueError(f"release {call.release or '(any)'} is not in progress: there is nothing to promote")
        version, extra = running["version"], {}
    else:
        version, extra = (page.get("stable") if concerned else page.get("previous")), {}
        if version is None:
            raise ValueError("serving knows no last good version to go back to")
    digest = _digest_of(version, page.get("versions") or ())
    if digest is None:
        raise ValueError(f"version {version} is not in the registry any more")
    return {"version": version, "digest": digest, "generation": page["generation"], **extra}


def _done(call: Call, page: Mapping[str, Any]) -> str:
    """The line of serving's history that is this call's effect, in words."""
    if call.action == ADVANCE:
        canary = page.get("canary") or {}
        reached = call.target and _close(canary.get("weight"), call.target["weight"])
        same = reached and canary.get("version") == call.target["version"] and call.token > 1
        return f"the canary has weight {call.target['weight']:g}" if same else ""
    for line in reversed(page.get("history") or ()):
        since = call.target.get("generation")
        # Without a release only a line younger than what was prepared can be this call's.
        ours = line.get("release") == call.release if call.release else since is not None and line["generation"] > since
        if ours and line.get("event") == call.action:
            return f"serving's history has this {call.action} as generation {line['generation']}"
    return ""


def _in_force(page: Mapping[str, Any]) -> dict[str, Any]:
    version = page.get("stable")
    return {"version": version, "digest": _digest_of(version, page.get("versions") or ()),
            "generation": page.get("generation")}  # fmt: skip


def _digest_of(version: Any, versions: Sequence[Mapping[str, Any]]) -> str | None:
    return next((str(one["digest"]) for one in versions if one.get("version") == version), None)


def _close(one: Any, other: Any) -> bool:
    return isinstance(one, int | float) and abs(one - other) < 1e-4


def _control_body(call: Call) -> Mapping[str, Any]:
    body = {"release": call.release} if call.release else {}
    return {**body, "reason": call.reason}


def _advance_body(call: Call) -> Mapping[str, Any]:
    return {"version": call.target["version"], "weight": call.target["weight"], "reason": call.reason}
