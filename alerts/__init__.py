"""Judge and act: Prometheus rules, evidence on releases, notification, and the actions that follow, with a journal."""

from alerts.actions import ActionPolicy, CommandHook, FunctionHook, HttpHook, serving_hooks
from alerts.api import alerts_app, serve
from alerts.config import AlertsConfig
from alerts.evidence import VerdictPolicy
from alerts.labels import Matcher, parse_matcher
from alerts.notifications import ConfigurationError, Route
from alerts.rules import Problem, RuleError, check, load
from alerts.service import AlertsService

__all__ = [
    "ActionPolicy",
    "AlertsConfig",
    "AlertsService",
    "CommandHook",
    "ConfigurationError",
    "FunctionHook",
    "HttpHook",
    "Matcher",
    "Problem",
    "Route",
    "RuleError",
    "VerdictPolicy",
    "alerts_app",
    "check",
    "load",
    "parse_matcher",
    "serve",
    "serving_hooks",
]
