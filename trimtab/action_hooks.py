"""How the settings let actions be done, and how freely: the hooks and policies of the alerts service."""

from __future__ import annotations

from dataclasses import fields

from alerts.actions import (
    ActionPolicy,
    CommandHook,
    FunctionHook,
    Hook,
    HttpHook,
    PolicyFile,
    function_of,
    load_policies,
)
from alerts.actions.kubernetes import ApiServer, kubernetes_hook
from alerts.actions.mlflow import MlflowAliasHook
from alerts.retraining import RetrainingPolicy
from trimtab.settings import ACTIONS, ActionSettings, Settings


class HookSettingsError(ValueError):
    """An action that the settings describe cannot be done so."""


def policies_of(settings: Settings) -> PolicyFile:
    """The policies of the settings, with those of the file that they name over them. Raises PolicyError."""
    own = settings.alerts
    policies = {name: _policy(own.actions.get(name, ActionSettings())) for name in ACTIONS}
    policies |= {name: _policy(action) for name, action in own.actions.items()}
    return load_policies(own.action_policy, policies) if own.action_policy else PolicyFile("", policies)


def retrainings_of(settings: Settings) -> dict[str, RetrainingPolicy]:
    """How episodes retrain, by model; `*` is every other one. Raises HookSettingsError."""
    found = {}
    for model, own in settings.alerts.retraining.items():
        try:
            found[model] = RetrainingPolicy(**{one.name: getattr(own, one.name) for one in fields(RetrainingPolicy)})
        except ValueError as error:
            raise HookSettingsError(f"alerts.retraining.{model}: {error}") from None
    return found


def hooks_of(settings: Settings) -> dict[str, Hook]:
    """The hooks that the settings name; what they do not name is left to our own serving. Raises HookSettingsError."""
    hooks = {}
    for name, action in settings.alerts.actions.items():
        try:
            hook = _hook(name.partition(":")[0], action, settings)
        except ValueError as error:
            raise HookSettingsError(f"alerts.actions.{name}: {error}") from None
        if hook is not None:
            hooks[name] = hook
    return hooks


def _policy(action: ActionSettings) -> ActionPolicy:
    return ActionPolicy(**{field.name: getattr(action, field.name) for field in fields(ActionPolicy)})


def _hook(kind: str, action: ActionSettings, settings: Settings) -> Hook | None:
    if action.command:
        return CommandHook(action.command, timeout_seconds=action.timeout_seconds)
    if action.url:
        return HttpHook(action.url, secret=settings.trimtab.secret, timeout_seconds=action.timeout_seconds)
    if action.function:
        return FunctionHook(function_of(action.function))
    if action.kubernetes:
        own = settings.alerts.kubernetes
        server = ApiServer(own.url, token=own.token, token_file=own.token_file, ca_file=own.ca_file)
        return kubernetes_hook(
            server, action.kubernetes, action=kind, ready_seconds=own.ready_seconds, min_replicas=own.min_replicas,
            max_replicas=own.max_replicas,
        )  # fmt: skip
    if action.mlflow:
        registry = settings.alerts.mlflow
        return MlflowAliasHook(registry.url, action.mlflow, token=registry.token)
    return None
