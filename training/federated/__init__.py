"""Federated learning: clients train on rows that never leave them; a server makes one model of what they learned."""

from training.federated.aggregation import Aggregation, AggregationError
from training.federated.client import Connection, FederatedClient, InProcess, Learner, OverHttp, Refused, ServerAway
from training.federated.federation import Federation, FederationError, Plan, Verdict
from training.federated.local import Learned, LocalPlan, parameters, take, train_locally
from training.federated.protocol import ProtocolError, Task, pack_update
from training.federated.server import application, serve
from training.federated.tabular import Setup, feature_profile, tabular_learner

__all__ = [
    "Aggregation",
    "AggregationError",
    "Connection",
    "FederatedClient",
    "Federation",
    "FederationError",
    "InProcess",
    "Learned",
    "Learner",
    "LocalPlan",
    "OverHttp",
    "Plan",
    "ProtocolError",
    "Refused",
    "ServerAway",
    "Setup",
    "Task",
    "Verdict",
    "application",
    "feature_profile",
    "pack_update",
    "parameters",
    "serve",
    "tabular_learner",
    "take",
    "train_locally",
]
