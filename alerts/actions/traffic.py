"""Rollback and promotion on our own serving: its control API as hooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alerts.actions.action import TRAFFIC_ACTIONS
from alerts.actions.hook import Call
from alerts.actions.webhook import HttpHook


def serving_hooks(serving_url: str, *, secret: str = "", timeout_seconds: float = 30.0) -> dict[str, HttpHook]:
    """Hooks for rollback and promote by `POST {serving_url}/api/v1/models/{model}/{action}`."""
    url = f"{serving_url.rstrip('/')}/api/v1/models/{{model}}/{{action}}"
    return {
        action: HttpHook(url, secret=secret, timeout_seconds=timeout_seconds, body=_control_body)
        for action in TRAFFIC_ACTIONS
    }


def _control_body(call: Call) -> Mapping[str, Any]:
    body = {"release": call.release} if call.release else {}
    return {**body, "reason": call.reason}
