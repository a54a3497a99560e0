"""Any service that apprise knows, by its URL: mail, chats, pagers, telephones."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

from alerts.notifications.channel import DeliveryError
from alerts.notifications.message import Message

_STATUS = re.compile(r"error=(4\d\d)\b")
_PASSING = ("408", "425", "429")

Text = Callable[[Message], str]


class AppriseChannel:
    """`title` and `text` make the two parts of what is sent."""

    def __init__(
        self,
        url: str,
        *,
        kind: str = "apprise",
        title: Text = lambda message: message.title,
        text: Text = lambda message: message.text,
        body_format: str = "text",
    ) -> None:
        import apprise  # heavy, and needed only where a URL asks for it

        self.kind = kind
        self._title = title
        self._text = text
        self._format = body_format
        self._capture = apprise.LogCapture
        self._apprise = apprise.Apprise()
        if not self._apprise.add(url):
            raise ValueError(f"apprise cannot read the notification URL that begins with {url.partition('://')[0]}://")

    def close(self) -> None:
        pass

    def send(self, message: Message, timeout: float) -> None:
        body, title = self._text(message), self._title(message)
        kind = "failure" if message.status == "firing" else "success"
        with self._capture(level=logging.WARNING) as log:
            sent = self._apprise.notify(body=body, title=title, notify_type=kind, body_format=self._format)
            said = log.getvalue().strip()
        if not sent:
            status = _STATUS.search(said)
            raise DeliveryError(
                f"apprise did not deliver the notification: {said.splitlines()[-1] if said else 'it did not say why'}",
                final=status is not None and status[1] not in _PASSING,
            )
