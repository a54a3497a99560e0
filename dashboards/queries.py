"""The PromQL that the pages send, built from the catalogue of names; plain enough for any Prometheus since 2.0."""

from __future__ import annotations

from observability import names


def _where(model: str, /, **labels: str) -> str:
    pairs = {"model": model, **labels}
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in pairs.items()) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def span_text(seconds: float) -> str:
    """A PromQL duration."""
    return f"{max(1, round(seconds))}s"


def gauge(metric: names.Metric, model: str, /, **labels: str) -> str:
    """A metric of the model as it is."""
    return metric.name + _where(model, **labels)


def rate(metric: names.Metric, model: str, by: tuple[str, ...], over: float, suffix: str = "") -> str:
    """Events a second, summed by labels."""
    return f"{_sum(by)} (rate({metric.name}{suffix}{_where(model)}[{span_text(over)}]))"


def increase(metric: names.Metric, model: str, by: tuple[str, ...], over: float, suffix: str = "") -> str:
    """Events in a stretch of time, summed by labels."""
    return f"{_sum(by)} (increase({metric.name}{suffix}{_where(model)}[{span_text(over)}]))"


def quantile(q: float, metric: names.Metric, model: str, by: tuple[str, ...], over: float) -> str:
    """A quantile of a histogram over a moving window."""
    return f"histogram_quantile({q:g}, {rate(metric, model, (*by, 'le'), over, '_bucket')})"


def mean(metric: names.Metric, model: str, by: tuple[str, ...], over: float) -> str:
    """The mean of a histogram over a moving window."""
    return f"{rate(metric, model, by, over, '_sum')} / {rate(metric, model, by, over, '_count')}"


def active_alerts() -> str:
    """The series that the alert rules write while they are pending or firing."""
    return 'ALERTS{alertstate=~"pending|firing"}'


def targets() -> str:
    """Which scraped targets answer."""
    return "up"


def _sum(by: tuple[str, ...]) -> str:
    return f"sum by ({', '.join(by)})" if by else "sum"


def beginnings(model: str) -> dict[str, str]:
    """Range queries that tell since when there is anything to show on an axis of time."""
    known = (names.TRAFFIC_WEIGHT, names.INFERENCE_REQUESTS, names.PERFORMANCE_LABELLED)
    return {metric.name: gauge(metric, model) for metric in known} | {"alerts": active_alerts()}


def training_beginnings(model: str) -> dict[str, str]:
    """Range queries that tell since when there was any training."""
    return {metric.name: gauge(metric, model) for metric in (names.TRAINING_LOSS, names.TRAINING_RUNS)}


def peak(query: str, over: float) -> str:
    """The greatest value since the point before: what lived for less than a step is still seen."""
    return f"max_over_time({query}[{span_text(over)}])"


def overview(model: str, over: float, step: float) -> dict[str, str]:
    """Range queries of the overview."""
    duration = names.INFERENCE_DURATION
    return {
        "requests": rate(names.INFERENCE_REQUESTS, model, ("version", "outcome"), over),
        "p50": quantile(0.5, duration, model, (), over),
        "p99": quantile(0.99, duration, model, (), over),
        "drift": gauge(names.DRIFT_COLUMNS, model),
        "log_loss": gauge(names.PERFORMANCE_SCORE, model, metric="log_loss"),
        "rmse": gauge(names.PERFORMANCE_SCORE, model, metric="rmse"),
        "outcomes": gauge(names.INFERENCE_REQUESTS, model),
        "weights": peak(gauge(names.TRAFFIC_WEIGHT, model), step),
        "alerts": peak(active_alerts(), step),
    }


def objectives(model: str, span: float) -> dict[str, str]:
    """Instant queries of the overview: what the objectives are judged on over the whole span."""
    buckets = increase(names.INFERENCE_DURATION, model, ("le",), span, "_bucket")
    return {
        "p99": f"histogram_quantile(0.99, {buckets})",
        "up": targets(),
    }


def serving(model: str, over: float) -> dict[str, str]:
    """Range queries of the serving page."""
    latencies = {
        f"p{q * 100:g}": quantile(q, names.INFERENCE_DURATION, model, ("version",), over) for q in (0.5, 0.95, 0.99)
    }
    return {
        **latencies,
        "requests": rate(names.INFERENCE_REQUESTS, model, ("version", "outcome"), over),
        "outcomes": gauge(names.INFERENCE_REQUESTS, model),
        "queue": quantile(0.95, names.INFERENCE_QUEUE, model, (), over),
        "compute": quantile(0.95, names.INFERENCE_COMPUTE, model, (), over),
        "batch_rows": mean(names.INFERENCE_BATCH_ROWS, model, ("version",), over),
        "queue_rows": gauge(names.QUEUE_ROWS, model),
        "queue_limit": gauge(names.QUEUE_LIMIT_ROWS, model),
    }


