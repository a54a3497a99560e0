"""`trimtab train MODEL --online`: learns from the lake's labelled events as they come, from the version in service."""

from __future__ import annotations

import signal
import threading

import click
import torch

from observability import Metrics
from observability.events import BadBatch
from observability.push import push
from serving.errors import RegistryError
from serving.registry import Registry
from serving.routing.policies import PolicyStore
from training.artifact import ArtifactError
from training.checkpoint import CheckpointError
from training.data import DataError, TabularTask
from training.evaluate import Gate
from training.online import LabelledStream, OnlineConfig, OnlineJob, OnlineSession, learn_online
from training.reference import Beside
from training.retrain import Champion
from trimtab.commands.options import echo_json, fail, start_logging
from trimtab.settings import ModelSettings, Settings

_JOB = "online"
_IDLE_SECONDS = 5.0


def run_online(
    task: TabularTask,
    chosen: ModelSettings,
    settings: Settings,
    registry: Registry,
    beside: Beside,
    *,
    until_idle: bool,
    as_json: bool,
) -> None:
    """Learns until it is told to stop (SIGINT, SIGTERM), or until the lake has no more; ends the command on errors."""
    start_logging("online", settings)
    policy = PolicyStore(registry.database).load(task.model)
    if policy is None or policy.stable is None:
        fail(f"{task.model} has no stable version to begin from: trimtab train {task.model}, then promote it")
    torch.set_num_threads(settings.serving.torch_threads)
    out = settings.data / "runs" / task.model / "online"
    out.mkdir(parents=True, exist_ok=True)
    metrics, stopped = Metrics(), threading.Event()
    try:
        version = registry.get(task.model, policy.stable)
        session = OnlineSession(
            OnlineJob(
                stream=LabelledStream(task=task, lake=settings.lake, delay=chosen.online_delay_seconds),
                out=out,
                config=OnlineConfig(
                    batch_rows=chosen.online_batch_rows,
                    learning_rate=chosen.online_learning_rate,
                    publish_every=chosen.online_publish_batches,
                    tolerance=chosen.tolerance,
                    seed=chosen.seed,
                ),
                gate=Gate(tolerance=chosen.tolerance),
            ),
            registry,
            Champion(version.version, registry.artifact(version)),
            metrics=metrics,
            beside=beside,
            joint=chosen.joint_reference,
        )
        before = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGINT, signal.SIGTERM)}

        def pause(seconds: float) -> None:
            push(settings.intake_url, _JOB, metrics, grouping={"instance": task.model})
            stopped.wait(seconds)

        try:
            learned = learn_online(
                session, idle_seconds=_IDLE_SECONDS, until_idle=until_idle, stop=stopped.is_set, sleep=pause
            )
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    except (DataError, ArtifactError, RegistryError, CheckpointError, BadBatch, ValueError) as error:
        fail(str(error))
    except OSError as error:
        fail(f"what was learned could not be written to {out}: {error}; run it again, from where it was saved")
    push(settings.intake_url, _JOB, metrics, grouping={"instance": task.model})
    learner = session.learner
    said = {
        "model": task.model,
        "champion": version.version,
        "rows": learned,
        "rows_in_all": session.learned,
        "log_loss": _number(learner.online.log_loss.mean),
        "champion_log_loss": _number(learner.champion.log_loss.mean),
        "rollbacks": learner.rollbacks,
        "registered": [one.version for one in session.outcomes if one.passed],
    }
    if as_json:
        echo_json(said, indent=None)
        return
    click.echo(f"{task.model}: {learned:,} rows learned now, {session.learned:,} in all, {learner.rollbacks} rollbacks")
    if session.learned:
        click.echo(
            f"log loss before learning, of late: {learner.online.log_loss.mean:.4f}, "
            f"version {version.version}'s {learner.champion.log_loss.mean:.4f}"
        )
    for one in session.outcomes:
        click.echo(f"candidate {one.run}: {one.outcome}: {one.reason}")


def _number(value: float) -> float | None:
    return value if value == value else None
