"""How an action is carried out: claimed, prepared, done, confirmed and written down, each before the next.

What is known before the effect is committed before the effect, so that a process that dies at any point leaves enough
for the next to finish: the intent, the holder's claim, and the target that was resolved. A hook that can look proves
an effect that is there already; any other is called again with the same key.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from alerts.actions.action import Action, ActionState, action_by_id, update_action
from alerts.actions.claims import BRIEF_TERM_SECONDS, TERM_SECONDS, claim, release, renew
from alerts.actions.hook import Call, Confirmed, Hook, HookAway, HookError, VerifyingHook
from alerts.actions.journal import append, entries, lock
from alerts.actions.json_values import jsonable

log = logging.getLogger(__name__)

Point = str
"""Where a process may die: `claimed`, `prepared`, `done`, `confirmed`, `written`."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How an action ended, to be written."""

    action: Action
    token: int
    state: ActionState
    result: Mapping[str, Any]
    reason: str = ""


class Lost(RuntimeError):
    """Another process carries the action out by now."""


class Performer:
    """Carries out one action at a time a thread. `at` is called with every point that is passed, for tests of crashes.

    Raises sqlalchemy's errors: what is under way stays claimed, and the caller comes back to it.
    """

    def __init__(
        self,
        engine: sa.Engine,
        holder: str,
        clock: Callable[[], float] = time.time,
        *,
        secret: str = "",
        term_seconds: float = TERM_SECONDS,
        at: Callable[[Point, str], None] = lambda point, key: None,
    ) -> None:
        self._engine = engine
        self._holder = holder
        self._clock = clock
        self._secret = secret
        self._term = term_seconds
        self._at = at
        self._lock = threading.Lock()
        self._claims: dict[str, int] = {}
        self._brief: set[str] = set()  # those whose claims end after a brief term
        self._fresh: set[str] = set()  # claimed as they were decided on, and never begun

    def claim(self, connection: sa.Connection, key: str, hook: Hook | None) -> int | None:
        """The token of a claim made in the transaction that decides on the action; None while another one has it.

        A hook that looks whether its effect is there may be taken over early: the worst is that it looks twice.
        """
        with self._lock:
            (self._brief.add if isinstance(hook, VerifyingHook) else self._brief.discard)(key)
        return claim(connection, key, self._holder, self._clock(), self._term_of(key))

    def hold(self, key: str, token: int | None) -> None:
        """That transaction is over: the claim is ours, and is kept until the action has ended."""
        if token is not None:
            with self._lock:
                self._fresh.add(key)
                self._claims[key] = token

    def perform(self, action: Action, hook: Hook | None) -> Ended | None:
        """The end of a running action; None when another process carries it out, or it has ended.

        Raises HookAway when it is worth another try.
        """
        claimed = self._claimed(action, hook)
        if claimed is None:
            return None
        token, earlier = claimed
        self._at("claimed", action.key)
        try:
            return self._perform(action, hook, token, earlier)
        except Lost:
            log.warning("another process carries %s out now", action.key)
            return None

    def write(self, ended: Ended) -> Action | None:
        """Write how it ended; None when it is not this process's to say any more."""
        now = self._clock()
        action = ended.action
        finished = replace(action, state=ended.state, completed_at=now, result=ended.result)
        if ended.state is ActionState.HELD:
            finished = replace(finished, started_at=None, completed_at=None, reason=ended.reason or action.reason)
        with self._engine.begin() as connection:
            lock(connection)
            stored = action_by_id(connection, action.id)
            if stored is None or stored.state is not ActionState.RUNNING or not self._holds(connection, ended, now):
                self.forget(action.key)
                return None
            update_action(connection, finished)
            release(connection, action.key, ended.token)
            body = {"state": ended.state.value, "result": ended.result, "token": ended.token}
            append(connection, "result", action.key, body, now, secret=self._secret)
        self.forget(action.key)
        self._at("written", action.key)
        return finished

    def given_up(self, action: Action, result: Mapping[str, Any]) -> Ended | None:
        """The failure of an action of ours that was tried for long enough; None when it is not ours any more."""
        with self._lock:
            token = self._claims.get(action.key)
        return None if token is None else Ended(action, token, ActionState.FAILED, jsonable(result))

    def keep(self) -> None:
        """Renew the claims of what is under way; one that is lost is forgotten."""
        with self._lock:
            mine = dict(self._claims)
        if not mine:
            return
        with self._engine.begin() as connection:
            lost = [key for key, token in mine.items() if not self._renew(connection, key, token)]
        for key in lost:
            self.forget(key)

    def let_go(self) -> None:
        """Release every claim, at the end: the next process takes up at once what has not ended."""
        with self._lock:
            mine = dict(self._claims)
        with self._engine.begin() as connection:
            for key, token in mine.items():
                release(connection, key, token)

    def forget(self, key: str) -> None:
        """It is not under way here any more."""
        with self._lock:
            self._claims.pop(key, None)
            self._fresh.discard(key)
            self._brief.discard(key)

    def rehearse(self, action: Action, hook: Hook | None) -> Mapping[str, Any]:
        """What would be done, and to what. Raises HookError."""
        if not isinstance(hook, VerifyingHook):
            return {"dry_run": True, "would": f"{action.action} of {action.model}"}
        prepared = hook.prepare(call_of(action))
        found = {"dry_run": True, "before": prepared.before, "target": prepared.target}
        against = {"problem": prepared.problem, "person": prepared.person, "done": prepared.done}
        return {**found, **{name: text for name, text in against.items() if text}}

    def _perform(self, action: Action, hook: Hook | None, token: int, earlier: Mapping[str, Any] | None) -> Ended:
        if hook is None:
            why = f"no hook is set for {action.action} of {action.model} any more"
            return Ended(action, token, ActionState.FAILED, {"error": why})
        call = replace(call_of(action), token=token)
        if not isinstance(hook, VerifyingHook):
            self._fence(action.key, token)
            return self._call(action, call, hook, {})
        if earlier:
            call = replace(call, target=earlier["target"])
        try:
            prepared = hook.prepare(call)
        except HookAway:
            raise
        except HookError as error:
            return Ended(action, token, ActionState.FAILED, jsonable({**error.result, "error": str(error)}))
        first = prepared if earlier is None else replace(prepared, before=earlier["before"], target=earlier["target"])
        seen = {"before": jsonable(first.before), "target": jsonable(first.target)}
        call = replace(call, target=seen["target"])
        if prepared.done:
            return self._confirmed(action, call, hook, {**seen, "proved": prepared.done})
        if prepared.person and not action.actor:
            why = f"{prepared.person}; that stands against it: `trimtab actions approve {action.id}` lets it run"
            return Ended(action, token, ActionState.HELD, {**seen, "person": prepared.person}, reason=why)
        if prepared.problem:
            return Ended(action, token, ActionState.FAILED, {**seen, "error": f"not done: {prepared.problem}"})
        if earlier is None:
            self._write_prepared(action, token, seen)  # which renews the claim, too
        else:
            self._fence(action.key, token)
        self._at("prepared", action.key)
        return self._call(action, call, hook, seen)

    def _call(self, action: Action, call: Call, hook: Hook, seen: dict[str, Any]) -> Ended:
        try:
            result = {**seen, **jsonable(dict(hook.run(call)))}
        except HookAway:
            raise
        except HookError as error:
            found = {**seen, **error.result, "error": str(error)}
            return Ended(action, call.token, ActionState.FAILED, jsonable(found))
        except Exception as error:  # a user's callable may raise anything; the journal must still say so
            log.exception("the hook of %s failed", action.key)
            return Ended(action, call.token, ActionState.FAILED, {**seen, "error": repr(error)})
        self._at("done", action.key)
        if isinstance(hook, VerifyingHook):
            return self._confirmed(action, call, hook, result)
        return Ended(action, call.token, ActionState.DONE, result)

    def _confirmed(self, action: Action, call: Call, hook: VerifyingHook, result: dict[str, Any]) -> Ended:
        try:
            confirmed = hook.confirm(call)
        except HookAway:
            raise
        except HookError as error:
            confirmed = Confirmed(problem=str(error))
        self._at("confirmed", action.key)
        result = {**result, "after": jsonable(confirmed.after)}
        if confirmed.problem:
            why = f"done, and not as it should be: {confirmed.problem}"
            return Ended(action, call.token, ActionState.FAILED, {**result, "error": why})
        return Ended(action, call.token, ActionState.DONE, result)

    def _claimed(self, action: Action, hook: Hook | None) -> tuple[int, Mapping[str, Any] | None] | None:
        """Our token, and what an earlier try had prepared."""
        with self._lock:
            if action.key in self._fresh:
                self._fresh.discard(action.key)
                return self._claims[action.key], None
        with self._engine.begin() as connection:
            lock(connection)
            stored = action_by_id(connection, action.id)
            if stored is None or stored.state is not ActionState.RUNNING:
                return None
            token = self.claim(connection, action.key, hook)
            if token is None:
                return None
            earlier = [entry for entry in entries(connection, key=action.key) if entry.kind in ("prepared", "result")]
        with self._lock:
            self._claims[action.key] = token
        # A result after which it runs again was a person's approval: what was prepared then is old.
        return token, earlier[-1].body if earlier and earlier[-1].kind == "prepared" else None

    def _write_prepared(self, action: Action, token: int, seen: Mapping[str, Any]) -> None:
        now = self._clock()
        with self._engine.begin() as connection:
            lock(connection)
            if not self._renew(connection, action.key, token):
                raise Lost(action.key)
            append(connection, "prepared", action.key, {**seen, "token": token}, now, secret=self._secret)

    def _fence(self, key: str, token: int) -> None:
        """Right before the effect: the claim is ours for a whole term."""
        with self._engine.begin() as connection:
            if not self._renew(connection, key, token):
                raise Lost(key)

    def _holds(self, connection: sa.Connection, ended: Ended, now: float) -> bool:
        return renew(connection, ended.action.key, self._holder, ended.token, now, self._term_of(ended.action.key))

    def _renew(self, connection: sa.Connection, key: str, token: int) -> bool:
        return renew(connection, key, self._holder, token, self._clock(), self._term_of(key))

    def _term_of(self, key: str) -> float:
        return min(self._term, BRIEF_TERM_SECONDS) if key in self._brief else self._term


def call_of(action: Action) -> Call:
    """What the hook of an action is told."""
    return Call(
        key=action.key,
        action=action.action,
        model=action.model,
        release=action.release,
        reason=action.reason,
        alert=action.alert,
        labels=action.labels,
        evidence=action.evidence,
        actor=action.actor,
        asked_at=action.created_at,
    )
