"""How a target or a discovery endpoint is asked: credentials, TLS, proxy and headers, as Prometheus configures them."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Generator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx


class BadClient(ValueError):
    """Credentials or certificates that cannot be used; the message names the file and the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """`tls_config`. Files are read when a connection is set up, and again when they change."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    ca: str = ""
    server_name: str = ""
    insecure_skip_verify: bool = False
    min_version: str = ""
    max_version: str = ""

    def context(self) -> ssl.SSLContext:
        """The context of a connection. BadClient when a file cannot be read or is no certificate."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None, cadata=self.ca or None)
            if self.insecure_skip_verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file or None)
            if self.min_version:
                context.minimum_version = TLS_VERSIONS[self.min_version]
            if self.max_version:
                context.maximum_version = TLS_VERSIONS[self.max_version]
        except (OSError, ssl.SSLError) as error:
            named = ", ".join(name for name in (self.ca_file, self.cert_file, self.key_file) if name)
            raise BadClient(f"the TLS files ({named}) cannot be used: {error}") from error
        return context


TLS_VERSIONS = {
    "TLS10": ssl.TLSVersion.TLSv1,
    "TLS11": ssl.TLSVersion.TLSv1_1,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A secret given as it is, or as a file that is read at each request, so that it can be renewed."""

    text: str = field(default="", repr=False)
    file: str = ""

    def value(self) -> str:
        """The secret now. BadClient when its file cannot be read."""
        if not self.file:
            return self.text
        try:
            return Path(self.file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise BadClient(f"the secret in {self.file} cannot be read: {error}") from error

    def __bool__(self) -> bool:
        return bool(self.text or self.file)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """The HTTP half of a scrape configuration."""

    username: Secret = field(default_factory=Secret)
    password: Secret = field(default_factory=Secret)
    scheme: str = "Bearer"
    credentials: Secret = field(default_factory=Secret)
    tls: TlsSettings = field(default_factory=TlsSettings)
    follow_redirects: bool = True
    proxy_url: str = ""
    proxy_from_environment: bool = False
    headers: tuple[tuple[str, Secret], ...] = ()

    def stamp(self) -> tuple[int, ...]:
        """Changes when a certificate's file does."""
        files = (self.tls.ca_file, self.tls.cert_file, self.tls.key_file)
        return tuple(_changed_ns(name) for name in files if name)

    def client(self) -> httpx.AsyncClient:
        """A client of its own connections. BadClient."""
        return httpx.AsyncClient(
            verify=self.tls.context(),
            auth=_Credentials(self),
            proxy=self.proxy_url or None,
            trust_env=self.proxy_from_environment,
            follow_redirects=self.follow_redirects,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            timeout=None,
        )

    @property
    def extensions(self) -> Mapping[str, str]:
        """What a request says besides its URL and headers: the name that a certificate must have."""
        return {"sni_hostname": self.tls.server_name} if self.tls.server_name else {}


class _Credentials(httpx.Auth):
    """Puts the credentials and the configured headers on a request, as they are at that moment."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        settings = self._settings
        for name, value in settings.headers:
            request.headers[name] = value.value()
        if settings.credentials:
            request.headers["Authorization"] = f"{settings.scheme} {settings.credentials.value()}"
        elif settings.username or settings.password:
            basic = httpx.BasicAuth(settings.username.value(), settings.password.value())
            request = next(basic.auth_flow(request))
        yield request


class Clients:
    """One client for each way of asking, made when it is first needed and again when its certificates change."""

    def __init__(self) -> None:
        self._open: dict[ClientSettings, tuple[tuple[int, ...], httpx.AsyncClient]] = {}
        self._replaced: list[httpx.AsyncClient] = []

    def get(self, settings: ClientSettings) -> httpx.AsyncClient:
        """The client for these settings. BadClient."""
        stamp = settings.stamp()
        known = self._open.get(settings)
        if known is not None and known[0] == stamp:
            return known[1]
        made = settings.client()
        if known is not None:
            self._replaced.append(known[1])
        self._open[settings] = stamp, made
        return made

    async def close(self) -> None:
        """Ends all connections."""
        for client in [*self._replaced, *(client for _, client in self._open.values())]:
            await client.aclose()
        self._replaced.clear()
        self._open.clear()


@asynccontextmanager
async def clients() -> AsyncIterator[Clients]:
    """Clients that are closed at the end."""
    made = Clients()
    try:
        yield made
    finally:
        await made.close()


def _changed_ns(path: str) -> int:
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return -1
