"""`trimtab train` and `trimtab retrain`: the training package, wired to the registry, the lake and the server."""

from __future__ import annotations

import importlib
import inspect
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import msgspec
import pyarrow as pa
import torch

from alerts.releases import ReleasePolicyError, load_release_policies
from observability import Metrics, Tracing, setup_tracing
from serving.routing.policies import PolicyStore
from training.candidate import RANKS_CHECKPOINT_EVERY as CHECKPOINT_EVERY
from training.data import TabularTask
from training.evaluate import Gate
from training.guards import GuardPolicy
from training.making import Approval
from training.nodes import Nodes, NodesError
from training.outcome import TrainOutcome
from training.parallel import follow_in_ranks
from training.parallel_config import FormError
from training.parameter_server import Form, ServersForm, form_of
from training.reference import Beside
from training.retrain import Champion, RetrainJob
from training.retrain import retrain as run_retrain
from training.run import TrainJob, pushing
from training.run import train as run_train
from training.train_config import TrainConfig
from training.warm import WarmError
from trimtab.baseline import baseline
from trimtab.commands.online import run_online
from trimtab.commands.options import call, echo_json, fail, with_json, with_settings
from trimtab.commands.progress import training_progress
from trimtab.commands.registry import registry as registry_of
from trimtab.settings import ModelSettings, Settings

# Parts of the held-out rows that are printed, the worst; all are in the run's folder.
_SLICES = 5


@click.command(epilog="Example: trimtab train flight-delay")
@click.argument("model")
@click.option(
    "--ranks", type=click.IntRange(min=1), help="Processes that share out each batch (default: the settings')."
)
@click.option(
    "--parallel",
    metavar="FORM",
    help="How the network is spread over processes: degrees of data, fsdp, tensor and pipeline, as in fsdp=2,tensor=2; "
    "of replicas also compress=fp16 (losses within 1e-5 of one process's), bf16 (4e-5) or powersgd (5e-3); "
    "or on parameter servers, as in servers=2,workers=4,staleness=3.",
)
@click.option("--nodes", type=click.IntRange(min=1), default=1, help="Machines that train together, each with --ranks.")
@click.option("--node-rank", type=click.IntRange(min=0), default=0, help="Which of them this is; 0 leads.")
@click.option("--rendezvous", metavar="HOST:PORT", default="", help="Where node 0 is met; the same on all nodes.")
@click.option("--resume", metavar="RUN", help="Go on with a run that was cut off: the name of its folder.")
@click.option(
    "--max-steps", type=click.IntRange(min=1), help="End after so many batches; the rate follows that length."
)
@click.option(
    "--profile",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write some steps as torch's profiler sees them, for https://ui.perfetto.dev; of ranks a file each, as in "
    "FILE.rank-0.json.",
)
@click.option(
    "--online", is_flag=True, help="Learn from the lake's labelled events as they come, from the stable version."
)
@click.option("--until-idle", is_flag=True, help="With --online: end when the lake has no more.")
@with_settings
@with_json
def train(
    model: str,
    ranks: int | None,
    parallel: str | None,
    nodes: int,
    node_rank: int,
    rendezvous: str,
    resume: str | None,
    max_steps: int | None,
    profile: Path | None,
    online: bool,
    until_idle: bool,
    settings: Settings,
    as_json: bool,
) -> None:
    """Train, evaluate and register a model named in the settings.

    The version is registered only if it beats the base rate of the held-out groups; exit status 2 if it does not.
    With several ranks, one that is killed or hangs is started anew from the last checkpoint.

    On parameter servers, a server or worker that is killed is started anew, and nobody else stops; the rate stays the
    settings' and there is no weight decay.

    With several nodes, run the command on each of them, with another --node-rank; all need the data folder of node 0.
    Node 0 reads the rows, evaluates and registers; the others only lend it their processes.

    With --online it goes on from the stable version and what it learned online before; candidates are registered where
    they are no worse than that version on the rows that came after them.
    """
    chosen = model_settings(settings, model)
    if until_idle and not online:
        fail("--until-idle is said of --online; give both")
    if online:
        if ranks or parallel or resume or max_steps or profile or nodes > 1:
            fail("--online runs in one process and always goes on: leave out the options of a single training")
        task, beside = load_task(chosen.task), reference_beside(settings, chosen)
        run_online(task, chosen, settings, registry_of(settings), beside, until_idle=until_idle, as_json=as_json)
        return
    place = _node(nodes, node_rank, rendezvous)
    if place is not None and place.index:
        _follow(place, settings, model, as_json)
        return
    if not chosen.data:
        fail(f"models.{model}.data is not set; name a module:callable that returns the training table")
    torch.set_num_threads(settings.serving.torch_threads)
    form = _form(ranks, chosen.parallel if parallel is None else parallel)
    ranks = ranks or chosen.ranks
    if isinstance(form, ServersForm) and place is not None:
        fail(f"the parallel form {form}: parameter servers run on one node; leave out --nodes")
    if profile is not None and isinstance(form, ServersForm):
        fail("--profile looks at steps that all processes take together: leave it out with parameter servers")
    if profile is not None:
        try:
            profile.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fail(f"--profile {profile}: {error}")
    config = _config(model, chosen)
    job = TrainJob(
        task=load_task(chosen.task),
        table=load_table(chosen.data, settings.data),
        source=chosen.data,
        out=_out(settings, model) if resume is None else _begun(settings, model, resume),
        config=replace(config, max_steps=max_steps or config.max_steps),
        held_out=chosen.holdout_ratio,
        ranks=ranks,
        parallel=form,
        nodes=place,
        approval=_approval(chosen),
        lineage_url=settings.trimtab.lineage_url,
        profile=profile,
    )
    metrics = Metrics()
    with (
        training_progress(metrics, f"training {model}"),
        _interrupted(model, job.out.name),
        _traced(settings, chosen) as tracing,
    ):
        outcome = run_train(
            job,
            registry_of(settings),
            metrics=metrics,
            push_url=settings.intake_url,
            beside=reference_beside(settings, chosen),
            joint=chosen.joint_reference,
            tracing=tracing,
        )
    if profile is not None and "train" in outcome.resumed:
        click.echo(f"{profile} was not written: the run had taken all of its steps before", err=True)
    _end(outcome, as_json)


