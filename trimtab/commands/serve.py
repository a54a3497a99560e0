"""`trimtab serve`: the model server, wired from the settings."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import click

from serving.cache import CachePolicy
from serving.callers import Caller
from serving.errors import RegistryError
from serving.fleet import FleetOptions
from serving.server import ServingConfig
from serving.server import serve as run
from serving.shadow import ShadowLimits
from serving.transport.limits import Limits
from trimtab.commands.options import fail, make_data_folder, with_settings
from trimtab.settings import CallerSettings, Settings


@click.command(epilog="Example: trimtab serve --settings trimtab.toml --replicas 2")
@click.option("--replicas", type=click.IntRange(min=1), help="Processes that infer; the setting's by default.")
@click.option("--fronts", type=click.IntRange(min=0), help="Processes that read HTTP; the setting's by default.")
@with_settings
def serve(settings: Settings, replicas: int | None, fronts: int | None) -> None:
    """Run the model server (Open Inference Protocol V2), by default as one process."""
    serving = settings.serving
    make_data_folder(settings)
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
                inline_seconds=serving.inline_seconds,
                preferred_batch_rows=tuple(serving.preferred_batch_rows),
                pad_batches=serving.pad_batches,
                latency_target=serving.latency_target_seconds,
                length_buckets=tuple(serving.length_buckets),
                device_batches=serving.device_batches,
                max_queue_rows=serving.max_queue_rows,
                max_queue_bytes=serving.max_queue_bytes,
                max_total_rows=serving.max_total_rows,
                max_total_bytes=serving.max_total_bytes,
                limits=Limits(buffered_bytes=serving.max_buffered_bytes),
                max_concurrent_requests=serving.max_concurrent_requests,
                adaptive_concurrency=serving.adaptive_concurrency,
                queue_delay_target=serving.queue_delay_target_seconds,
                queue_delay_interval=serving.queue_delay_interval_seconds,
                overload_newest_first=serving.overload_newest_first,
                priority_ageing=serving.priority_ageing_seconds,
                stall_seconds=serving.stall_seconds,
                drain_notice=serving.drain_notice_seconds,
                drain_timeout=serving.drain_timeout_seconds,
                collector_url=settings.intake_url,
                trace_sample_ratio=serving.trace_sample_ratio,
                probe=serving.probe,
                probe_seconds=serving.probe_seconds,
                event_features=serving.event_features,
                trace_limit_per_second=serving.trace_limit_per_second,
                secret=settings.trimtab.secret,
                architectures=tuple(serving.architectures),
                torch_threads=serving.torch_threads,
                device=serving.device,
                memory_budget_bytes=serving.memory_budget_bytes,
                pinned_versions=tuple(serving.pinned_versions),
                grpc_port=serving.grpc_port or None,
                callers=tuple(map(_caller, serving.callers)),
                shadow=ShadowLimits(
                    batch_rows=serving.shadow.batch_rows,
                    gather=serving.shadow.gather_seconds,
                    step_rows=serving.shadow.step_rows,
                    queue_rows=serving.shadow.queue_rows,
                    queue_bytes=serving.shadow.queue_bytes,
                    busy_share=serving.shadow.busy_ratio,
                    nice=serving.shadow.nice,
                    process_bytes=serving.shadow.process_bytes,
                ),
                cache={
                    model: CachePolicy(bytes=kept.bytes, seconds=kept.seconds, min_hit_ratio=kept.min_hit_ratio)
                    for model, kept in serving.cache.items()
                },
                metric_aliases=serving.metric_aliases,
                load_header=serving.load_header,
                ssl_certfile=Path(serving.ssl_certfile) if serving.ssl_certfile else None,
                ssl_keyfile=Path(serving.ssl_keyfile) if serving.ssl_keyfile else None,
                fleet=FleetOptions(
                    replicas=serving.replicas if replicas is None else replicas,
                    fronts=serving.fronts if fronts is None else fronts,
                    min_ready=serving.min_ready_replicas,
                    retry_lost=serving.retry_lost_requests,
                    ping_interval=min(1.0, serving.ping_limit_seconds),
                    ping_limit=serving.ping_limit_seconds,
                    hang_limit=serving.hang_limit_seconds,
                    max_ejected=serving.max_ejected_ratio,
                ),
            )
        )
    except ValueError as error:
        fail(f"[serving] {error}")
    except RegistryError as error:
        fail(f"{error}; see `registry` under [serving]")
    except ImportError as error:
        fail(str(error))
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            fail(f"this machine has no address {settings.trimtab.host!r} ({error}); set `host` under [trimtab]")
        fail(f"{error}; set another port in the settings, or see what is there: trimtab status")


def _caller(caller: CallerSettings) -> Caller:
    return Caller(
        name=caller.name,
        token_sha256=caller.token_sha256,
        rows_per_second=caller.rows_per_second or None,
        burst_rows=caller.burst_rows or None,
        models=tuple(caller.models),
        priority=caller.priority or None,
    )
