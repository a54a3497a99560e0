"""`trimtab collector`: intake, store, windows and queries, wired from the settings."""

from __future__ import annotations

from pathlib import Path

import click

from collectors.api import CollectorConfig
from collectors.api import serve as run
from collectors.drift.judge import DriftThresholds
from collectors.scraping import BadConfig, read_scrape_configs
from collectors.store import Limits
from collectors.targets import ScrapeTarget
from trimtab.commands.options import fail, make_data_folder, start_logging, with_settings
from trimtab.settings import Settings


@click.command(epilog="Example: trimtab collector --settings trimtab.toml")
@with_settings
def collector(settings: Settings) -> None:
    """Run the collector: telemetry intake on one port, the Prometheus API on the other."""
    make_data_folder(settings)
    start_logging("collector", settings)
    own = settings.collector
    try:
        run(
            CollectorConfig(
                lake=settings.lake,
                store_url=settings.store_url,
                host=settings.trimtab.host,
                intake_port=own.intake_port,
                query_port=own.query_port,
                query_timeout_seconds=settings.query.timeout_seconds,
                query_max_samples=settings.query.max_samples,
                query_max_concurrency=settings.query.max_concurrency,
                query_lookback_seconds=settings.query.lookback_seconds,
                targets=targets(settings),
                file_sd=tuple(own.file_sd),
                scrape_interval_seconds=own.scrape_interval_seconds,
                scrape_file=scrape_file(settings),
                sample_retention_seconds=own.retention_seconds,
                sample_retention_bytes=own.retention_bytes or None,
                late_seconds=own.late_seconds,
                head_seconds=own.head_seconds,
                limits=Limits(
                    series_per_target=own.series_per_target,
                    labels_per_series=own.labels_per_series,
                    label_name_bytes=own.label_name_bytes,
                    label_value_bytes=own.label_value_bytes,
                ),
                alerts_url=settings.alerts_url,
                window_seconds=own.window_seconds,
                allowed_lateness_seconds=own.allowed_lateness_seconds,
                judged_windows=own.judged_windows,
                amend_seconds=own.amend_seconds,
                slices=tuple(own.slices),
                slice_values=own.slice_values,
                alarm_windows=own.alarm_windows,
                drift=DriftThresholds(psi=own.drift_threshold, min_rows=own.drift_min_rows),
            )
        )
    except OSError as error:
        fail(str(error))


def scrape_file(settings: Settings) -> Path | None:
    """The Prometheus file that the settings name, if they do. Ends the command when it cannot be used."""
    if not settings.collector.scrape_config:
        return None
    try:
        read_scrape_configs(settings.collector.scrape_config)
    except BadConfig as error:
        fail(f"collector.scrape_config: {error}")
    return Path(settings.collector.scrape_config)


def targets(settings: Settings) -> tuple[ScrapeTarget, ...]:
    """Trimtab's own services, and those that the settings name."""
    services = {
        "trimtab-collector": settings.collector_url,
        "trimtab-alerts": settings.alerts_url,
        "trimtab-serving": settings.serving_url,
    }
    return tuple(ScrapeTarget(url=f"{url}/metrics", job=job) for job, url in services.items()) + tuple(
        ScrapeTarget(url=target.url, job=target.job, labels=target.labels) for target in settings.collector.targets
    )
