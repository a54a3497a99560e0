"""Parameters on servers: sharded, read and changed by workers that may be stale by a bounded number of steps."""

from training.parameter_server.client import Client, GradientError, Replica, ServersLost, snapshot
from training.parameter_server.cluster import Cluster, ClusterError, ClusterResult, WorkerContext
from training.parameter_server.form import Form, ServersForm, form_of
from training.parameter_server.gloo import GlooConnect, GlooLink, GlooServer
from training.parameter_server.layout import Layout, LayoutError, Part, Table
from training.parameter_server.links import Connect, Link, LinkLost, LocalLink
from training.parameter_server.rules import Rule
from training.parameter_server.server import Server
from training.parameter_server.shard import Gradient, Shard, ShardError, Status, Terms

__all__ = [
    "Client",
    "Cluster",
    "ClusterError",
    "ClusterResult",
    "Connect",
    "Form",
    "GlooConnect",
    "GlooLink",
    "GlooServer",
    "Gradient",
    "GradientError",
    "Layout",
    "LayoutError",
    "Link",
    "LinkLost",
    "LocalLink",
    "Part",
    "Replica",
    "Rule",
    "Server",
    "ServersForm",
    "ServersLost",
    "Shard",
    "ShardError",
    "Status",
    "Table",
    "Terms",
    "WorkerContext",
    "form_of",
    "snapshot",
]
