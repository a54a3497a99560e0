"""PromQL over the store: the engine, its values, and the Prometheus HTTP API as server and client."""

from collectors.query.client import PrometheusClient
from collectors.query.context import PROMETHEUS_2, PROMETHEUS_3, Semantics
from collectors.query.engine import Engine
from collectors.query.errors import QueryError
from collectors.query.http import QueryApi, query_app
from collectors.query.parse import format_query, parse, parse_selector
from collectors.query.status_calls import Configuration
from collectors.query.values import Matrix, MatrixSeries, Result, Scalar, String, Vector, VectorElement

__all__ = [
    "PROMETHEUS_2",
    "PROMETHEUS_3",
    "Configuration",
    "Engine",
    "Matrix",
    "MatrixSeries",
    "PrometheusClient",
    "QueryApi",
    "QueryError",
    "Result",
    "Scalar",
    "Semantics",
    "String",
    "Vector",
    "VectorElement",
    "format_query",
    "parse",
    "parse_selector",
    "query_app",
]
