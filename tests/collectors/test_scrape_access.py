"""How targets are asked: credentials, TLS, redirects, limits, negotiation; and targets that a URL names."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import http.server
import ipaddress
import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from collectors.scrape import Scraper, ScrapeResult, ScrapeSettings
from collectors.scraping import ClientSettings, HttpDiscovery, Limits, ScrapeConfig, Secret, TargetGroup, TlsSettings
from collectors.scraping.client import clients
from collectors.store import STALE_NAN, Matcher, Store
from tests.collectors.real_prometheus import Prometheus

NOW = 1_363_000_000.0


class Server:
    """Answers with `body`, and keeps what it was asked with."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.body, self.status, self.content_type, self.gzipped = b"a 1\n", 200, "text/plain", False
        self.location = ""
        self.asked: list[tuple[str, dict[str, str]]] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                moved = server.location and self.path == "/metrics"
                body = gzip.compress(server.body) if server.gzipped else server.body
                self.send_response(302 if moved else server.status)
                if moved:
                    self.send_header("Location", server.location)
                if server.gzipped:
                    self.send_header("Content-Encoding", "gzip")
                self.send_header("Content-Type", server.content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.http.server_port}"
        if tls is not None:
            self.http.socket = tls.wrap_socket(self.http.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store("sqlite://", clock=lambda: NOW)
    yield made
    made.close()


def config(address: str, **more: Any) -> ScrapeConfig:
    groups = (TargetGroup(({"__address__": address},)),)
    return ScrapeConfig(**{"job": "x", "groups": groups, **more})


def scraped(store: Store, made: ScrapeConfig, at: float = NOW, times: int = 1) -> ScrapeResult:
    scraper = Scraper(store, ScrapeSettings(configs=[made]), lambda: at)

    async def story() -> ScrapeResult:
        async with clients() as opened:
            for number in range(times):
                for target, refusal in scraper.look_up().values():
                    result = await scraper.scrape(opened, target, at + number, refusal)
            return result

    return asyncio.run(story())


def values(store: Store, name: str) -> list[list[float]]:
    return [series.v.tolist() for series in store.select([Matcher("__name__", "=", name)], 0, 2**62)]


def test_a_scrape_says_what_prometheus_says(server: Server, store: Store) -> None:
    made = config(server.address, timeout_ms=7500, params={"b": ("2", "3"), "a": ("x y",)}, compression=False)
    assert scraped(store, made).up
    ((path, headers),) = server.asked

    assert path == "/metrics?a=x+y&b=2&b=3"
    assert headers["accept"] == made.accept
    assert headers["accept-encoding"] == "identity"
    assert headers["x-prometheus-scrape-timeout-seconds"] == "7.5"


@pytest.mark.parametrize("kind", ["bearer", "custom", "basic"])
def test_credentials_are_sent_and_files_are_read_each_time(
    server: Server, store: Store, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "secret"
    file.write_text("first\n")
    secret = Secret(file=str(file))
    client = {
        "bearer": ClientSettings(credentials=secret),
        "custom": ClientSettings(scheme="Token", credentials=secret, headers=(("X-Tenant", Secret(text="t")),)),
        "basic": ClientSettings(username=Secret(text="user"), password=secret),
    }[kind]
    scraped(store, config(server.address, client=client))
    file.write_text("second")
    scraped(store, config(server.address, client=client), NOW + 1)

    expected = {
        "bearer": ["Bearer first", "Bearer second"],
        "custom": ["Token first", "Token second"],
        "basic": ["Basic dXNlcjpmaXJzdA==", "Basic dXNlcjpzZWNvbmQ="],
    }[kind]
    assert [headers["authorization"] for _, headers in server.asked] == expected
    assert ("x-tenant" in server.asked[0][1]) == (kind == "custom")


def test_a_secret_that_cannot_be_read_is_the_scrapes_error(server: Server, store: Store, tmp_path: Path) -> None:
    client = ClientSettings(credentials=Secret(file=str(tmp_path / "none")))
    result = scraped(store, config(server.address, client=client))

    assert "cannot be read" in str(result.error)
    assert values(store, "up") == [[0.0]]
    assert not server.asked


def certificates(folder: Path, name: str, issuer: tuple[Any, Any] | None = None) -> tuple[Any, Any]:
    """A certificate for `name`, in NAME.pem with its key in NAME.key; signed by the issuer, or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    names = [x509.DNSName(name), *([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))] if name == "server" else [])]
    made = (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .sign(issuer[1] if issuer else key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    return made, key


def test_tls_knows_its_authority_its_name_and_its_clients(tmp_path: Path, store: Store) -> None:
    authority = certificates(tmp_path, "authority")
    certificates(tmp_path, "server", authority)
    certificates(tmp_path, "inside", authority)
    certificates(tmp_path, "reader", authority)
    files = {path.name: str(path) for path in tmp_path.iterdir()}

    def asked(name: str, **tls: Any) -> ScrapeResult:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files[f"{name}.pem"], files[f"{name}.key"])
        context.load_verify_locations(files["authority.pem"])
        context.verify_mode = ssl.CERT_REQUIRED
        server = Server(context)
        try:
            client = ClientSettings(tls=TlsSettings(**tls))
            return scraped(store, config(server.address, scheme="https", client=client))
        finally:
            server.close()

    reader = {"cert_file": files["reader.pem"], "key_file": files["reader.key"]}
    ca = {"ca_file": files["authority.pem"]}
    assert asked("server", **ca, **reader).error is None
    assert asked("inside", **ca, **reader, server_name="inside").error is None
    assert asked("inside", **reader, insecure_skip_verify=True).error is None
    assert "certificate" in str(asked("inside", **ca, **reader).error)
    assert "certificate" in str(asked("server", **reader).error).lower()
    assert asked("server", **ca).error is not None  # no certificate of its own
    assert "cannot be used" in str(asked("server", ca_file=files["reader.key"]).error)


def test_redirects_are_followed_unless_told_otherwise(server: Server, store: Store) -> None:
    server.location = "/elsewhere"
    followed = scraped(store, config(server.address))
    stayed = scraped(store, config(server.address, client=ClientSettings(follow_redirects=False)), NOW + 1)

    assert followed.error is None
    assert "302" in str(stayed.error)


@pytest.mark.parametrize("gzipped", [False, True])
def test_a_body_over_the_limit_is_refused_by_its_plain_size(server: Server, store: Store, gzipped: bool) -> None:
    server.body, server.gzipped = b"# padding\n" * 10_000 + b"a 1\n", gzipped
    limits = Limits(body_bytes=50_000)

    assert scraped(store, config(server.address)).error is None
    assert "body size limit exceeded" in str(scraped(store, config(server.address, limits=limits), NOW + 1).error)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(samples=1), "sample limit exceeded"),
        (Limits(labels=3), "label_limit exceeded (metric: b, number of labels: 4, limit: 3)"),
        (Limits(label_name_length=8), "label_name_length_limit exceeded (metric: b, label name: much_too_long"),
        (Limits(label_value_length=14), 'value: "0123456789abcde", length: 15, limit: 14)'),
    ],
)
def test_a_page_over_a_limit_is_refused_whole(server: Server, store: Store, limits: Limits, reason: str) -> None:
    groups = (TargetGroup(({"__address__": server.address},), {"instance": "i"}),)
    server.body = b'a 1\nb{much_too_long="0123456789abcde"} 2\n'
    made = config(server.address, groups=groups, limits=limits)
    result = scraped(store, replace(made, limits=Limits()), NOW)
    refused = scraped(store, made, NOW + 1)

    assert result.error is None
    assert reason in str(refused.error)
    ends = [series[-1] for name in ("a", "b") for series in values(store, name)]
    assert all(end != end for end in ends)
    assert values(store, "up") == [[1.0, 0.0]]


def test_too_many_targets_are_none(server: Server, store: Store) -> None:
    groups = (TargetGroup(tuple({"__address__": server.address, "n": str(n)} for n in range(3))),)
    result = scraped(store, config(server.address, groups=groups, target_limit=2))

    assert result.error == "target_limit exceeded (number of targets: 3, limit: 2)"
    assert not server.asked


def test_samples_with_times_do_not_end_with_the_page_unless_they_are_tracked(server: Server, store: Store) -> None:
    stamp = round(NOW * 1000) - 5000
    for tracked, job in ((False, "loose"), (True, "tracked")):
        scraper = Scraper(
            store, ScrapeSettings(configs=[config(server.address, job=job, track_timestamps_staleness=tracked)]), int
        )

        async def story(scraper: Scraper = scraper) -> None:
            async with clients() as opened:
                ((target, _),) = scraper.look_up().values()
                server.body = f"a 1 {stamp}\n".encode()
                await scraper.scrape(opened, target, NOW)
                server.body = b"b 1\n"
                await scraper.scrape(opened, target, NOW + 1)

        asyncio.run(story())
    found = {
        series.labels["job"]: (series.t.tolist(), series.v.tolist())
        for series in store.select([Matcher("__name__", "=", "a")], 0, 2**62)
    }

    assert found["loose"] == ([stamp], [1.0])
    assert found["tracked"][0] == [stamp, round(NOW * 1000) + 1000]
    assert repr(found["tracked"][1][1]) == repr(STALE_NAN)


def test_times_are_left_out_where_they_are_not_honoured(server: Server, store: Store) -> None:
    server.body = b"a 1 1000\n"
    scraped(store, config(server.address, honor_timestamps=False))

    (series,) = store.select([Matcher("__name__", "=", "a")], 0, 2**62)
    assert series.t.tolist() == [round(NOW * 1000)]


def test_targets_of_a_url_come_and_go(server: Server, store: Store) -> None:
    pages = Server()
    source = HttpDiscovery(url=f"http://{server.address}/targets", client=ClientSettings(credentials=Secret(text="t")))
    made = config(server.address, groups=(), urls=(source,))
    scraper = Scraper(store, ScrapeSettings(configs=[made]), lambda: NOW)
    (pool,) = scraper.pools

    def answer(body: Any, kind: str = "application/json", status: int = 200) -> list[str]:
        server.body, server.content_type, server.status = json.dumps(body).encode(), kind, status

        async def story() -> None:
            async with clients() as opened:
                await pool.discovery.refresh(source, opened)

        asyncio.run(story())
        return sorted(target.series_labels["zone"] for target, _ in scraper.look_up().values())

    groups = [{"targets": [pages.address], "labels": {"zone": "a", "__meta_x": "1"}}]
    assert answer(groups) == ["a"]
    assert answer([*groups, {"targets": [pages.address], "labels": {"zone": "b"}}]) == ["a", "b"]
    # What cannot be read changes nothing.
    assert answer(groups, status=500) == ["a", "b"]
    assert answer(groups, kind="text/html") == ["a", "b"]
    assert answer({"targets": []}) == ["a", "b"]
    assert answer([{"target": []}]) == ["a", "b"]
    assert answer([]) == []

    _, headers = server.asked[0]
    assert headers["authorization"] == "Bearer t"
    assert headers["x-prometheus-refresh-interval-seconds"] == "60"
    assert headers["accept"] == "application/json"
    pages.close()


@pytest.mark.slow
def test_prometheus_own_page_is_the_same_in_all_formats(tmp_path: Path, store: Store) -> None:
    """Its protobuf, OpenMetrics and text pages have the same series."""
    path = tmp_path / "prometheus.yml"
    path.write_text("{}")
    prometheus = Prometheus(tmp_path, path)
    try:
        prometheus.until(lambda: prometheus.client.get("/-/ready").status_code == 200)
        found = {}
        for protocol in ("PrometheusProto", "OpenMetricsText1.0.0", "PrometheusText0.0.4"):
            made = config(prometheus.address, job=protocol, protocols=(protocol,))
            assert scraped(store, made).error is None
            found[protocol] = {
                tuple(sorted((name, value) for name, value in labels.items() if name != "job"))
                for labels in store.series([Matcher("job", "=", protocol)])
            }
        kinds = {known.type for known in store.metadata().values()}
    finally:
        prometheus.close()

    # Prometheus' own metrics about the answers given so far come with each.
    changing = ("prometheus_http_", "promhttp_", "net_conntrack")
    steady = {
        protocol: {labels for labels in series if not dict(labels)["__name__"].startswith(changing)}
        for protocol, series in found.items()
    }
    assert steady["PrometheusProto"] == steady["PrometheusText0.0.4"]
    assert steady["OpenMetricsText1.0.0"] == steady["PrometheusText0.0.4"]
    assert len(steady["PrometheusProto"]) > 200
    assert {"counter", "gauge", "histogram", "summary"} <= kinds
