"""`trimtab dashboard`: the Streamlit pages."""

from __future__ import annotations

import os
from pathlib import Path

import click

from dashboards.launch import DashboardConfig, command
from trimtab.commands.options import make_data_folder, with_settings
from trimtab.settings import Settings


@click.command(epilog="Example: trimtab dashboard")
@with_settings
def dashboard(settings: Settings) -> None:
    """Run the dashboard."""
    argv = command(
        DashboardConfig(
            host=settings.trimtab.host,
            port=settings.dashboard.port,
            query_url=settings.query_url,
            collector_url=settings.collector_url,
            alerts_url=settings.alerts_url,
            serving_url=settings.serving_url,
            scrape_seconds=settings.collector.scrape_interval_seconds,
            secret_file=_secret_file(settings),
        )
    )
    # Streamlit takes over this process, so that signals reach it directly.
    os.execv(argv[0], argv)


def _secret_file(settings: Settings) -> Path | None:
    """The secret in a file that only its owner reads: a command line can be read by everybody on the machine."""
    if not settings.trimtab.secret:
        return None
    make_data_folder(settings)
    path = settings.data / "secret"
    path.touch(mode=0o600)
    path.chmod(0o600)
    path.write_text(settings.trimtab.secret)
    return path
