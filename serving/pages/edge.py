"""What stands at the server's edge beside the hot path: pages, gRPC, load report, other names for the metrics."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from observability import names
from observability.metrics import Metrics
from serving import grpc
from serving.callers import Callers
from serving.health import Health
from serving.pages.aliases import Aliases
from serving.pages.extensions import Extensions
from serving.pages.inspection import Inspection
from serving.pages.load_report import LoadReport
from serving.pages.openapi import openapi_routes
from serving.peers import Peers
from serving.transport.certificates import grpc_credentials
from serving.transport.exchange import InferHandler
from serving.transport.gateway import Gateway
from serving.versions.deployment import Deployment

_log = logging.getLogger(__name__)
# How old the header of an answer may be.
_SHOWN_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeOptions:
    """What the settings say of the edge."""

    host: str
    grpc_port: int | None
    body_bytes: int
    trace_sample_ratio: float
    metric_aliases: bool
    load_header: bool
    ssl_certfile: Path | None
    ssl_keyfile: Path | None


class Edge:
    """Built before the control app, which gets `routes`; `bind` then closes the circle."""

    def __init__(
        self,
        options: EdgeOptions,
        handler: InferHandler,
        deployments: Mapping[str, Deployment],
        health: Health,
        metrics: Metrics,
        callers: Callers | None,
        active: Callable[[], int],
        connections: Callable[[], int],
        settle: Callable[[], None],
        show_load: Callable[[bytes], None],
        peers: Peers,
    ) -> None:
        """`settle` counts what is not counted yet; `show_load` puts a header line on the answers from now on."""
        self._options = options
        self._metrics = metrics
        self._callers = callers
        self._show_load = show_load
        self._shower: asyncio.Task[None] | None = None
        self.gateway = Gateway(handler)
        self.load = LoadReport(
            deployments, self._busy_seconds, lambda: active() + self.gateway.active, lambda: health.state, connections,
            time.perf_counter, metrics,
        )  # fmt: skip
        inspection = Inspection(deployments, health, metrics, self.load.report, settle, peers)
        extensions = Extensions(lambda model: model in deployments, options.trace_sample_ratio)
        self.routes: list[BaseRoute] = [
            *inspection.routes(),
            *extensions.routes(),
            *(
                Route(f"/v2/models/{{model}}{named}/infer", self._infer, methods=["POST"])
                for named in ("", "/versions/{version}")
            ),
            *openapi_routes(),
        ]
        if options.metric_aliases:
            metrics.registry.register(Aliases(metrics, deployments))
        self._grpc: grpc.GrpcServer | None = None
        self.grpc_port: int | None = None

    def bind(self, app: ASGIApp) -> None:
        """Takes the control app that was built with `routes`."""
        self.gateway.app = app

    async def start(self) -> None:
        """Opens the gRPC port, if there is one. Raises ImportError without grpcio, OSError when the port is taken."""
        options = self._options
        if options.load_header:
            self._shower = asyncio.create_task(self._keep_showing())
        if options.grpc_port is None:
            return
        self._grpc = grpc.GrpcServer(self.gateway, max_message_bytes=options.body_bytes)
        credentials = grpc_credentials(options.ssl_certfile, options.ssl_keyfile)
        self.grpc_port = await self._grpc.start(options.host, options.grpc_port, credentials)
        _log.info("gRPC on %s:%d", options.host, self.grpc_port)

    async def stop(self, grace: float) -> None:
        """Takes no more gRPC calls; those in flight have `grace` seconds."""
        if self._shower is not None:
            self._shower.cancel()
        if self._grpc is not None:
            await self._grpc.stop(grace)

    async def _keep_showing(self) -> None:
        while True:
            self._show_load(self.load.header())
            await asyncio.sleep(_SHOWN_SECONDS)

    def observe(self) -> None:
        """Brings the metrics up to date, before they are read."""
        if self._callers is not None:
            self._callers.observe()

    async def _infer(self, request: Request) -> Response:
        headers: dict[bytes, bytes] = {}
        for name, value in request.scope["headers"]:
            headers[name] = headers[name] + b", " + value if name in headers else value
        model, version = request.path_params["model"], request.path_params.get("version")
        reply = await self.gateway.infer(model, version, headers, await request.body())
        response = Response(reply.body, reply.status)
        response.raw_headers.extend(reply.headers.items())
        return response

    def _busy_seconds(self) -> float:
        return float(
            sum(
                sample.value
                for family in self._metrics[names.INFERENCE_COMPUTE].collect()
                for sample in family.samples
                if sample.name.endswith("_sum")
            )
        )
