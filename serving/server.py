"""The serving service: its settings, its start, its drain. The composition root of this package."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

import observability
from observability.logs import log_exporter, setup_logging
from observability.metrics import Metrics
from observability.sinks import HttpSink
from observability.tracing import setup_tracing
from serving import fleet, telemetry
from serving.app import ControlApp
from serving.artifacts.manifest import file_bytes
from serving.artifacts.placement import CPU, require_device, require_name
from serving.batcher import Budget
from serving.batching.lane_policy import LanePolicy
from serving.batching.lanes import Lanes
from serving.cache import CachePolicy, ResponseCache
from serving.callers import Caller, Callers
from serving.control import Control
from serving.errors import RegistryUnavailable, ServingError
from serving.fleet import FleetOptions
from serving.front import Front
from serving.garbage import give_memory_back, load_torch, settle_down
from serving.health import Health
from serving.http import Limits, Server
from serving.pages.edge import Edge, EdgeOptions
from serving.peers import Alone, Peers
from serving.registry import Registry
from serving.routing.policies import PolicyStore
from serving.shadow import Mirror, ShadowLimits
from serving.shadows import Place, ShadowProcess
from serving.stopping import Stopping, pause
from serving.telemetry.counting import Counting
from serving.telemetry.recorder import Recorder
from serving.telemetry.signals import Signals, connections_dropped
from serving.transport.certificates import tls_context
from serving.transport.listening import stop_listening
from serving.versions.deployment import Deployment, Loaded, load_version
from serving.versions.references import References
from serving.versions.repository import Repository
from serving.versions.residency import Residency, pin

_log = logging.getLogger(__name__)
# Turns of the loop before the last connections are closed: they read what came while the process was kept from work.
_LAST_TURNS = 4
# Seconds in which those who connected last may send their request.
_LINGER_SECONDS = 0.5
# The largest batch of a version whose batches take their time.
_USUAL_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingConfig:
    """Everything that `serve` needs. Times are seconds."""

    # SQLAlchemy URL of the model registry and the traffic policies.
    registry_url: str
    artifacts_dir: Path
    host: str = "127.0.0.1"
    # 0 takes a free port.
    port: int = 8080
    # Models to serve; empty means all that have a stable version.
    models: tuple[str, ...] = ()
    # 0: 64, and up to 256 where a batch of so many still takes at most `inline_seconds`.
    max_batch_rows: int = 0
    # How long a batch may wait for company, from its oldest request's arrival; 0 takes what is there.
    max_delay: float = 0.0
    # A batch that takes at most this long runs on the event loop, without a hand-off to a thread; 0 never does.
    inline_seconds: float = 0.001
    # A batch of exactly one of these sizes goes at once; `pad_batches` fills smaller ones up to the next of them.
    preferred_batch_rows: tuple[int, ...] = ()
    pad_batches: bool = False
    # Batches and waits are chosen so that requests take less than this, queue included; 0 leaves them as set.
    latency_target: float = 0.0
    # Lengths that ragged inputs are padded to, ascending, and powers of two beyond; empty means powers of two.
    length_buckets: tuple[int, ...] = ()
    # Batches that run at a time in threads, all models together.
    device_batches: int = 1
    # Rows that may wait, by version; more are refused with 429.
    max_queue_rows: int = 1024
    # Bytes of requests that may wait, by version; 0 means no limit.
    max_queue_bytes: int = 256 * 1024 * 1024
    # Rows and bytes that may wait in all queues together; more are refused with 503. 0 means no limit.
    max_total_rows: int = 0
    max_total_bytes: int = 512 * 1024 * 1024
    # Requests of a version that may wait or run; 0 means no limit.
    max_concurrent_requests: int = 0
    # Rows of a version that may wait or run follow what requests take; twice a full batch is let grow by this
    # factor; 0 does not limit them so.
    adaptive_concurrency: float = 0.0
    # A queue that made requests wait longer than this for `queue_delay_interval` refuses what would; 0 never does.
    queue_delay_target: float = 1.0
    queue_delay_interval: float = 0.1
    # While it refuses, the newest request goes first.
    overload_newest_first: bool = False
    # A request that has waited so long counts as one class of priority higher.
    priority_ageing: float = 1.0
    # A batch that runs longer than this, and 20 times longer than it should, makes its model not ready; 0 never does.
    stall_seconds: float = 10.0
    # Base URL of the collector's intake; None sends no events, traces, logs or profiles.
    collector_url: str | None = None
    # Versions with a reference are counted here and their profiles sent every so many seconds, no longer than the
    # collector's windows; events then need not carry the features that are counted.
    probe: bool = False
    probe_seconds: float = 2.0
    event_features: bool = True
    trace_sample_ratio: float = 0.01
    # New traces that a process begins in a second at most; those that a caller has begun are kept besides.
    trace_limit_per_second: int = 20
    # Control calls must be signed with it; empty means no signature.
    secret: str = ""
    # `module:callable` names that safetensors artifacts may declare.
    architectures: tuple[str, ...] = ()
    torch_threads: int = 1
    # Where models run: cpu, cuda or cuda:N; replicas of a server on `cuda` are spread over all GPUs.
    device: str = CPU
    # Bytes that loaded versions may take together; the least recently used give way. 0 means no limit.
    memory_budget_bytes: int = 0
    # `MODEL:VERSION`: loaded at start and never given up, whatever the traffic.
    pinned_versions: tuple[str, ...] = ()
    # What copies of requests to shadows may cost.
    shadow: ShadowLimits = field(default_factory=ShadowLimits)
    # Whose answers are kept for equal requests, by model; `*` stands for those not named. None by default.
    cache: Mapping[str, CachePolicy] = field(default_factory=dict)
    # From the signal to the closed listener: time for load balancers to see that the server is not ready.
    drain_notice: float = 0.5
    # From the closed listener on, for requests in flight.
    drain_timeout: float = 30.0
    limits: Limits = field(default_factory=Limits)
    # The V2 protocol over gRPC on this port too (0 takes a free one); None is off. Needs the extra `grpc`.
    grpc_port: int | None = None
    # Who may ask; empty means everybody, without tokens.
    callers: tuple[Caller, ...] = ()
    # The names of Triton's, KServe's and MLServer's dashboards on the page of metrics too.
    metric_aliases: bool = False
    # An ORCA `endpoint-load-metrics` header on each answer, at most 0.1 s old.
    load_header: bool = False
    # PEM files; with a certificate both ports speak TLS. Without a key file the certificate's file holds the key.
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    # More than one process behind the port, and how they watch over each other.
    fleet: FleetOptions = field(default_factory=FleetOptions)

    def __post_init__(self) -> None:
        if self.ssl_keyfile is not None and self.ssl_certfile is None:
            raise ValueError("ssl_keyfile is set and ssl_certfile is not: TLS needs a certificate")
        if self.max_batch_rows < 0 or self.max_queue_rows < max(1, self.max_batch_rows):
            raise ValueError(
                f"max_batch_rows is {self.max_batch_rows}, max_queue_rows {self.max_queue_rows}: "
                "the first must not be negative, the second at least 1 and at least the first"
            )
        self.lane_policy()
        require_name(self.device)
        if self.probe_seconds <= 0:
            raise ValueError(f"probe_seconds is {self.probe_seconds}: it must be positive")
        if not (self.event_features or self.probe):
            raise ValueError("event_features is off and so is probe: nobody would count what models are given")
        if list(self.length_buckets) != sorted(set(self.length_buckets)) or min(self.length_buckets, default=1) < 1:
            raise ValueError(f"length_buckets are {self.length_buckets}; they are positive and ascend")
        for text in self.pinned_versions:
            pin(text)
        if min(self.max_total_rows, self.max_total_bytes) < 0 or self.device_batches < 1:
            raise ValueError(
                f"max_total_rows is {self.max_total_rows}, max_total_bytes {self.max_total_bytes}, device_batches "
                f"{self.device_batches}: not negative, not negative, at least 1"
            )
        if self.memory_budget_bytes < 0:
            raise ValueError(
                f"memory_budget_bytes is {self.memory_budget_bytes}: give a number of bytes, 0 for no limit"
            )
        if not (0 <= self.drain_notice < math.inf and 0 <= self.drain_timeout < math.inf):
            raise ValueError(
                f"drain_notice is {self.drain_notice}, drain_timeout {self.drain_timeout}: give seconds, not negative"
            )
        if self.max_delay < 0 or self.torch_threads < 1:
            raise ValueError(
                f"max_delay is {self.max_delay}, torch_threads {self.torch_threads}: not negative, at least 1"
            )

    def lane_policy(self) -> LanePolicy:
        """The part that every version's queue needs. Raises ValueError where fields contradict each other."""
        return LanePolicy(
            max_rows=self.max_batch_rows or min(_USUAL_ROWS, self.max_queue_rows),
            max_delay=self.max_delay,
            preferred_rows=self.preferred_batch_rows,
            pad=self.pad_batches,
            latency_target=self.latency_target,
            inline_seconds=self.inline_seconds,
            limit_rows=self.max_queue_rows,
            limit_bytes=self.max_queue_bytes,
            limit_requests=self.max_concurrent_requests,
            adaptive_concurrency=self.adaptive_concurrency,
            delay_target=self.queue_delay_target,
            delay_interval=self.queue_delay_interval,
            newest_first=self.overload_newest_first,
            ageing=self.priority_ageing,
            stall_seconds=self.stall_seconds,
        )


