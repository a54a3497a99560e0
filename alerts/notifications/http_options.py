"""How requests to a receiver are made: `http_config` of Alertmanager's files, as clients of httpx."""

from __future__ import annotations

import base64
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import httpx

from alerts.notifications.yaml_reader import Value

_FIELDS = (
    "authorization", "basic_auth", "bearer_token", "bearer_token_file", "proxy_url", "tls_config", "follow_redirects",
    "enable_http2", "http_headers", "proxy_from_environment",
)  # fmt: skip
_UNSUPPORTED = ("oauth2", "no_proxy", "proxy_connect_header")
_TLS_FIELDS = ("ca_file", "cert_file", "key_file", "server_name", "insecure_skip_verify", "min_version", "max_version",
               "ca")  # fmt: skip
_TLS_VERSIONS = {
    "TLS10": ssl.TLSVersion.TLSv1, "TLS11": ssl.TLSVersion.TLSv1_1, "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Secret:
    """A text, or the file that holds it: the file is read at each use, so that it may be renewed."""

    value: str = ""
    path: Path | None = None

    def get(self) -> str:
        """The text; raises OSError."""
        return self.path.read_text().strip() if self.path else self.value


NO_SECRET = Secret()


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """Credentials, TLS, proxy and headers of the requests to one receiver."""

    scheme: str = ""
    credentials: Secret = NO_SECRET
    user: Secret | None = None
    password: Secret = NO_SECRET
    headers: Mapping[str, tuple[Secret, ...]] = field(default_factory=dict)
    proxy: str = ""
    from_environment: bool = False
    follow_redirects: bool = True
    tls: ssl.SSLContext | None = None
    server_name: str = ""

    @cached_property
    def client(self) -> httpx.Client:
        """A client that keeps its connections; safe to use from many threads."""
        return httpx.Client(
            verify=self.tls if self.tls is not None else True,
            proxy=self.proxy or None,
            trust_env=self.from_environment,
            follow_redirects=self.follow_redirects,
        )

    def request(
        self, method: str, url: str, *, content: bytes, headers: Mapping[str, str], timeout: float
    ) -> httpx.Response:
        """One request; raises httpx.HTTPError, and OSError when a file of credentials cannot be read."""
        sent = [*headers.items(), *self._own_headers()]
        extensions = {"sni_hostname": self.server_name} if self.server_name else {}
        return self.client.request(method, url, content=content, headers=sent, timeout=timeout, extensions=extensions)

    def close(self) -> None:
        """Let connections go."""
        if "client" in self.__dict__:
            self.client.close()

    def _own_headers(self) -> list[tuple[str, str]]:
        found = [(name, secret.get()) for name, secrets in self.headers.items() for secret in secrets]
        if self.user is not None:
            pair = f"{self.user.get()}:{self.password.get()}".encode()
            found.append(("Authorization", f"Basic {base64.b64encode(pair).decode()}"))
        elif self.scheme:
            found.append(("Authorization", f"{self.scheme} {self.credentials.get()}"))
        return found


def read_http_options(value: Value, folder: Path) -> HttpOptions:
    """An `http_config`; raises ConfigurationError. Relative paths are taken from `folder`."""
    fields = value.fields(_FIELDS, _UNSUPPORTED)
    ways = [fields.get(name) for name in ("authorization", "basic_auth", "bearer_token", "bearer_token_file")]
    value.one_of(*ways)
    scheme, credentials, user, password = "", Secret(), None, Secret()
    if authorization := fields.get("authorization"):
        own = authorization.fields(("type", "credentials", "credentials_file"))
        scheme = own["type"].text() if "type" in own else "Bearer"
        if scheme.lower() == "basic":
            authorization.fail('authorization type cannot be set to "basic", use "basic_auth" instead')
        credentials = read_secret(authorization, own, "credentials", folder)
    elif basic := fields.get("basic_auth"):
        own = basic.fields(("username", "username_file", "password", "password_file"))
        user = read_secret(basic, own, "username", folder)
        password = read_secret(basic, own, "password", folder)
    elif ways[2] or ways[3]:
        scheme, credentials = "Bearer", read_secret(value, fields, "bearer_token", folder)
    tls, server_name = read_tls(fields["tls_config"], folder) if "tls_config" in fields else (None, "")
    return HttpOptions(
        scheme=scheme,
        credentials=credentials,
        user=user,
        password=password,
        headers=_headers(fields["http_headers"], folder) if "http_headers" in fields else {},
        proxy=fields["proxy_url"].text() if "proxy_url" in fields else "",
        from_environment="proxy_from_environment" in fields and fields["proxy_from_environment"].flag(),
        follow_redirects="follow_redirects" not in fields or fields["follow_redirects"].flag(),
        tls=tls,
        server_name=server_name,
    )


def read_secret(value: Value, fields: Mapping[str, Value], name: str, folder: Path) -> Secret:
    """The field NAME, or the file that NAME_file names. Raises ConfigurationError if both are there."""
    inline, file = fields.get(name), fields.get(f"{name}_file")
    value.one_of(inline, file)
    if file is not None:
        return Secret(path=folder / file.text())
    return Secret(inline.text() if inline is not None else "")


def _headers(value: Value, folder: Path) -> dict[str, tuple[Secret, ...]]:
    found: dict[str, tuple[Secret, ...]] = {}
    for name, header in value.entries():
        fields = header.fields(("values", "secrets", "files"))
        texts = [text for kind in ("values", "secrets") if kind in fields for text in fields[kind].texts()]
        files = fields["files"].texts() if "files" in fields else []
        found[name] = (*(Secret(text) for text in texts), *(Secret(path=folder / file) for file in files))
    return found


def read_tls(value: Value, folder: Path) -> tuple[ssl.SSLContext, str]:
    """A `tls_config`, and the server's name in it. Raises ConfigurationError."""
    fields = value.fields(_TLS_FIELDS, ("cert", "key", "cert_ref", "key_ref", "ca_ref"))
    value.one_of(fields.get("ca"), fields.get("ca_file"))
    try:
        context = ssl.create_default_context(
            cafile=str(folder / fields["ca_file"].text()) if "ca_file" in fields else None,
            cadata=fields["ca"].text() if "ca" in fields else None,
        )
        if "cert_file" in fields or "key_file" in fields:
            if not ("cert_file" in fields and "key_file" in fields):
                value.fail("cert_file and key_file are needed together")
            context.load_cert_chain(folder / fields["cert_file"].text(), folder / fields["key_file"].text())
    except (OSError, ssl.SSLError) as error:
        value.fail(f"tls_config: a certificate or key cannot be read: {error}")
    if "insecure_skip_verify" in fields and fields["insecure_skip_verify"].flag():
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    for name, attribute in (("min_version", "minimum_version"), ("max_version", "maximum_version")):
        if name in fields:
            if fields[name].text() not in _TLS_VERSIONS:
                fields[name].fail(f"{name} must be one of {', '.join(_TLS_VERSIONS)}, got {fields[name].text()!r}")
            setattr(context, attribute, _TLS_VERSIONS[fields[name].text()])
    return context, fields["server_name"].text() if "server_name" in fields else ""
