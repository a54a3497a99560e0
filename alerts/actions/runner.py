"""Lets actions run: decides on firing alerts and people's requests, and sees that what is begun is ended once.

A decision and its intent are one transaction; a thread then claims the action and carries it out (performer.py). A
keeper renews the claims of what is under way, writes results that the database would not take, tries again what could
not be reached, and takes up what a process that is gone left running. Several engines may share a database: each
transaction sees the one before it, and each action has one holder. Hooks run in threads of their own, those that
change traffic apart from the long ones, so a slow one delays neither rules nor a rollback.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from alerts.actions.action import (
    KINDS,
    RETRAIN,
    TRAFFIC_ACTIONS,
    Action,
    ActionState,
    action_by_id,
    action_by_key,
    insert_action,
    key_of,
    read_actions,
    running_actions,
    update_action,
)
from alerts.actions.asking import asked_for
from alerts.actions.claims import TERM_SECONDS, claimed
from alerts.actions.hook import Hook, HookAway, HookError
from alerts.actions.journal import Entry, Kind, append, entries, lock
from alerts.actions.json_values import jsonable
from alerts.actions.performer import Ended, Performer, call_of
from alerts.actions.policy import (
    ActionPolicy,
    Advise,
    Decision,
    Hold,
    Proposal,
    Rehearse,
    Run,
    Wait,
    decide,
    decision_json,
    relevant,
)
from alerts.actions.recheck import verdict_json
from alerts.holders import this_process
from alerts.states import Alert
from observability import names
from observability.metrics import Metrics

log = logging.getLogger(__name__)

_STATES: dict[type[Decision], ActionState] = {
    Run: ActionState.RUNNING,
    Wait: ActionState.WAITING,
    Advise: ActionState.ADVISED,
    Rehearse: ActionState.ADVISED,
    Hold: ActionState.HELD,
}
_HISTORY_ROWS = 200
_LOOK_SECONDS = 0.5
# What is away comes back in seconds: the first tries follow closely, and none waits longer than this.
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.25, 1.0


class UnknownAction(LookupError):
    """No action has this id."""


class NotWaiting(ValueError):
    """The action cannot be approved or rejected (any more)."""


@dataclass(slots=True)
class _Away:
    """An action whose hook could not be reached: since when, how often, and when it is tried again."""

    action: Action
    error: HookAway
    since: float
    tries: int = 1
    due: float = 0.0


class ActionRunner:
    """The actor. `policies` and `hooks` are keyed by action, or by `action:model`, which goes first.

    `policy_version` is what the policies' file calls itself. `secret` seals the journal. `told(connection, entry)` is
    called for every row of the journal, in order, in a transaction; a row is told again if that did not commit.
    `at(point, key)` is called at every point where a crash is worth a test.
    """

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
        policy_version: str = "",
        secret: str = "",
        give_up_seconds: float = 300.0,
        term_seconds: float = TERM_SECONDS,
        at: Callable[[str, str], None] = lambda point, key: None,
    ) -> None:
        self._engine = engine
        self._policies = policies
        self._hooks = hooks
        self._release_in_progress = release_in_progress
        self._evidence_of = evidence_of
        self._clock = clock
        self._traffic = executor or ThreadPoolExecutor(max_workers=8, thread_name_prefix="traffic-action")
        self._others = executor or ThreadPoolExecutor(max_workers=8, thread_name_prefix="action")
        self._metrics = metrics or Metrics()
        self._policy_version = policy_version
        self._secret = secret
        self._give_up_seconds = give_up_seconds
        self._term = term_seconds
        self._at = at
        self.holder = this_process()
        self._performer = Performer(engine, self.holder, clock, secret=secret, term_seconds=term_seconds, at=at)
        self._lock = threading.Lock()  # one decision at a time: each must see the one before it
        self._settled: set[str] = set()
        self._overruled: dict[str, float] = {}
        self._under_way: set[str] = set()
        self._away: dict[str, _Away] = {}
        self._unwritten: list[Ended] = []
        self._closing = threading.Event()
        self._stirred = threading.Event()  # the keeper has something to do before its next look
        self._keeper: threading.Thread | None = None

    def start(self) -> list[Action]:
        """Take up what a crash left, and keep what is under way until `close`. What was taken up."""
        with self._engine.begin() as connection:
            policies = {name: policy.digest for name, policy in sorted(self._policies.items())}
            self._append(connection, "started", "", {"policies": policies, "policy_version": self._policy_version})
        taken = self.resume()
        self._keeper = threading.Thread(target=self._keep, name="action-keeper", daemon=True)
        self._keeper.start()
        return taken

    def consider(self, alert: Alert, *, key: str = "", also: Mapping[str, Any] | None = None) -> Action | None:
        """Decide on a firing alert that asks for an action by its labels; None when there is nothing (new) to do.

        `key` takes the place of the one that the alert and its release give, and `also` goes with the evidence.
        """
        action, model = asked_for(alert), alert.label("model")
        if not action:
            return None
        release, starts_at = alert.label("release"), alert.fired_at or alert.active_at
        key = key or key_of(action, model, release, alert.fingerprint, starts_at)
        now = self._clock()
        if key in self._settled or self._overruled.get(key, 0.0) > now:
            return None
        in_progress = self._release_in_progress(model)
        evidence = {
            "value": alert.value,
            "annotations": dict(alert.annotations),
            "active_at": alert.active_at,
            "fired_at": alert.fired_at,
            **(also or {}),
            **({"release": self._evidence_of(model, release)} if release else {}),
        }
        proposal = Proposal(
            action=action,
            model=model,
            release=release,
            release_in_progress=in_progress,
            has_hook=self._hook(action, model) is not None,
        )
        draft = Action(
            key=key,
            action=action,
            model=model,
            release=release,
            mode=self._policy(action, model).mode,
            state=ActionState.HELD,
            alert=alert.name,
            labels=dict(alert.labels),
            evidence=jsonable(evidence),
            created_at=now,
        )
        return self._settle(proposal, draft, _headline(alert), now)

    def propose(
        self,
        action: str,
        model: str,
        *,
        key: str,
        reason: str,
        release: str = "",
        labels: Mapping[str, str] | None = None,
        evidence: Mapping[str, Any] | None = None,
    ) -> Action:
        """The machine asks by a plan of its own, such as a release's policy: decided on as an alert's wish is, but for
        cool-down and budget. The action of the key as it stands; one that is held is decided on again.
        """
        now = self._clock()
        policy = self._policy(action, model)
        with self._lock, self._engine.begin() as connection:
            known = action_by_key(connection, key)
        if known is not None and (known.state is not ActionState.HELD or self._overruled.get(key, 0.0) > now):
            return known
        proposal = Proposal(
            action=action,
            model=model,
            release=release,
            release_in_progress=self._release_in_progress(model),
            has_hook=self._hook(action, model) is not None,
            planned=True,
        )
        draft = Action(
            key=key,
            action=action,
            model=model,
            release=release,
            mode=policy.mode,
            state=ActionState.HELD,
            labels=dict(labels or {}),
            evidence=jsonable(dict(evidence or {})),
            created_at=now,
        )
        stored = self._settle(proposal, draft, reason, now) or self.known(key)
        assert stored is not None
        return stored

    def known(self, key: str) -> Action | None:
        """The action of a key."""
        with self._engine.begin() as connection:
            return action_by_key(connection, key)

    def _settle(self, proposal: Proposal, draft: Action, headline: str, now: float) -> Action | None:
        """Decides, and begins what follows; None where the decision of before stands."""
        with self._lock:
            with self._engine.begin() as connection:
                lock(connection)
                decision, decided = self._decide(connection, proposal, draft, headline, now)
                token = self._claim(connection, decided)
            self._begin(decided, token)
        if decided is None:
            return None
        self._at("decided", decided.key)
        if isinstance(decision, Run):
            self._submit(decided)
        elif isinstance(decision, Rehearse):
            self._pool(decided.action).submit(self._rehearse, decided)
        return decided

    def undo(self, id: int, actor: str, reason: str = "") -> Action:
        """A person takes back what an action did, where its target says how. Raises UnknownAction or NotWaiting."""
        action = self.action(id)
        labels = ((action.result or {}).get("target") or {}).get("undo")
        if action.state is not ActionState.DONE or not labels:
            raise NotWaiting(
                f"action {id} ({action.action} of {action.model}, {action.state}) cannot be undone by itself: "
                "done are taken back scale and quarantine; traffic is changed by promote and rollback"
            )
        return self.request(
            action.action, action.model, reason=reason or f"takes back action {id}", actor=actor, labels=labels,
            key=f"undo:{action.key}",
        )  # fmt: skip

    def request(
        self,
        action: str,
        model: str,
        *,
        reason: str,
        actor: str,
        release: str = "",
        key: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> Action:
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
            labels=dict(labels or {}),
            reason=reason or f"asked for by {actor}",
            evidence=jsonable(self._evidence_of(model, release)) if release else {},
            created_at=now,
            started_at=now,
            actor=actor,
            decided_at=now,
        )
        with self._lock:
            with self._engine.begin() as connection:
                lock(connection)
                known = action_by_key(connection, key)
                if known is not None:
                    return known
                self._append(connection, "requested", key, {"actor": actor, "reason": draft.reason})
                created = insert_action(connection, draft)
                self._intend(connection, created)
                token = self._claim(connection, created)
            self._begin(created, token)
        self._submit(created)
        return created

    def approve(self, id: int, actor: str) -> Action:
        """A person lets a waiting, advised or held action run. Raises UnknownAction or NotWaiting."""
        with self._lock:
            with self._engine.begin() as connection:
                lock(connection)
                action = self._undecided(connection, id, actor)
                if self._hook(action.action, action.model) is None:
                    what = action.action
                    raise NotWaiting(f"action {id} has no hook to run: name a URL or a command for {what}")
                now = self._clock()
                approved = replace(action, state=ActionState.RUNNING, actor=actor, decided_at=now, started_at=now)
                self._append(connection, "approved", action.key, {"actor": actor})
                self._intend(connection, approved)
                update_action(connection, approved)
                token = self._claim(connection, approved)
            self._begin(approved, token)
        self._submit(approved)
        return approved

    def reject(self, id: int, actor: str) -> Action:
        """A person forbids a waiting, advised or held action. Raises UnknownAction or NotWaiting."""
        with self._lock, self._engine.begin() as connection:
            lock(connection)
            action = self._undecided(connection, id, actor)
            now = self._clock()
            rejected = replace(action, state=ActionState.REJECTED, actor=actor, decided_at=now, completed_at=now)
            self._append(connection, "rejected", action.key, {"actor": actor})
            update_action(connection, rejected)
        return rejected

    def resume(self) -> list[Action]:
        """Take up actions that are running and that no living process has claimed, with their old keys.

        Whoever lets an action run claims it in the same transaction, so one without a claim has nobody.
        """
        with self._engine.begin() as connection:
            if not self._left(connection):
                return []  # nearly always: the journal is not locked for it
        with self._lock, self._engine.begin() as connection:
            lock(connection)
            left = self._left(connection)
            for action in left:
                self._append(connection, "retried", action.key, {"why": "it had begun, and nobody was carrying it out"})
        for action in left:
            self._submit(action)
        return left

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

    def entries(self, key: str) -> list[Entry]:
        """The journal's rows of an action."""
        with self._engine.begin() as connection:
            return entries(connection, key=key)

    def close(self) -> None:
        """Stop the hooks. What was running stays `running` in the journal and is taken up at the next start."""
        self._closing.set()
        self._stirred.set()
        for hook in self._hooks.values():
            hook.close()
        for pool in (self._traffic, self._others):
            pool.shutdown(wait=True, cancel_futures=True)
        if self._keeper is not None:
            self._keeper.join()
        with contextlib.suppress(sa.exc.SQLAlchemyError):  # they end by themselves
            self._performer.let_go()

    # --- deciding ----------------------------------------------------------------------------------------------------
    def _decide(
        self, connection: sa.Connection, proposal: Proposal, draft: Action, headline: str, now: float
    ) -> tuple[Decision | None, Action | None]:
        known = action_by_key(connection, draft.key)
        if known is not None and known.state is not ActionState.HELD:
            self._settled.add(draft.key)
            return None, None
        policy = self._policy(draft.action, draft.model)
        past = read_actions(connection, model=draft.model, limit=_HISTORY_ROWS)
        history = relevant(proposal, [one for one in past if one.key != draft.key], policy, now)
        decision = decide(proposal, history, policy, now)
        why = f"{headline} ({decision.reason})"
        if known is not None and isinstance(decision, Hold) and known.reason.endswith(f"({decision.reason})"):
            return None, None
        state = _STATES[type(decision)]
        started = now if state is ActionState.RUNNING else None
        if known is None:
            action = insert_action(connection, replace(draft, state=state, reason=why, started_at=started))
        else:
            action = replace(known, state=state, reason=why, started_at=started, evidence=draft.evidence)
            update_action(connection, action)
        body = {
            "verdict": verdict_json(draft.evidence, now),
            "alert": draft.alert,
            "labels": dict(draft.labels),
            "evidence": dict(draft.evidence),
            "proposal": proposal.to_json(),
            "history": [one.to_decide() for one in history],
            "policy": {"version": self._policy_version, "digest": policy.digest, "fields": policy.to_json()},
            "now": now,
            **decision_json(decision),
        }
        self._append(connection, "decided", draft.key, body)
        if state is ActionState.RUNNING:
            self._intend(connection, action)
        else:
            self._count(action)
        return decision, action

    def _intend(self, connection: sa.Connection, action: Action) -> None:
        """Write what is about to be done, in the transaction that decides on it."""
        self._append(connection, "intent", action.key, call_of(action).to_json())

    def _claim(self, connection: sa.Connection, action: Action | None) -> int | None:
        """Claim what runs now in the transaction that decides on it: one commit less before the effect."""
        if action is None or action.state is not ActionState.RUNNING:
            return None
        return self._performer.claim(connection, action.key, self._hook(action.action, action.model))

    def _begin(self, action: Action | None, token: int | None) -> None:
        """It is under way here from its commit on: nobody else in this process takes it up."""
        if action is not None and action.state is ActionState.RUNNING:
            self._under_way.add(action.key)
            self._performer.hold(action.key, token)

    def _undecided(self, connection: sa.Connection, id: int, actor: str) -> Action:
        if not actor:
            raise ValueError("an approval or rejection needs an actor")
        action = action_by_id(connection, id)
        if action is None:
            raise UnknownAction(f"there is no action {id}")
        if action.state not in (ActionState.WAITING, ActionState.ADVISED, ActionState.HELD):
            raise NotWaiting(f"action {id} is {action.state}, not waiting for a decision")
        return action

    # --- carrying out ------------------------------------------------------------------------------------------------
    def _submit(self, action: Action) -> None:
        self._under_way.add(action.key)
        self._pool(action.action).submit(self._perform, action)

    def _perform(self, action: Action) -> None:
        try:
            ended = self._performer.perform(action, self._hook(action.action, action.model))
        except HookAway as error:
            self._put_off(action, error)
            return
        except sa.exc.SQLAlchemyError as error:
            log.warning("%s waits for the database: %s", action.key, error)
            self._performer.forget(action.key)
            self._under_way.discard(action.key)  # the keeper takes it up
            return
        if ended is None or (self._closing.is_set() and ended.state is ActionState.FAILED):
            # Another process carries it out, or our own shutdown ended it: the next start takes it up.
            if ended is None:
                self._performer.forget(action.key)
            self._under_way.discard(action.key)
            return
        self._finish(ended)

    def _finish(self, ended: Ended) -> None:
        key = ended.action.key
        try:
            finished = self._performer.write(ended)
        except sa.exc.SQLAlchemyError as error:
            log.warning("the result of %s waits for the database: %s", key, error)
            with self._lock:
                self._unwritten.append(ended)
            return
        self._away.pop(key, None)
        self._under_way.discard(key)
        if finished is None:
            log.warning("another process carries %s out now: the result here is not written", key)
            return
        if finished.state is ActionState.HELD:
            self._overruled[key] = self._clock() + self._policy(finished.action, finished.model).hold_seconds
        self._count(finished)
        if finished.started_at is not None and finished.completed_at is not None:
            seconds = max(finished.completed_at - finished.started_at, 0.0)
            self._metrics[names.ACTION_DURATION].labels(finished.action, finished.state.value).observe(seconds)
        log.info("%s of %s is %s (%s)", finished.action, finished.model, finished.state.value, finished.reason)

    def _put_off(self, action: Action, error: HookAway) -> None:
        """Try it again a while later; it stays ours, and running."""
        now = self._clock()
        away = self._away.get(action.key)
        if away is None:
            away = self._away[action.key] = _Away(action, error, now)
        else:
            away.error, away.tries = error, away.tries + 1
        away.due = now + min(_FIRST_WAIT_SECONDS * 2.0 ** (away.tries - 1), _LONGEST_WAIT_SECONDS)
        self._stirred.set()
        if self._closing.is_set():
            return
        log.warning("%s is tried again: %s", action.key, error)
        if now - away.since >= self._give_up_seconds or self._keeper is None:
            self._give_up(away)

    def _give_up(self, away: _Away) -> None:
        action = away.action
        ended = self._performer.given_up(action, {**away.error.result, "error": str(away.error)})
        if ended is not None:
            self._finish(ended)

    def _rehearse(self, action: Action) -> None:
        try:
            result = self._performer.rehearse(action, self._hook(action.action, action.model))
        except HookError as error:
            result = {"dry_run": True, **error.result, "error": str(error)}
        result = jsonable(result)
        with self._lock, self._engine.begin() as connection:
            lock(connection)
            stored = action_by_id(connection, action.id)
            if stored is None or stored.state is not ActionState.ADVISED:
                return  # a person let it run meanwhile
            update_action(connection, replace(stored, result=result))
            self._append(connection, "rehearsed", action.key, {"result": result})

    def _left(self, connection: sa.Connection) -> list[Action]:
        """Running actions that are not under way here, nor with another living process."""
        running = [action for action in running_actions(connection) if action.key not in self._under_way]
        if not running:
            return []
        held = claimed(connection, [action.key for action in running], self._clock(), but=self.holder)
        return [action for action in running if action.key not in held]

    # --- keeping -----------------------------------------------------------------------------------------------------
    def _keep(self) -> None:
        while not self._closing.is_set():
            self._stirred.wait(self._until_next())
            self._stirred.clear()
            if self._closing.is_set():
                return
            try:
                self._performer.keep()
                self._write_unwritten()
                self._try_again()
                self.resume()
            except sa.exc.SQLAlchemyError as error:
                log.warning("the database of actions is away: %s", error)
            except Exception:  # a lost second is better than actions that nobody ends
                log.exception("a second of keeping actions failed")

    def _until_next(self) -> float:
        """Seconds until the keeper's next look: sooner where something is tried again before."""
        now = self._clock()
        return min([_LOOK_SECONDS, *(max(away.due - now, 0.02) for away in list(self._away.values()))])

    def _write_unwritten(self) -> None:
        with self._lock:
            waiting, self._unwritten = self._unwritten, []
        for ended in waiting:
            self._finish(ended)

    def _try_again(self) -> None:
        now = self._clock()
        for away in list(self._away.values()):
            if away.due <= now:
                away.due = float("inf")
                self._pool(away.action.action).submit(self._perform, away.action)

    # --- small things ------------------------------------------------------------------------------------------------
    def _append(self, connection: sa.Connection, kind: Kind, key: str, body: Mapping[str, Any]) -> None:
        append(connection, kind, key, body, self._clock(), secret=self._secret)

    def _pool(self, action: str) -> Executor:
        return self._traffic if action in TRAFFIC_ACTIONS else self._others

    def _count(self, action: Action) -> None:
        self._metrics[names.ACTIONS].labels(action.action, action.model, action.state.value).inc()

    def _policy(self, action: str, model: str) -> ActionPolicy:
        return self._policies.get(f"{action}:{model}") or self._policies.get(action) or ActionPolicy(mode="advise")

    def _hook(self, action: str, model: str) -> Hook | None:
        return self._hooks.get(f"{action}:{model}") or self._hooks.get(action)


def _headline(alert: Alert) -> str:
    return f"{alert.name}: {alert.annotation('summary') or alert.annotation('description') or alert.value}"
