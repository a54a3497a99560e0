"""The one settings file, `trimtab.toml`, checked against types; every field has a default that runs on one machine.

Read here and nowhere else. An environment variable `TRIMTAB_<SECTION>_<FIELD>` overrides a scalar field.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

FILE = "trimtab.toml"
ACTIONS = ("rollback", "promote", "advance", "step", "pause", "retrain", "scale", "quarantine")
WAYS = ("url", "command", "function", "kubernetes", "mlflow")


class SettingsError(Exception):
    """The settings cannot be used; the message names the file, the field, the value seen and the remedy."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: unknown fields are errors, so a typing mistake is never silently ignored."""


class General(_Section, frozen=True, kw_only=True):
    """`[trimtab]`: what all services share."""

    data: str = ".trimtab"
    """Folder of the databases, the lake, the artifacts and the logs."""
    host: str = "127.0.0.1"
    """Address that every service binds to."""
    secret: str = ""
    """Signs hooks and control calls; empty leaves them unsigned. Better set as TRIMTAB_TRIMTAB_SECRET."""
    log_level: str = "INFO"
    """DEBUG, INFO, WARNING, ERROR or CRITICAL."""
    lineage_url: str = ""
    """Of a server that takes OpenLineage events of trainings, such as http://marquez:5000; they are in files anyway."""


class Target(_Section, frozen=True, kw_only=True):
    """`[[collector.targets]]`: something to scrape."""

    job: str
    url: str
    labels: dict[str, str] = {}


class CollectorSettings(_Section, frozen=True, kw_only=True):
    """`[collector]`: telemetry intake, store, windows and drift."""

    intake_port: int = 4318
    query_port: int = 9090
    store: str = ""
    """SQLAlchemy URL; empty means SQLite in the data folder."""
    lake: str = ""
    """Folder of the Parquet lake; empty means `lake` in the data folder."""
    targets: list[Target] = []
    """Prometheus targets besides Trimtab's own services."""
    file_sd: list[str] = []
    """Globs of Prometheus `file_sd` files (JSON, YAML), watched for change."""
    scrape_config: str = ""
    """Prometheus configuration file; what its `scrape_configs` name is scraped, too. Read again when it changes."""
    scrape_interval_seconds: float = 1.0
    retention_seconds: float = 30 * 86400.0
    """How long samples are kept."""
    retention_bytes: int = 0
    """What samples may take in the database, about; beyond it the oldest go. 0 means no bound."""
    late_seconds: float = 3600.0
    """A sample this much older than its series' newest is still taken; older ones are refused. 0 takes none."""
    head_seconds: float = 7200.0
    """Samples up to this much older than the newest are kept in memory."""
    series_per_target: int = 250_000
    """A source with more series is refused, and told which label has the most values. 0 means no bound, as below."""
    labels_per_series: int = 64
    label_name_bytes: int = 1024
    label_value_bytes: int = 16_384
    window_seconds: float = 60.0
    allowed_lateness_seconds: float = 5.0
    judged_windows: int = 1
    """Drift is read from the sum of this many last windows."""
    amend_seconds: float = 3600.0
    """Late rows amend the closed windows of this long; 0 counts them only."""
    slices: list[str] = []
    """Text or boolean columns by whose values windows are also measured, such as `feature.origin`."""
    slice_values: int = 20
    """At most this many values of a slice column; the rest are pooled as `other`."""
    alarm_windows: int = 1000
    """A version whose data does not change raises a drift alarm at most once in this many windows, on average."""
    drift_threshold: float = 0.25
    """PSI above its null expectation at which a column counts as drifted."""
    drift_min_rows: int = 500
    """Windows with fewer rows are not judged."""


class QuerySettings(_Section, frozen=True, kw_only=True):
    """`[query]`: where rules and dashboards read."""

    url: str = ""
    """A Prometheus-compatible API to use in place of the collector's own."""
    timeout_seconds: float = 120.0
    """A query of the collector's own API is stopped after this long."""
    max_samples: int = 50_000_000
    """Samples that one query may hold at once; one that needs more is refused."""
    max_concurrency: int = 20
    """Queries that run at once; others wait."""
    lookback_seconds: float = 300.0
    """How old a sample may be and still stand for its series."""


