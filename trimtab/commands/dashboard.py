"""`trimtab dashboard`: the Streamlit pages."""

from __future__ import annotations

import os

import click

from dashboards.launch import DashboardConfig, command
from trimtab.commands.options import with_settings
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
        )
    )
    # Streamlit takes over this process, so that signals reach it directly.
    os.execv(argv[0], argv)