@click.command(epilog="Example: trimtab retrain flight-delay --json")
@click.argument("model")
@with_settings
@with_json
def retrain(model: str, settings: Settings, as_json: bool) -> None:
    """Train a challenger on recent labelled events of the lake, gate it against the champion, release it as a canary.

    Exit status 0: released; 2: the gate refused it; 1: it failed.
    """
    chosen = model_settings(settings, model)
    registry = registry_of(settings)
    policy = PolicyStore(registry.database).load(model)
    if policy is None or policy.stable is None:
        fail(
            f"{model} has no stable version to challenge; promote one first: trimtab models promote {model} --version N"
        )
    torch.set_num_threads(settings.serving.torch_threads)
    champion = registry.get(model, policy.stable)
    job = RetrainJob(
        task=load_task(chosen.task),
        lake=settings.lake,
        out=_out(settings, model),
        since=time.time() - chosen.window_seconds if chosen.window_seconds else None,
        min_rows=chosen.min_rows,
        config=_config(model, chosen),
        held_out=chosen.holdout_ratio,
        gate=Gate(tolerance=chosen.tolerance),
        warm_start=chosen.warm_start,
        ranks=chosen.ranks,
        parallel=_form(None, chosen.parallel),
        approval=_approval(chosen),
        lineage_url=settings.trimtab.lineage_url,
    )
    with _traced(settings, chosen) as tracing:
        outcome = run_retrain(
            job,
            registry,
            Champion(champion.version, registry.artifact(champion)),
            push_url=settings.intake_url,
            beside=reference_beside(settings, chosen),
            joint=chosen.joint_reference,
            tracing=tracing,
        )
    released: dict[str, Any] = {}
    if outcome.passed and _by_policy(settings, model):
        body = {
            "model": model,
            "version": outcome.version,
            "reason": f"retrained: {outcome.reason}",
            "actor": "retrain",
        }
        released = call(settings, "POST", f"{settings.alerts_url}/api/v1/releases", body)
    elif outcome.passed and chosen.canary_weight > 0:
        canary = {"version": outcome.version, "weight": chosen.canary_weight, "reason": f"retrained: {outcome.reason}"}
        url = f"{settings.serving_url}/api/v1/models/{model}/canary"
        released = call(settings, "POST", url, canary, key=uuid.uuid4().hex)["canary"]
    _end(outcome, as_json, released)