class ActionSettings(_Section, frozen=True, kw_only=True):
    """`[alerts.actions.NAME]`: how an action is carried out, and how freely; `"NAME:MODEL"` is one model's."""

    mode: Literal["advise", "approve", "auto"] = "auto"
    """advise: only say it; approve: wait for a person; auto: do it."""
    url: str = ""
    """HTTP hook; empty means Trimtab's own serving for rollback, promote and advance."""
    command: list[str] = []
    """Command to run instead of a hook; `{model}`, `{release}`, `{reason}` and `{key}` are filled in."""
    function: str = ""
    """Python callable to call instead, as `module:function`; it gets an `alerts.actions.Call`."""
    kubernetes: str = ""
    """Object to change: `deployments/NAMESPACE/NAME`, `rollouts/…`, `inferenceservices/…`; `{model}` is filled in."""
    mlflow: str = ""
    """Alias in MLflow's registry to move, such as `champion`."""
    cooldown_seconds: float = 300.0
    budget_per_hour: int = 6
    hold_seconds: float = 3600.0
    """How long a person's decision stands before the machine may decide otherwise."""
    breaker_failures: int = 3
    """So many failures in a row stop the machine from trying; 0 is never."""
    breaker_seconds: float = 1800.0
    dry_run: bool = False
    """Decide, look at the target and write down what would be done; do nothing."""
    timeout_seconds: float = 600.0


class KubernetesSettings(_Section, frozen=True, kw_only=True):
    """`[alerts.kubernetes]`: the API server of actions on Kubernetes; in a pod nothing needs to be set."""

    url: str = "https://kubernetes.default.svc"
    token: str = ""
    """Bearer token; empty reads `token_file` at every request."""
    token_file: str = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    ca_file: str = ""
    """Certificates of the API server; empty is the pod's own, else the system's."""
    min_replicas: int = 1
    """What `scale` goes down to at the least."""
    max_replicas: int = 10
    """What `scale` goes up to at the most."""
    ready_seconds: float = 300.0
    """How long the pods of a target may take to be ready before the action counts as failed."""


class MlflowSettings(_Section, frozen=True, kw_only=True):
    """`[alerts.mlflow]`: the tracking server whose registry actions change."""

    url: str = "http://127.0.0.1:5000"
    token: str = ""


class RetrainingSettings(_Section, frozen=True, kw_only=True):
    """`[alerts.retraining.MODEL]`: how often an episode of drift or decay retrains; `"*"` is every other model."""

    calm_seconds: float = 900.0
    """An episode ends when nothing has asked for so long; one that opens sooner after an end goes on where that was."""
    backoff_seconds: float = 1800.0
    """Wait after a retraining that did not help; twice as long after each further one."""
    max_backoff_seconds: float = 86400.0
    min_new_labels: int = 500
    """Labelled events that must have come since a retraining that did not help."""
    min_age_seconds: float = 3600.0
    """Where nobody counts labels: how old that retraining must be instead."""
    failure_backoff_seconds: float = 60.0
    """Wait after a retraining that broke (killed, out of memory); twice as long after each further one."""
    max_failures: int = 3
    """So many in a row end an episode's retraining."""
    settle_seconds: float = 600.0
    """How long a candidate that passed may take to come into service before it counts as of no help."""
    budget_per_day: int = 6
    """Most retrainings of a model that are begun by themselves in 24 hours."""


class AlertsSettings(_Section, frozen=True, kw_only=True):
    """`[alerts]`: rules, evidence, notification, actions."""

    port: int = 9093
    database: str = ""
    """SQLAlchemy URL of the journal; empty means SQLite in the data folder."""
    rules: list[str] = []
    """Prometheus rule files besides the shipped ones; patterns such as `rules/*.yml` are watched for new files."""
    write_url: str = ""
    """Where rules write what they record, if that is not the collector: `http://prometheus:9090/api/v1/write`."""
    external_labels: dict[str, str] = {}
    """What templates of rules know as `$externalLabels`."""
    shipped_rules: bool = True
    notify: list[str] = []
    """Apprise URLs (mail, Slack, Teams, PagerDuty, …)."""
    webhooks: list[str] = []
    """URLs that get Alertmanager's webhook JSON, signed if a secret is set."""
    alertmanager_config: str = ""
    """An `alertmanager.yml` that says who is told what and when, in place of `notify` and `webhooks`."""
    alertmanagers: list[str] = []
    """Base URLs of Alertmanagers that get the alerts of our rules too, such as `http://am:9093`."""
    action_policy: str = ""
    """A YAML file of policies of actions, over those below; `trimtab actions replay` tries such a file on the past."""
    actions: dict[str, ActionSettings] = {}
    kubernetes: KubernetesSettings = KubernetesSettings()
    mlflow: MlflowSettings = MlflowSettings()
    retraining: dict[str, RetrainingSettings] = {}
    """How episodes of drift or decay retrain, by model; `"*"` stands for all that are not named."""


