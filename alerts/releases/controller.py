"""Leads releases through their policies: looks each second, saves what follows, asks the act path for what that needs.

A walk is saved before it asks, and what it asks for has a key of its own, so a process that dies, a second engine, or a
database or server that is away for a while, change when things happen and not how often. What cannot be looked at leads
nowhere.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any, Protocol

import sqlalchemy as sa

from alerts.actions import ADVANCE, PROMOTE, ROLLBACK, Action, ActionState, NotWaiting
from alerts.evidence import FeedAway, FeedPage, Judgement, LabelFeed, NoLabels, VerdictPolicy
from alerts.querier import Querier, QueryError, Sample, SampleWriter, WriteError
from alerts.releases import decisions
from alerts.releases.blessing import Blessing, bless
from alerts.releases.explain import explained
from alerts.releases.gauges import WATCH_GROUP, Gauges, watch_samples
from alerts.releases.policy import ExperimentStep, ShadowStep, SwitchStep
from alerts.releases.policy_file import ReleasePolicies, read_policy
from alerts.releases.policy_watch import PolicyWatch
from alerts.releases.progress import advance
from alerts.releases.recheck import replay_json
from alerts.releases.serving_eyes import EyesShut
from alerts.releases.sight import Judged, Page, Seen, queries, readings
from alerts.releases.step_evidence import beside
from alerts.releases.step_labels import feed
from alerts.releases.walk import ENDED, Ask, Phase, Walk, asked, wish
from alerts.releases.walk_store import WalkStore
from alerts.releases.watch import Watched
from alerts.releases.watch_readings import watch_queries, watched
from alerts.states import Alert
from observability.metrics import Metrics

log = logging.getLogger(__name__)

_UNDECIDED = (ActionState.WAITING, ActionState.ADVISED, ActionState.HELD)
_EXAMINE_AGAIN_SECONDS = 5.0


class UnknownRelease(LookupError):
    """The model has no release."""


class Eyes(Protocol):
    """Serving, as `ServingEyes` sees it; raises EyesShut."""

    def page(self, model: str) -> Mapping[str, Any]:
        """The model's page."""

    def examine(self, model: str, version: int, inputs: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """What a version shows when it is tried."""

    def close(self) -> None:
        """Nothing is asked any more."""


class Actor(Protocol):
    """The act path, as `ActionRunner` is it."""

    def propose(
        self, action: str, model: str, *, key: str, reason: str, release: str = "",
        labels: Mapping[str, str] | None = None, evidence: Mapping[str, Any] | None = None,
    ) -> Action:  # fmt: skip
        """The machine asks by a plan."""

    def request(self, action: str, model: str, *, reason: str, actor: str, release: str = "", key: str = "") -> Action:
        """A person asks."""

    def approve(self, id: int, actor: str) -> Action:
        """A person lets it run."""

    def known(self, key: str) -> Action | None:
        """The action of a key."""


class ReleaseController:
    """`tick` does one second's work, `start` does it each second in a thread of its own, away from rules and alerts."""

    def __init__(
        self,
        engine: sa.Engine,
        *,
        policies: ReleasePolicies | PolicyWatch,
        eyes: Eyes,
        actor: Actor,
        judgement_of: Callable[[str, str], Judgement | None],
        querier: Querier,
        labels: LabelFeed | None = None,
        clock: Callable[[], float] = time.time,
        executor: Executor | None = None,
        metrics: Metrics | None = None,
        writer: SampleWriter | None = None,
        secret: str = "",
        interval_seconds: float = 1.0,
    ) -> None:
        self.store = WalkStore(engine, secret=secret)
        self._watch = policies if isinstance(policies, PolicyWatch) else PolicyWatch.of(policies)
        self._eyes = eyes
        self._actor = actor
        self._judgement_of = judgement_of
        self._querier = querier
        self._labels: LabelFeed = labels or NoLabels()
        self._clock = clock
        self._executor = executor or ThreadPoolExecutor(max_workers=2, thread_name_prefix="blessing")
        self._gauges = None if metrics is None else Gauges(metrics)
        self._writer = writer
        self._wrote = True
        self._interval = interval_seconds
        self._examined: dict[int, tuple[Future[Blessing], float]] = {}
        self._seen: dict[int, Seen] = {}
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def error(self) -> str:
        """Why the file of policies was not taken, "" when it was; the old policies stay in force."""
        return self._watch.error

    def policies(self) -> ReleasePolicies:
        """Those in force."""
        return self._watch.policies

    def verdict_of(self, model: str) -> VerdictPolicy | None:
        """When evidence suffices, as the model's policy in the file says."""
        found = self._watch.policies.of(model)
        return None if found is None else found.verdict

    def leads(self, alert: Alert) -> bool:
        """Whether what an alert asks for is for a walk to do: nothing is promoted past the policy's steps."""
        action, model = alert.label("action"), alert.label("model")
        if action not in (PROMOTE, ADVANCE, ROLLBACK) or alert.state != "firing":
            return False
        mine = [walk for walk, _ in self.store.open() if walk.model == model]
        if action == ROLLBACK:
            return any(walk.policy.on_failure == "hold" for walk in mine)
        return bool(mine)

    def tick(self, now: float) -> None:
        """Look at every release that is not over, and do what follows."""
        self._watch.look()
        walks = self.store.open()
        for walk, revision in walks:
            try:
                self._look(walk, revision, now)
            except sa.exc.SQLAlchemyError:
                raise
            except Exception:  # one release must not keep the others waiting
                log.exception("release %d of %s could not be looked at", walk.id, walk.model)
        if self._gauges is not None and (walks or self._gauges.shown):
            self._gauges.show([walk for walk, _ in self.store.latest(limit=50)], now)
        self._write([walk for walk, _ in walks], now)

    def start(self) -> None:
        """Tick each second until `close`."""
        self._thread = threading.Thread(target=self._run, name="releases", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The tick under way ends; a version that is being tried is not waited for."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._eyes.close()

    # --- people ------------------------------------------------------------------------------------------------------
    def begin(self, model: str, version: int, *, actor: str, reason: str = "", override: str = "") -> Walk:
        """Release a version by the model's policy. Raises ValueError where there is none, InProgress."""
        _named(actor)
        policy = self._watch.policies.of(model)
        if policy is None or not policy.steps:
            known = ", ".join(name for name, one in self._watch.policies.policies.items() if one.steps) or "none"
            raise ValueError(
                f"no release policy with steps is given for {model!r} (there are: {known}); add it to the file that "
                "`releases.policies` in the settings names"
            )
        if read_policy(policy.text) != policy:
            raise ValueError("the policy is not that of its text, by which releases are led: read it from a file")
        now = self._clock()
        walk = Walk(
            model=model, version=version, policy=policy, began_at=now, entered_at=now, actor=actor, override=override,
            reason=reason or f"asked for by {actor}",
        )  # fmt: skip
        return self.store.begin(walk, now)

    def approve(self, model: str, *, actor: str, reason: str = "", override: str | None = None) -> Walk:
        """A person lets a held release go on; `override` as in `Deed`. Raises UnknownRelease, NotNow."""
        return self._decided(model, decisions.Deed("approve", actor, reason, override))

    def pause(self, model: str, *, actor: str, reason: str = "") -> Walk:
        """A person stops it where it is. Raises UnknownRelease, NotNow."""
        return self._decided(model, decisions.Deed("pause", actor, reason))

    def resume(self, model: str, *, actor: str, reason: str = "") -> Walk:
        """It goes on from what is in force. Raises UnknownRelease, NotNow."""
        return self._decided(model, decisions.Deed("resume", actor, reason))

    def abort(self, model: str, *, actor: str, reason: str = "") -> Walk:
        """All traffic goes back to stable. Raises UnknownRelease, NotNow."""
        return self._decided(model, decisions.Deed("abort", actor, reason))

    def walks(self, *, model: str = "", limit: int = 100) -> list[Walk]:
        """Releases, newest first."""
        return [walk for walk, _ in self.store.latest(model=model, limit=limit)]

    def explain(self, walk: Walk) -> list[str]:
        """Where a release is, why it waits and what it needs, in words."""
        now = self._clock()
        if walk.ended:
            return explained(walk, Seen(now=now, judged=self._judged(walk)))
        seen = self._seen.get(walk.id) or self._look_around(walk, now)
        ask = wish(walk)
        return explained(walk, replace(seen, now=now, action=self._actor.known(ask.key) if ask else None))

    # --- the machine -------------------------------------------------------------------------------------------------
    def _write(self, walks: Sequence[Walk], now: float) -> None:
        """The evidence of watches, as they were a look ago."""
        samples = watch_samples(walks)
        if self._writer is None or not (samples or self._wrote):
            return
        try:
            self._writer.replace(WATCH_GROUP, samples, now)
            self._wrote = bool(samples)
        except WriteError as error:
            log.debug("the evidence of watches cannot be written: %s", error)

    def _look(self, walk: Walk, revision: int, now: float) -> None:
        seen = self._look_around(walk, now)
        after = advance(walk, seen)
        if after != walk and not self._saved(walk, after, revision, seen):
            return
        self._seen[walk.id] = seen
        ask = asked(after, now)
        if ask is not None:
            self._ask(after, ask)

    def _saved(self, before: Walk, after: Walk, revision: int, seen: Seen, deed: decisions.Deed | None = None) -> bool:
        judged, page = seen.judged, seen.page
        inputs = {
            "judged": None if judged is None else {
                "outcome": judged.outcome.value, "requests": judged.requests, "errors": judged.errors,
                "safety": judged.safety, "doubts": judged.doubts, "told": list(judged.told),
            },
            "generation": None if page is None else page.generation,
            "counted": [[total.outcome, total.total] for total in after.totals],
            **({"blessing": after.blessing.to_json()} if after.blessing and not before.blessing else {}),
            **({"labels": asdict(after.quality)} if after.quality is not None else {}),
            **({"conclusion": dict(after.conclusion)} if after.conclusion else {}),
            "replay": replay_json(before, after, seen, deed),
        }  # fmt: skip
        why = "" if deed is None else deed.reason
        if not self.store.change(before, after, revision, seen.now, inputs, why=why):
            return False
        if after.phase in ENDED:
            if self._gauges is not None:
                self._gauges.ended(after)
            self._examined.pop(after.id, None)
            self._seen.pop(after.id, None)
            log.info("release %d of %s is %s: %s", after.id, after.model, after.phase.value, after.reason)
        return True

    def _look_around(self, walk: Walk, now: float) -> Seen:
        page = None
        try:
            body = self._eyes.page(walk.model)
            page = Page.of(body)
        except (EyesShut, KeyError, TypeError, ValueError) as error:
            body = {}
            log.debug("%s cannot be looked at: %s", walk.model, error)
        ask = wish(walk)
        return Seen(
            now=now,
            page=page,
            judged=self._judged(walk),
            readings=self._readings(walk, now),
            watched=self._watched(walk, now),
            labels=self._labels_since(walk),
            action=None if ask is None else self._actor.known(ask.key),
            blessing=self._blessing(walk, body, now) if walk.phase is Phase.BLESSING and body else None,
        )

    def _judged(self, walk: Walk) -> Judged | None:
        judgement = self._judgement_of(walk.model, walk.release) if walk.release else None
        return None if judgement is None else Judged.of(judgement)

    def _readings(self, walk: Walk, now: float) -> Any:
        if walk.phase not in (Phase.WATCHING, Phase.HELD):
            return None
        step = walk.current
        kinds = {ShadowStep: "shadow", SwitchStep: "switch", ExperimentStep: "experiment"}
        kind = kinds.get(type(step))
        if kind is None:
            return None
        disagreement = step.disagreement if isinstance(step, ShadowStep) else 0.0
        answers = self._answers(walk, queries(walk.model, walk.version, kind, disagreement=disagreement), now)
        return None if answers is None else readings(answers)

    def _watched(self, walk: Walk, now: float) -> Watched | None:
        kind = beside(walk)
        answers = None if kind is None else self._answers(walk, watch_queries(walk, kind), now)
        return None if kind is None or answers is None else watched(walk, kind, answers)

    def _labels_since(self, walk: Walk) -> FeedPage | None:
        name = feed(walk)
        if not name:
            return None
        try:
            return self._labels.read(walk.model, name, 0 if walk.quality is None else walk.quality.read)
        except FeedAway as error:
            log.debug("labels of %s: %s", walk.model, error)
            return None

    def _answers(self, walk: Walk, asks: Sequence[str], now: float) -> list[Sequence[Sample]] | None:
        """The store's answers to all of them, or none."""
        try:
            answers = self._querier.instants(asks, now)
        except QueryError as error:
            log.debug("the store cannot be asked about %s: %s", walk.model, error)
            return None
        good = [answer for answer in answers if not isinstance(answer, QueryError)]
        return good if len(good) == len(asks) else None

    def _blessing(self, walk: Walk, body: Mapping[str, Any], now: float) -> Blessing | None:
        policy = walk.policy.blessing
        if policy is None:
            return None
        running, due = self._examined.get(walk.id, (None, 0.0))
        if running is None:
            if now >= due:
                future = self._executor.submit(self._examine, walk, body)
                self._examined[walk.id] = future, now
                return self._blessing(walk, body, now) if future.done() else None
            return None
        if not running.done():
            return None
        try:
            return running.result()
        except EyesShut as error:
            log.warning("version %d of %s could not be tried, it is tried again: %s", walk.version, walk.model, error)
            if now - due >= _EXAMINE_AGAIN_SECONDS:
                del self._examined[walk.id]
            return None

    def _examine(self, walk: Walk, body: Mapping[str, Any]) -> Blessing:
        assert walk.policy.blessing is not None
        versions = [one for one in body.get("versions") or () if one.get("version") == walk.version]
        sample = ((versions[0].get("lineage") or {}).get("sample") or {}) if versions else {}
        report = self._eyes.examine(walk.model, walk.version, sample.get("inputs")) if versions else {}
        return bless(report, body, walk.version, walk.policy.blessing)

    def _ask(self, walk: Walk, ask: Ask) -> None:
        known = self._actor.known(ask.key)
        if ask.actor and known is not None and known.state in _UNDECIDED:
            try:
                self._actor.approve(known.id, ask.actor)
            except NotWaiting as error:
                log.debug("%s runs already: %s", ask.key, error)
        elif ask.actor and known is None and ask.action == ROLLBACK:
            self._actor.request(
                ask.action, walk.model, reason=ask.reason, actor=ask.actor, release=ask.release, key=ask.key
            )
        elif known is None or known.state is ActionState.HELD:
            judgement = self._judgement_of(walk.model, walk.release) if walk.release else None
            evidence = {
                "walk": {"id": walk.id, "place": walk.place, "policy": walk.policy.digest},
                **({"release": judgement.to_json()} if judgement is not None else {}),
            }
            self._actor.propose(
                ask.action, walk.model, key=ask.key, reason=ask.reason, release=ask.release, labels=ask.labels,
                evidence=evidence,
            )  # fmt: skip

    def _decided(self, model: str, deed: decisions.Deed) -> Walk:
        _named(deed.actor)
        for _ in range(10):  # the machine may go on in between
            found: Sequence[tuple[Walk, int]] = self.store.latest(model=model, limit=1)
            if not found:
                raise UnknownRelease(f"{model!r} has no release: `trimtab releases start {model} VERSION` begins one")
            walk, revision = found[0]
            seen = self._look_around(walk, self._clock())
            after = decisions.decided(walk, seen, deed)
            if self._saved(walk, after, revision, seen, deed):
                ask = asked(after, seen.now)
                if ask is not None:
                    self._ask(after, ask)
                return after
        raise decisions.NotNow(f"the release of {model} goes on too fast: try again")

    def _run(self) -> None:
        away = False
        while not self._closing.wait(self._interval):
            try:
                self.tick(self._clock())
                away = False
            except sa.exc.SQLAlchemyError as error:
                if not away:
                    log.warning("the database of releases is away: %s", error)
                away = True
            except Exception:  # a lost second is better than releases that nobody leads
                log.exception("a second of leading releases failed")


def _named(actor: str) -> None:
    if not actor:
        raise ValueError("a decision on a release needs an actor: who says so?")