class Service:
    """A running server. `start` returns when it is ready; `drain` stops it and loses no accepted request."""

    def __init__(self, config: ServingConfig, metrics: Metrics | None = None, *, peers: Peers | None = None) -> None:
        peers = peers or Alone()
        self.config = config
        self.metrics = metrics or Metrics()
        self.deployments: dict[str, Deployment] = {}
        self.health = Health(self.deployments)
        self.port = config.port
        self._signals = Signals(self.metrics)
        self._references = References(config.collector_url, self.metrics)
        self._counting: Counting | None = None
        if config.probe and config.collector_url is not None:
            self._counting = Counting(
                config.collector_url, self.metrics, self._references.publish, seconds=config.probe_seconds,
                features=config.event_features,
            )  # fmt: skip
        self._lanes = Lanes(
            config.lane_policy(), Budget(config.max_total_rows, config.max_total_bytes), self._signals,
            slots=config.device_batches, buckets=config.length_buckets, counting=self._counting,
        )  # fmt: skip
        self._registry = Registry(config.registry_url, config.artifacts_dir)
        self._tracing = setup_tracing(
            "serving", config.collector_url, sample_ratio=config.trace_sample_ratio, metrics=self.metrics
        )
        instance = os.urandom(6).hex()
        make_events = (
            None if config.collector_url is None else partial(self._make_events, config.collector_url, instance)
        )
        self._recorder = Recorder(make_events, self._tracing, self.metrics)
        self._mirror = Mirror(
            self._signals, self._recorder.put if self._recorder.records_all else None, self._busy, config.shadow,
            process=ShadowProcess(self._place, config.shadow.process_bytes, config.shadow.step_rows),
        )  # fmt: skip
        self._front = Front(
            self.deployments, self._signals, self._recorder, self._tracing, self._mirror,
            body_limit=config.limits.body_bytes, max_request_rows=config.max_queue_rows, instance=instance,
            trace_limit=config.trace_limit_per_second,
        )  # fmt: skip
        store = PolicyStore(self._registry.database)
        self._residency = Residency(
            self.deployments, self._load, self._size, self._signals, budget=config.memory_budget_bytes,
            pins=frozenset(map(pin, config.pinned_versions)),
        )  # fmt: skip
        self._control = Control(
            self._registry, store, self.deployments, self._make, self._residency,
            (self._counting or self._references).publish, peers=peers,
        )  # fmt: skip
        repository = Repository(
            self._control, self._registry, self._residency, peers, models=config.models, secret=config.secret
        )
        callers = self._callers = Callers(config.callers, self.metrics) if config.callers else None
        self._front.callers = callers
        self.edge = Edge(
            EdgeOptions(
                host=config.host, grpc_port=config.grpc_port, body_bytes=config.limits.body_bytes,
                trace_sample_ratio=config.trace_sample_ratio, metric_aliases=config.metric_aliases,
                load_header=config.load_header, ssl_certfile=config.ssl_certfile, ssl_keyfile=config.ssl_keyfile,
            ),
            self._front, self.deployments, self.health, self.metrics, callers, self._active,
            lambda: len(self.http.connections), self._front.settle,
            lambda line: setattr(self._front, "extra_head", line), peers,
        )  # fmt: skip
        app = ControlApp(
            self._control, self.deployments, store, self.metrics, secret=config.secret, models=config.models,
            routes=[*repository.routes(), *self.edge.routes], observe=self.edge.observe,
        ).build()  # fmt: skip
        self.edge.bind(app)
        self.http = Server(self._front, app, config.limits, connections_dropped(self.metrics))
        self._listener: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listens at once (not ready), loads and warms the stable versions, then is ready.

        Raises RegistryUnavailable, OSError where the port is taken.
        """
        import torch

        torch.set_num_threads(self.config.torch_threads)
        self._listener = await self._listen()
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())
        for model in self.config.models or await self._control.models():
            try:
                await self._restore(model)
            except RegistryUnavailable:
                raise
            except ServingError as error:
                _log.error("%s cannot be served: %s", model, error)
                self.deployments.setdefault(model, self._make(model)).trouble = str(error)
        for model in set(self.config.models) - set(self.deployments):
            _log.warning("%s is to be served and is not registered, or has no stable version", model)
        self._front.open = True
        self.health.state = "ready"
        self._recorder.prepare()
        _log.info("serving on %s:%d", self.config.host, self.port, extra={"models": sorted(self.deployments)})

    async def _listen(self) -> asyncio.Server:
        """Opens the port; `port` says which. A replica behind fronts listens to them instead."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            self.http.connection,
            self.config.host,
            self.config.port,
            backlog=2048,
            ssl=tls_context(self.config.ssl_certfile, self.config.ssl_keyfile),
        )
        self.port = server.sockets[0].getsockname()[1]
        await self.edge.start()
        return server

    async def _stop_listening(self) -> None:
        """Closes the port; whoever had connected and was not accepted is served."""
        assert self._listener is not None
        listening = [socket.socket(fileno=os.dup(listener.fileno())) for listener in self._listener.sockets]
        await stop_listening(
            [self._listener], listening, self.http.connection, self.config.drain_notice, everywhere=True,
            tls=tls_context(self.config.ssl_certfile, self.config.ssl_keyfile),
        )  # fmt: skip

    async def _restore(self, model: str) -> None:
        """Takes up the stored policy of a model. Raises ServingError when its stable version does not load."""
        await self._control.restore(model)

    def _active(self) -> int:
        """Requests that were taken in and are not answered."""
        return self.http.active()

    async def drain(self, hurried: asyncio.Event | None = None) -> None:
        """Readiness off, the listener closed, every accepted request answered, telemetry sent as far as it goes.

        Once `hurried` is set nobody is waited for any more. A start that was cancelled is cleaned up after.
        """
        hurried = hurried or asyncio.Event()
        self.health.state = "draining"
        self.http.begin_close()
        await pause(self.config.drain_notice, hurried)
        if self._listener is not None:
            await self._stop_listening()
        await self.edge.stop(0.0 if hurried.is_set() else self.config.drain_timeout)
        limit = time.monotonic() + self.config.drain_timeout
        turns = 0
        while (
            (now := time.monotonic()) < limit
            and not hurried.is_set()
            and (self._active() or self._busy() or turns < _LAST_TURNS or self.http.expects(now, _LINGER_SECONDS))
        ):
            turns += 1
            await asyncio.sleep(0.005)
        self._mirror.close()
        self._front.settle()
        if self._sweeper is not None:
            self._sweeper.cancel()
        self.http.abort()
        self._front.close()
        for deployment in self.deployments.values():
            for version in deployment.versions.values():
                version.lane.stop()
        self._residency.close()
        await asyncio.to_thread(self._close_telemetry)
        self._registry.close()

    def _busy(self) -> bool:
        return any(
            not version.lane.idle
            for deployment in self.deployments.values()
            for version in deployment.versions.values()
        )

    def _close_telemetry(self) -> None:
        self._recorder.close()
        if self._counting is not None:
            self._counting.close()
        self._references.close()
        self._tracing.close()

    def _leave_lost_device(self) -> None:
        """Ends the process whose GPU takes nothing any more: only a new one can use it."""
        lost = [name for name, d in self.deployments.items() if any(v.loaded.model.lost for v in d.versions.values())]
        if lost and self.health.state == "ready":
            _log.critical("the GPU is lost to this process (%s): it ends, to be started again", ", ".join(lost))
            os.kill(os.getpid(), signal.SIGTERM)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.http.sweep(time.monotonic())
            self._leave_lost_device()
            self._lanes.look(self.deployments)
            self.edge.load.sample()

    def _make_events(self, collector_url: str, instance: str) -> telemetry.EventMaker:
        """On the recorder's thread, after the start, which does not wait for it."""
        sink = HttpSink(f"{collector_url.rstrip('/')}/v1/events")
        left_out = None if self._counting is None else self._counting.left_out
        events = telemetry.EventMaker(observability.EventExporter(sink, metrics=self.metrics), instance, left_out)
        give_memory_back()
        return events

    def _load(self, model: str, number: int) -> Loaded:
        config = self.config
        quick = 0.0 if config.max_batch_rows else config.inline_seconds
        rows = config.lane_policy().max_rows
        return load_version(self._registry, model, number, config.architectures, rows, quick, config.device)

    def _size(self, model: str, number: int) -> int:
        return file_bytes(self._registry.folder(self._registry.get(model, number)))

    def _place(self, model: str, number: int) -> Place:
        version = self._registry.get(model, number)
        return Place(self._registry.folder(version), version.digest)

    def _make(self, model: str) -> Deployment:
        self._signals.queue_limits(model, self._lanes.policy)
        deployment = Deployment(model, partial(self._lanes.make, model), self._signals)
        kept = self.config.cache.get(model, self.config.cache.get("*"))
        if kept is not None:
            deployment.cache = ResponseCache(kept, deployment.resubmit)
        self._residency.adopt(deployment)
        return deployment


