"""Every metric, span and resource name that Trimtab emits or computes: type, unit, labels, help, buckets in one place.

Names follow the Prometheus conventions (base units, `_total` on counters, `_ratio` on shares, `_seconds`), so that
`promtool check metrics` accepts every page. Nothing else in the project spells a metric name in quotes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

# The OpenTelemetry bounds of http.server.request.duration, with finer steps where batched inference lives.
LATENCY_SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
PHASE_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
STAGE_SECONDS = (
    1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
)  # fmt: skip
# From a request's last byte on: read and bound to its version; waiting; the batch gathered, run and taken apart (the
# same for all of its requests); its answer encoded, behind those of its batch that go first; handed to the socket.
STAGES = ("decode", "queue", "model", "encode", "write")
BATCH_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family. `name` is the full exposition name (with `_total` for counters)."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _counter(name: str, help: str, *labels: str) -> Metric:
    return Metric(name, "counter", help, labels)


def _gauge(name: str, help: str, *labels: str) -> Metric:
    return Metric(name, "gauge", help, labels)


def _histogram(name: str, help: str, buckets: tuple[float, ...], *labels: str) -> Metric:
    return Metric(name, "histogram", help, labels, buckets)


# --- serving: one request, one outcome, counted once at the edge -----------------------------------------------------
OUTCOMES = ("ok", "invalid", "rejected", "unavailable", "expired", "cancelled", "model_error", "non_finite")
# The outcomes that are the version's fault: they count against a release and against availability.
FAULTS = ("unavailable", "expired", "model_error", "non_finite")

INFERENCE_REQUESTS = _counter(
    "inference_requests_total", "Inference requests by outcome.", "model", "version", "outcome"
)
INFERENCE_DURATION = _histogram(
    "inference_request_duration_seconds",
    "Time from the last byte of a request to the first byte of its answer.",
    LATENCY_SECONDS, "model", "version",
)  # fmt: skip
INFERENCE_STAGE_DURATION = _histogram(
    "inference_stage_duration_seconds",
    "Time of a request by stage; the stages of a request add up to its inference_request_duration_seconds.",
    STAGE_SECONDS, "model", "version", "stage",
)  # fmt: skip   # stage: one of STAGES
INFERENCE_IN_FLIGHT = _gauge("inference_requests_in_flight", "Requests queued or with the model.", "model", "version")
INFERENCE_QUEUE = _histogram(
    "inference_queue_duration_seconds", "Time a request waited for its batch.", LATENCY_SECONDS, "model", "version"
)
INFERENCE_COMPUTE = _histogram(
    "inference_compute_duration_seconds", "Time the model worked on a batch.", LATENCY_SECONDS, "model", "version"
)
INFERENCE_BATCH_ROWS = _histogram("inference_batch_rows", "Rows in a batch.", BATCH_ROWS, "model", "version")
INFERENCE_BATCHES = _counter(
    "inference_batches_total", "Batches by the reason they were closed.", "model", "version", "close_reason"
)
CLOSE_REASONS = ("full", "idle", "delay", "deadline", "drain", "preferred", "latency", "bucket")
SHED_REASONS = (
    "queue_rows", "queue_bytes", "total_rows", "total_bytes", "concurrency", "deadline", "delay", "evicted",
)  # fmt: skip
REQUESTS_SHED = _counter(
    "inference_requests_shed_total",
    "Requests turned away before the model worked on them, by what there was too little of.",
    "model", "version", "reason",
)  # fmt: skip
PADDING_ROWS = _counter(
    "inference_padding_rows_total", "Rows added to fill batches up to an allowed size.", "model", "version"
)
INFERENCE_LATE_ROWS = _counter(
    "inference_late_rows_total", "Rows that reached the model behind their deadline.", "model", "version"
)
INFERENCE_ROWS = _counter("inference_rows_total", "Rows inferred.", "model", "version")
INFERENCE_LAST = _gauge(
    "inference_last_timestamp_seconds",
    "When the model last ran a batch, in seconds since the epoch; not there before the first.",
    "model", "version",
)  # fmt: skip
INFERENCE_UTILIZATION = _gauge(
    "inference_utilization_ratio",
    "Share of the last 15 seconds in which models worked, over 1 where several did at once; of replicas the busiest.",
)
QUEUE_ROWS = _gauge("inference_queue_rows", "Rows waiting for a batch.", "model", "version")
QUEUE_LIMIT_ROWS = _gauge("inference_queue_limit_rows", "Rows that may wait before requests are refused.", "model")
QUEUE_BYTES = _gauge("inference_queue_bytes", "Bytes of the requests that wait for a batch.", "model", "version")
QUEUE_LIMIT_BYTES = _gauge(
    "inference_queue_limit_bytes", "Bytes that may wait before requests are refused; 0 means no limit.", "model"
)
QUEUE_OLDEST = _gauge(
    "inference_queue_oldest_seconds", "Time that the oldest waiting request has waited.", "model", "version"
)
QUEUE_EXPECTED = _gauge(
    "inference_queue_expected_seconds", "Estimated time to work off what waits.", "model", "version"
)
BATCH_LIMIT_ROWS = _gauge(
    "inference_batch_limit_rows",
    "Rows of the largest batch at present: lower than set under a latency target and where memory was short.",
    "model", "version",
)  # fmt: skip
CONCURRENCY_LIMIT = _gauge(
    "inference_requests_limit", "Requests that may wait or run before more are refused; 0 means no limit.", "model"
)
ADAPTIVE_LIMIT_ROWS = _gauge(
    "inference_concurrency_limit_rows",
    "Rows that may wait or run at present, as adaptive concurrency finds it; 0 while that is off.", "model", "version",
)  # fmt: skip
MODEL_READY = _gauge("model_ready", "1 when the version is loaded, verified and warm.", "model", "version")
MODEL_INFO = _gauge("model_info", "Always 1; the digest of a loaded version.", "model", "version", "digest")
MODEL_LOAD_DURATION = _gauge(
    "model_load_duration_seconds", "Time the version took to load and warm up.", "model", "version"
)
MODEL_MEMORY = _gauge(
    "model_memory_bytes",
    "Memory of a loaded version: its weights, and by how much the process grew, files' pages apart, as it was loaded.",
    "model", "version", "kind",
)  # fmt: skip   # kind: weights | resident; the larger counts against the budget
MODEL_MEMORY_BUDGET = _gauge("model_memory_budget_bytes", "Bytes that loaded versions may take; 0 means no limit.")
MODEL_LOADS = _counter("model_loads_total", "Loads of versions by what asked for them.", "model", "reason", "outcome")
# reason: policy | repository | pinned | demand; outcome: ok | failed
MODEL_UNLOADS = _counter("model_unloads_total", "Unloads of versions by reason.", "model", "reason")
# reason: retired (no place in the policy) | evicted (memory) | repository
TRAFFIC_WEIGHT = _gauge(
    "traffic_weight_ratio", "Share of requests routed to the version.", "model", "version", "role"
)  # role: stable | canary | hold_back | shadow | ab:NAME (a variant of an experiment)
TRAFFIC_GENERATION = _gauge("traffic_generation", "Number of the traffic policy in force.", "model")
RELEASE_REQUESTS = _counter(
    "release_requests_total",
    "Live requests of a release by arm and logged routing probability of the canary; the canary test's input.",
    "model", "release", "candidate", "baseline", "arm", "propensity", "outcome",
)  # fmt: skip   # arm: canary | stable; outcome: ok | error (FAULTS); propensity: the canary's weight, e.g. "0.1"
RELEASE_DURATION = _histogram(
    "release_request_duration_seconds",
    "Time of a release's live requests (where units keep their arm, of their first ones) by arm and logged routing "
    "probability of the canary; the latency test's input.",
    LATENCY_SECONDS, "model", "release", "candidate", "baseline", "arm", "propensity",
)  # fmt: skip
RELEASE_FAILED_UNITS = _counter(
    "release_failed_units_total",
    "Units that failed for the first time in a release, where units keep their arm; requests without one count each.",
    "model", "release", "candidate", "baseline", "arm", "propensity",
)  # fmt: skip
RELEASE_UNITS = _counter(
    "release_units_total",
    "Units seen for the first time in a release, where units keep their arm; requests without one count each.",
    "model", "release", "candidate", "baseline", "arm", "propensity",
)  # fmt: skip
RELEASE_PREDICTIONS = _counter(
    "release_predictions_total",
    "Predictions of a release's arms by bin, and logged routing probability of the canary; computed by the collector.",
    "model", "release", "candidate", "baseline", "arm", "propensity", "bin",
)  # fmt: skip   # bin: 0 to 10, quantiles of the release's first predictions; 11: no number
TRAFFIC_STICKY = _gauge("traffic_sticky", "1 while a unit's requests keep their arm of a release.", "model")
EXPERIMENT_REQUESTS = _counter(
    "experiment_requests_total",
    "Live requests of an A/B test by variant; not those that a header or the caller sent to a variant.",
    "model", "release", "variant", "version", "propensity", "outcome",
)  # fmt: skip   # outcome: ok | error (FAULTS); propensity: the variant's weight, e.g. "0.25"
RESPONSE_CACHE_REQUESTS = _counter(
    "response_cache_requests_total", "Requests that the response cache looked at.", "model", "version", "result"
)  # result: hit | shared (waited for an equal request's answer) | miss | bypassed (hits had become too rare)
RESPONSE_CACHE_HIT_RATIO = _gauge(
    "response_cache_hit_ratio", "Share of hit and shared among the last requests that were looked up.", "model"
)
RESPONSE_CACHE_BYTES = _gauge("response_cache_bytes", "Memory that the cached answers take.", "model")
RESPONSE_CACHE_LIMIT_BYTES = _gauge("response_cache_limit_bytes", "Memory that cached answers may take.", "model")
RESPONSE_CACHE_ENTRIES = _gauge("response_cache_entries", "Answers in the cache.", "model")
RESPONSE_CACHE_EVICTIONS = _counter(
    "response_cache_evictions_total", "Answers that left the cache, by reason.", "model", "reason"
)  # reason: full | expired
SHADOW_DIFFERENCE = _histogram(
    "shadow_output_difference",
    "Largest absolute difference between the outputs of the shadow and the answering version, by request.",
    (1e-6, 1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 10.0), "model", "version", "shadow",
)  # fmt: skip
SHADOW_RELATIVE_DIFFERENCE = _histogram(
    "shadow_output_relative_difference",
    "Largest difference between the outputs of the shadow and the answering version, relative to the larger of the "
    "two, by request.",
    (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0), "model", "version", "shadow",
)  # fmt: skip
SHADOW_REQUESTS = _counter(
    "shadow_requests_total", "Requests copied to a shadow, by what became of the copy.", "model", "shadow", "outcome"
)  # outcome: compared | incomparable (other inputs or outputs, or the answer failed) | failed | dropped
SHADOW_RANKED_ROWS = _counter(
    "shadow_ranked_rows_total", "Compared rows with an output of at least two values.", "model", "version", "shadow"
)
SHADOW_OTHER_ROWS = _counter(
    "shadow_other_first_rows_total",
    "Compared rows whose largest output is another one for the shadow than for the answering version.",
    "model", "version", "shadow",
)  # fmt: skip

# --- serving: callers and clients ------------------------------------------------------------------------------------
CALLER_REQUESTS = _counter(
    "inference_caller_requests_total", "Requests by the caller whose token they bear, and what was decided.",
    "caller", "verdict",
)  # fmt: skip   # caller: a name of the settings, or "unknown"; verdict: admitted | unauthorized | forbidden | limited
CALLER_ROWS = _counter("inference_caller_rows_total", "Rows of a caller's admitted requests.", "caller")
CONNECTIONS_DROPPED = _counter(
    "inference_connections_dropped_total", "Connections that the server ended on slow clients, by what they did.",
    "reason",
)  # fmt: skip
DROP_REASONS = ("unsent", "unread", "memory")  # a request, an answer; an answer when others needed its memory
CLIENT_REQUESTS = _counter("inference_client_requests_total", "Requests of our client, by how they ended.", "outcome")
# outcome: ok | invalid | overloaded | deadline | connection | failed
CLIENT_RETRIES = _counter("inference_client_retries_total", "Requests that our client sent again, by why.", "reason")
# reason: connect | reset | rejected | unavailable

# --- serving by several processes ------------------------------------------------------------------------------------
REPLICA_UP = _gauge("replica_up", "1 while the replica takes requests.", "replica")
REPLICA_IN_FLIGHT = _gauge(
    "replica_in_flight_requests", "Requests that the fronts sent to the replica and have no answer to.", "replica"
)
REPLICA_QUEUE_ROWS = _gauge("replica_queue_rows", "Rows that wait in the replica for a batch.", "replica")
REPLICA_EJECTIONS = _counter(
    "replica_ejections_total", "Times that a front took the replica out of the traffic.", "replica", "reason"
)  # reason: closed | silent | outlier
REPLICA_RESTARTS = _counter("replica_restarts_total", "Times that the replica was started again.", "replica")
FRONT_UP = _gauge("front_up", "1 while the front process accepts connections.", "front")
FRONT_RESTARTS = _counter("front_restarts_total", "Times that the front process was started again.", "front")
RELAY_LOST = _counter(
    "relay_lost_requests_total", "Requests whose replica was lost before it answered, by what became of them.", "fate"
)  # fate: retried | refused
RELAY_REFUSED = _counter(
    "relay_refused_requests_total", "Requests that a front could send to no replica, by reason.", "reason"
)  # reason: none (no replica takes requests) | full (all of them hold what they may)

# --- telemetry: the exporter about itself ----------------------------------------------------------------------------
TELEMETRY_DELIVERED = _counter("telemetry_delivered_batches_total", "Batches the collector accepted.", "signal")
TELEMETRY_RETRIES = _counter("telemetry_retries_total", "Deliveries that failed and were tried again.", "signal")
TELEMETRY_DROPPED = _counter("telemetry_dropped_batches_total", "Batches given up.", "signal", "reason")
TELEMETRY_DROPPED_ROWS = _counter("telemetry_dropped_rows_total", "Rows in batches given up.", "signal", "reason")
TELEMETRY_QUEUE = _gauge("telemetry_queue_batches", "Batches waiting for delivery.", "signal")

# --- training --------------------------------------------------------------------------------------------------------
PHASES = (
    "data_wait", "host_to_device", "forward", "backward", "communication", "optimizer", "checkpoint", "evaluation",
)  # fmt: skip
TRAINING_STEPS = _counter("training_steps_total", "Optimizer steps taken.", "model")
TRAINING_SAMPLES = _counter("training_samples_total", "Samples trained on.", "model")
TRAINING_STEP_DURATION = _histogram("training_step_duration_seconds", "Time of a step.", PHASE_SECONDS, "model")
TRAINING_PHASE_DURATION = _histogram(
    "training_phase_duration_seconds", "Time of a phase of a step.", PHASE_SECONDS, "model", "phase"
)
TRAINING_LOSS = _gauge("training_loss", "Training loss of the last recorded step.", "model", "run")
TRAINING_GRADIENT_NORM = _gauge("training_gradient_norm", "Gradient norm before clipping.", "model", "run")
TRAINING_LEARNING_RATE = _gauge("training_learning_rate", "Learning rate.", "model", "run")
TRAINING_THROUGHPUT = _gauge("training_samples_per_second", "Samples a second since the last report.", "model", "run")
TRAINING_NONFINITE = _counter("training_nonfinite_steps_total", "Steps skipped: NaN or infinity.", "model")
TRAINING_SPIKES = _counter("training_loss_spikes_total", "Times that the loss left its own history upwards.", "model")
TRAINING_CHECKPOINTS = _counter("training_checkpoints_total", "Checkpoints by outcome.", "model", "outcome")
TRAINING_RUNS = _counter("training_runs_total", "Training runs ended, by outcome.", "model", "outcome")
# outcome: completed | failed | rejected (the gate said no)
TRAINING_RANK_STEP = _gauge("training_rank_step", "Steps that a rank has taken.", "model", "run", "rank")
TRAINING_RANK_UP = _gauge("training_rank_up", "1 while a rank trains, 0 after it died.", "model", "run", "rank")
TRAINING_RANK_IDLE = _gauge(
    "training_rank_idle_seconds", "Time since a rank last began or ended a phase.", "model", "run", "rank"
)
TRAINING_RANK_PHASE = _gauge(
    "training_rank_phase_seconds", "Median time of a phase over a rank's latest steps.", "model", "run", "rank", "phase"
)
TRAINING_RANK_COMMUNICATION = _gauge(
    "training_rank_communication_seconds",
    "Time that a step's gradients travel between replicas.",
    "model",
    "run",
    "rank",
)
TRAINING_RANK_OVERLAP = _gauge(
    "training_rank_overlap_ratio", "Share of that time behind which the backward pass goes on.", "model", "run", "rank"
)
TRAINING_RANK_SLOWDOWN = _gauge(
    "training_rank_slowdown_ratio",
    "Time of a rank's own work over the median of the other ranks', less what it waited for them.",
    "model", "run", "rank",
)  # fmt: skip
TRAINING_TOKENS = _counter("training_tokens_total", "Tokens trained on.", "model")
TRAINING_TOKEN_RATE = _gauge("training_tokens_per_second", "Tokens a second since the last report.", "model", "run")
TRAINING_FLOPS = _gauge(
    "training_model_flops_per_second", "Floating-point operations a second that the model asks for.", "model", "run"
)
TRAINING_MFU = _gauge(
    "training_mfu_ratio", "Floating-point operations that the model asks for, over the device's peak.", "model", "run"
)
TRAINING_DATA_WAIT = _gauge(
    "training_data_wait_ratio", "Share of the steps' time that went to waiting for data.", "model", "run"
)
TRAINING_FINDINGS = _counter(
    "training_guard_findings_total", "What a guard found, by what followed.", "model", "guard", "action"
)
# guard: nonfinite | loss_spike | gradient_explosion | activations | plateau | starvation | leak | divergence |
# straggler | device; action: report | skip | lower_rate | rewind | restart | stop
TRAINING_DEAD_UNITS = _gauge(
    "training_dead_units_ratio", "Share of a layer's units that give one value for all rows.", "model", "run", "layer"
)
TRAINING_ACTIVATION_RMS = _gauge(
    "training_activation_rms", "Root mean square of a layer's outputs.", "model", "run", "layer"
)
TRAINING_PROCESS_MEMORY = _gauge(
    "training_process_resident_bytes", "Memory of a training process.", "model", "run", "rank"
)
TRAINING_PROCESS_CPU = _counter(
    "training_process_cpu_seconds_total", "Processor time of a training process.", "model", "run", "rank"
)
HOST_CPU = _gauge("host_cpu_ratio", "Share of the host's processors that is in use.")
HOST_MEMORY = _gauge("host_memory_available_bytes", "Memory of the host that can still be had.")
GPU_UTILIZATION = _gauge("gpu_utilization_ratio", "Share of time in which a kernel ran on the GPU.", "gpu")
GPU_MEMORY_USED = _gauge("gpu_memory_used_bytes", "Memory of the GPU in use.", "gpu")
GPU_MEMORY_TOTAL = _gauge("gpu_memory_bytes", "Memory of the GPU.", "gpu")
GPU_POWER = _gauge("gpu_power_watts", "Power that the GPU draws.", "gpu")
GPU_TEMPERATURE = _gauge("gpu_temperature_celsius", "Temperature of the GPU.", "gpu")
GPU_THROTTLED = _gauge("gpu_throttled", "1 while the GPU's clocks are held back, by why.", "gpu", "reason")
# reason: power_cap | hardware_slowdown | sync_boost | software_thermal | hardware_thermal | power_brake
GPU_ECC_ERRORS = _counter("gpu_ecc_errors_total", "Memory errors since the driver was loaded.", "gpu", "kind")
# kind: corrected | uncorrected
GPU_XIDS = _counter("gpu_xid_events_total", "Xids that the driver reported, by what they tell of.", "gpu", "kind")
# kind: application (its own doing can cause it) | device
GPU_LAST_XID = _gauge("gpu_xid_last", "Number of the last Xid.", "gpu")
TRAINING_RESTARTS = _counter(
    "training_restarts_total", "Attempts begun anew, by what ended the last.", "model", "cause"
)
# cause: killed | error | hang | straggler | device | warm (the process that forks ranks died)
TRAINING_RECOVERY = _gauge(
    "training_recovery_seconds", "From the end of the last attempt to the first step of this one.", "model", "run"
)
TRAINING_GOODPUT = _gauge(
    "training_goodput_ratio", "Share of the run's wall time whose steps are part of its result.", "model", "run"
)
TRAINING_WALL_TIME = _gauge(
    "training_wall_seconds", "Wall time of the run by what it went to.", "model", "run", "cause"
)
# cause: productive | data_wait | checkpoint | between_steps | repeated | starting | stalled | ending | down
TRAINING_EVALUATION = _gauge(
    "training_evaluation_score", "Score of a run on its held-out data.", "model", "run", "metric"
)

# --- parameter servers -----------------------------------------------------------------------------------------------
STEP_COUNTS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
PARAMETER_SERVER_UPDATES = _gauge(
    "parameter_server_applied_updates",
    "Updates in a server's parameters, checkpointed ones included.",
    "model",
    "server",
)
PARAMETER_SERVER_PUSHES = _counter(
    "parameter_server_pushes_total", "Pushes by what became of them.", "model", "server", "outcome"
)  # outcome: applied | duplicate (sent again) | late (the step was over)
PARAMETER_SERVER_AHEAD = _histogram(
    "parameter_server_staleness_steps", "Steps ahead of the slowest at a pull.", STEP_COUNTS, "model", "server"
)
PARAMETER_SERVER_MISSED = _histogram(
    "parameter_server_missed_updates",
    "Updates of others between a worker's pull and its push.",
    STEP_COUNTS, "model", "server",
)  # fmt: skip
PARAMETER_SERVER_WAIT = _histogram(
    "parameter_server_wait_seconds", "Time a pull waited for slower workers.", PHASE_SECONDS, "model", "server"
)
PARAMETER_SERVER_BYTES = _counter(
    "parameter_server_bytes_total", "Bytes of requests and answers.", "model", "server", "direction"
)  # direction: received | sent
PARAMETER_SERVER_WORKERS = _gauge(
    "parameter_server_live_workers", "Workers that are there and not given up.", "model", "server"
)
PARAMETER_SERVER_RESTORES = _counter(
    "parameter_server_restores_total", "Starts from a checkpoint of the server's own.", "model", "server"
)

# --- federated learning ----------------------------------------------------------------------------------------------
ROUND_SECONDS = (0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0)
FEDERATED_ROUNDS = _counter("federated_rounds_total", "Rounds ended, by outcome.", "model", "outcome")
# outcome: aggregated | repeated (too few updates came, or were left)
FEDERATED_ROUND = _gauge("federated_round", "Rounds whose aggregate is in the model.", "model")
FEDERATED_ROUND_DURATION = _histogram("federated_round_duration_seconds", "Time of a round.", ROUND_SECONDS, "model")
FEDERATED_CLIENTS = _gauge("federated_clients", "Clients that were heard of lately.", "model")
FEDERATED_PARTICIPATION = _gauge(
    "federated_participation_ratio", "Share of the clients asked in the last round whose update was used.", "model"
)
FEDERATED_UPDATES = _counter("federated_updates_total", "Updates by what became of them.", "model", "client", "outcome")
# outcome: used | clipped (used, its norm bounded) | rejected (by a guard) | invalid | late | missing (none came)
FEDERATED_UPDATE_NORM = _gauge("federated_update_norm", "Norm of a client's last update.", "model", "client")
FEDERATED_SUSPICION = _gauge(
    "federated_suspicion_score", "Robust deviations of a client's last update from the others'.", "model", "client"
)
FEDERATED_CLIENT_DRIFT = _gauge(
    "federated_client_drift_score", "Largest distance of a column of a client from the reference.", "model", "client"
)
FEDERATED_LOSS = _gauge("federated_client_loss", "A client's loss before its last update.", "model", "client")

# --- online learning -------------------------------------------------------------------------------------------------
ONLINE_EVENTS = _counter("online_events_total", "Labelled events by what became of them.", "model", "outcome")
# outcome: learned | skipped (not finite)
ONLINE_LATE = _counter("online_late_events_total", "Labelled events older than others learned before.", "model")
ONLINE_SCORE = _gauge(
    "online_prequential_score", "Score of predictions made before learning.", "model", "learner", "metric"
)  # learner: online | champion
ONLINE_EXCESS = _gauge(
    "online_excess_loss", "Log loss above the champion's over the window, and its bounds.", "model", "bound"
)  # bound: mean | lower | upper
ONLINE_RATE = _gauge("online_learning_rate", "Learning rate of the online learner.", "model")
ONLINE_ROLLBACKS = _counter("online_rollbacks_total", "Returns to the last good state, by why.", "model", "reason")
# reason: worse (than the champion) | not_finite
ONLINE_DRIFTS = _counter("online_drifts_total", "Changes of the prequential loss that raised the rate.", "model")
ONLINE_CANDIDATES = _counter("online_candidates_total", "Candidate versions by the gate's word.", "model", "outcome")
# outcome: registered | rejected
ONLINE_POSITION = _gauge("online_position_timestamp_seconds", "Event time learned up to.", "model")

# --- collectors: what is computed from the events --------------------------------------------------------------------
DRIFT_SCORE = _gauge(
    "drift_score",
    "Distance of the window from the reference profile.",
    "model", "version", "column", "method",
)  # fmt: skip   # method: psi | jensen_shannon | wasserstein | ks | calibrated
DRIFT_DETECTED = _gauge(
    "drift_detected", "1 when the column's drift exceeds its threshold.", "model", "version", "column"
)
DRIFT_COLUMNS = _gauge("drift_columns_ratio", "Share of the feature columns that drifted.", "model", "version")
DRIFT_WINDOW_ROWS = _gauge("drift_window_rows", "Rows in the last closed drift window.", "model", "version")
DRIFT_P_VALUE = _gauge(
    "drift_p_value",
    "Chance of a calibrated distance at least this large if nothing changed.",
    "model",
    "version",
    "column",
)
DRIFT_THRESHOLD = _gauge(
    "drift_score_threshold",
    "Calibrated distance from which a column differs by more than chance and enough to matter.",
    "model", "version", "column",
)  # fmt: skip
DRIFT_ALARM = _gauge(
    "drift_alarm",
    "1 while the windows together are evidence that the column has changed.",
    "model",
    "version",
    "column",
)
DRIFT_ALARM_SINCE = _gauge(
    "drift_alarm_since_timestamp_seconds",
    "When the change most likely began that an alarm stands for; 0 where none stands.",
    "model", "version", "column",
)  # fmt: skip
DRIFT_ALARM_SLICE_EFFECT = _gauge(
    "drift_alarm_slice_effect",
    "How far the rows of a slice that explains a standing alarm are from its earlier ones: distance, or missing share.",
    "model", "version", "column", "slice", "value",
)  # fmt: skip
DRIFT_ALARM_SLICE_Q = _gauge(
    "drift_alarm_slice_q_value",
    "Expected share of false slices among those named, were this one the last: at most the drift thresholds' alpha.",
    "model", "version", "column", "slice", "value",
)  # fmt: skip
DRIFT_EVIDENCE = _gauge(
    "drift_evidence",
    "Evidence over time that some column has changed; an alarm at collector.alarm_windows.",
    "model", "version",
)  # fmt: skip
DRIFT_JOINT = _gauge(
    "drift_joint_distance",
    "Distance of the window from the reference in all numeric columns together.",
    "model", "version", "statistic",
)  # fmt: skip   # statistic: mmd | pca_reconstruction
DRIFT_JOINT_THRESHOLD = _gauge(
    "drift_joint_threshold",
    "Maximum mean discrepancy from which the numeric columns together differ by more than chance and enough to matter.",
    "model", "version",
)  # fmt: skip
TRAINING_SERVING_SKEW = _gauge(
    "training_serving_skew_ratio",
    "Share of the columns that differ from the training data in the first judged window of the version.",
    "model", "version",
)  # fmt: skip
TRAINING_SERVING_SKEWED = _gauge(
    "training_serving_skew_detected",
    "1 for a column that differs from the training data in the first judged window of the version.",
    "model", "version", "column",
)  # fmt: skip
DRIFT_SLICE_COLUMNS = _gauge(
    "drift_slice_columns_ratio",
    "Share of the feature columns that drifted in the rows of a slice: those with this value in the slice's column.",
    "model", "version", "slice", "value",
)  # fmt: skip
DRIFT_SLICE_ROWS = _gauge(
    "drift_slice_window_rows", "Rows of a slice in the last judged window.", "model", "version", "slice", "value"
)
SLICE_ERRORS = _gauge(
    "observed_slice_error_ratio", "Share of a slice's events that failed.", "model", "version", "slice", "value"
)
QUALITY_SLICE_MISSING = _gauge(
    "quality_slice_missing_ratio",
    "Share of missing or NaN values in the rows of a slice, of all columns together.",
    "model", "version", "slice", "value",
)  # fmt: skip
QUALITY_MISSING = _gauge("quality_missing_ratio", "Share of missing or NaN values.", "model", "version", "column")
QUALITY_OUT_OF_RANGE = _gauge(
    "quality_out_of_range_ratio", "Share of values outside the reference's range.", "model", "version", "column"
)
QUALITY_UNSEEN = _gauge(
    "quality_unseen_ratio", "Share of categories that the reference does not know.", "model", "version", "column"
)
QUALITY_NON_FINITE = _gauge("quality_non_finite_ratio", "Share of infinite values.", "model", "version", "column")
QUALITY_EXPECTED = _gauge(
    "quality_expected_ratio",
    "The same share of the reference's rows, where it is not 0.",
    "model", "version", "column", "check",
)  # fmt: skip   # check: missing | non_finite
QUALITY_CONSTANT = _gauge(
    "quality_constant",
    "1 when a column that varied in the reference has one value only.",
    "model", "version", "column",
)  # fmt: skip
QUALITY_DUPLICATED = _gauge(
    "quality_duplicated_rows_ratio", "Share of the latest rows that repeat another's features.", "model", "version"
)
QUALITY_VIOLATIONS = _counter(
    "quality_violations_total",
    "Rows that broke a rule of the schema; they are measured all the same.",
    "model", "version", "column", "rule",
)  # fmt: skip   # rule: type | required | finite | range | categories | unique | unexpected
QUALITY_VOLUME = _gauge(
    "quality_volume_ratio", "Rows of the last closed window, divided by the rows expected of it.", "model"
)
QUALITY_AGE = _gauge("quality_latest_row_age_seconds", "Time since the event time of the latest row.", "model")
QUALITY_AGE_LIMIT = _gauge("quality_latest_row_age_limit_seconds", "Age at which a model's data is stale.", "model")
QUALITY_ROWS = _gauge("quality_rows_per_second", "Events a second in the last closed window.", "model", "version")
# The scores of probabilities against 0/1 labels, and of other numbers; `positive_ratio` and `prediction_mean` describe.
CLASSIFICATION_SCORES = (
    "roc_auc", "pr_auc", "log_loss", "brier", "ece", "accuracy", "precision", "recall", "f1",
    "positive_ratio", "prediction_mean",
)  # fmt: skip
REGRESSION_SCORES = ("mae", "rmse", "r2", "bias", "prediction_mean")
PERFORMANCE_SCORE = _gauge(
    "performance_score", "Score of the predictions whose labels have come.", "model", "version", "metric"
)  # metric: one of CLASSIFICATION_SCORES or REGRESSION_SCORES
PERFORMANCE_LOW = _gauge(
    "performance_score_low", "Lower end of the score's 95 % confidence interval.", "model", "version", "metric"
)
PERFORMANCE_HIGH = _gauge(
    "performance_score_high", "Upper end of the score's 95 % confidence interval.", "model", "version", "metric"
)
ESTIMATED_SCORE = _gauge(
    "estimated_performance_score",
    "Score of the last window expected from its calibrated predictions, before any label comes.",
    "model", "version", "metric",
)  # fmt: skip
ESTIMATED_LOW = _gauge(
    "estimated_performance_score_low",
    "Lower end of the range in which the expected score lies while nothing has changed.",
    "model", "version", "metric",
)  # fmt: skip
ESTIMATED_HIGH = _gauge(
    "estimated_performance_score_high",
    "Upper end of the range in which the expected score lies while nothing has changed.",
    "model", "version", "metric",
)  # fmt: skip
ESTIMATED_ALERT = _gauge(
    "estimated_performance_alert", "1 when the expected score has left its range.", "model", "version", "metric"
)
ESTIMATED_ERROR = _gauge(
    "estimated_performance_error",
    "Expected less realised score of the last window whose labels have come.",
    "model", "version", "metric",
)  # fmt: skip
PERFORMANCE_LABELLED = _gauge("performance_labelled_rows", "Labelled predictions in the score.", "model", "version")
OBSERVED_LATENCY = _gauge(
    "observed_latency_seconds", "Quantile q of the latency of a version's events.", "model", "version", "q"
)
OBSERVED_THROUGHPUT = _gauge("observed_rows_per_second", "Predictions a second.", "model", "version")
OBSERVED_ERRORS = _gauge("observed_error_ratio", "Share of a version's events that failed.", "model", "version")
EVENT_ROWS = _counter("collector_event_rows_total", "Event rows accepted.", "model", "version")
EVENT_ERRORS = _counter("collector_rejected_batches_total", "Batches refused, by reason.", "signal", "reason")
PROFILE_ROWS = _counter(
    "collector_profile_rows_total", "Rows accepted in profiles that senders counted themselves.", "model", "version"
)
QUARANTINED_ROWS = _counter(
    "collector_quarantined_rows_total", "Event rows of sources in quarantine, kept apart.", "model", "source"
)
LABEL_ROWS = _counter(
    "collector_label_rows_total",
    "Label rows accepted, by whether a prediction was found: true, false, or later (of the false, those found since).",
    "model",
    "matched",
)
AMENDED_ROWS = _counter(
    "collector_amended_rows_total", "Event rows behind the watermark that amended a closed window.", "model", "version"
)
LATE_EVENT_ROWS = _counter(
    "collector_late_rows_total",
    "Event rows that were not measured: older than every window that is amended, or too far ahead of the clock.",
    "model", "version",
)  # fmt: skip
WATERMARK = _gauge("collector_watermark_timestamp_seconds", "Event time up to which windows are closed.", "model")
BACKLOG_ROWS = _gauge("collector_backlog_rows", "Rows that are durable and wait to be measured.")
BACKLOG_BYTES = _gauge("collector_backlog_bytes", "Memory that what waits to be measured takes.")
BACKLOG_SECONDS = _gauge("collector_backlog_seconds", "Time that the oldest batch to be measured has waited.")
SPANS = _counter("collector_spans_total", "Spans accepted.")
STORE_SAMPLES = _counter("collector_samples_total", "Samples appended to the store.")
STORE_SERIES = _gauge("collector_series", "Series that the store knows.")
STORE_REFUSED = _counter("collector_samples_refused_total", "Samples that the store did not take, by reason.", "reason")
# reason: one of STORE_REFUSALS
STORE_REFUSALS = ("too_old", "conflicting", "limit")
STORE_OUT_OF_ORDER = _counter(
    "collector_samples_out_of_order_total",
    "Samples behind their series' newest: taken within the window for them, else refused as too old.",
)
STORE_DUPLICATES = _counter("collector_samples_duplicate_total", "Samples that the store had already.")
STORE_COMPACTED = _counter("collector_samples_compacted_total", "Samples of closed hours brought into blocks.")
STORE_EXEMPLARS = _counter("collector_exemplars_total", "Exemplars kept.")
STORE_COMMITS = _counter("collector_store_commits_total", "Transactions in which samples were written.")
STORE_BYTES = _gauge("collector_store_bytes", "Bytes that the samples take in the database.")
CONFIG_LOADED = _gauge(
    "collector_config_last_reload_successful", "1 if the scrape configuration was right when it was last read."
)
CONFIG_LOADED_AT = _gauge(
    "collector_config_last_reload_success_timestamp_seconds",
    "When a scrape configuration was last read that was right.",
)

# --- alerts ----------------------------------------------------------------------------------------------------------
CANARY_EVIDENCE = _gauge(
    "canary_evidence",
    "E-value of an anytime-valid test, of harm times the check's share of the risk; 100 is proof at alpha = 1 %.",
    "model", "release", "candidate", "baseline", "check", "hypothesis",
)  # fmt: skip   # check: errors | latency | quality | sample_ratio | prediction | after_promotion
# hypothesis: harm | safety | mismatch (of the sample ratio) | shift (of predictions)
CANARY_REQUESTS = _gauge(
    "canary_requests", "Requests behind the evidence.", "model", "release", "candidate", "baseline", "arm", "outcome"
)
CANARY_VERDICT = _gauge(
    "canary_verdict", "1 for the verdict in force.", "model", "release", "candidate", "baseline", "verdict"
)  # verdict: rollback | advance | continue | inconclusive
RULE_EVALUATION_DURATION = _histogram(
    "rule_group_duration_seconds", "Time to evaluate a rule group.", LATENCY_SECONDS, "group"
)
# Rule groups are counted under Prometheus' own names; a group is its file and name, with `;` between.
RULE_EVALUATIONS = _counter("prometheus_rule_evaluations_total", "Evaluations of rules.", "rule_group")
RULE_FAILURES = _counter("prometheus_rule_evaluation_failures_total", "Evaluations of rules that failed.", "rule_group")
RULE_ITERATIONS = _counter(
    "prometheus_rule_group_iterations_total", "Evaluations of groups that were due, missed ones included.", "rule_group"
)
RULE_ITERATIONS_MISSED = _counter(
    "prometheus_rule_group_iterations_missed_total", "Evaluations of groups that were due and missed.", "rule_group"
)
RULE_GROUP_INTERVAL = _gauge("prometheus_rule_group_interval_seconds", "How often a group is evaluated.", "rule_group")
RULE_GROUP_RULES = _gauge("prometheus_rule_group_rules", "Rules of a group.", "rule_group")
RULE_GROUP_LAST_EVALUATION = _gauge(
    "prometheus_rule_group_last_evaluation_timestamp_seconds", "When a group was last evaluated.", "rule_group"
)
RULE_GROUP_LAST_DURATION = _gauge(
    "prometheus_rule_group_last_duration_seconds", "How long a group's last evaluation took.", "rule_group"
)
RULE_GROUP_LAST_SAMPLES = _gauge(
    "prometheus_rule_group_last_evaluation_samples", "Samples that a group's last evaluation made.", "rule_group"
)
RULES_RELOAD_GOOD = _gauge(
    "prometheus_config_last_reload_successful", "1 if the rule files could be read when they were last tried."
)
RULES_RELOADED = _gauge(
    "prometheus_config_last_reload_success_timestamp_seconds", "When rule files were last read without an error."
)
# Notifications are counted under Alertmanager's own names, so that its dashboards and rules hold here too.
ALERTMANAGER_NOTIFICATIONS = _counter(
    "alertmanager_notifications_total", "Notifications that were to be sent.", "integration"
)
ALERTMANAGER_NOTIFICATIONS_FAILED = _counter(
    "alertmanager_notifications_failed_total", "Notifications that were given up.", "integration"
)
ALERTMANAGER_NOTIFICATION_REQUESTS = _counter(
    "alertmanager_notification_requests_total", "Tries to send notifications.", "integration"
)
ALERTMANAGER_NOTIFICATION_REQUESTS_FAILED = _counter(
    "alertmanager_notification_requests_failed_total", "Tries to send notifications that failed.", "integration"
)
ALERTMANAGER_NOTIFICATION_LATENCY = _histogram(
    "alertmanager_notification_latency_seconds", "Time of a try to send a notification.", (0.1, 0.5, 1, 5, 10, 15, 20),
    "integration",
)  # fmt: skip
ALERTMANAGER_ALERTS = _gauge("alertmanager_alerts", "Alerts that fire, by state.", "state")  # active | suppressed
ALERTMANAGER_ALERTS_RECEIVED = _counter(
    "alertmanager_alerts_received_total", "Alerts that others sent.", "status", "version"
)
ALERTMANAGER_ALERTS_INVALID = _counter(
    "alertmanager_alerts_invalid_total", "Alerts that others sent and that were refused.", "version"
)
ALERTMANAGER_SILENCES = _gauge("alertmanager_silences", "Silences by state.", "state")  # active | pending | expired
ALERTMANAGER_GROUPS = _gauge("alertmanager_dispatcher_aggregation_groups", "Groups of alerts.")
ALERTMANAGER_CONFIG_GOOD = _gauge(
    "alertmanager_config_last_reload_successful", "1 if the configuration could be read when it was last tried."
)
ALERTMANAGER_CONFIG_LOADED = _gauge(
    "alertmanager_config_last_reload_success_timestamp_seconds", "When the configuration was last read."
)
ALERTS_FORWARDED = _counter("prometheus_notifications_sent_total", "Alerts sent on to an Alertmanager.", "alertmanager")
ALERTS_FORWARD_ERRORS = _counter(
    "prometheus_notifications_errors_total", "Alerts that an Alertmanager did not take; most are sent again.",
    "alertmanager",
)  # fmt: skip
ALERTS_FORWARD_DROPPED = _counter(
    "prometheus_notifications_dropped_total", "Alerts not sent on because too many waited.", "alertmanager"
)
RELEASE_STEP = _gauge(
    "release_step", "Step of its policy that a model's latest release is at, from 1; 0 before it is blessed.",
    "model", "candidate",
)  # fmt: skip
RELEASE_STEP_AGE = _gauge(
    "release_step_age_seconds", "How long the release has been at this step; until its end, if it is over.",
    "model", "candidate",
)  # fmt: skip
RELEASE_STATE = _gauge(
    "release_state", "1 for the state that a model's latest release by a policy is in.", "model", "candidate", "state"
)  # state: blessing | entering | watching | leaving | promoting | rolling_back | held | paused | promoted | rolled_back
# | compared | refused
RELEASES_ENDED = _counter("releases_ended_total", "Releases by a policy that are over, by how.", "model", "state")
ACTIONS = _counter("actions_total", "Actions by kind and outcome.", "action", "model", "outcome")
# outcome: done | failed | advised | held | waiting
ACTION_DURATION = _histogram(
    "action_duration_seconds",
    "Seconds from the decision to act until the result is written.",
    (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0),
    "action",
    "outcome",
)

EPISODES_OPEN = _gauge("action_episodes_open", "Episodes of drift or decay that go on, 0 or 1.", "model")
EPISODES_ENDED = _counter(
    "action_episodes_total", "Episodes of drift or decay that have ended, by why: calm or promoted.", "model", "ended"
)


# --- serving: the names that dashboards of other servers expect ------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Alias:
    """Another server's name for what is counted here. Its values are worked out when the page is read."""

    name: str
    help: str
    labels: tuple[str, ...] = ("model", "version")
    histogram: bool = False