class ReleasesSettings(_Section, frozen=True, kw_only=True):
    """`[releases]`: how new versions get their traffic."""

    policies: str = ""
    """A YAML file of release policies by model (docs/releases.md); empty leaves releases to the shipped rules."""


class CallerSettings(_Section, frozen=True, kw_only=True):
    """`[[serving.callers]]`: who may ask. Without any, everybody may; with one, a request needs a token."""

    name: str
    token_sha256: str
    """Hexadecimal SHA-256 of the caller's token: `printf %s TOKEN | sha256sum`."""
    rows_per_second: float = 0.0
    """Rows a second in the long run; 0 is no limit."""
    burst_rows: float = 0.0
    """Rows that may come at once; 0 is a second's worth."""
    models: list[str] = []
    """Models that it may ask; empty means all."""
    priority: int = 0
    """Class of its requests, 1 goes first; a request may name a later one. 0: what each names."""


class CacheSettings(_Section, frozen=True, kw_only=True):
    """`[serving.cache.MODEL]`: answers kept for equal requests; MODEL `*` stands for all that are not named."""

    bytes: int = 64 * 1024 * 1024
    """Memory that the answers may take; the least recently used go first."""
    seconds: float = 60.0
    """Age at which an answer is no longer given."""
    min_hit_ratio: float = 0.05
    """With fewer hits the cache steps aside for a while; 0 never does."""


class ShadowSettings(_Section, frozen=True, kw_only=True):
    """`[serving.shadow]`: what copies of requests to shadows may cost."""

    batch_rows: int = 256
    """Copies gather until there are so many rows."""
    gather_seconds: float = 0.5
    """Or for so long."""
    step_rows: int = 64
    """The shadow's model gets so many rows at a time."""
    queue_rows: int = 512
    """Rows that may wait, by shadow; more are dropped and counted."""
    queue_bytes: int = 16777216
    """Bytes that may wait, by shadow."""
    busy_ratio: float = 0.02
    """Share of the time that shadows may take while callers' requests wait."""
    nice: int = 10
    """Added to the nice value of the shadows' thread."""
    process_bytes: int = 67108864
    """Weights that the shadows' own process holds at most, for exported programs; 0: the server's thread runs all."""


