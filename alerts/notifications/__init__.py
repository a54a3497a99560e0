"""What an Alertmanager does: alerts taken, routed, grouped, inhibited, silenced and told, each once, over restarts."""

from alerts.notifications.alertmanager import Alertmanager
from alerts.notifications.api import AlertmanagerApi
from alerts.notifications.configuration import (
    Configuration,
    load_configuration,
    read_configuration,
    simple_configuration,
)
from alerts.notifications.matchers import parse_matcher, parse_matchers
from alerts.notifications.receivers import Receiver, simple_receiver
from alerts.notifications.route import Route
from alerts.notifications.yaml_reader import ConfigurationError

__all__ = [
    "Alertmanager",
    "AlertmanagerApi",
    "Configuration",
    "ConfigurationError",
    "Receiver",
    "Route",
    "load_configuration",
    "parse_matcher",
    "parse_matchers",
    "read_configuration",
    "simple_configuration",
    "simple_receiver",
]