def batches(model: str, span: float) -> dict[str, str]:
    """Instant queries of the serving page."""
    return {
        "batch_sizes": increase(names.INFERENCE_BATCH_ROWS, model, ("le",), span, "_bucket"),
        "close_reasons": increase(names.INFERENCE_BATCHES, model, ("close_reason",), span),
    }


def drift(model: str) -> dict[str, str]:
    """Range queries of the drift page."""
    return {
        "performance": gauge(names.PERFORMANCE_SCORE, model),
        "estimated": gauge(names.ESTIMATED_SCORE, model),
        "labelled": gauge(names.PERFORMANCE_LABELLED, model),
    }


def quality(model: str) -> dict[str, str]:
    """Range queries of the quality page."""
    return {
        "volume": gauge(names.QUALITY_VOLUME, model),
        "missing": gauge(names.QUALITY_MISSING, model),
        "duplicated": gauge(names.QUALITY_DUPLICATED, model),
    }


def training(model: str) -> dict[str, str]:
    """Range queries of the training page."""
    return {
        "loss": gauge(names.TRAINING_LOSS, model),
        "throughput": gauge(names.TRAINING_THROUGHPUT, model),
        "gradient_norm": gauge(names.TRAINING_GRADIENT_NORM, model),
        "evaluation": gauge(names.TRAINING_EVALUATION, model),
        "steps": gauge(names.TRAINING_STEPS, model),
        "runs": gauge(names.TRAINING_RUNS, model),
        "skipped": gauge(names.TRAINING_NONFINITE, model),
        "findings": gauge(names.TRAINING_FINDINGS, model),
        "restarts": gauge(names.TRAINING_RESTARTS, model),
        "goodput": gauge(names.TRAINING_GOODPUT, model),
        "mfu": gauge(names.TRAINING_MFU, model),
    }


def run(model: str, run: str) -> dict[str, str]:
    """Range queries of one training run."""
    gauges = (names.TRAINING_LOSS, names.TRAINING_GRADIENT_NORM, names.TRAINING_THROUGHPUT)
    keys = ("loss", "gradient_norm", "throughput")
    return {key: gauge(metric, model, run=run) for key, metric in zip(keys, gauges, strict=True)}


def phases(model: str, span: float) -> dict[str, str]:
    """Instant queries of the training page."""
    return {
        "phase_seconds": increase(names.TRAINING_PHASE_DURATION, model, ("phase",), span, "_sum"),
        "phase_count": increase(names.TRAINING_PHASE_DURATION, model, ("phase",), span, "_count"),
        # Every rank's steps are in the phases' sums, too; those that the run has taken are counted once.
        "steps": increase(names.TRAINING_STEP_DURATION, model, (), span, "_count"),
        "rank_phases": gauge(names.TRAINING_RANK_PHASE, model),
        "rank_up": gauge(names.TRAINING_RANK_UP, model),
        "rank_step": gauge(names.TRAINING_RANK_STEP, model),
        "rank_slowdown": gauge(names.TRAINING_RANK_SLOWDOWN, model),
        "wall": gauge(names.TRAINING_WALL_TIME, model),
    }


def learners(model: str, span: float) -> dict[str, str]:
    """Instant queries of the training page: online learners, federations and parameter servers."""
    return {
        "online_events": gauge(names.ONLINE_EVENTS, model),
        "online_loss": gauge(names.ONLINE_SCORE, model, metric="log_loss"),
        "online_excess": gauge(names.ONLINE_EXCESS, model),
        "online_rate": gauge(names.ONLINE_RATE, model),
        "online_rollbacks": gauge(names.ONLINE_ROLLBACKS, model),
        "online_drifts": gauge(names.ONLINE_DRIFTS, model),
        "online_position": gauge(names.ONLINE_POSITION, model),
        "federated_round": gauge(names.FEDERATED_ROUND, model),
        "federated_rounds": gauge(names.FEDERATED_ROUNDS, model),
        "federated_clients": gauge(names.FEDERATED_CLIENTS, model),
        "federated_participation": gauge(names.FEDERATED_PARTICIPATION, model),
        "federated_updates": gauge(names.FEDERATED_UPDATES, model),
        "federated_suspicion": gauge(names.FEDERATED_SUSPICION, model),
        "federated_drift": gauge(names.FEDERATED_CLIENT_DRIFT, model),
        "federated_loss": gauge(names.FEDERATED_LOSS, model),
        "server_workers": gauge(names.PARAMETER_SERVER_WORKERS, model),
        "server_updates": gauge(names.PARAMETER_SERVER_UPDATES, model),
        "server_missed": mean(names.PARAMETER_SERVER_MISSED, model, ("server",), span),
        "server_wait": mean(names.PARAMETER_SERVER_WAIT, model, ("server",), span),
    }