TRITON_SUCCESS = Alias("nv_inference_request_success", "Requests answered.")
TRITON_FAILURE = Alias(
    "nv_inference_request_failure", "Requests that failed, by Triton's reasons.", ("model", "version", "reason")
)  # reason: REJECTED | CANCELED | BACKEND | OTHER
TRITON_ROWS = Alias("nv_inference_count", "Rows inferred.")
TRITON_BATCHES = Alias("nv_inference_exec_count", "Batches that the model ran.")
TRITON_PENDING = Alias("nv_inference_pending_request_count", "Requests that wait for a batch.")
TRITON_REQUEST_US = Alias("nv_inference_request_duration_us", "Time of whole requests, summed.")
TRITON_QUEUE_US = Alias("nv_inference_queue_duration_us", "Time that requests waited for their batches, summed.")
TRITON_INPUT_US = Alias("nv_inference_compute_input_duration_us", "Time to gather batches, summed over requests.")
TRITON_INFER_US = Alias("nv_inference_compute_infer_duration_us", "Time with the model, summed over requests.")
TRITON_OUTPUT_US = Alias("nv_inference_compute_output_duration_us", "Time to write answers, summed over requests.")
TRITON_CACHE_HITS = Alias("nv_cache_num_hits_per_model", "Requests that the response cache answered.")
TRITON_CACHE_MISSES = Alias("nv_cache_num_misses_per_model", "Requests that the response cache did not know.")
KSERVE_PREPROCESS = Alias("request_preprocess_seconds", "Time to read a request.", ("model_name",), True)
KSERVE_PREDICT = Alias(
    "request_predict_seconds", "Time of a whole request, reading and writing included.", ("model_name",), True
)
KSERVE_POSTPROCESS = Alias("request_postprocess_seconds", "Time to write an answer.", ("model_name",), True)
MLSERVER_SUCCESS = Alias("model_infer_request_success", "Requests answered.")
MLSERVER_FAILURE = Alias("model_infer_request_failure", "Requests that failed.")

