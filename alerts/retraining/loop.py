"""Keeps the episodes: opens them for what asks, ends them, and asks for the retrainings that are due.

Whatever asks for a retraining of a model (drift, decay) belongs to the model's one open episode. An attempt's key is
the episode's and a number, so that no restart and no second service makes two of one. Silence counts only while
somebody listens: time in which no service looked neither calms an episode nor ends it.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import sqlalchemy as sa

from alerts.actions.action import RETRAIN, Action, actions_with_prefix
from alerts.actions.asking import asked_for
from alerts.actions.journal import append, lock
from alerts.actions.runner import ActionRunner
from alerts.labels import labels_of
from alerts.querier import Querier, QueryError
from alerts.retraining.attempts import attempt_of
from alerts.retraining.episode import (
    Episode,
    episode_by_id,
    insert_episode,
    open_episodes,
    read_episodes,
    update_episode,
)
from alerts.retraining.policy import Again, Attempt, Look, NotYet, Retrain, RetrainingPolicy, decision_json, over
from alerts.schema import ACTIONS
from alerts.states import Alert
from observability import names
from observability.metrics import Metrics

log = logging.getLogger(__name__)

# A rule that asks is looked at every second, or each 15 s at the longest: this long it stands without saying so again.
STANDS_SECONDS = 20.0
# An Alertmanager repeats what fires every 4 hours by default, and says when it is over.
RECEIVED_STANDS_SECONDS = 4.25 * 3600.0
_WRITE_SECONDS = 5.0
_UNSEEN_SECONDS = 30.0
_DAY = 86_400.0
_CHAIN = 20


class RetrainingLoop:
    """`ask` for every alert that wants a retraining, then `look` once a second. Any number of services may."""

    def __init__(
        self,
        engine: sa.Engine,
        runner: ActionRunner,
        querier: Querier,
        *,
        policy_of: Callable[[str], RetrainingPolicy],
        release_in_progress: Callable[[str], str] = lambda model: "",
        metrics: Metrics | None = None,
        secret: str = "",
    ) -> None:
        self._engine = engine
        self._runner = runner
        self._querier = querier
        self._policy_of = policy_of
        self._release_in_progress = release_in_progress
        self._metrics = metrics or Metrics()
        self._secret = secret
        self._lock = threading.Lock()
        self._asking: dict[str, tuple[Alert, float]] = {}
        self._shown: set[str] = set()
        self._read_at = float("-inf")

    def ask(self, alert: Alert, now: float, *, stands_seconds: float = STANDS_SECONDS) -> bool:
        """Note an alert, if it asks for a retraining: it belongs to its model's episode. Whether it did."""
        if asked_for(alert) != RETRAIN:
            return False
        with self._lock:
            self._asking[alert.label("model")] = (alert, now + stands_seconds)
        return True

    def resolved(self, labels: Mapping[str, str], now: float) -> None:
        """A sender says that its alert, which asked last, is over."""
        with self._engine.begin() as connection:
            lock(connection)
            episode = open_episodes(connection).get(labels.get("model", ""))
            if episode is not None and episode.alert.get("labels") == dict(labels):
                update_episode(connection, replace(episode, asked_until=min(now, episode.asked_until)))

    def look(self, now: float) -> list[Action]:
        """Open, keep and end episodes, and ask for what is due; the actions that were decided on."""
        with self._lock:
            asking, self._asking = self._asking, {}
            if not asking and not self._shown and 0 <= now - self._read_at < _WRITE_SECONDS:
                return []
            self._read_at = now
            served = self._served(now)
            with self._engine.begin() as connection:
                lock(connection)
                going = self._kept(connection, asking, served, now)
            self._show(going)
            decided = [self._attempt(episode, now) for episode in going.values() if episode.quiet_since is None]
        return [action for action in decided if action is not None]

    def episodes(self, *, model: str = "", limit: int = 100) -> list[dict[str, Any]]:
        """Episodes, newest first, each with its attempts."""
        with self._engine.begin() as connection:
            found = read_episodes(connection, model=model, limit=limit)
            return [{**episode.to_json(), "attempts": _attempts_json(connection, episode)} for episode in found]

    # --- keeping -----------------------------------------------------------------------------------------------------
    def _kept(
        self,
        connection: sa.Connection,
        asking: Mapping[str, tuple[Alert, float]],
        served: Mapping[str, frozenset[str]],
        now: float,
    ) -> dict[str, Episode]:
        going: dict[str, Episode] = {}
        for model, episode in open_episodes(connection).items():
            there = served.get(model, frozenset())
            kept = _looked(episode, asking.get(model), now)
            rests_on: dict[str, Any] = {
                "version": episode.version, "quiet_since": kept.quiet_since, "served": sorted(there),
                "calm_seconds": self._policy_of(model).calm_seconds, "now": now,
            }  # fmt: skip
            end = over(**rests_on)
            if end is not None:
                self._end(connection, kept, *end, rests_on)
                continue
            if kept != episode:
                update_episode(connection, kept)
            going[model] = kept
        for model, (alert, until) in asking.items():
            version, there = alert.label("version"), served.get(model, frozenset())
            if model not in going and not (version and there and version not in there):
                going[model] = self._open(connection, alert, until, version or _only(there), now)
        return going

    def _open(self, connection: sa.Connection, alert: Alert, until: float, version: str, now: float) -> Episode:
        model = alert.label("model")
        before = next(iter(read_episodes(connection, model=model, limit=1)), None)
        goes_on = (
            before is not None
            and before.ended_at is not None
            and now - before.ended_at < self._policy_of(model).calm_seconds
        )
        episode = insert_episode(
            connection,
            Episode(
                model=model, cause=alert.name, version=version, opened_at=now, asked_until=until, looked_at=now,
                follows=before.id if before is not None and goes_on else None, alert=_alert_json(alert),
            ),
        )  # fmt: skip
        body = {"event": "opened", "episode": episode.id, "model": model, "cause": alert.name, "version": version,
                "follows": episode.follows, "alert": dict(episode.alert)}  # fmt: skip
        append(connection, "episode", episode.key, body, now, secret=self._secret)
        log.info("episode %d of %s begins: %s", episode.id, model, alert.name)
        return episode

    def _end(
        self, connection: sa.Connection, episode: Episode, ended: str, why: str, rests_on: Mapping[str, Any]
    ) -> None:
        now = rests_on["now"]
        update_episode(connection, replace(episode, ended_at=now, ended_because=why, waits=""))
        body = {"event": "ended", "episode": episode.id, "model": episode.model, "ended": ended, "why": why,
                "rests_on": rests_on}  # fmt: skip
        append(connection, "episode", episode.key, body, now, secret=self._secret)
        self._metrics[names.EPISODES_ENDED].labels(episode.model, ended).inc()
        log.info("episode %d of %s is over: %s", episode.id, episode.model, why)

    # --- acting ------------------------------------------------------------------------------------------------------
    def _attempt(self, episode: Episode, now: float) -> Action | None:
        with self._engine.begin() as connection:
            own = _actions_of(connection, episode)
            attempts = [attempt_of(action) for action in (*_earlier(connection, episode), *own)]
            today = _begun_since(connection, episode.model, now - _DAY)
        policy = self._policy_of(episode.model)
        new_labels = self._labels_since(episode.model, attempts[-1], now) if attempts else None
        busy = self._release_in_progress(episode.model)
        look = Look(
            attempts=tuple(attempts), new_labels=new_labels, begun_today=today, busy=busy, policy=policy, now=now
        )
        decision = look.decide()
        rests_on = {"look": asdict(look), **decision_json(decision)}
        if isinstance(decision, NotYet):
            if decision.reason != episode.waits:
                self._wait(episode, rests_on, now)
            return None
        if isinstance(decision, Again) and not own:
            return None  # the one before has an attempt that is still open: it is that one's
        number = len(own) + isinstance(decision, Retrain)
        also = {"episode": {"id": episode.id, "attempt": number, "opened_at": episode.opened_at,
                            "earlier": [attempt.to_json() for attempt in attempts], "rests_on": rests_on}}  # fmt: skip
        return self._runner.consider(_alert_of(episode.alert), key=episode.attempt_key(number), also=also)

    def _wait(self, episode: Episode, rests_on: Mapping[str, Any], now: float) -> None:
        reason = rests_on["reason"]
        with self._engine.begin() as connection:
            lock(connection)
            stored = episode_by_id(connection, episode.id)
            if stored is None or stored.ended_at is not None or stored.waits == reason:
                return
            update_episode(connection, replace(stored, waits=reason))
            body = {"event": "waits", "episode": episode.id, "model": episode.model, "reason": reason,
                    "attempts": list(rests_on["look"]["attempts"]), "rests_on": dict(rests_on)}  # fmt: skip
            append(connection, "episode", episode.key, body, now, secret=self._secret)

    # --- looking -----------------------------------------------------------------------------------------------------
    def _served(self, now: float) -> dict[str, frozenset[str]]:
        """The versions that serve callers, by model; nothing for a model of which nothing is known now."""
        try:
            found = self._querier.instant(f'{names.TRAFFIC_WEIGHT.name}{{role=~"stable|ab:.+"}} > 0', now)
        except QueryError as error:
            log.debug("what is in service is not known: %s", error)
            return {}
        served: dict[str, set[str]] = {}
        for sample in found:
            labels = dict(sample.labels)
            served.setdefault(labels.get("model", ""), set()).add(labels.get("version", ""))
        return {model: frozenset(versions) for model, versions in served.items()}

    def _labels_since(self, model: str, last: Attempt, now: float) -> float | None:
        """Labelled events since an attempt ended; None when nobody counts them."""
        if last.outcome not in ("refused", "released"):
            return None
        span = max(round(now - last.ended_at), 1)
        count = f'{names.LABEL_ROWS.name}{{model={json.dumps(model)},matched="true"}}'
        try:
            # A counter that began after the attempt has no increase yet; its value is what came since.
            found = self._querier.instant(
                f"sum(increase({count}[{span}s])) or sum({count} unless {count} offset {span}s)", now
            )
        except QueryError:
            return None
        return found[0].value if found else None

    def _show(self, going: Mapping[str, Episode]) -> None:
        for model in self._shown - set(going):
            self._metrics[names.EPISODES_OPEN].labels(model).set(0)
        for model in going:
            self._metrics[names.EPISODES_OPEN].labels(model).set(1)
        self._shown = set(going)


