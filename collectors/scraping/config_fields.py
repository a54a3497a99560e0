"""The fields of Prometheus' configuration that the collector reads; any other is an error."""

from __future__ import annotations

import msgspec

from collectors.scraping.relabel import DEFAULT_REGEX, DEFAULT_REPLACEMENT, DEFAULT_SEPARATOR

# Fields that Prometheus knows and the collector has nothing for: native histograms, OAuth, HTTP/2, other discoveries.
NOT_SUPPORTED = (
    "oauth2",
    "no_proxy",
    "proxy_connect_header",
    "scrape_failure_log_file",
    "query_log_file",
    "native_histogram_bucket_limit",
    "native_histogram_min_bucket_factor",
    "scrape_native_histograms",
    "convert_classic_histograms_to_nhcb",
    "always_scrape_classic_histograms",
    "scrape_classic_histograms",
    "extra_scrape_metrics",
)


class _Fields(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    pass


class BasicAuth(_Fields, frozen=True, kw_only=True):
    """`basic_auth`."""

    username: str = ""
    username_file: str = ""
    password: str = ""
    password_file: str = ""


class Authorization(_Fields, frozen=True, kw_only=True):
    """`authorization`, and what `bearer_token` says."""

    type: str = "Bearer"
    credentials: str = ""
    credentials_file: str = ""


class Tls(_Fields, frozen=True, kw_only=True):
    """`tls_config`."""

    ca: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""
    insecure_skip_verify: bool = False
    min_version: str = ""
    max_version: str = ""


class Header(_Fields, frozen=True, kw_only=True):
    """An element of `http_headers`."""

    values: list[str] = []
    secrets: list[str] = []
    files: list[str] = []


class Client(_Fields, frozen=True, kw_only=True):
    """What a scrape configuration and an `http_sd_config` say about HTTP. `enable_http2` has no effect."""

    basic_auth: BasicAuth | None = None
    authorization: Authorization | None = None
    bearer_token: str = ""
    bearer_token_file: str = ""
    tls_config: Tls = Tls()
    follow_redirects: bool = True
    enable_http2: bool = True
    proxy_url: str = ""
    proxy_from_environment: bool = False
    http_headers: dict[str, Header] = {}


class Relabel(_Fields, frozen=True, kw_only=True):
    """`relabel_config`."""

    action: str = "replace"
    source_labels: list[str] = []
    separator: str = DEFAULT_SEPARATOR
    regex: str = DEFAULT_REGEX
    modulus: int = 0
    target_label: str = ""
    replacement: str = DEFAULT_REPLACEMENT


class StaticGroup(_Fields, frozen=True, kw_only=True):
    """An element of `static_configs`, and of what a discovery answers."""

    targets: list[str] = []
    labels: dict[str, str] = {}


class FileGroups(_Fields, frozen=True, kw_only=True):
    """An element of `file_sd_configs`. Changes are seen at once, so `refresh_interval` has no effect."""

    files: list[str] = []
    refresh_interval: str = "5m"


class HttpGroups(Client, frozen=True, kw_only=True):
    """An element of `http_sd_configs`."""

    url: str = ""
    refresh_interval: str = "1m"


class Global(_Fields, frozen=True, kw_only=True):
    """`global`; what concerns rules and other systems is read elsewhere."""

    scrape_interval: str = "1m"
    scrape_timeout: str = "10s"
    evaluation_interval: str = "1m"
    rule_query_offset: str = "0s"
    external_labels: dict[str, str] = {}
    scrape_protocols: list[str] = []
    body_size_limit: str = "0"
    sample_limit: int = 0
    target_limit: int = 0
    label_limit: int = 0
    label_name_length_limit: int = 0
    label_value_length_limit: int = 0
    keep_dropped_targets: int = 0
    metric_name_validation_scheme: str = ""
    metric_name_escaping_scheme: str = ""


class Scrape(Client, frozen=True, kw_only=True):
    """An element of `scrape_configs`."""

    job_name: str = ""
    scrape_interval: str = ""
    scrape_timeout: str = ""
    metrics_path: str = "/metrics"
    scheme: str = "http"
    params: dict[str, list[str]] = {}
    honor_labels: bool = False
    honor_timestamps: bool = True
    track_timestamps_staleness: bool = False
    fallback_scrape_protocol: str = ""
    enable_compression: bool = True
    static_configs: list[StaticGroup] = []
    file_sd_configs: list[FileGroups] = []
    http_sd_configs: list[HttpGroups] = []
    relabel_configs: list[Relabel] = []
    metric_relabel_configs: list[Relabel] = []
    scrape_protocols: list[str] = []
    body_size_limit: str = ""
    sample_limit: int = 0
    target_limit: int = 0
    label_limit: int = 0
    label_name_length_limit: int = 0
    label_value_length_limit: int = 0
    keep_dropped_targets: int = 0
    metric_name_validation_scheme: str = ""
    metric_name_escaping_scheme: str = ""


class Document(_Fields, frozen=True, kw_only=True):
    """The file."""

    shared: Global = msgspec.field(default=Global(), name="global")
    scrape_configs: list[Scrape] = []
    scrape_config_files: list[str] = []
