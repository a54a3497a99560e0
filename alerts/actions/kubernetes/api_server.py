"""A Kubernetes API server over plain HTTP(S): reads and patches, with the token and CA of the settings or the pod's."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from alerts.actions.hook import HookAway, HookError

POD_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
# Written with the effect, in one patch: the proof that this action is done.
ACTION_ANNOTATION = "trimtab.dev/action"


class Conflict(RuntimeError):
    """The object was changed since it was read (409, or 422 for a failed `test`): read it and decide again."""


class ApiServer:
    """`token_file` is read at every request, since a pod's token is replaced each hour. Raises HookError from calls."""

    def __init__(
        self,
        url: str = "https://kubernetes.default.svc",
        *,
        token: str = "",
        token_file: str | Path = POD_FOLDER / "token",
        ca_file: str | Path = "",
        timeout_seconds: float = 10.0,
    ) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._token_file = Path(token_file)
        ca = Path(ca_file) if ca_file else POD_FOLDER / "ca.crt"
        verify: ssl.SSLContext | bool = True
        if url.startswith("https") and (ca_file or ca.is_file()):
            try:
                verify = ssl.create_default_context(cafile=str(ca))
            except OSError as error:
                raise ValueError(f"the CA file {ca} of the Kubernetes API cannot be read: {error}") from error
        self._client = httpx.Client(timeout=timeout_seconds, verify=verify)

    def get(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """An object or a list. Raises HookError, HookAway."""
        return self._request("GET", path, params=params)

    def json_patch(self, path: str, operations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The object after RFC 6902 operations. Raises Conflict, HookError, HookAway."""
        return self._request("PATCH", path, list(operations), JSON_PATCH)

    def merge_patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The object after an RFC 7386 merge; with `metadata.resourceVersion` it must not have changed. Conflict."""
        return self._request("PATCH", path, dict(body), MERGE_PATCH)

    def _request(
        self, method: str, path: str, body: Any = None, content_type: str = "", params: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        headers = {"Accept": "application/json"}
        token = self._token or self._read_token()
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if content_type:
            headers["Content-Type"] = content_type
        content = None if body is None else json.dumps(body).encode()
        what = f"{method} {self._url}{path}"
        try:
            answer = self._client.request(method, self._url + path, content=content, headers=headers, params=params)
        except httpx.HTTPError as error:
            raise HookAway(f"{what}: no answer: {error!r}") from error
        if answer.is_success:
            found: dict[str, Any] = answer.json()
            return found
        said = _message(answer)
        tested = answer.status_code == 422 and content_type == JSON_PATCH and "test" in said.lower()
        if answer.status_code == 409 or tested:
            raise Conflict(f"{what}: {said}")
        if answer.status_code == 429 or answer.status_code >= 500:
            raise HookAway(f"{what} answered {answer.status_code}: {said}")
        hint = {
            401: "; set a token that the API server knows",
            403: "; let the service account get and patch it (a Role and its RoleBinding)",
            404: "; is the name right, and is its resource installed?",
        }.get(answer.status_code, "")
        raise HookError(f"{what} answered {answer.status_code}: {said}{hint}", {"status": answer.status_code})

    def _read_token(self) -> str:
        try:
            return self._token_file.read_text().strip()
        except OSError:
            return ""


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json().get("message", answer.text))[:500]
    except (ValueError, AttributeError):
        return answer.text[:500]