ALIASES: tuple[Alias, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Alias))

CATALOGUE: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))

# --- series that rules record of an objective; a window's length stands behind the first four ---------------------
SLO_ERROR_RATIO = "slo:sli_error:ratio_rate"
SLO_EVENTS = "slo:sli_total:increase"
SLO_TILE_EVENTS = "slo:sli_total:tile"
SLO_TILE_BAD = "slo:sli_bad:tile"
SLO_VALUE = "slo:sli_value:current"
SLO_SLICE_ERROR = "slo:sli_slice_error:ratio"
SLO_OBJECTIVE = "slo:objective:ratio"
SLO_BUDGET = "slo:error_budget:ratio"
SLO_PERIOD_DAYS = "slo:time_period:days"
SLO_PERIOD_START = "slo:period_start:timestamp_seconds"
SLO_PERIOD_END = "slo:period_end:timestamp_seconds"
SLO_BURN_RATE = "slo:current_burn_rate:ratio"
SLO_PERIOD_BURN_RATE = "slo:period_burn_rate:ratio"
SLO_BUDGET_LEFT = "slo:period_error_budget_remaining:ratio"
SLO_INFO = "slo_info"

# --- spans -----------------------------------------------------------------------------------------------------------
SPAN_REQUEST = "inference.request"
SPAN_QUEUE = "inference.queue"
SPAN_BATCH = "inference.batch"
SPAN_MODEL = "inference.model"
SPAN_TRAINING_RUN = "training.run"
SPAN_TRAINING_STEP = "training.step"
SPAN_TRAINING_RANK = "training.rank"
SPANS_TRAINING_PHASE = {phase: f"training.{phase}" for phase in PHASES}
SPAN_ACTION = "alerts.action"