class ServingSettings(_Section, frozen=True, kw_only=True):
    """`[serving]`: the batched inference core."""

    port: int = 8080
    url: str = ""
    """Where the others reach it, if not on this host."""
    registry: str = ""
    """SQLAlchemy URL of the model registry; empty means SQLite in the data folder."""
    artifacts: str = ""
    models: list[str] = []
    """Models to load; empty means all that the registry holds with a stable version."""
    max_batch_rows: int = 0
    """0: 64, and up to 256 where a batch of so many takes at most `inline_seconds`."""
    max_delay_seconds: float = 0.0
    """How long a batch waits for company, from its oldest request's arrival; 0 takes what is there."""
    inline_seconds: float = 0.001
    """Batches that take at most this long run on the event loop; 0 hands every batch to a thread."""
    preferred_batch_rows: list[int] = []
    """A batch of exactly one of these sizes goes at once."""
    pad_batches: bool = False
    """Fill smaller batches up to the next preferred size."""
    latency_target_seconds: float = 0.0
    """Choose batches and waits so that requests, queue included, take less than this; 0 leaves them as set."""
    length_buckets: list[int] = []
    """Lengths that ragged inputs are padded to, ascending; powers of two beyond the last, and if empty."""
    device_batches: int = 1
    """Batches that run in threads at a time, all models together."""
    max_queue_rows: int = 1024
    """Rows that may wait, by version; more are refused with 429."""
    max_queue_bytes: int = 268435456
    """Bytes of requests that may wait, by version; 0 means no limit."""
    max_total_rows: int = 0
    """Rows that may wait in all queues together; more are refused with 503; 0 means no limit."""
    max_total_bytes: int = 536870912
    """Bytes of requests that may wait in all queues together; 0 means no limit."""
    max_buffered_bytes: int = 268435456
    """Bytes of HTTP requests from arrival to answer, and of answers not read, in all; more are refused with 503."""
    max_concurrent_requests: int = 0
    """Requests of a version that may wait or run; 0 means no limit."""
    adaptive_concurrency: float = 0.0
    """Rows of a version that may wait or run follow what requests take: 1 allows about three batches; 0 is no limit."""
    queue_delay_target_seconds: float = 1.0
    """A queue whose delay stays over this refuses what would wait longer; 0 never does."""
    queue_delay_interval_seconds: float = 0.1
    """How long the delay must stay over the target first."""
    overload_newest_first: bool = False
    """While a queue refuses, its newest request goes first."""
    priority_ageing_seconds: float = 1.0
    """Waiting so long is worth one class of priority."""
    stall_seconds: float = 10.0
    """A batch that runs longer, and 20 times longer than it should, makes its model not ready; 0 never does."""
    drain_notice_seconds: float = 0.5
    """From SIGTERM to the closed port: not ready, still answering, for load balancers to see it."""
    drain_timeout_seconds: float = 30.0
    """From the closed port on, for the requests that are not answered yet."""
    replicas: int = 1
    """Processes that infer, each with all its models and queues; limits on queues are those of each."""
    fronts: int = 0
    """Processes that read HTTP for the replicas; 0 is one process for all, or one front for several replicas."""
    min_ready_replicas: int = 1
    """Replicas that must have a model loaded before the server is ready."""
    retry_lost_requests: bool = True
    """Ask another replica once when the one that had an inference request is lost; otherwise answer 503."""
    ping_limit_seconds: float = 5.0
    """A replica that is silent for so long gets no more requests."""
    hang_limit_seconds: float = 30.0
    """A replica that is silent for so long is killed and started again."""
    max_ejected_ratio: float = 0.5
    """Largest share of the replicas that may be out of the traffic because their answers fail."""
    probe: bool = False
    """Versions with a reference are counted in the server, and their profiles sent to the collector: features need not
    travel in the events."""
    probe_seconds: float = 2.0
    """How often; no longer than the collector's windows, and best a part of them."""
    event_features: bool = True
    """Events carry the features that are counted so, too: retraining from the lake and slices need them."""
    trace_sample_ratio: float = 0.01
    """Share of the requests that are traced; a caller's own decision is followed."""
    trace_limit_per_second: int = 20
    """New traces that each process begins in a second at most; those that callers have begun are kept besides."""
    architectures: list[str] = []
    """`module:callable` names that safetensors artifacts may declare."""
    torch_threads: int = 1
    device: str = "cpu"
    """Where models run: cpu, cuda or cuda:N; the replicas of a server on `cuda` are spread over all GPUs."""
    memory_budget_bytes: int = 0
    """Bytes that loaded versions may take together; the least recently used give way. 0 means no limit."""
    pinned_versions: list[str] = []
    """`MODEL:VERSION` names that are loaded at start and never give way."""
    grpc_port: int = 0
    """The V2 protocol over gRPC on this port too; 0 is off. Needs `trimtab[grpc]`."""
    callers: list[CallerSettings] = []
    """Who may ask, by token; empty means everybody."""
    shadow: ShadowSettings = ShadowSettings()
    """What copies of requests to shadows may cost."""
    cache: dict[str, CacheSettings] = {}
    """Models whose answers are kept for equal requests; none by default."""
    metric_aliases: bool = False
    """The metric names of Triton's, KServe's and MLServer's dashboards on `/metrics` too."""
    load_header: bool = False
    """An ORCA `endpoint-load-metrics` header on each answer, for load balancers."""
    ssl_certfile: str = ""
    """PEM certificate chain; with one, the HTTP and the gRPC port speak TLS."""
    ssl_keyfile: str = ""
    """PEM key; empty means that the certificate's file holds it."""


class DashboardSettings(_Section, frozen=True, kw_only=True):
    """`[dashboard]`."""

    port: int = 8501