async def run(config: ServingConfig, started: Callable[[Service], None] | None = None) -> None:
    """Serves until it is told to stop, then drains; Ctrl-C during that ends it at once."""
    stopping = Stopping()
    load_torch(config.torch_threads)
    service = Service(config)
    loop = asyncio.get_running_loop()
    starting, stop = loop.create_task(service.start()), loop.create_task(stopping.asked.wait())
    await asyncio.wait([starting, stop], return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        await starting
        settle_down()
        if started is not None:
            started(service)
        await stop
    else:
        # Told to end before it was ready: what is still to be loaded is nothing to wait for.
        starting.cancel()
        await asyncio.wait([starting])
    await service.drain(stopping.hurried)
    _log.info("ended in a hurry" if stopping.hurried.is_set() else "drained; goodbye")


def serve(config: ServingConfig, log_level: str = "INFO", started: Callable[[Any], None] | None = None) -> None:
    """Runs the service on uvloop until it is told to stop; logs are JSON lines. Returns after a complete drain.

    `started` is called with the Service, or the Fleet when there are several processes, once it is ready.
    Raises ValueError where there is no such device.
    """
    require_device(config.device)
    exporter = None if config.collector_url is None else log_exporter("serving", config.collector_url)
    setup_logging("serving", log_level, stream=sys.stderr, exporter=exporter)
    uvloop.run(fleet.run_fleet(config, log_level, started) if config.fleet.several else run(config, started))
    if exporter is not None:
        exporter.close(timeout=1.0)