@contextmanager
def _interrupted(model: str, run: str) -> Iterator[None]:
    """Says how a run that Ctrl-C ended is gone on with."""
    try:
        yield
    except KeyboardInterrupt:
        fail(
            f"interrupted; the same options and --resume go on with it: trimtab train {model} --resume {run} …",
            status=130,
        )


@contextmanager
def _traced(settings: Settings, chosen: ModelSettings) -> Iterator[Tracing]:
    """Traces of a training, for the collector; what it has not taken by the end is dropped."""
    tracing = setup_tracing("trimtab-train", settings.intake_url, sample_ratio=chosen.trace_sample_ratio)
    try:
        yield tracing
    finally:
        tracing.close()


def _by_policy(settings: Settings, model: str) -> bool:
    """Whether new versions of the model walk through the steps of a release policy."""
    if not settings.releases.policies:
        return False
    try:
        policy = load_release_policies(settings.releases.policies).of(model)
    except ReleasePolicyError as error:
        fail(f"the version is registered and not released: {error}")
    return policy is not None and bool(policy.steps)


def _form(ranks: int | None, text: str) -> Form | None:
    if not text:
        return None
    try:
        form = form_of(text)
        if isinstance(form, ServersForm):
            if ranks is not None:
                raise FormError("it says how many processes there are: leave out --ranks")
        elif ranks is not None:
            form.check(ranks)
    except FormError as error:
        fail(f"the parallel form {text!r}: {error}")
    return form


def _node(nodes: int, index: int, rendezvous: str) -> Nodes | None:
    """This machine as one of several; None where it is the only one."""
    if nodes == 1:
        if index or rendezvous:
            fail("--node-rank and --rendezvous are said of several nodes: give --nodes, too")
        return None
    if not rendezvous:
        fail("--nodes needs --rendezvous HOST:PORT: an address of node 0 that all reach, and a port that is free there")
    try:
        return Nodes.at(rendezvous, nodes, index)
    except ValueError as error:
        fail(str(error))


def _follow(place: Nodes, settings: Settings, model: str, as_json: bool) -> None:
    """Lends this machine's processes to node 0, until the run ends there."""
    metrics = Metrics()
    try:
        with pushing(settings.intake_url, metrics, {"instance": f"{model}, node {place.index}"}):
            ended = follow_in_ranks(place, settings.data / "runs" / model, metrics=metrics)
    except (NodesError, WarmError) as error:
        fail(str(error))
    said = {"node": place.index, "outcome": ended.outcome, "reason": ended.reason, "attempts": len(ended.attempts)}
    if as_json:
        echo_json(said, indent=None)
    else:
        click.echo(f"{place}: {ended.outcome}: {ended.reason}")
    sys.exit(0 if ended.outcome == "completed" else 1)


def _approval(chosen: ModelSettings) -> Approval:
    tolerance = chosen.slice_tolerance if chosen.slice_tolerance >= 0 else None
    return Approval(latency_budget=chosen.latency_budget_seconds, slice_tolerance=tolerance)


def _check_device(model: str, name: str) -> None:
    """Ends the command where torch has no such device here."""
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not (kind == "cuda" and index.isdecimal())):
        fail(f"models.{model}.device is {name!r}: give cpu, cuda or cuda:N")
    found = torch.cuda.device_count() if kind == "cuda" else 1
    if int(index or 0) >= found:
        fail(f"models.{model}.device is {name!r}, and torch {torch.__version__} finds {found} GPUs here")


def _config(model: str, chosen: ModelSettings) -> TrainConfig:
    _check_device(model, chosen.device)
    said = msgspec.structs.asdict(chosen.guards)
    of_loop = {name: said.pop(name) for name in ("max_nonfinite", "spike_score", "max_rewinds")}
    on_spike = said.pop("loss_spike")
    rewinds = "rewind" in (on_spike, *(said[name] for name in ("nonfinite", "gradient_explosion", "activations")))
    every = chosen.checkpoint_every or (CHECKPOINT_EVERY if rewinds else 0)
    try:
        return TrainConfig(
            epochs=chosen.epochs,
            batch_size=chosen.batch_size,
            learning_rate=chosen.learning_rate,
            seed=chosen.seed,
            device=chosen.device,
            checkpoint_every=every,
            on_spike=on_spike,
            guards=GuardPolicy(**said),
            **of_loop,
        )
    except ValueError as error:
        said_of = str(error).replace("on_spike", "guards.loss_spike")
        fail(f"models.{model}: {said_of} (see docs/settings.md)")


