"""The V2 protocol's pages: health, metadata, configuration, statistics, repository index, load report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from observability.metrics import Metrics
from serving.errors import NotFound
from serving.health import Health
from serving.pages.description import model_config, model_metadata, server_metadata
from serving.pages.statistics import COUNTED_FAMILIES, Counts, counts_in, read_counts, triton_statistics
from serving.peers import Peers
from serving.versions.deployment import Deployment
from serving.versions.status import GAVE_WAY, NOT_LOADED, Status, everywhere

_READY = Status("READY")


class Inspection:
    """Their routes. `load` gives the load report; `settle` counts what was not counted yet."""

    def __init__(
        self,
        deployments: Mapping[str, Deployment],
        health: Health,
        metrics: Metrics,
        load: Callable[[], Mapping[str, Any]],
        settle: Callable[[], None],
        peers: Peers,
    ) -> None:
        self._deployments = deployments
        self._health = health
        self._metrics = metrics
        self._load = load
        self._settle = settle
        self._peers = peers

    def routes(self) -> list[Route]:
        """For the control app."""
        pages = {"": self._model, "/ready": self._model_ready, "/config": self._config, "/stats": self._statistics}
        return [
            Route("/health/live", self._live),
            Route("/health/ready", self._ready),
            Route("/v2/health/live", self._live),
            Route("/v2/health/ready", self._ready),
            Route("/v2", self._server),
            Route("/v2/", self._server),
            Route("/v2/models/stats", self._all_statistics),
            *(
                Route(f"/v2/models/{{model}}{named}{tail}", page)
                for named in ("", "/versions/{version}")
                for tail, page in pages.items()
            ),
            Route("/load", self._report),
        ]

    async def _live(self, _request: Request) -> Response:
        return JSONResponse({"live": True})

    async def _ready(self, _request: Request) -> Response:
        reason = self._health.unready()
        if reason is None:
            return JSONResponse({"ready": True})
        return JSONResponse({"ready": False, "error": reason}, 503, {"Retry-After": "1"})

    async def _server(self, _request: Request) -> Response:
        return JSONResponse(server_metadata())

    async def _model(self, request: Request) -> Response:
        return JSONResponse(model_metadata(*await self._found(request)))

    async def _model_ready(self, request: Request) -> Response:
        deployment, number = self._asked(request)
        reason = self._health.away() or await self._unready(deployment, number)
        body = {"name": deployment.model, "version": str(number), "ready": reason is None}
        if reason is None:
            return JSONResponse(body)
        return JSONResponse(body | {"error": reason}, 503, {"Retry-After": "1"})

    async def _config(self, request: Request) -> Response:
        return JSONResponse(model_config(*await self._found(request)))

    async def _statistics(self, request: Request) -> Response:
        model, version = request.path_params["model"], request.path_params.get("version")
        deployment = self._served(model)
        if version is not None:
            await deployment.awake(version)
        return JSONResponse(triton_statistics(await self._counts(), {model: deployment}, version))

    async def _all_statistics(self, _request: Request) -> Response:
        return JSONResponse(triton_statistics(await self._counts(), self._deployments))

    async def _report(self, _request: Request) -> Response:
        return JSONResponse(dict(self._load()))

    async def _counts(self) -> dict[tuple[str, str], Counts]:
        summed = await self._peers.counts(COUNTED_FAMILIES)
        if summed is not None:
            return counts_in(summed)
        self._settle()
        return read_counts(self._metrics)

    async def _unready(self, deployment: Deployment, number: int) -> str | None:
        """Why a version cannot answer; in a fleet, why too few replicas can."""
        reason = deployment.unready(number)
        views = await self._peers.views()
        if not views:
            return reason
        key = deployment.model, number
        own = _READY if reason is None else Status("UNAVAILABLE", reason)
        others = {replica: view.statuses.get(key, NOT_LOADED) for replica, view in views.items()}
        others = {replica: _READY if status == GAVE_WAY else status for replica, status in others.items()}
        status = everywhere({self._peers.number: own} | others, self._peers.needed)
        return None if status.state == "READY" else status.reason

    def _served(self, model: str) -> Deployment:
        deployment = self._deployments.get(model)
        if deployment is None:
            raise NotFound(f"model {model!r} is not served here; served are {sorted(self._deployments)}")
        return deployment

    async def _found(self, request: Request) -> tuple[Deployment, int]:
        """The model and the version in memory, which is loaded again if it gave way."""
        deployment = self._served(request.path_params["model"])
        choice, _ = await deployment.awake(request.path_params.get("version"))
        return deployment, choice.version

    def _asked(self, request: Request) -> tuple[Deployment, int]:
        """The same without loading: who looks whether a version is ready does not ask it anything."""
        deployment = self._served(request.path_params["model"])
        named, stable = request.path_params.get("version"), deployment.router.policy.stable
        for number in deployment.gave_way:
            if str(number) == named or (named is None and number == stable):
                return deployment, number
        choice, _ = deployment.route(named, None)
        return deployment, choice.version
