"""The configuration file: what is read, what is refused and how it is said; durations, sizes and rules."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.scraping import BadConfig, BadRule, RelabelRule, pool_of, read_scrape_configs, relabelled
from collectors.scraping.quantities import size_bytes
from collectors.scraping.relabel import hash_of
from observability.durations import duration_ms, duration_text

WHOLE = """
global:
  scrape_interval: 20s
  evaluation_interval: 15s
  external_labels: {region: eu}
rule_files: [rules.yml]
alerting: {alertmanagers: [{static_configs: [{targets: ['localhost:9093']}]}]}
remote_write: [{url: 'http://localhost/write'}]
scrape_configs:
  - &defaults
    job_name: everything
    scrape_interval: 1m30s
    scrape_timeout: 5s
    metrics_path: /probe
    scheme: https
    params: {module: [http_2xx, icmp], shard: [01]}
    honor_labels: true
    honor_timestamps: false
    body_size_limit: 10MB
    sample_limit: 1000
    label_limit: 30
    label_name_length_limit: 100
    label_value_length_limit: 200
    target_limit: 50
    basic_auth: {username: reader, password_file: secrets/password}
    tls_config:
      ca_file: ca.pem
      cert_file: cert.pem
      key_file: key.pem
      server_name: inside
      insecure_skip_verify: true
    static_configs:
      - targets: ['one:80', 'two:81']
        labels: {zone: a, shard: 01, on: yes}
      - targets:
    file_sd_configs:
      - files: [targets/*.json, more.yml]
        refresh_interval: 1m
    http_sd_configs:
      - url: http://localhost:1/targets
        refresh_interval: 30s
        authorization: {credentials: token}
    relabel_configs:
      - source_labels: [__address__]
        target_label: __param_target
      - {action: labelmap, regex: __meta_(.+)}
    metric_relabel_configs:
      - {action: drop, source_labels: [__name__], regex: 'go_.*'}
  - job_name: plain
    bearer_token: abc
    static_configs: [{targets: ['three:82']}]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prometheus.yml"


def test_a_whole_file_is_read(path: Path) -> None:
    path.write_text(WHOLE)
    everything, plain = read_scrape_configs(path)

    assert (everything.interval_ms, everything.timeout_ms, plain.interval_ms, plain.timeout_ms) == (
        90_000,
        5_000,
        20_000,
        10_000,
    )
    assert everything.params == {"module": ("http_2xx", "icmp"), "shard": ("01",)}
    assert everything.groups[0].labels == {"zone": "a", "shard": "01", "on": "yes"}
    assert everything.groups[1].targets == ()
    limits = everything.limits
    assert (limits.body_bytes, limits.samples, limits.labels) == (10 * 1024 * 1024, 1000, 30)
    assert everything.client.password.file == str(path.parent / "secrets" / "password")
    assert everything.client.tls.ca_file == str(path.parent / "ca.pem")
    assert everything.files[0].patterns == (str(path.parent / "targets/*.json"), str(path.parent / "more.yml"))
    assert (everything.urls[0].refresh_ms, everything.urls[0].client.credentials.text) == (30_000, "token")
    assert plain.client.credentials.text == "abc"
    assert "abc" not in repr(plain)
    assert plain.accept.startswith("application/openmetrics-text;version=1.0.0")

    pool = pool_of(everything, everything.groups)
    first = next(iter(pool.active.values()))
    assert first.url == "https://one:80/probe?module=http_2xx&module=icmp&shard=01&target=one%3A80"
    assert first.series_labels == {"job": "everything", "instance": "one:80", "zone": "a", "shard": "01", "on": "yes"}
    assert (first.interval_ms, first.timeout_ms) == (90_000, 5_000)


JOB = "scrape_configs:\n  - job_name: x\n"


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (JOB + "    metric_path: /x\n", 3, "unknown field 'metric_path'"),
        (JOB + "    tls_config:\n      ca: a\n      cafile: b\n", 5, "tls_config.cafile: unknown field"),
        (JOB + "    kubernetes_sd_configs: []\n", 3, "does not support"),
        (JOB + "    oauth2: {}\n", 3, "does not support"),
        ("scrape_config: []\n", 1, "unknown field 'scrape_config'"),
        (JOB + "    scrape_interval: 1x\n", 3, "not a duration: '1x'"),
        (JOB + "    scrape_interval: 5s\n    scrape_timeout: 6s\n", 4, "scrape timeout greater than scrape interval"),
        (JOB + "    sample_limit: many\n", 3, "Expected `int`"),
        (JOB + "    body_size_limit: 3 apples\n", 3, "is not a size"),
        (JOB + "    scheme: ftp\n", 3, "neither http nor https"),
        (JOB + "    job_name: y\n", 3, "given twice"),
        (JOB + "    static_configs:\n      - targets: ['a/b']\n", 4, '"a/b" is not a valid hostname'),
        (JOB + "    file_sd_configs:\n      - files: [a.txt]\n", 4, "is not valid for file discovery"),
        (JOB + "    http_sd_configs:\n      - {}\n", 4, "URL is missing"),
        (JOB + "    relabel_configs:\n      - action: replace\n", 4, "requires 'target_label' value"),
        (JOB + "    relabel_configs:\n      - {regex: '('}\n", 4, "regex"),
        (JOB + "    basic_auth: {username: a}\n    bearer_token: b\n", 2, "at most one of basic_auth"),
        (JOB + "    basic_auth: {password: a, password_file: b}\n", 3, "at most one of password & password_file"),
        (JOB + "    tls_config: {cert_file: a}\n", 3, "go together"),
        (JOB + "    scrape_protocols: [Smoke]\n", 3, "unknown scrape protocol"),
        ("scrape_configs:\n  - {}\n", 2, "job_name is empty"),
        ("- a\n", 1, "not a mapping"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(path: Path, text: str, line: int, reason: str) -> None:
    path.write_text(text)

    with pytest.raises(BadConfig) as refused:
        read_scrape_configs(path)

    assert reason in str(refused.value)
    assert f"{path}:{line}:" in str(refused.value)


def test_a_job_twice_a_broken_file_and_none_are_refused(path: Path) -> None:
    path.write_text(JOB + "  - job_name: x\n")
    with pytest.raises(BadConfig, match='multiple scrape configs with job name "x"'):
        read_scrape_configs(path)
    path.write_text("scrape_configs: [\n")
    with pytest.raises(BadConfig, match=r"prometheus\.yml"):
        read_scrape_configs(path)
    with pytest.raises(BadConfig, match="No such file"):
        read_scrape_configs(path.parent / "missing.yml")


def test_files_of_scrape_configurations_are_read_with_the_globals(path: Path) -> None:
    (path.parent / "more.yml").write_text("scrape_configs: [{job_name: b}]\n")
    path.write_text("global: {scrape_interval: 7s}\nscrape_config_files: ['mo*.yml']\n" + JOB)

    assert [(config.job, config.interval_ms) for config in read_scrape_configs(path)] == [("x", 7000), ("b", 7000)]


@pytest.mark.parametrize(
    "rule",
    [
        "{action: replace, target_label: a-b}",
        "{action: replace, target_label: '${1}x', replacement: y}",
        "{action: replace, target_label: '$1-'}",
        "{action: hashmod, target_label: x}",
        "{action: hashmod, target_label: x, modulus: 3}",
        "{action: keepequal, source_labels: [a], target_label: b}",
        "{action: keepequal, source_labels: [a], target_label: b, regex: x}",
        "{action: lowercase, source_labels: [a], target_label: b, replacement: x}",
        "{action: labeldrop, regex: a, source_labels: [b]}",
        "{action: labelkeep, regex: __.*|a}",
        "{action: labelmap, regex: a, replacement: 'b c'}",
        "{action: LabelMap, regex: a(.*)}",
        "{action: dropequal, target_label: b, separator: ','}",
        "{action: keep, source_labels: [a]}",
        "{action: uppercase, source_labels: [a]}",
    ],
)
def test_rules_are_refused_where_promtool_refuses_them(path: Path, rule: str) -> None:
    path.write_text(JOB + f"    static_configs: [{{targets: ['a:1']}}]\n    relabel_configs:\n      - {rule}\n")
    checked = subprocess.run(["promtool", "check", "config", str(path)], capture_output=True, check=False)
    try:
        read_scrape_configs(path)
        ours = True
    except BadConfig:
        ours = False

    assert ours == (checked.returncode == 0), checked.stderr.decode()


@given(st.integers(0, 10**12))
def test_durations_are_read_as_they_are_written(milliseconds: int) -> None:
    assert duration_ms(duration_text(milliseconds)) == milliseconds


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(90_000, "1m30s"), (3_600_000, "1h"), (86_400_000, "1d"), (90_000_000, "25h")],
)
def test_durations_are_written_as_prometheus_writes_them(milliseconds: int, text: str) -> None:
    assert duration_text(milliseconds) == text


@pytest.mark.parametrize(("text", "size"), [("0", 0), ("1KB", 1024), ("1.5MiB", 1_572_864), ("2GB", 2 * 1024**3)])
def test_sizes_count_in_powers_of_1024(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "1", "1s1h", "-1s", "1.5s", "s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        duration_ms(text)


def test_a_rule_that_cannot_be_says_why() -> None:
    with pytest.raises(BadRule, match="non-zero modulus"):
        RelabelRule(action="hashmod", target_label="x")


@given(st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.text(max_size=5), max_size=4), st.integers(1, 20))
def test_shards_take_every_target_once(labels: dict[str, str], shards: int) -> None:
    sources = ("a", "b")
    kept = [
        relabelled(
            labels,
            [
                RelabelRule(action="hashmod", source_labels=sources, target_label="shard", modulus=shards),
                RelabelRule(action="keep", source_labels=("shard",), regex=str(number)),
            ],
        )
        for number in range(shards)
    ]

    (found,) = [item for item in kept if item is not None]
    assert found["shard"] == str(hash_of(";".join(labels.get(name, "") for name in sources)) % shards)
