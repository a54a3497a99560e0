"""How the dashboard is started: its settings, the command line that carries them, and the way back from there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dashboards.theme import streamlit_options

APP = Path(__file__).with_name("app.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class DashboardConfig:
    """What the dashboard must know. It reads the services at these URLs and nothing else."""

    query_url: str = "http://127.0.0.1:9090"  # Prometheus HTTP API: the collector, or any Prometheus
    collector_url: str | None = None  # drift, traces, logs and reports; None: the query URL is the collector's own
    alerts_url: str = "http://127.0.0.1:9093"
    serving_url: str = "http://127.0.0.1:8080"
    host: str = "127.0.0.1"
    port: int = 8501
    theme: Literal["light", "dark"] = "light"
    model: str | None = None  # the model that is shown first
    refresh_seconds: float = 5.0  # how often a page asks again until the user chooses otherwise; 0 is never
    scrape_seconds: float = 5.0  # the slowest scrape interval: rates look back over four of them
    availability_objective: float = 0.999  # share of requests without a fault
    latency_objective_seconds: float = 0.1  # what p99 shall stay below
    patience_seconds: float = 8.0  # how long an answer may take; a service that takes longer counts as away
    secret_file: Path | None = None  # holds the secret that signs what is asked of alerts and serving

    def __post_init__(self) -> None:
        for name in ("query_url", "collector_url", "alerts_url", "serving_url"):
            url = getattr(self, name)
            if url is not None and not url.startswith(("http://", "https://")):
                raise ValueError(f"{name} is {url!r}: give a URL that starts with http:// or https://")
        if not 0 < self.availability_objective < 1:
            raise ValueError(f"availability_objective is {self.availability_objective}: give a share between 0 and 1")
        for name in ("scrape_seconds", "latency_objective_seconds", "patience_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: give more than 0")
        if self.refresh_seconds < 0:
            raise ValueError(f"refresh_seconds is {self.refresh_seconds}: give at least 0")


def command(config: DashboardConfig) -> list[str]:
    """The argv of a dashboard process: headless, without telemetry, on `config.host:config.port`.

    Its health is `GET /_stcore/health` (200 `ok`).
    """
    options = {
        "server.headless": "true",
        "server.address": config.host,
        "server.port": str(config.port),
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        **streamlit_options(config.theme),
    }
    argv = [sys.executable, "-m", "streamlit", "run", str(APP)]
    argv += [part for name, value in options.items() for part in (f"--{name}", value)]
    return [*argv, "--", *arguments(config)]


def arguments(config: DashboardConfig) -> list[str]:
    """What stands after `--`: the part of the command line that the app itself reads."""
    argv = [
        "--query-url",
        config.query_url,
        "--alerts-url",
        config.alerts_url,
        "--serving-url",
        config.serving_url,
        "--theme",
        config.theme,
        "--refresh-seconds",
        str(config.refresh_seconds),
        "--scrape-seconds",
        str(config.scrape_seconds),
        "--availability-objective",
        str(config.availability_objective),
        "--latency-objective-seconds",
        str(config.latency_objective_seconds),
        "--patience-seconds",
        str(config.patience_seconds),
    ]
    if config.collector_url:
        argv += ["--collector-url", config.collector_url]
    if config.model:
        argv += ["--model", config.model]
    if config.secret_file:
        argv += ["--secret-file", str(config.secret_file)]
    return argv


def parse(argv: Sequence[str]) -> DashboardConfig:
    """The config that `arguments` wrote. Ends the process with a usage line when it cannot be read."""
    parser = argparse.ArgumentParser(prog="streamlit run dashboards/app.py --", allow_abbrev=False)
    default = DashboardConfig()
    for name in ("query", "collector", "alerts", "serving"):
        parser.add_argument(f"--{name}-url", default=getattr(default, f"{name}_url"))
    for name in ("refresh_seconds", "scrape_seconds", "availability_objective", "latency_objective_seconds",
                 "patience_seconds"):  # fmt: skip
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(default, name))
    parser.add_argument("--theme", choices=("light", "dark"), default=default.theme)
    parser.add_argument("--model", default=None)
    parser.add_argument("--secret-file", type=Path, default=None)
    return DashboardConfig(**vars(parser.parse_args(argv)))
