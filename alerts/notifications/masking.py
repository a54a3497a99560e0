"""A configuration as the API shows it: secrets masked, and in a form that Alertmanager's own tools can read."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit, urlunsplit

import yaml

MASK = "<secret>"
_SECRETS = frozenset((
    "smtp_auth_password", "smtp_auth_secret", "slack_api_url", "opsgenie_api_key", "wechat_api_secret",
    "victorops_api_key", "api_secret", "auth_password", "auth_secret", "service_key", "routing_key", "api_key",
    "user_key", "token", "bot_token", "webhook_url", "password", "credentials", "bearer_token", "client_secret",
    "secret_key", "access_key", "secrets",
))  # fmt: skip
# A routing key is a secret of PagerDuty's only: VictorOps' names a team.
_PUBLIC = {"victorops_configs": frozenset(("routing_key",))}
_OWN = frozenset(("apprise_configs",))


def shown_configuration(tree: Any) -> str:
    """YAML of a configuration without its secrets and without the fields that only Trimtab has."""
    return str(yaml.safe_dump(_masked(tree, frozenset(), ""), sort_keys=False, allow_unicode=True, width=1000))


def _masked(node: Any, public: frozenset[str], section: str) -> Any:
    if isinstance(node, dict):
        shown = {}
        for name, value in node.items():
            if name in _OWN:
                continue
            if name in _SECRETS and name not in public and value is not None:
                shown[name] = [MASK for _ in value] if isinstance(value, list) else MASK
            elif name == "api_url" and section == "slack_configs":
                shown[name] = MASK
            elif isinstance(value, str) and "://" in value:
                shown[name] = _without_password(value)
            else:
                shown[name] = _masked(value, _PUBLIC.get(name, public), name if name.endswith("_configs") else section)
        return shown
    return [_masked(item, public, section) for item in node] if isinstance(node, list) else node


def _without_password(text: str) -> str:
    try:
        parts = urlsplit(text)
        if parts.password is None:
            return text
    except ValueError:
        return text
    return urlunsplit(parts._replace(netloc=f"{parts.username}:xxxxx@{parts.netloc.rpartition('@')[2]}"))
