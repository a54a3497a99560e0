"""Alertmanager's HTTP API, version 2: its paths, its JSON, its errors."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from alerts.labels import Labels, Matcher
from alerts.notifications.alert_store import KnownAlert
from alerts.notifications.alertmanager import Alertmanager
from alerts.notifications.matchers import parse_matcher
from alerts.notifications.muting import Muting
from alerts.notifications.times import rfc3339_millis
from alerts.notifications.views import alert_json, groups_json, silence_json, silences_in_order
from alerts.notifications.yaml_reader import ConfigurationError
from alerts.received import Invalid, Malformed, read_alert, read_silence
from alerts.silence import Silence, UnknownSilence
from collectors.store.regex import compile_go
from observability import names

Call = Callable[[Request, bytes], Any]

# What its query parameters take for true; a word that is none of them is false, and no word is the default, true.
_TRUE = ("", "true", "1", "yes", "ok", "y", "on", "selected", "checked", "t", "enabled")
# Of the Alertmanager that this behaves like: amtool warns of any other than its own.
_VERSION = {
    "version": "0.25.0", "revision": "trimtab", "branch": "", "buildUser": "", "buildDate": "", "goVersion": "",
}  # fmt: skip


class WrongMediaType(ValueError):
    """The body is not said to be JSON."""


class AlertmanagerApi:
    """The endpoints; each is called in a thread."""

    def __init__(self, alertmanager: Alertmanager) -> None:
        self._alertmanager = alertmanager

    def table(self) -> list[tuple[str, list[str], Call]]:
        """Path, methods and function of every endpoint."""
        calls: list[tuple[str, list[str], Call]] = [
            ("/api/v2/status", ["GET"], self._status),
            ("/api/v2/receivers", ["GET"], self._receivers),
            ("/api/v2/alerts", ["GET"], self._alerts),
            ("/api/v2/alerts", ["POST"], self._put_alerts),
            ("/api/v2/alerts/groups", ["GET"], self._groups),
            ("/api/v2/silences", ["GET"], self._silences),
            ("/api/v2/silences", ["POST"], self._put_silence),
            ("/api/v2/silence/{id}", ["GET"], self._silence),
            ("/api/v2/silence/{id}", ["DELETE"], self._expire_silence),
            ("/-/reload", ["POST"], self._reload),
        ]
        return [(path, methods, _guarded(call)) for path, methods, call in calls]

    def _status(self, request: Request, raw: bytes) -> Any:
        return {
            "cluster": {"peers": [], "status": "disabled"},
            "config": {"original": self._alertmanager.configuration.original},
            "uptime": rfc3339_millis(self._alertmanager.started_at),
            "versionInfo": _VERSION,
        }

    def _receivers(self, request: Request, raw: bytes) -> Any:
        return [{"name": name} for name in self._alertmanager.configuration.receivers]

    def _alerts(self, request: Request, raw: bytes) -> Any:
        now = self._alertmanager.clock()
        takes, muting = _receiver_filter(request), self._alertmanager.muting(now)
        shown = []
        for alert in self._wanted(request, muting, now):
            receivers = [route.receiver for route in self._alertmanager.configuration.route.match(alert.labels)]
            if any(map(takes, receivers)):
                shown.append(alert_json(alert, receivers, muting))
        return shown

    def _groups(self, request: Request, raw: bytes) -> Any:
        now = self._alertmanager.clock()
        takes, muting = _receiver_filter(request), self._alertmanager.muting(now)
        alerts = self._wanted(request, muting, now)
        return groups_json(self._alertmanager.configuration.route, alerts, muting, takes)

    def _wanted(self, request: Request, muting: Muting, now: float) -> list[KnownAlert]:
        """The alerts that fire and that the query asks for, by fingerprint."""
        matchers = [parse_matcher(text) for text in request.query_params.getlist("filter")]
        active, silenced, inhibited = (
            request.query_params.get(name, "").lower() in _TRUE for name in ("active", "silenced", "inhibited")
        )

        def wanted(alert: KnownAlert) -> bool:
            by_silence, by_alert = muting.silenced_by(alert.labels), muting.inhibited_by(alert.labels)
            return (
                (active or bool(by_silence or by_alert))
                and (silenced or not by_silence)
                and (inhibited or not by_alert)
                and all(_meets(matcher, alert.labels) for matcher in matchers)
            )

        return [alert for alert in self._alertmanager.alerts.firing(now) if wanted(alert)]

    def _put_alerts(self, request: Request, raw: bytes) -> Any:
        body = _json(request, raw, "alerts")
        if not isinstance(body, list):
            raise Malformed("the body must be a list of alerts")
        now, metrics = self._alertmanager.clock(), self._alertmanager.metrics
        resolve = self._alertmanager.configuration.resolve_timeout_seconds
        valid: list[KnownAlert] = []
        wrong: list[str] = []
        for place, item in enumerate(body):
            try:
                alert = read_alert(item, now, resolve, place)
            except (Malformed, Invalid):
                raise
            except ValueError as error:
                wrong.append(str(error))
                metrics[names.ALERTMANAGER_ALERTS_INVALID].labels("v2").inc()
            else:
                valid.append(alert)
                status = "resolved" if alert.resolved(now) else "firing"
                metrics[names.ALERTMANAGER_ALERTS_RECEIVED].labels(status, "v2").inc()
        # Like Alertmanager: what is valid is kept even if the rest is refused.
        self._alertmanager.post(valid, now)
        if wrong:
            raise ValueError("; ".join(wrong))
        return Response(status_code=200)

    def _silences(self, request: Request, raw: bytes) -> Any:
        now = self._alertmanager.clock()
        wanted = [parse_matcher(text) for text in request.query_params.getlist("filter")]
        found = [each for each in self._alertmanager.silences.all() if all(m in each.matchers for m in wanted)]
        return [silence_json(silence, now) for silence in silences_in_order(found, now)]

    def _put_silence(self, request: Request, raw: bytes) -> Any:
        silence = read_silence(_json(request, raw, "silence"))
        return {"silenceID": self._alertmanager.silences.set(silence, self._alertmanager.clock())}

    def _silence(self, request: Request, raw: bytes) -> Any:
        return silence_json(self._named(request), self._alertmanager.clock())

    def _expire_silence(self, request: Request, raw: bytes) -> Any:
        try:
            self._alertmanager.silences.expire(self._named(request).id, self._alertmanager.clock())
        except UnknownSilence:
            return JSONResponse("silence not found", 500)  # amtool's client knows no 404 here
        return Response(status_code=200)

    def _named(self, request: Request) -> Silence:
        text = request.path_params["id"]
        try:
            id = str(uuid.UUID(text))
        except ValueError:
            raise Invalid(f'silenceID in path must be of type uuid: "{text}"', 601) from None
        return self._alertmanager.silences.get(id)

    def _reload(self, request: Request, raw: bytes) -> Any:
        try:
            self._alertmanager.reload()
        except ConfigurationError as error:
            return JSONResponse(f"failed to reload config: {error}", 500)
        return Response(status_code=200)


def _guarded(call: Call) -> Call:
    """The endpoint with its failures as Alertmanager tells them."""

    def answer(request: Request, raw: bytes) -> Any:
        try:
            return call(request, raw)
        except Malformed as error:
            return JSONResponse({"code": 400, "message": str(error)}, 400)
        except WrongMediaType as error:
            return JSONResponse({"code": 415, "message": str(error)}, 415)
        except Invalid as error:
            return JSONResponse({"code": error.code, "message": str(error)}, 422)
        except UnknownSilence as error:
            return JSONResponse(str(error), 404)
        except ValueError as error:
            return JSONResponse(str(error), 400)

    return answer


def _json(request: Request, raw: bytes, what: str) -> Any:
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if raw and kind != "application/json":
        raise WrongMediaType(f'unsupported media type "{kind}", only [application/json] are allowed')
    if not raw:
        raise Invalid(f"{what} in body is required")
    try:
        return json.loads(raw.decode("utf-8", "replace"))  # as Go reads it
    except ValueError as error:
        raise Malformed(f"the body is not JSON: {error}") from error


def _receiver_filter(request: Request) -> Callable[[str], bool]:
    text = request.query_params.get("receiver")
    if not text:
        return lambda name: True
    try:
        pattern: re.Pattern[str] = compile_go(text)
    except ValueError as error:
        raise ValueError(f"failed to parse receiver param: {error}") from error
    return lambda name: pattern.fullmatch(name) is not None


def _meets(matcher: Matcher, labels: Labels) -> bool:
    """A filter on a label that is not there is met by the empty value, whichever way it asks."""
    there = any(name == matcher.name for name, _ in labels)
    if matcher.value == "" and there == matcher.op.startswith("!"):
        return True
    return matcher.matches(labels)
