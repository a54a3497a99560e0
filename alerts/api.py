"""The HTTP API of the alerts service, and `serve`, which runs it.

Alertmanager's API v2 and webhook receiver, Prometheus' rules and alerts, evidence, and actions with approvals. What is
wrong with a request is said in `{"error": …}` with 400, 401, 404, 409 or 422.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route as Path

from alerts.actions import NotWaiting, UnknownAction
from alerts.actions.explain import explain
from alerts.config import AlertsConfig
from alerts.notifications import AlertmanagerApi, ConfigurationError
from alerts.received import read_webhook, resolved_in
from alerts.releases.api import STATUS as RELEASE_STATUS
from alerts.releases.api import ReleasesApi
from alerts.rule_listing import BadParameter, alert_json, rule_discovery
from alerts.rules import RuleError
from alerts.service import AlertsService
from observability import signing
from observability.metrics import exposition

log = logging.getLogger(__name__)

_MAX_BODY_BYTES = 8 * 1024 * 1024
_STATUS: dict[type[Exception], int] = {
    UnknownAction: 404, NotWaiting: 409, **RELEASE_STATUS, TypeError: 422, ValueError: 400,
}  # fmt: skip
_ACTING = ("/api/v1/", "/hooks/")


class Unsigned(PermissionError):
    """A request that needs a signature and has none that fits."""


def serve(config: AlertsConfig) -> None:
    """Run the service until SIGTERM or SIGINT. Raises RuleError when a rule file cannot be used."""
    service = AlertsService(config)
    server = uvicorn.Server(
        uvicorn.Config(
            alerts_app(service),
            host=config.host,
            port=config.port,
            log_level="warning",
            timeout_graceful_shutdown=5,
        )
    )
    # uvicorn raises the signal again once it has shut down; a service that was asked to stop has not failed.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGHUP, lambda *_: service.ask_to_reload())
    server.run()


def alerts_app(service: AlertsService, *, run: bool = True) -> Starlette:
    """The application. With `run` it judges each second while it is up; without, `service.tick` is the caller's."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if run:
            service.start()
        try:
            yield
        finally:
            await run_in_threadpool(service.close)

    return Starlette(routes=Api(service).routes(), lifespan=lifespan)


