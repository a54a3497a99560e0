"""`trimtab ranks`: the ranks of a run on this machine as one page of metrics, for Prometheus."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import click
from prometheus_client import CollectorRegistry, start_http_server

from observability import Metrics, exposition
from observability.metrics import WithoutCreated
from observability.node_agent import NodeAgent
from trimtab.commands.options import fail

_SECONDS = 1.0


@click.command(epilog="Example: trimtab ranks runs/7 --port 9400")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--port", type=click.IntRange(1, 65535), default=9400, show_default=True, help="Of /metrics.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--once", is_flag=True, help="Print the page as it is now, and end.")
def ranks(folder: Path, port: int, host: str, once: bool) -> None:
    """Serve one /metrics of all ranks whose rings of step records lie in FOLDER, such as a run's.

    The ranks are not asked and need not be alive: what a killed one did last is still shown, and `training_rank_up` is
    0. Runs of `trimtab train` send the same to the collector; this is for others, such as scripts under torchrun, and
    for a Prometheus that scrapes.
    """
    metrics = Metrics()
    agent = NodeAgent(folder, metrics)
    agent.look()
    if once:
        click.echo(exposition(metrics)[0].decode(), nl=False)
        return
    registry = CollectorRegistry()
    registry.register(WithoutCreated(metrics.registry))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        fail(f"cannot listen on {host}:{port}: {error.strerror or error}; give another --port")
    click.echo(f"the ranks of {folder} are on http://{host}:{port}/metrics", err=True)
    stopped = Event()
    try:
        while not stopped.wait(_SECONDS):
            agent.look()
    except KeyboardInterrupt:
        pass
    finally:
        server.shutdown()
        thread.join(timeout=5.0)