def _looked(episode: Episode, asked: tuple[Alert, float] | None, now: float) -> Episode:
    """The episode after a look at it. What is written each second is left alone where it says nothing new."""
    unseen = now - episode.looked_at
    if asked is not None:
        alert, until = asked
        told = _alert_json(alert)
        same = told["labels"] == episode.alert.get("labels") and told["fired_at"] == episode.alert.get("fired_at")
        fresh = same and episode.quiet_since is None and 0 <= unseen < _WRITE_SECONDS
        longer = max(until, episode.asked_until) if same else until
        return episode if fresh else replace(episode, asked_until=longer, quiet_since=None, looked_at=now, alert=told)
    quiet = episode.quiet_since
    if quiet is None and now >= episode.asked_until:
        quiet = now if unseen > _UNSEEN_SECONDS else max(episode.asked_until, episode.looked_at)
    elif quiet is not None and unseen > _UNSEEN_SECONDS:
        quiet += unseen
    if quiet == episode.quiet_since and 0 <= unseen < _WRITE_SECONDS:
        return episode
    return replace(episode, quiet_since=quiet, looked_at=now)


def _actions_of(connection: sa.Connection, episode: Episode) -> list[Action]:
    return actions_with_prefix(connection, f"{episode.key}:")


def _earlier(connection: sa.Connection, episode: Episode) -> list[Action]:
    """The attempts of the episodes that it goes on from, oldest first."""
    found: list[Action] = []
    for _ in range(_CHAIN):
        before = None if episode.follows is None else episode_by_id(connection, episode.follows)
        if before is None:
            break
        found = [*_actions_of(connection, before), *found]
        episode = before
    return found