def reference_beside(settings: Settings, chosen: ModelSettings) -> Beside:
    """What is registered beside a version's profile."""
    collector = settings.collector
    groups, rows, windows = chosen.window_groups, collector.drift_min_rows, collector.judged_windows
    return baseline(groups, rows, windows, seasonal=chosen.seasonal_reference)


def _end(outcome: TrainOutcome, as_json: bool, released: dict[str, Any] | None = None) -> None:
    if as_json:
        # One line: whoever runs this as a hook finds it at the end of the output.
        said = outcome.to_json()
        said["slices"] = said["slices"][:_SLICES]
        echo_json(said | {"released": released or None}, indent=None)
    else:
        click.echo(f"{outcome.model}: {outcome.outcome}: {outcome.reason}")
        if outcome.version is not None:
            click.echo(f"registered as version {outcome.version} (run {outcome.run}, {outcome.rows:,} rows)")
        if released and "steps" in released:
            click.echo(f"release {released['id']} begins: {', '.join(released['steps'])}")
        elif released:
            click.echo(f"released as {released['release']} with {released['weight']:.0%} of the traffic")
    sys.exit(outcome.exit_code)


def model_settings(settings: Settings, model: str) -> ModelSettings:
    """The model's section; ends the command where there is none."""
    if model not in settings.models:
        known = ", ".join(settings.models) or "none"
        fail(f"no model {model!r} in the settings (there are: {known}); add a [models.{model}] section")
    return settings.models[model]


def _out(settings: Settings, model: str) -> Path:
    folder = settings.data / "runs" / model / uuid.uuid4().hex[:12]
    folder.mkdir(parents=True)
    return folder


def _begun(settings: Settings, model: str, run: str) -> Path:
    runs = settings.data / "runs" / model
    folder = runs / run
    if Path(run).name != run or not folder.is_dir():
        known = sorted((path for path in runs.glob("*") if path.is_dir()), key=lambda path: path.stat().st_mtime)
        fail(f"no run {run!r} in {runs}; the latest are: {', '.join(path.name for path in known[-3:]) or 'none'}")
    return folder


def load_callable(name: str) -> Callable[..., Any]:
    """What `module:callable` names; ends the command where it is not there."""
    module, _, attribute = name.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        fail(f"{name!r} cannot be loaded: {error}; give module:callable, of this folder or installed")
    return found


def called(name: str, *arguments: object) -> Any:
    """What calling `module:callable` gives, with as many of the arguments as it takes.

    Ends the command where that raises, and says where it did.
    """
    wanted = load_callable(name)
    try:
        inspect.signature(wanted).bind(*arguments)
    except TypeError:
        arguments = ()
    except ValueError:  # of compiled code, which does not say what it takes
        pass
    try:
        return wanted(*arguments)
    except Exception as error:  # of the user's own code
        *_, last = traceback.extract_tb(error.__traceback__)
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        fail(f"{name!r} ended with {said} (line {last.lineno} of {last.filename})")


def load_task(name: str) -> TabularTask:
    """The task that `module:callable` gives; ends the command where that is none."""
    found = called(name)
    if not isinstance(found, TabularTask):
        fail(f"{name!r} gave {type(found).__name__}: it must return a training.TabularTask")
    return found


def load_table(name: str, folder: Path) -> pa.Table:
    """What `module:callable` makes of the data's folder; ends the command where that is no table.

    Frames of pandas and polars, and whatever else Arrow can take without a copy, become one.
    """
    found = called(name, folder)
    if isinstance(found, pa.Table):
        return found
    if not hasattr(found, "__arrow_c_stream__"):
        fail(f"{name!r} gave {type(found).__name__}: it must return the training table, of Arrow, pandas or polars")
    return pa.table(found)
