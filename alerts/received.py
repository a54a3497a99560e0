"""Alerts and silences as requests bring them: read strictly, in the words of Alertmanager where something is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from alerts.labels import LABEL_NAME, Matcher, labels_of
from alerts.notifications.alert_store import KnownAlert
from alerts.notifications.times import read_time
from alerts.silence import Silence
from alerts.states import Alert


class Malformed(ValueError):
    """A request whose JSON is not what is asked for: 400 in Alertmanager's API."""


class Invalid(ValueError):
    """A request that lacks a field or has a value of the wrong form: 422, with go-openapi's code."""

    def __init__(self, message: str, code: int = 602) -> None:
        super().__init__(message)
        self.code = code


def read_alert(item: Any, now: float, resolve_seconds: float, place: int = 0) -> KnownAlert:
    """One alert of a request to Alertmanager's API; raises Malformed, Invalid, or ValueError for a wrong alert.

    Without a start it began now, or at its end if that is given; without an end it ends after the resolve timeout.
    """
    if not isinstance(item, Mapping):
        raise Malformed("an alert must be an object with labels")
    if item.get("labels") is None:
        raise Invalid(f"{place}.labels in body is required")
    labels = labels_of(_texts(item["labels"], "labels"))
    annotations = tuple(sorted(_texts(item.get("annotations"), "annotations").items()))
    ends, starts = _instant(item, "endsAt"), _instant(item, "startsAt")
    starts = starts or ends or now
    timeout = ends == 0
    ends = ends or now + resolve_seconds
    if ends < starts:
        raise ValueError("start time must be before end time")
    if not labels:
        raise ValueError("at least one label pair required")
    for what, pairs in (("label set", labels), ("annotations", annotations)):
        bad = [name for name, _ in pairs if not LABEL_NAME.match(name)]
        if bad:
            raise ValueError(f'invalid {what}: invalid name "{bad[0]}"')
    return KnownAlert(
        labels=labels,
        annotations=annotations,
        starts_at=starts,
        ends_at=ends,
        updated_at=now,
        timeout=timeout,
        generator_url=_url(item.get("generatorURL"), place),
    )


def read_webhook(body: Any, now: float) -> tuple[list[Alert], list[str]]:
    """The firing alerts of Alertmanager's webhook message, and why others of them cannot be used; raises ValueError.

    Only a firing alert says something: a resolved one may mean that it is well, or that nothing is known any more.
    """
    if not isinstance(body, Mapping) or not isinstance(body.get("alerts"), list):
        raise ValueError("the body must be Alertmanager's webhook message, version 4, with a list of alerts")
    if str(body.get("version", "4")) != "4":
        raise ValueError(f"the webhook message is of version {body['version']!r}; only version 4 is read")
    found: list[Alert] = []
    ignored: list[str] = []
    for item in body["alerts"]:
        if not isinstance(item, Mapping) or item.get("status") != "firing":
            continue
        try:
            alert = read_alert({**item, "endsAt": None, "generatorURL": None}, now, math.inf).as_alert(now)
            found.append(replace(alert, generator_url=str(item.get("generatorURL") or "")))
        except ValueError as error:
            ignored.append(str(error))
    if truncated := body.get("truncatedAlerts"):
        ignored.append(f"{truncated} alerts were left out of the message: set max_alerts to 0 in the receiver")
    return found, ignored


def resolved_in(body: Mapping[str, Any]) -> list[dict[str, str]]:
    """The labels of the alerts that a webhook message says are over; one of another form is left out."""
    over = [item for item in body["alerts"] if isinstance(item, Mapping) and item.get("status") == "resolved"]
    labels = [item["labels"] for item in over if isinstance(item.get("labels"), Mapping)]
    return [{str(name): str(value) for name, value in one.items()} for one in labels]


def read_silence(body: Any) -> Silence:
    """The silence of a request; raises Malformed, Invalid, or ValueError for a silence that is wrong."""
    if not isinstance(body, Mapping):
        raise Malformed("a silence is an object")
    missing = [name for name in ("comment", "createdBy", "endsAt", "matchers", "startsAt") if body.get(name) is None]
    if missing:
        raise Invalid(f"{missing[0]} in body is required")
    if not isinstance(body["matchers"], list):
        raise Malformed("matchers must be a list")
    if not body["matchers"]:
        raise Invalid("matchers in body should have at least 1 items", 612)
    starts, ends = _instant(body, "startsAt"), _instant(body, "endsAt")
    matchers = tuple(_read_matcher(item, place) for place, item in enumerate(body["matchers"]))
    if starts >= ends:
        raise ValueError("Failed to create silence: start time must be before end time")
    return Silence(
        id=str(body.get("id") or ""),
        matchers=matchers,
        starts_at=starts,
        ends_at=ends,
        created_by=str(body["createdBy"]),
        comment=str(body["comment"]),
    )


def _instant(body: Mapping[str, Any], name: str) -> float:
    try:
        return read_time(body.get(name), name, 0.0)
    except ValueError as error:
        raise Malformed(str(error)) from error


def _url(value: Any, place: int) -> str:
    text = str(value or "")
    if text and not urlsplit(text).scheme:
        raise Invalid(f'{place}.generatorURL in body must be of type uri: "{text}"', 601)
    return text


def _read_matcher(item: Any, place: int) -> Matcher:
    if not isinstance(item, Mapping):
        raise Malformed("a matcher is an object with name, value and isRegex")
    for name, kind in (("isRegex", bool), ("name", str), ("value", str), ("isEqual", bool)):
        if name != "isEqual" and item.get(name) is None:
            raise Invalid(f"matchers.{place}.{name} in body is required")
        if not isinstance(item.get(name, True), kind):
            raise Malformed(f"matchers.{place}.{name} must be {'text' if kind is str else 'true or false'}")
    operator = ("=" if item.get("isEqual", True) else "!") + ("~" if item["isRegex"] else "")
    try:
        return Matcher(item["name"], {"!": "!="}.get(operator, operator), item["value"])
    except ValueError as error:
        raise ValueError(f"silence invalid: invalid label matcher {place}: {error}") from error


def _texts(value: Any, what: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(text, str) for text in value.values()):
        raise Malformed(f"{what} must be an object of texts")
    return dict(value)
