"""Carries actions out: decides on firing alerts and people's requests, journals before and after, never twice.

The intent is committed before a hook is called, the result after. A process that dies between the two finds the
action `running` at its next start and calls the hook again with the same key. Hooks run in threads of their own, so a
slow one never delays the evaluation of rules.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from alerts.actions.action import (
    PROMOTE,
    RETRAIN,
    ROLLBACK,
    Action,
    ActionState,
    action_by_id,
    action_by_key,
    insert_action,
    key_of,
    read_actions,
    update_action,
)
from alerts.actions.hook import Call, Hook, HookError
from alerts.actions.journal import append
from alerts.actions.policy import ActionPolicy, Advise, Decision, Hold, Proposal, Run, Wait, decide
from alerts.states import Alert
from observability import names
from observability.metrics import Metrics

log = logging.getLogger(__name__)

KINDS = (ROLLBACK, PROMOTE, RETRAIN)
_STATES: dict[type[Decision], ActionState] = {
    Run: ActionState.RUNNING,
    Wait: ActionState.WAITING,
    Advise: ActionState.ADVISED,
    Hold: ActionState.HELD,
}
_HISTORY_ROWS = 200


class UnknownAction(LookupError):
    """No action has this id."""


class NotWaiting(ValueError):
    """The action cannot be approved or rejected (any more)."""


class ActionRunner:
    """The actor. `policies` and `hooks` are keyed by action, or by `action:model`, which goes first."""

    def __init__(
        self,
        engine: sa.Engine,
        *,
        policies: Mapping[str, ActionPolicy],
        hooks: Mapping[str, Hook],
        release_in_progress: Callable[[str], str] = lambda model: "",
        evidence_of: Callable[[str, str], Mapping[str, Any]] = lambda model, release: {},
        clock: Callable[[], float] = time.time,
        executor: Executor | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._engine = engine
        self._policies = policies
        self._hooks = hooks
        self._release_in_progress = release_in_progress
        self._evidence_of = evidence_of
        self._clock = clock
        self._executor = executor or ThreadPoolExecutor(max_workers=8, thread_name_prefix="action")
        self._metrics = metrics or Metrics()
        self._lock = threading.Lock()  # one decision at a time: each must see the one before it
        self._settled: set[str] = set()
        self._closing = False

    def consider(self, alert: Alert) -> Action | None:
        """Decide on a firing alert that asks for an action by its labels; None when there is nothing (new) to do."""
        action, model = alert.label("action"), alert.label("model")
        if action not in KINDS or not model or alert.state != "firing" or alert.keep_firing_since is not None:
            return None
        release, starts_at = alert.label("release"), alert.fired_at or alert.active_at
        key = key_of(action, model, release, alert.fingerprint, starts_at)
        if key in self._settled:
            return None
        in_progress = self._release_in_progress(model)
        evidence = {
            "value": alert.value,
            "annotations": dict(alert.annotations),
            "active_at": alert.active_at,
            "fired_at": alert.fired_at,
            **({"release": self._evidence_of(model, release)} if release else {}),
        }
        proposal = Proposal(
            action=action,
            model=model,
            release=release,
            release_in_progress=in_progress,
            has_hook=self._hook(action, model) is not None,
        )
        now = self._clock()
        draft = Action(
            key=key,
            action=action,
            model=model,
            release=release,
            mode=self._policy(action, model).mode,
            state=ActionState.HELD,
            alert=alert.name,
            labels=dict(alert.labels),
            evidence=_jsonable(evidence),
            created_at=now,
        )
        with self._lock, self._engine.begin() as connection:
            decided = self._decide(connection, proposal, draft, alert, now)
        if decided is not None and decided.state is ActionState.RUNNING:
            self._submit(decided)
        return decided

    def request(self, action: str, model: str, *, reason: str, actor: str, release: str = "", key: str = "") -> Action:
        """A person asks for an action: it runs at once, past modes, cool-downs and budgets; a known key runs nothing.

        Raises ValueError for an unknown action and for one without a hook.
        """
        if action not in KINDS:
            raise ValueError(f"unknown action {action!r}; there are {', '.join(KINDS)}")
        if not model or not actor:
            raise ValueError("an action needs a model and an actor")
        if self._hook(action, model) is None:
            raise ValueError(f"no hook is set for {action} of {model}: name a URL or a command for it in the settings")
        release = release or (self._release_in_progress(model) if action != RETRAIN else "")
        now = self._clock()
        key = key or f"{action}:{model}:by-{actor}:{round(now * 1000)}"
        draft = Action(
            key=key,
            action=action,
            model=model,
            release=release,
            mode="manual",
            state=ActionState.RUNNING,
            reason=reason or f"asked for by {actor}",
            evidence=_jsonable(self._evidence_of(model, release)) if release else {},
            created_at=now,
            started_at=now,
            actor=actor,
            decided_at=now,
        )
        with self._lock, self._engine.begin() as connection:
            known = action_by_key(connection, key)
            if known is not None:
                return known
            append(connection, "requested", key, {"actor": actor, "reason": draft.reason}, now)
            created = insert_action(connection, draft)
            append(connection, "intent", key, _call(created).to_json(), now)
        self._submit(created)
        return created

    def approve(self, id: int, actor: str) -> Action:
        """A person lets a waiting, advised or held action run. Raises UnknownAction or NotWaiting."""
        with self._lock, self._engine.begin() as connection:
            action = self._undecided(connection, id, actor)
            if self._hook(action.action, action.model) is None:
                raise NotWaiting(f"action {id} has no hook to run: name a URL or a command for {action.action}")
            now = self._clock()
            approved = replace(action, state=ActionState.RUNNING, actor=actor, decided_at=now, started_at=now)
            append(connection, "approved", action.key, {"actor": actor}, now)
            append(connection, "intent", action.key, _call(approved).to_json(), now)
            update_action(connection, approved)
        self._submit(approved)
        return approved

    def reject(self, id: int, actor: str) -> Action:
        """A person forbids a waiting, advised or held action. Raises UnknownAction or NotWaiting."""
        with self._lock, self._engine.begin() as connection:
            action = self._undecided(connection, id, actor)
            now = self._clock()
            rejected = replace(action, state=ActionState.REJECTED, actor=actor, decided_at=now, completed_at=now)
            append(connection, "rejected", action.key, {"actor": actor}, now)
            update_action(connection, rejected)
        return rejected

    def resume(self) -> list[Action]:
        """Call the hooks of actions that were running when the process ended, with their old keys."""
        now = self._clock()
        with self._lock, self._engine.begin() as connection:
            actions = read_actions(connection, states=[ActionState.RUNNING], limit=10_000)
            for action in actions:
                append(connection, "retried", action.key, {"why": "the process ended before a result was written"}, now)
        for action in actions:
            self._submit(action)
        return actions

    def actions(self, *, model: str = "", limit: int = 100) -> list[Action]:
        """Actions, newest first."""
        with self._engine.begin() as connection:
            return read_actions(connection, model=model, limit=limit)

    def action(self, id: int) -> Action:
        """One action; raises UnknownAction."""
        with self._engine.begin() as connection:
            found = action_by_id(connection, id)
        if found is None:
            raise UnknownAction(f"there is no action {id}")
        return found

    def close(self) -> None:
        """Stop the hooks. What was running stays `running` in the journal and is taken up at the next start."""
        self._closing = True
        for hook in self._hooks.values():
            hook.close()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _decide(
        self, connection: sa.Connection, proposal: Proposal, draft: Action, alert: Alert, now: float
    ) -> Action | None:
        known = action_by_key(connection, draft.key)
        if known is not None and known.state is not ActionState.HELD:
            self._settled.add(draft.key)
            return None
        history = [
            past for past in read_actions(connection, model=draft.model, limit=_HISTORY_ROWS) if past.key != draft.key
        ]
        decision = decide(proposal, history, self._policy(draft.action, draft.model), now)
        why = f"{_headline(alert)} ({decision.reason})"
        if known is not None and isinstance(decision, Hold) and known.reason.endswith(f"({decision.reason})"):
            return None
        state = _STATES[type(decision)]
        started = now if state is ActionState.RUNNING else None
        if known is None:
            action = insert_action(connection, replace(draft, state=state, reason=why, started_at=started))
        else:
            action = replace(known, state=state, reason=why, started_at=started, evidence=draft.evidence)
            update_action(connection, action)
        seen = {"alert": draft.alert, "labels": dict(draft.labels), "evidence": dict(draft.evidence)}
        decided = {"decision": type(decision).__name__.lower(), "reason": decision.reason}
        append(connection, "decided", draft.key, {**seen, **decided}, now)
        if state is ActionState.RUNNING:
            append(connection, "intent", draft.key, _call(action).to_json(), now)
        else:
            self._count(action)
        return action

    def _undecided(self, connection: sa.Connection, id: int, actor: str) -> Action:
        if not actor:
            raise ValueError("an approval or rejection needs an actor")
        action = action_by_id(connection, id)
        if action is None:
            raise UnknownAction(f"there is no action {id}")
        if action.state not in (ActionState.WAITING, ActionState.ADVISED, ActionState.HELD):
            raise NotWaiting(f"action {id} is {action.state}, not waiting for a decision")
        return action

    def _submit(self, action: Action) -> None:
        self._executor.submit(self._perform, action)

    def _perform(self, action: Action) -> None:
        hook = self._hook(action.action, action.model)
        try:
            if hook is None:
                raise HookError(f"no hook is set for {action.action} of {action.model} any more")
            result, state = dict(hook.run(_call(action))), ActionState.DONE
        except HookError as error:
            result, state = {**error.result, "error": str(error)}, ActionState.FAILED
        except Exception as error:  # a user's callable may raise anything; the journal must still say so
            log.exception("the hook of %s failed", action.key)
            result, state = {"error": repr(error)}, ActionState.FAILED
        if self._closing and state is ActionState.FAILED:
            return  # ended by our own shutdown: the next start takes it up
        try:
            self._finish(action, state, _jsonable(result))
        except sa.exc.SQLAlchemyError:
            log.exception("cannot write the result of %s; it will be tried again at the next start", action.key)

    def _finish(self, action: Action, state: ActionState, result: Mapping[str, Any]) -> None:
        now = self._clock()
        finished = replace(action, state=state, completed_at=now, result=result)
        with self._lock, self._engine.begin() as connection:
            update_action(connection, finished)
            append(connection, "result", action.key, {"state": state.value, "result": result}, now)
        self._count(finished)
        log.info("%s of %s is %s (%s)", action.action, action.model, state.value, action.reason)

    def _count(self, action: Action) -> None:
        self._metrics[names.ACTIONS].labels(action.action, action.model, action.state.value).inc()

    def _policy(self, action: str, model: str) -> ActionPolicy:
        return self._policies.get(f"{action}:{model}") or self._policies.get(action) or ActionPolicy(mode="advise")

    def _hook(self, action: str, model: str) -> Hook | None:
        return self._hooks.get(f"{action}:{model}") or self._hooks.get(action)


def _call(action: Action) -> Call:
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
    )


def _headline(alert: Alert) -> str:
    return f"{alert.name}: {alert.annotation('summary') or alert.annotation('description') or alert.value}"


def _jsonable(value: Any) -> Any:
    """The value with NaN and infinity as text, since JSON in SQL knows neither."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return repr(value)
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value