class GuardSettings(_Section, frozen=True, kw_only=True):
    """`[models.NAME.guards]`: what follows when a guard of a training finds something (docs/training.md)."""

    loss_spike: str = "report"
    """A loss above its history: report, lower_rate, rewind, restart or stop."""
    nonfinite: str = "stop"
    """Steps in a row that were not finite, which change nothing anyway: lower_rate, rewind, restart or stop."""
    gradient_explosion: str = "report"
    """A gradient norm above its history: report, skip, lower_rate, rewind, restart or stop."""
    activations: str = "report"
    """Layers that are dead or explode: report, lower_rate, rewind, restart or stop."""
    plateau: str = "report"
    """A loss that falls no more: report, lower_rate or stop."""
    starvation: str = "report"
    """Steps that mostly wait for data: report, restart or stop."""
    leak: str = "report"
    """Memory that grows steadily: report, restart or stop."""
    divergence: str = "rewind"
    """Replicas that are not equal any more: report, rewind, restart or stop."""
    straggler: str = "report"
    """A rank that is slower than the others: report, restart (all ranks, once) or stop."""
    device: str = "report"
    """A GPU with heat, memory errors or an Xid: report, restart or stop."""
    max_nonfinite: int = 10
    """So many steps in a row."""
    spike_score: float = 6.0
    """Robust deviations above its history that make a loss a spike."""
    max_rewinds: int = 3
    """A finding that asks for one more ends the run."""
    cool_down: int = 200
    """Steps after an action in which the same guard is only counted."""
    lowered: float = 0.5
    """What lower_rate multiplies the learning rate by, at most `max_lowered` times."""
    max_lowered: int = 4
    activations_every: int = 100
    """Steps between looks at the activations; 0 never looks."""
    checksums_every: int = 200
    """Steps between comparisons of the replicas' parameters; 0 never compares."""


class ModelSettings(_Section, frozen=True, kw_only=True):
    """`[models.NAME]`: how `trimtab train` and `trimtab retrain` make a version of the model."""

    task: str
    """`module:callable` that returns the training task."""
    data: str = ""
    """`module:callable` that returns the training table (Arrow or pandas), for `trimtab train`; it is called with the
    data folder, if it takes an argument."""
    canary_weight: float = 0.1
    """Share of traffic that a retrained version gets first; 0 registers it only."""
    min_rows: int = 2000
    """Labelled events that a retraining needs."""
    window_seconds: float = 0.0
    """How far back a retraining reads the lake; 0 means all of it."""
    holdout_ratio: float = 0.2
    """Share of the newest groups that is held out for the gate."""
    window_groups: int = 1
    """Groups (days) of training rows that are as long as a judged window: such blocks say how windows differ anyway."""
    joint_reference: bool = True
    """The reference keeps the numeric columns together, too, so that windows show whether they relate as before; that
    costs the collector about 6 µs a row of 10 columns, 10 µs of 64."""
    seasonal_reference: bool = True
    """And by the hour of the week, where the task names its times: hours that are in two weeks, up to 168 profiles."""
    tolerance: float = 0.0
    """By how much (log loss) a challenger may be worse than the champion, at the confidence bound."""
    slice_tolerance: float = -1.0
    """By how much (log loss) no value of a category may surely be worse; below 0 slices are only reported."""
    latency_budget_seconds: float = 0.0
    """What one row may take at the 99th percentile where the model is trained; 0 only measures it."""
    warm_start: bool = True
    epochs: int = 4
    batch_size: int = 512
    learning_rate: float = 2e-3
    seed: int = 0
    device: str = "cpu"
    """Where torch trains: cpu, cuda or cuda:N."""
    ranks: int = 1
    """Processes that share out each batch; one that dies or hangs is started anew from the last checkpoint."""
    parallel: str = ""
    """How the network is spread over processes, such as `"fsdp=2,tensor=2"`, or on parameter servers,
    `"servers=2,workers=4"`; empty: as replicas over `ranks`."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: none with one rank, every 100 with several."""
    online_batch_rows: int = 256
    """Rows a step of `trimtab train --online`."""
    online_learning_rate: float = 1e-4
    online_delay_seconds: float = 0.0
    """Events so near the newest labelled one wait, so that their neighbours' labels can come; order suffers less."""
    online_publish_batches: int = 200
    """Steps of online learning between candidates; 0: none."""
    trace_sample_ratio: float = 0.001
    """Share of the steps of a training that become traces, beside the odd ones; see [training](training.md)."""
    guards: GuardSettings = GuardSettings()
    """What follows when a guard of the training finds something."""


