"""`trimtab serve`: the model server, wired from the settings."""

from __future__ import annotations

import click

from serving.server import ServingConfig
from serving.server import serve as run
from trimtab.commands.options import fail, with_settings
from trimtab.settings import Settings


@click.command(epilog="Example: trimtab serve --settings trimtab.toml")
@with_settings
def serve(settings: Settings) -> None:
    """Run the model server (Open Inference Protocol V2)."""
    settings.data.mkdir(parents=True, exist_ok=True)
    serving = settings.serving
    try:
        run(
            ServingConfig(
                registry_url=settings.registry_url,
                artifacts_dir=settings.artifacts,
                host=settings.trimtab.host,
                port=serving.port,
                models=tuple(serving.models),
                max_batch_rows=serving.max_batch_rows,
                max_delay=serving.max_delay_seconds,
                max_queue_rows=serving.max_queue_rows,
                collector_url=settings.intake_url,
                trace_sample_ratio=serving.trace_sample_ratio,
                secret=settings.trimtab.secret,
                architectures=tuple(serving.architectures),
                torch_threads=serving.torch_threads,
            )
        )
    except OSError as error:
        fail(f"{error}; set another port in the settings, or see what is there: trimtab status")
