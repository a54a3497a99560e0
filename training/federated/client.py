"""A federation's client: asks what to do, trains on its own rows, and sends what it learned; its rows stay."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

import httpx
from torch import Tensor

from observability import Profile
from observability.categorical import CategoricalColumn
from observability.signing import HEADER, sign
from training.federated.federation import Federation
from training.federated.local import Learned, LocalPlan
from training.federated.protocol import (
    CLIENT_HEADER,
    ProtocolError,
    State,
    Task,
    pack_update,
    signed_bytes,
    unpack_parameters,
)

_log = logging.getLogger(__name__)
Learner = Callable[[Mapping[str, Tensor], LocalPlan, int], Learned]
"""Trains from these parameters as planned; the seed orders the rows."""


class ServerAway(ConnectionError):
    """The server did not answer, or is not ready; asking again later may help."""


class Refused(RuntimeError):
    """The server will not have this client or what it sent; the message is the server's."""


class Connection(Protocol):
    """A client's way to its server. All raise ServerAway and Refused."""

    def task(self) -> Task:
        """What to do now."""

    def parameters(self, task: Task) -> dict[str, Tensor] | None:
        """The parameters that the task starts from; None where its round is over."""

    def layout(self) -> Profile | None:
        """The empty profile to count one's rows in, if the server wants that."""

    def send(self, task: Task, body: bytes) -> str:
        """Hands an update over: `taken`, `duplicate` or `late`."""


class InProcess:
    """A client in the server's own process."""

    def __init__(self, federation: Federation, client: str) -> None:
        self._federation, self._client = federation, client

    def task(self) -> Task:
        return self._federation.task(self._client)

    def parameters(self, task: Task) -> dict[str, Tensor] | None:
        packed = self._federation.parameters_of(task.round)
        return None if packed is None else unpack_parameters(packed)

    def layout(self) -> Profile | None:
        reference = self._federation.reference
        return None if reference is None else reference.empty()

    def send(self, task: Task, body: bytes) -> str:
        try:
            return self._federation.submit(self._client, task.round, task.attempt, body)
        except ProtocolError as error:
            raise Refused(str(error)) from error


class OverHttp:
    """A client of the service at `url`, which signs with its secret. Close it, or use it in a `with` block."""

    def __init__(self, url: str, client: str, secret: str, *, timeout: float = 60.0) -> None:
        self._url, self._client, self._secret = url.rstrip("/"), client, secret
        self._http = httpx.Client(timeout=timeout)

    def close(self) -> None:
        """Ends the connection."""
        self._http.close()

    def __enter__(self) -> OverHttp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def task(self) -> Task:
        return Task.from_json(self._asked("GET", "/v1/task").content)

    def parameters(self, task: Task) -> dict[str, Tensor] | None:
        answer = self._asked("GET", f"/v1/model/{task.round}", over=410)
        return None if answer.status_code == 410 else unpack_parameters(answer.content)

    def layout(self) -> Profile | None:
        answer = self._asked("GET", "/v1/layout", over=404)
        return None if answer.status_code == 404 else Profile.from_json(answer.content)

    def setup(self, *, patience: float = 0.0) -> bytes:
        """What the federation hands its clients to begin with; a server that is away is asked for `patience` seconds.

        ServerAway after that, Refused where the federation has nothing for its clients.
        """
        until = time.monotonic() + patience
        while True:
            try:
                return self._asked("GET", "/v1/setup").content
            except ServerAway:
                if time.monotonic() > until:
                    raise
            time.sleep(0.5)

    def send(self, task: Task, body: bytes) -> str:
        return str(self._asked("PUT", f"/v1/updates/{task.round}/{task.attempt}", body).json()["outcome"])

    def _asked(self, method: str, path: str, body: bytes = b"", *, over: int = 0) -> httpx.Response:
        now = time.time()
        headers = {
            CLIENT_HEADER: self._client,
            HEADER: sign(self._secret, signed_bytes(method, path, self._client, body), now),
        }
        try:
            answer = self._http.request(method, self._url + path, content=body, headers=headers)
        except httpx.HTTPError as error:
            raise ServerAway(f"no answer from {self._url}: {error}") from error
        if answer.status_code in (429, 502, 503, 504):
            raise ServerAway(f"{self._url} answered {answer.status_code}")
        if answer.status_code >= 400 and answer.status_code != over:
            raise Refused(f"{self._url}{path} answered {answer.status_code}: {answer.text[:300]}")
        return answer


class FederatedClient:
    """One client. `profile` adds its rows to an empty profile (`lambda empty: empty.updated(rows)`), which is sent."""

    def __init__(
        self, connection: Connection, learner: Learner, *, profile: Callable[[Profile], Profile] | None = None
    ):
        self._connection, self._learner, self._profile = connection, learner, profile
        self._counted: bytes | None = None
        self.trained = 0
        """Updates that the server took."""

    def once(self) -> tuple[State, float]:
        """Asks for a task and does it; gives its state and the seconds to wait before the next."""
        task = self._connection.task()
        if task.state != "train":
            return task.state, task.seconds
        start = self._connection.parameters(task)
        if start is None:
            return "wait", 0.0
        learned = self._learner(start, task.plan, task.seed)
        outcome = self._connection.send(task, pack_update(learned, self._own_profile()))
        if outcome == "late":
            _log.warning("the update for round %d came too late", task.round)
        self.trained += outcome == "taken"
        return "train", 0.0

    def run(self, *, patience: float = 300.0, sleep: Callable[[float], None] = time.sleep) -> int:
        """Takes part until the federation is done; gives the number of updates that were taken.

        ServerAway where the server is away for longer than `patience` seconds, Refused where it refuses.
        """
        until, pause = time.monotonic() + patience, 0.1
        while True:
            try:
                state, seconds = self.once()
            except ServerAway:
                if time.monotonic() > until:
                    raise
                sleep(pause)
                pause = min(pause * 2, 5.0)
                continue
            until, pause = time.monotonic() + patience, 0.1
            if state == "done":
                return self.trained
            sleep(seconds)

    def _own_profile(self) -> bytes | None:
        if self._profile is None:
            return None
        if self._counted is None:
            layout = self._connection.layout()
            if layout is None:
                self._profile = None
                return None
            self._counted = without_texts(self._profile(layout)).to_json()
        return self._counted


def without_texts(profile: Profile) -> Profile:
    """The profile without the texts that the reference does not know: they are values of rows. Their number stays."""
    columns = {
        name: replace(column, strangers={}) if isinstance(column, CategoricalColumn) else column
        for name, column in profile.columns.items()
    }
    return replace(profile, columns=columns)
