"""A service that takes JSON over HTTP: what is sent to it is made from the message by templates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from alerts.notifications.channel import DeliveryError, check_answer
from alerts.notifications.http_options import HttpOptions
from alerts.notifications.message import Message
from alerts.notifications.templating import Templates
from alerts.notifications.webhook import USER_AGENT
from alerts.templates import TemplateError

_ELLIPSIS = "…"


@dataclass(frozen=True, slots=True)
class ServiceRequest:
    """One request to a service. The URL may hold a secret: it is never logged."""

    url: str
    body: Mapping[str, Any]
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)


class Filling:
    """The texts of one message: templates expanded, and cut where the service takes no more."""

    def __init__(self, templates: Templates, message: Message) -> None:
        self.message = message
        self._templates = templates

    def text(self, template: str, *, most: int = 0, escaped: bool = False) -> str:
        """The template's text, of at most so many characters; raises TemplateError."""
        text = self._templates.expand(template, self.message, escaped=escaped)
        return text[: most - 1] + _ELLIPSIS if most and len(text) > most else text

    def texts(self, templates: Mapping[str, str]) -> dict[str, str]:
        """The texts of a mapping of templates."""
        return {name: self.text(template) for name, template in templates.items()}


class ServiceChannel:
    """`requests` makes what is sent, one after the other; codes in `retried` are tried again besides 429 and 5xx."""

    def __init__(
        self,
        kind: str,
        requests: Callable[[Filling], Sequence[ServiceRequest]],
        *,
        templates: Templates,
        options: HttpOptions,
        retried: Collection[int] = (),
    ) -> None:
        self.kind = kind
        self._requests = requests
        self._templates = templates
        self._options = options
        self._retried = retried

    def close(self) -> None:
        self._options.close()

    def send(self, message: Message, timeout: float) -> None:
        try:
            requests = self._requests(Filling(self._templates, message))
        except TemplateError as error:
            raise DeliveryError(f"a template of {self.kind} failed: {error}", final=True) from error
        except OSError as error:
            raise DeliveryError(f"a file of {self.kind} cannot be read: {error}") from error
        for request in requests:
            headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT, **request.headers}
            content = msgspec.json.encode(request.body)
            try:
                answer = self._options.request(
                    request.method, request.url, content=content, headers=headers, timeout=timeout
                )
            except httpx.InvalidURL as error:
                raise DeliveryError(f"the URL of {self.kind} cannot be used", final=True) from error
            except (httpx.HTTPError, OSError) as error:
                raise DeliveryError(f"{self.kind} cannot be reached: {type(error).__name__}: {error}") from error
            check_answer(answer, self.kind, self._retried)


def without_empty(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that say something, as Go's `omitempty` leaves them."""
    return {name: value for name, value in body.items() if value not in ("", None, [], {}, False)}