class Settings(_Section, frozen=True, kw_only=True):
    """All of `trimtab.toml`."""

    trimtab: General = General()
    collector: CollectorSettings = CollectorSettings()
    query: QuerySettings = QuerySettings()
    alerts: AlertsSettings = AlertsSettings()
    releases: ReleasesSettings = ReleasesSettings()
    serving: ServingSettings = ServingSettings()
    dashboard: DashboardSettings = DashboardSettings()
    models: dict[str, ModelSettings] = {}

    # --- what follows from the fields --------------------------------------------------------------------------------
    @property
    def data(self) -> Path:
        return Path(self.trimtab.data).expanduser().absolute()

    def _database(self, url: str, name: str) -> str:
        return url or f"sqlite:///{self.data / name}"

    @property
    def store_url(self) -> str:
        return self._database(self.collector.store, "collector.db")

    @property
    def journal_url(self) -> str:
        return self._database(self.alerts.database, "alerts.db")

    @property
    def registry_url(self) -> str:
        return self._database(self.serving.registry, "registry.db")

    @property
    def artifacts(self) -> Path:
        return Path(self.serving.artifacts) if self.serving.artifacts else self.data / "artifacts"

    @property
    def lake(self) -> Path:
        return Path(self.collector.lake) if self.collector.lake else self.data / "lake"

    def _url(self, port: int) -> str:
        host = self.trimtab.host
        # An address to bind to is not always one to call: 0.0.0.0 and :: mean "here" to a client.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def intake_url(self) -> str:
        return self._url(self.collector.intake_port)

    @property
    def query_url(self) -> str:
        return self.query.url or self._url(self.collector.query_port)

    @property
    def collector_url(self) -> str:
        """The collector's own query port, whatever rules and dashboards read."""
        return self._url(self.collector.query_port)

    @property
    def alerts_url(self) -> str:
        return self._url(self.alerts.port)

    @property
    def serving_url(self) -> str:
        return self.serving.url or self._url(self.serving.port)

    @property
    def dashboard_url(self) -> str:
        return self._url(self.dashboard.port)

    @property
    def secret(self) -> bytes | None:
        return self.trimtab.secret.encode() or None


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings: PATH, else `trimtab.toml` here if there is one, else the defaults; then the environment.

    Raises SettingsError.
    """
    environ = os.environ if environ is None else environ
    if path is None and Path(FILE).is_file():
        path = Path(FILE)
    tables: dict[str, Any] = {}
    if path is not None:
        try:
            tables = tomllib.loads(path.read_text())
        except FileNotFoundError:
            raise SettingsError(f"{path}: no such settings file; `trimtab init` writes one with the defaults") from None
        except OSError as error:
            raise SettingsError(f"{path}: cannot be read: {error.strerror or error}; give a TOML file") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path}: not valid TOML: {error}") from None
    _override(tables, environ)
    try:
        settings = msgspec.convert(tables, Settings)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{path or 'environment'}: {error} (see docs/settings.md for the fields)") from None
    _check(settings)
    return settings


def _override(tables: dict[str, Any], environ: Mapping[str, str]) -> None:
    for section in msgspec.structs.fields(Settings):
        fields = getattr(section.type, "__struct_fields__", ())
        for field in fields:
            value = environ.get(f"TRIMTAB_{section.name}_{field}".upper())
            if value is not None:
                kind = type(getattr(section.type(), field))
                if kind in (str, int, float, bool):
                    tables.setdefault(section.name, {})[field] = _scalar(section.name, field, value, kind)


def _scalar(section: str, field: str, value: str, kind: type) -> Any:
    try:
        return msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError:
        variable = f"TRIMTAB_{section}_{field}".upper()
        raise SettingsError(f"{variable}={value!r}: expected {kind.__name__}") from None


_LEAST_OF_A_MODEL = {
    "window_groups": 1, "ranks": 1, "min_rows": 1, "window_seconds": 0, "latency_budget_seconds": 0,
    "online_batch_rows": 1, "online_delay_seconds": 0, "online_publish_batches": 0,
}  # fmt: skip


LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def _check_addresses(settings: Settings) -> None:
    alerts = settings.alerts
    addresses = {
        "trimtab.lineage_url": [settings.trimtab.lineage_url],
        "query.url": [settings.query.url],
        "serving.url": [settings.serving.url],
        "alerts.write_url": [alerts.write_url],
        "alerts.alertmanagers": alerts.alertmanagers,
        "alerts.webhooks": alerts.webhooks,
        "collector.targets.url": [target.url for target in settings.collector.targets],
    }
    for name, urls in addresses.items():
        for url in urls:
            if url and not url.startswith(("http://", "https://")):
                raise SettingsError(f"{name} is {url!r}; an address begins with http:// or https://")


def _check(settings: Settings) -> None:
    if settings.trimtab.log_level not in LOG_LEVELS:
        raise SettingsError(f"trimtab.log_level is {settings.trimtab.log_level!r}; use one of {', '.join(LOG_LEVELS)}")
    _check_addresses(settings)
    for name in settings.alerts.actions:
        kind, colon, of_model = name.partition(":")
        if kind not in ACTIONS or (colon and not of_model):
            known = ", ".join(ACTIONS)
            raise SettingsError(f"alerts.actions.{name}: no such action; there are {known}, and NAME:MODEL")
        given = [way for way in WAYS if getattr(settings.alerts.actions[name], way)]
        if len(given) > 1:
            raise SettingsError(f"alerts.actions.{name} names {' and '.join(given)}; an action is done in one way")
    own = settings.alerts
    if own.alertmanager_config and (own.notify or own.webhooks):
        raise SettingsError(
            "alerts.alertmanager_config names all receivers; move alerts.notify and alerts.webhooks into that file"
        )
    collector = settings.collector
    if collector.scrape_interval_seconds <= 0 or collector.window_seconds <= 0:
        raise SettingsError("collector.scrape_interval_seconds and collector.window_seconds must be above 0")
    if collector.amend_seconds < 0 or collector.slice_values < 1 or collector.alarm_windows < 2:
        raise SettingsError(
            "collector.amend_seconds must be at least 0, collector.slice_values at least 1 and collector.alarm_windows "
            "at least 2"
        )
    for name, model in settings.models.items():
        if not 0 <= model.trace_sample_ratio <= 1:
            raise SettingsError(f"models.{name}.trace_sample_ratio must be in [0, 1], it is {model.trace_sample_ratio}")
        for field, least in _LEAST_OF_A_MODEL.items():
            if getattr(model, field) < least:
                raise SettingsError(f"models.{name}.{field} must be at least {least}, it is {getattr(model, field)}")
        if not 0 < model.holdout_ratio < 1 or not 0 <= model.canary_weight <= 1:
            raise SettingsError(
                f"models.{name}: holdout_ratio must be in (0, 1) and canary_weight in [0, 1]; they are "
                f"{model.holdout_ratio} and {model.canary_weight}"
            )
    repeated = {name for name in collector.slices if collector.slices.count(name) > 1}
    if repeated:
        raise SettingsError(f"collector.slices names {min(repeated)} twice; name each column once")
    ports = {
        "collector.intake_port": collector.intake_port,
        "collector.query_port": collector.query_port,
        "alerts.port": settings.alerts.port,
        "serving.port": settings.serving.port,
        "dashboard.port": settings.dashboard.port,
    }
    by_port: dict[int, str] = {}
    for name, port in ports.items():
        if not 0 < port < 65536:
            raise SettingsError(f"{name} is {port}; a port is 1 to 65535")
        if port in by_port:
            raise SettingsError(f"{name} and {by_port[port]} are both {port}; give each service a port of its own")
        by_port[port] = name


def dump(settings: Settings) -> str:
    """The settings as TOML that `load` reads back."""
    # tomllib cannot write; JSON's scalars, arrays and strings are TOML's, which leaves only the tables to name.
    lines: list[str] = []
    _dump_table(lines, [], msgspec.to_builtins(settings))
    return "\n".join(lines).strip() + "\n"


def _dump_table(lines: list[str], path: list[str], table: dict[str, Any]) -> None:
    scalars = {name: value for name, value in table.items() if not _is_table(value)}
    if path and (scalars or not table):
        lines += ["", f"[{'.'.join(path)}]"]
    lines += [f"{name} = {msgspec.json.encode(value).decode()}" for name, value in scalars.items()]
    for name, value in table.items():
        key = name if name.replace("_", "").replace("-", "").isalnum() else msgspec.json.encode(name).decode()
        if isinstance(value, dict):
            _dump_table(lines, [*path, key], value)
        elif _is_table(value):
            for item in value:
                lines += ["", f"[[{'.'.join([*path, key])}]]"]
                lines += [f"{k} = {_inline(v)}" for k, v in item.items()]


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{msgspec.json.encode(k).decode()} = {_inline(v)}" for k, v in value.items()) + "}"
    return msgspec.json.encode(value).decode()
