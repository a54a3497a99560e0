"""COLLECT and MEASURE: receives telemetry, stores and queries it; computes drift, quality and performance.

The service is `collectors.api` (`CollectorConfig`, `build`, `serve`); readers use `collectors.query` and
`collectors.store`; the statistics are in `collectors.drift`. Nothing is imported here: rules and dashboards read
queries without loading the service.
"""

__all__ = ["api", "drift", "query", "store"]
