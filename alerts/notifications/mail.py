"""Mail over SMTP, as Alertmanager sends it: `email_configs`.

Source: Alertmanager, notify/email/email.go.
"""

from __future__ import annotations

import smtplib
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import formatdate, parseaddr

from alerts.notifications.channel import Channel, DeliveryError
from alerts.notifications.http_options import NO_SECRET, Secret, read_secret, read_tls
from alerts.notifications.message import Message
from alerts.notifications.section import Defaults
from alerts.notifications.templating import Templates
from alerts.notifications.yaml_reader import Value
from alerts.templates import TemplateError

_FIELDS = ("send_resolved", "to", "from", "hello", "smarthost", "auth_username", "auth_password", "auth_password_file",
           "headers", "html", "text", "require_tls", "tls_config")  # fmt: skip
_UNSUPPORTED = ("auth_secret", "auth_secret_file", "auth_identity", "threading", "force_implicit_tls")
_SMTPS_PORT = 465


@dataclass(frozen=True, kw_only=True)
class MailChannel:
    """One or more addresses, told by a mail server. Texts are templates; `password` is read at each use."""

    templates: Templates
    host: str
    port: int
    sender: str
    to: str
    headers: Mapping[str, str] = field(default_factory=dict)
    html: str = ""
    text: str = ""
    hello: str = "localhost"
    user: str = ""
    password: Secret = NO_SECRET
    require_tls: bool = True
    tls: Callable[[], ssl.SSLContext] = ssl.create_default_context
    kind: str = "email"

    def close(self) -> None:
        pass

    def send(self, message: Message, timeout: float) -> None:
        try:
            mail = self._mail(message)
            with self._server(timeout) as server:
                if self.require_tls and self.port != _SMTPS_PORT:
                    server.starttls(context=self.tls())
                if self.user:
                    server.login(self.user, self.password.get())
                server.send_message(mail)
        except TemplateError as error:
            raise DeliveryError(f"a template of the mail failed: {error}", final=True) from error
        except smtplib.SMTPResponseException as error:
            final = error.smtp_code >= 500
            raise DeliveryError(f"{self.host} answered {error.smtp_code}: {error.smtp_error!r}", final=final) from error
        except smtplib.SMTPRecipientsRefused as error:
            final = all(code >= 500 for code, _ in error.recipients.values())
            raise DeliveryError(f"{self.host} refused the addresses {sorted(error.recipients)}", final=final) from error
        except smtplib.SMTPNotSupportedError as error:
            raise DeliveryError(f"{self.host}: {error} (require_tls: false does without)", final=True) from error
        except (OSError, smtplib.SMTPException) as error:
            raise DeliveryError(f"{self.host}:{self.port} cannot be reached: {error!r}") from error

    def _server(self, timeout: float) -> smtplib.SMTP:
        if self.port == _SMTPS_PORT:
            return smtplib.SMTP_SSL(self.host, self.port, self.hello, timeout=timeout, context=self.tls())
        return smtplib.SMTP(self.host, self.port, self.hello, timeout=timeout)

    def _mail(self, message: Message) -> EmailMessage:
        mail = EmailMessage()
        for name, template in self.headers.items():
            mail[name] = self.templates.expand(template, message)
        mail["From"] = self.templates.expand(self.sender, message)
        mail["To"] = self.templates.expand(self.to, message)
        mail["Date"] = formatdate()
        # The same for each try of a message: mail servers that know the id keep one of two.
        host = parseaddr(self.sender)[1].rpartition("@")[2] or socket.gethostname()
        mail["Message-Id"] = f"<{message.id}@{host}>"
        if self.text:
            mail.set_content(self.templates.expand(self.text, message))
        if self.html:
            html = self.templates.expand(self.html, message, escaped=True)
            if self.text:
                mail.add_alternative(html, subtype="html")
            else:
                mail.set_content(html, subtype="html")
        return mail


def email(value: Value, defaults: Defaults) -> tuple[Channel, bool]:
    """An `email_configs` item."""
    fields, shared, check = value.fields(_FIELDS, _UNSUPPORTED), defaults.fields, defaults.templates.check

    def find(name: str) -> Value | None:
        return fields.get(name) or shared.get(f"smtp_{name}")

    if "to" not in fields:
        value.fail("missing to address in email config")
    host = find("smarthost")
    if host is None:
        value.fail("no global SMTP smarthost set")
    name, _, port = host.text().rpartition(":")
    if not name or not port.isdigit():
        host.fail(f"the smarthost must be HOST:PORT, got {host.text()!r}")
    sender = find("from")
    if sender is None:
        value.fail("no global SMTP from set")
    for unsupported in ("smtp_auth_secret", "smtp_auth_identity"):
        if unsupported in shared:
            shared[unsupported].fail(f"{unsupported} is not supported here; use smtp_auth_password")
    own = any(each in fields for each in ("auth_password", "auth_password_file"))
    password = (
        read_secret(value, fields, "auth_password", defaults.folder)
        if own
        else read_secret(value, shared, "smtp_auth_password", defaults.folder)
    )
    user, hello, require = find("auth_username"), find("hello"), find("require_tls")
    headers = (
        {key.title(): text.read(check) for key, text in fields["headers"].entries()} if "headers" in fields else {}
    )
    subject = headers.pop("Subject", '{{ template "email.default.subject" . }}')
    context = read_tls(fields["tls_config"], defaults.folder)[0] if "tls_config" in fields else None
    channel = MailChannel(
        templates=defaults.templates,
        host=name,
        port=int(port),
        sender=headers.pop("From", sender.text()),
        to=headers.pop("To", fields["to"].read(check)),
        headers={"Subject": subject, **headers},
        html=fields["html"].read(check) if "html" in fields else '{{ template "email.default.html" . }}',
        text=fields["text"].read(check) if "text" in fields else "",
        hello=hello.text() if hello else "localhost",
        user=user.text() if user else "",
        password=password,
        require_tls=require.flag() if require else True,
        tls=(lambda: context) if context else ssl.create_default_context,
    )
    return channel, fields["send_resolved"].flag() if "send_resolved" in fields else False
