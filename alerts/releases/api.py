"""Releases in the API of the alerts service: what they are, and what people decide on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from alerts.evidence.verdict import bounded_exp
from alerts.releases.controller import ReleaseController, UnknownRelease
from alerts.releases.decisions import NotNow
from alerts.releases.policy import named
from alerts.releases.walk import Phase, Walk
from alerts.releases.walk_store import InProgress

STATUS: dict[type[Exception], int] = {UnknownRelease: 404, InProgress: 409, NotNow: 409}
"""What its errors are answered with."""


class ReleasesApi:
    """Its endpoints; each gets the request and the body as JSON."""

    def __init__(self, releases: ReleaseController) -> None:
        self._releases = releases

    def table(self) -> list[tuple[str, list[str], Callable[[Request, Any], Any]]]:
        """Path, methods and function of each."""
        deeds = {
            "pause": self._releases.pause, "resume": self._releases.resume, "abort": self._releases.abort,
        }  # fmt: skip
        return [
            ("/api/v1/releases", ["GET"], self._list),
            ("/api/v1/releases", ["POST"], self._begin),
            ("/api/v1/releases/{model}", ["GET"], self._show),
            ("/api/v1/releases/{model}/approve", ["POST"], self._approve),
            *((f"/api/v1/releases/{{model}}/{name}", ["POST"], self._decide(deed)) for name, deed in deeds.items()),
        ]

    def _list(self, request: Request, body: Any) -> Any:
        text = request.query_params.get("limit", "100")
        if not text.isdigit() or not 0 < int(text) <= 10_000:
            raise ValueError(f"limit must be a whole number from 1 to 10000, got {text!r}")
        walks = self._releases.walks(model=request.query_params.get("model", ""), limit=int(text))
        policies = self._releases.policies()
        return {
            "releases": [walk_json(walk) for walk in walks],
            "policies": {
                name: {"digest": policy.digest, "steps": [named(step) for step in policy.steps]}
                for name, policy in policies.policies.items()
            },
            "version": policies.version,
            "error": self._releases.error,
        }

    def _show(self, request: Request, body: Any) -> Any:
        model = request.path_params["model"]
        found = self._releases.walks(model=model, limit=1)
        if not found:
            raise UnknownRelease(f"{model!r} has no release: `trimtab releases start {model} VERSION` begins one")
        (walk,) = found
        journal = [entry.to_json() for entry in self._releases.store.history(walk)]
        return {**walk_json(walk), "explanation": self._releases.explain(walk), "journal": journal}

    def _begin(self, request: Request, body: Any) -> Any:
        fields = _texts(body, "model", "actor", "reason", "override", also=("version",))
        version = body.get("version")
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise ValueError(f"version is {version!r}; give a whole number from 1")
        model = fields.pop("model")
        if not model:
            raise ValueError("a release needs a model")
        return JSONResponse(walk_json(self._releases.begin(model, version, **fields)), 202)

    def _approve(self, request: Request, body: Any) -> Any:
        fields = _texts(body, "actor", "reason", "override")
        # Who does not say what overrides an open blessing overrides it with the reason.
        given = fields.pop("override")
        override = given if "override" in body else None
        return walk_json(self._releases.approve(request.path_params["model"], **fields, override=override))

    def _decide(self, deed: Callable[..., Walk]) -> Callable[[Request, Any], Any]:
        def decide(request: Request, body: Any) -> Any:
            return walk_json(deed(request.path_params["model"], **_texts(body, "actor", "reason")))

        return decide


def walk_json(walk: Walk) -> dict[str, Any]:
    """A release as the API shows it; times are unix seconds."""
    return {
        "id": walk.id,
        "model": walk.model,
        "version": walk.version,
        "release": walk.release,
        "phase": walk.phase.value,
        "step": walk.step + 1,
        "steps": [named(step) for step in walk.policy.steps],
        "place": walk.place,
        "promoted_at": walk.promoted_at,
        "watch": None if walk.watch is None else watch_json(walk),
        "share": walk.share,
        "held": None if walk.held is None else walk.held.value,
        "paused": walk.paused,
        "reason": walk.reason,
        "actor": walk.actor,
        "began_at": walk.began_at,
        "entered_at": walk.entered_at,
        "ended_at": walk.ended_at,
        "policy": walk.policy.digest,
        "blessing": None if walk.blessing is None else walk.blessing.to_json(),
        "conclusion": None if walk.conclusion is None else dict(walk.conclusion),
    }


def watch_json(walk: Walk) -> dict[str, Any]:
    """A walk's watch as the API shows it: the evidence by check, what an alarm needs, and both arms' counts."""
    watch, policy, after = walk.watch, walk.policy.verdict, walk.policy.after_promotion
    assert watch is not None
    counts = watch.counts
    return {
        "beside": watch.beside.value,
        "hold_back": after.hold_back if after else 0.0,
        "until": walk.entered_at + after.seconds if after and walk.phase is Phase.GUARDING else None,
        "evidence": bounded_exp(watch.log_evidence(policy)),
        "alarm_at": after.threshold if after and walk.promoted else None,
        "checks": {check: bounded_exp(value) for check, value in watch.log_harm(policy).items()},
        "requests": {"candidate": counts.canary_requests, "other": counts.stable_requests},
        "errors": {"candidate": counts.canary_errors, "other": counts.stable_errors},
    }


def _texts(body: Any, *names: str, also: tuple[str, ...] = ()) -> dict[str, str]:
    if not isinstance(body, dict):
        raise TypeError(f"the body must be a JSON object, got {body!r}")
    unknown = body.keys() - {*names, *also}
    if unknown:
        raise ValueError(f"the field {min(unknown)!r} is unknown; known are {', '.join((*names, *also))}")
    for name in names:
        if not isinstance(body.get(name, ""), str):
            raise TypeError(f"{name} must be text, got {body[name]!r}")
    return {name: body.get(name, "") for name in names}