def _attempts_json(connection: sa.Connection, episode: Episode) -> list[dict[str, Any]]:
    return [
        {"action": action.id, "began_at": action.started_at, **attempt_of(action).to_json()}
        for action in _actions_of(connection, episode)
    ]


def _begun_since(connection: sa.Connection, model: str, since: float) -> int:
    columns = ACTIONS.c
    query = sa.select(sa.func.count()).where(
        columns.model == model, columns.action == RETRAIN, columns.actor == "", columns.started_at > since
    )
    return int(connection.execute(query).scalar_one())


def _only(versions: frozenset[str]) -> str:
    return next(iter(versions)) if len(versions) == 1 else ""


def _alert_json(alert: Alert) -> dict[str, Any]:
    return {
        "labels": dict(alert.labels),
        "annotations": dict(alert.annotations),
        "value": repr(alert.value),  # JSON knows no NaN
        "active_at": alert.active_at,
        "fired_at": alert.fired_at,
        "generator_url": alert.generator_url,
    }


def _alert_of(body: Mapping[str, Any]) -> Alert:
    return Alert(
        labels=labels_of(body["labels"]),
        annotations=labels_of(body["annotations"]),
        value=float(body["value"]),
        state="firing",
        active_at=body["active_at"],
        fired_at=body["fired_at"],
        generator_url=body["generator_url"],
    )
