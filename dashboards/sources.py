"""The dashboard's only way out: one HTTP reader for the services, with batched queries and a short memory.

It holds no opinion about what is shown. A service that cannot be reached is `Unavailable`, a request that the service
will not answer is `Refused`; both say what to do about it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal
from urllib.parse import quote

import httpx
import numpy as np

from dashboards.series import Series, Span

# "query" answers PromQL, "collector" has drift, traces and reports: one service, unless another Prometheus is read.
Service = Literal["query", "collector", "alerts", "serving"]
TITLES: dict[Service, str] = {
    "query": "Prometheus",
    "collector": "Collector",
    "alerts": "Alerts",
    "serving": "Serving",
}
START: dict[Service, str] = {
    "query": "prometheus",
    "collector": "trimtab collector",
    "alerts": "trimtab alerts",
    "serving": "trimtab serve",
}
HEALTH: dict[Service, str] = {
    "query": "/-/healthy",
    "collector": "/-/healthy",
    "alerts": "/-/healthy",
    "serving": "/v2/health/live",
}
Json = Any
Sign = Callable[[bytes], Mapping[str, str]]


class SourceError(Exception):
    """A service did not give what was asked."""

    def __init__(self, service: Service, url: str, reason: str) -> None:
        super().__init__(f"{service} at {url}: {reason}")
        self.service, self.url, self.reason = service, url, reason


class Unavailable(SourceError):
    """The service is away or too slow."""

    @property
    def remedy(self) -> str:
        """The command that starts it."""
        return START[self.service]


class Refused(SourceError):
    """The service answered that it will not or cannot."""

    def __init__(self, service: Service, url: str, reason: str, status: int) -> None:
        super().__init__(service, url, reason)
        self.status = status


class Sources:
    """Reads and asks the services. Answers (and failures) are remembered for `memory_seconds`, then asked again.

    A service that has not answered after `patience_seconds` is away; to connect, and to say that it lives, it has a
    part of that.
    """

    def __init__(
        self,
        query_url: str,
        alerts_url: str,
        serving_url: str,
        *,
        collector_url: str | None = None,
        sign: Sign | None = None,
        memory_seconds: float = 1.0,
        patience_seconds: float = 8.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        query, collector = query_url.rstrip("/"), (collector_url or query_url).rstrip("/")
        # Where both are one, all is asked of the collector, so that one service that is away is named once.
        self._query: Service = "collector" if query == collector else "query"
        self.urls: dict[Service, str] = {
            self._query: query,
            "collector": collector,
            "alerts": alerts_url.rstrip("/"),
            "serving": serving_url.rstrip("/"),
        }
        self._sign, self._memory_seconds, self._clock = sign, memory_seconds, clock
        self._patience_seconds, self._connect_seconds = patience_seconds, patience_seconds / 8
        self._client = httpx.Client(timeout=httpx.Timeout(patience_seconds, connect=self._connect_seconds))
        self._pool = ThreadPoolExecutor(max_workers=6, thread_name_prefix="sources")
        self._memory: dict[Any, tuple[float, Any]] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    # --- Prometheus -------------------------------------------------------------------------------------------------
    def ranges(self, queries: Mapping[str, str], span: Span) -> tuple[dict[str, list[Series]], list[SourceError]]:
        """All range queries at once. A query that fails gives no series and stands in the list of problems."""
        parameters = {"start": span.start, "end": span.end, "step": span.step}
        return self._batch("/api/v1/query_range", queries, parameters)

    def instants(self, queries: Mapping[str, str], at: float) -> tuple[dict[str, list[Series]], list[SourceError]]:
        """All instant queries at once, as series of one point."""
        return self._batch("/api/v1/query", queries, {"time": at})

    def _batch(
        self, path: str, queries: Mapping[str, str], parameters: Mapping[str, float]
    ) -> tuple[dict[str, list[Series]], list[SourceError]]:
        def one(query: str) -> list[Series] | SourceError:
            try:
                answer = self._get(self._query, path, {"query": query, **parameters})
                return [_series(item) for item in answer["data"]["result"]]
            except SourceError as problem:
                return problem

        answers = dict(zip(queries, self._pool.map(one, queries.values()), strict=True))
        found = {name: answer if isinstance(answer, list) else [] for name, answer in answers.items()}
        return found, [answer for answer in answers.values() if isinstance(answer, SourceError)]

    def label_values(self, label: str) -> list[str]:
        """All values of a label."""
        return list(self._get(self._query, f"/api/v1/label/{quote(label)}/values")["data"])

    # --- the collector's own ----------------------------------------------------------------------------------------
    def drift(self, model: str, version: str | None = None, windows: int = 60) -> Json:
        """Drift of the newest windows, and the reference they are compared with."""
        parameters = {"windows": windows, **({"version": version} if version else {})}
        return self._get("collector", f"/api/drift/{quote(model, safe='')}", parameters)

    def quality(self, model: str, limit: int = 200) -> Json:
        """The schema in force, the rules that rows broke, and the latest of those rows."""
        return self._get("collector", f"/api/quality/{quote(model, safe='')}", {"limit": limit})

    def slices(self, model: str, version: str) -> Json:
        """Where a version errs most, and which of its rows came or went. It may take seconds to find."""
        return self._get("collector", f"/api/slices/{quote(model, safe='')}", {"version": version})

    def traces(self, limit: int = 200) -> list[Json]:
        """The newest traces in Jaeger's JSON."""
        return list(self._get("collector", "/api/traces", {"limit": limit})["data"])

    def trace(self, trace_id: str) -> Json | None:
        """One trace in Jaeger's JSON."""
        found = self._get("collector", f"/api/traces/{quote(trace_id, safe='')}")["data"]
        return found[0] if found else None

    def drift_report(self, model: str, version: str) -> bytes:
        """Evidently's HTML report; it is made while one waits, up to three minutes."""
        parameters = {"model": model, "version": version}
        return self._send("collector", "GET", "/api/reports/drift", parameters=parameters, timeout=180.0).content

    # --- alerts -----------------------------------------------------------------------------------------------------
    def rule_groups(self) -> list[Json]:
        """Rule groups with the state of their rules, in Prometheus' JSON."""
        return list(self._get("alerts", "/api/v1/rules")["data"]["groups"])

    def alerts(self) -> list[Json]:
        """Alerts in Alertmanager's JSON: firing ones, silenced ones among them."""
        return list(self._get("alerts", "/api/v2/alerts"))

    def silences(self) -> list[Json]:
        """Silences in Alertmanager's JSON, expired ones among them."""
        return list(self._get("alerts", "/api/v2/silences"))

    def create_silence(
        self, matchers: Sequence[Mapping[str, Any]], starts_at: str, ends_at: str, creator: str, comment: str
    ) -> str:
        """Silence what matches between two RFC 3339 times; the silence's id."""
        body = {
            "matchers": list(matchers),
            "startsAt": starts_at,
            "endsAt": ends_at,
            "createdBy": creator,
            "comment": comment,
        }
        return str(self._post("alerts", "/api/v2/silences", body)["silenceID"])

    def expire_silence(self, silence_id: str) -> None:
        """End a silence now."""
        self._send("alerts", "DELETE", f"/api/v2/silence/{quote(silence_id, safe='')}")
        self.forget()

    def evidence(self, model: str) -> list[Json]:
        """The model's releases with their e-values, counts and verdict, newest first; ended ones among them."""
        return list(self._get("alerts", "/api/v1/evidence", {"model": model})["releases"])

    def actions(self, model: str | None = None, limit: int = 100) -> list[Json]:
        """The journal of actions, newest first."""
        parameters = {"limit": limit, **({"model": model} if model else {})}
        answer = self._get("alerts", "/api/v1/actions", parameters)
        found: list[Json] = answer.get("actions") or answer.get("data") or [] if isinstance(answer, dict) else answer
        return sorted(found, key=lambda action: action.get("created_at") or 0, reverse=True)

    def request_action(self, action: str, model: str, reason: str, actor: str) -> Json:
        """Ask for an action by hand; the journal keeps who asked and why."""
        body = {"action": action, "model": model, "reason": reason, "actor": actor}
        return self._post("alerts", "/api/v1/actions", body)

    def decide(self, action_id: str, decision: Literal["approve", "reject"], actor: str) -> Json:
        """Approve or reject a waiting action."""
        return self._post("alerts", f"/api/v1/actions/{quote(str(action_id), safe='')}/{decision}", {"actor": actor})

    def releases(self, model: str, limit: int = 20) -> list[Json]:
        """The model's releases by its policy, newest first."""
        return list(self._get("alerts", "/api/v1/releases", {"model": model, "limit": limit})["releases"])

    def release(self, model: str) -> Json:
        """The model's newest release by its policy, with its explanation and its rows of the journal."""
        return self._get("alerts", f"/api/v1/releases/{quote(model, safe='')}")

    def decide_release(self, model: str, deed: str, actor: str, reason: str) -> Json:
        """Approve, pause, resume or abort the model's release."""
        path = f"/api/v1/releases/{quote(model, safe='')}/{quote(deed, safe='')}"
        return self._post("alerts", path, {"actor": actor, "reason": reason})

    def episodes(self, model: str, limit: int = 20) -> list[Json]:
        """The model's episodes of drift and decay with their retrainings, newest first."""
        return list(self._get("alerts", "/api/v1/episodes", {"model": model, "limit": limit})["episodes"])

    # --- serving ----------------------------------------------------------------------------------------------------
    def models(self) -> list[str]:
        """Names of the models that serving knows."""
        answer = self._get("serving", "/api/v1/models")
        found = answer.get("models", []) if isinstance(answer, dict) else answer
        if isinstance(found, dict):
            return sorted(found)
        return sorted(item if isinstance(item, str) else item["model"] for item in found)

    def model(self, name: str) -> Json:
        """A model's traffic policy, versions and history."""
        return self._get("serving", f"/api/v1/models/{quote(name, safe='')}")

    def promote(self, model: str, version: str, reason: str, key: str) -> Json:
        """Make a version the stable one; `key` makes a second call harmless."""
        return self._post(
            "serving", f"/api/v1/models/{quote(model, safe='')}/promote", {"version": version, "reason": reason}, key
        )

    def rollback(self, model: str, reason: str, key: str) -> Json:
        """All traffic to the stable version, or stable back to the one before; without a journal."""
        return self._post("serving", f"/api/v1/models/{quote(model, safe='')}/rollback", {"reason": reason}, key)

    def health(self) -> dict[Service, SourceError | None]:
        """For each service what is wrong with it, or None."""

        def one(service: Service) -> SourceError | None:
            seconds = self._patience_seconds / 4
            try:
                self._remembered(
                    ("health", service), lambda: self._send(service, "GET", HEALTH[service], timeout=seconds)
                )
            except SourceError as problem:
                return problem
            return None

        return dict(zip(self.urls, self._pool.map(one, self.urls), strict=True))

    def forget(self) -> None:
        """Ask everything anew: something was changed."""
        with self._lock:
            self._memory.clear()

    # --- one request ------------------------------------------------------------------------------------------------
    def _get(self, service: Service, path: str, parameters: Mapping[str, Any] | None = None) -> Json:
        key = (service, path, tuple((parameters or {}).items()))
        return self._remembered(key, lambda: _json(service, self._send(service, "GET", path, parameters=parameters)))

    def _post(self, service: Service, path: str, body: Json, key: str | None = None) -> Json:
        headers = {"Idempotency-Key": key} if key else {}
        answer = self._send(service, "POST", path, body=body, headers=headers)
        self.forget()
        return _json(service, answer)

    def _remembered(self, key: Any, ask: Callable[[], Json]) -> Json:
        with self._lock:
            expires, answer = self._memory.get(key, (-1.0, None))
        if expires < self._clock():
            try:
                answer = ask()
            except SourceError as problem:
                answer = problem
            self._remember(key, answer)
        if isinstance(answer, SourceError):
            raise answer
        return answer

    def _remember(self, key: Any, answer: Any) -> None:
        now = self._clock()
        with self._lock:
            self._memory = {k: v for k, v in self._memory.items() if v[0] >= now}
            self._memory[key] = (now + self._memory_seconds, answer)

    def _send(
        self,
        service: Service,
        method: str,
        path: str,
        *,
        parameters: Mapping[str, Any] | None = None,
        body: Json = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> httpx.Response:
        url = self.urls[service]
        request = self._client.build_request(method, url + path, params=parameters, json=body, headers=headers)
        if timeout is not None:
            request.extensions["timeout"] = httpx.Timeout(timeout, connect=self._connect_seconds).as_dict()
        if self._sign and service in ("alerts", "serving") and method == "POST":
            request.headers.update(self._sign(request.content))
        try:
            response = self._client.send(request)
        except httpx.TimeoutException as error:
            raise Unavailable(service, url, "no answer in time") from error
        except httpx.HTTPError as error:
            raise Unavailable(service, url, "not reachable") from error
        if response.status_code in (502, 503, 504):
            raise Unavailable(service, url, f"answers {response.status_code}: {_message(response)}")
        if response.is_error:
            raise Refused(service, url, _message(response), response.status_code)
        return response


def _json(service: Service, response: httpx.Response) -> Json:
    try:
        return response.json()
    except ValueError as error:
        reason = f"{response.url.path} is not JSON; is this the right service?"
        raise Refused(service, str(response.url), reason, response.status_code) from error


def _message(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return response.text[:200] or response.reason_phrase
    if isinstance(body, dict):
        return str(body.get("error") or body.get("message") or body.get("detail") or body)[:300]
    return str(body)[:300]


def _series(item: Json) -> Series:
    points = np.array(item["values"] if "values" in item else [item["value"]], dtype=np.float64).reshape(-1, 2)
    return Series(dict(item["metric"]), points[:, 0], points[:, 1])