class Api:
    """The endpoints. Each works in a thread, since all of them read the database."""

    def __init__(self, service: AlertsService) -> None:
        self._service = service

    def routes(self) -> list[Path]:
        """Every path of the API."""
        get, post = ["GET"], ["POST"]
        table: list[tuple[str, list[str], Callable[[Request, Any], Any]]] = [
            ("/-/healthy", get, lambda request, body: PlainTextResponse("OK")),
            ("/-/ready", get, self._ready),
            ("/metrics", get, self._metrics),
            ("/api/v1/rules", get, self._rules),
            ("/api/v1/alerts", get, self._prometheus_alerts),
            ("/api/v1/evidence", get, self._evidence),
            ("/api/v1/notifications", get, self._notifications),
            ("/hooks/alertmanager", post, self._webhook),
            ("/api/v1/webhook", post, self._webhook),
            ("/api/v1/episodes", get, self._episodes),
            ("/api/v1/actions", get, self._actions),
            ("/api/v1/actions", post, self._request_action),
            ("/api/v1/actions/{id}", get, self._action),
            ("/api/v1/actions/{id}/approve", post, self._approve),
            ("/api/v1/actions/{id}/reject", post, self._reject),
            ("/api/v1/actions/{id}/undo", post, self._undo),
        ]
        table += ReleasesApi(self._service.releases).table()
        own = [Path(path, self._endpoint(self._parsed(call)), methods=methods) for path, methods, call in table]
        own.append(Path("/-/reload", self._endpoint(self._reload), methods=["POST", "PUT"]))
        theirs = AlertmanagerApi(self._service.notifications).table()
        return own + [Path(path, self._endpoint(call), methods=methods) for path, methods, call in theirs]

    def _endpoint(self, call: Callable[[Request, bytes], Any]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            raw = await request.body()
            return await run_in_threadpool(self._answer, call, request, raw)

        return endpoint

    def _parsed(self, call: Callable[[Request, Any], Any]) -> Callable[[Request, bytes], Any]:
        """The endpoint with its body read as JSON, once it is known who asks."""

        def answer(request: Request, raw: bytes) -> Any:
            if request.method != "POST":
                return call(request, None)
            if request.url.path.startswith(_ACTING):
                self._check_signature(request, raw)
            return call(request, _json(raw))

        return answer

    def _answer(self, call: Callable[[Request, bytes], Any], request: Request, raw: bytes) -> Response:
        try:
            if len(raw) > _MAX_BODY_BYTES:
                return JSONResponse({"error": f"the body is larger than {_MAX_BODY_BYTES} bytes"}, 413)
            answer = call(request, raw)
        except Unsigned as error:
            return JSONResponse({"error": str(error)}, 401)
        except (LookupError, TypeError, ValueError) as error:
            status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
            if status == 500:
                raise
            return JSONResponse({"error": str(error)}, status)
        return answer if isinstance(answer, Response) else JSONResponse(answer)

    def _check_signature(self, request: Request, raw: bytes) -> None:
        """Requests that act need the secret: as our signature, or as the bearer token that Alertmanager can send."""
        secret = self._service.config.secret
        bearer = request.headers.get("Authorization", "").encode()
        if not secret or hmac.compare_digest(bearer, f"Bearer {secret}".encode()):
            return
        try:
            signing.verify(secret, request.headers.get(signing.HEADER), raw, self._service.clock())
        except signing.SignatureError as error:
            raise Unsigned(str(error)) from error

    def _ready(self, request: Request, body: Any) -> Response:
        ready = self._service.ticks > 0
        return PlainTextResponse("OK" if ready else "the first evaluation is not over yet", 200 if ready else 503)

    def _metrics(self, request: Request, body: Any) -> Response:
        self._service.notifications.count(self._service.clock())
        content, kind = exposition(self._service.metrics, request.headers.get("Accept"))
        return Response(content, media_type=kind)

    # --- Prometheus' API ---------------------------------------------------------------------------------------------
    def _rules(self, request: Request, body: Any) -> Any:
        try:
            data = rule_discovery(self._service.rules.groups, request.query_params)
        except BadParameter as error:
            return JSONResponse({"status": "error", "errorType": "bad_data", "error": str(error)}, 400)
        wrong = self._service.rules_error
        warnings = {"warnings": [f"the rule files could not be reloaded: {wrong}"]} if wrong else {}
        return {"status": "success", "data": data, **warnings}

    def _prometheus_alerts(self, request: Request, body: Any) -> Any:
        alerts = [alert_json(alert) for alert in self._service.rules.alerts() if alert.state != "inactive"]
        return {"status": "success", "data": {"alerts": alerts}}

    def _reload(self, request: Request, raw: bytes) -> Response:
        try:
            self._service.reload()
        except (RuleError, ConfigurationError) as error:
            return PlainTextResponse(f"failed to reload config: {error}", 500)
        return Response(status_code=200)

    # --- releases and actions ----------------------------------------------------------------------------------------
    def _evidence(self, request: Request, body: Any) -> Any:
        model = request.query_params.get("model")
        judgements = self._service.judge.judgements(_limit(request))
        return {
            "releases": [j.to_json() for j in judgements if model in (None, j.release.model)],
            "error": self._service.evidence_error,
        }

    def _webhook(self, request: Request, body: Any) -> Any:
        """Alerts of a real Alertmanager: what they ask for is in the journal before it is answered, and runs after."""
        now = self._service.clock()
        alerts, ignored = read_webhook(body, now)
        decided = self._service.received_by_webhook(alerts, resolved_in(body), now)
        return {"actions": [action.to_json() for action in decided], "ignored": ignored}

    def _notifications(self, request: Request, body: Any) -> Any:
        """What is still to be told, and whom it could not be told."""
        dispatcher = self._service.notifications.dispatcher
        return {
            "waiting": [
                {"id": item.id, "integration": item.integration, "title": item.message.title,
                 "group_key": item.message.group_key, "created_at": item.created_at, "deadline": item.deadline}
                for item in dispatcher.waiting()
            ],
            "failed": [
                {"integration": failure.integration, "title": failure.title, "at": failure.at, "error": failure.error,
                 "final": failure.final}
                for failure in dispatcher.failures()
            ],
        }  # fmt: skip

    def _actions(self, request: Request, body: Any) -> Any:
        model = request.query_params.get("model", "")
        return [action.to_json() for action in self._service.actions.actions(model=model, limit=_limit(request))]

    def _action(self, request: Request, body: Any) -> Any:
        action = self._service.actions.action(_id(request))
        rows = self._service.actions.entries(action.key)
        journal = [row.to_json() for row in rows]
        return {**action.to_json(), "explanation": explain(action, rows), "journal": journal}

    def _episodes(self, request: Request, body: Any) -> Any:
        model = request.query_params.get("model", "")
        return {"episodes": self._service.retraining.episodes(model=model, limit=_limit(request))}

    def _request_action(self, request: Request, body: Any) -> Any:
        fields = {name: _text(body, name) for name in ("action", "model", "reason", "actor")}
        action = self._service.actions.request(
            **fields,
            release=_text(body, "release"),
            labels=_labels(body),
            key=request.headers.get("Idempotency-Key", ""),
        )
        return JSONResponse(action.to_json(), 202)

    def _approve(self, request: Request, body: Any) -> Any:
        return self._service.actions.approve(_id(request), _text(body, "actor")).to_json()

    def _reject(self, request: Request, body: Any) -> Any:
        return self._service.actions.reject(_id(request), _text(body, "actor")).to_json()

    def _undo(self, request: Request, body: Any) -> Any:
        actor, reason = _text(body, "actor"), _text(body, "reason")
        return JSONResponse(self._service.actions.undo(_id(request), actor, reason).to_json(), 202)


def _labels(body: Any) -> dict[str, str]:
    found = body.get("labels") or {}
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise TypeError(f"labels must be an object of texts, got {found!r}")
    return found


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError as error:
        raise ValueError(f"the body is not JSON: {error}") from error


def _text(body: Any, name: str) -> str:
    value = body.get(name, "") if isinstance(body, dict) else None
    if not isinstance(value, str):
        raise TypeError(f"{name} must be text in a JSON object, got {value!r}")
    return value


def _id(request: Request) -> int:
    text = request.path_params["id"]
    if not text.isdigit() or len(text) > 18:
        raise UnknownAction(f"there is no action {text}")
    return int(text)


def _limit(request: Request) -> int:
    text = request.query_params.get("limit", "100")
    if not text.isdigit() or not 0 < int(text) <= 10_000:
        raise ValueError(f"limit must be a whole number from 1 to 10000, got {text!r}")
    return int(text)
