"""`trimtab federated`: a server that makes one model of what clients learn, and a client that learns on its rows."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import torch

from collectors.drift.judge import judge
from observability import Metrics, Profile, TrainingMonitor
from observability.cells import ProfileError
from observability.events import FEATURE
from serving.errors import RegistryError
from serving.registry import Registry
from serving.routing.policies import PolicyStore
from training.artifact import ArtifactError, read_manifest, read_weights, write_artifact
from training.candidate import Candidate
from training.data import DataError, TabularTask, encode_rows, labelled, predict, split_recent
from training.evaluate import Gate, score
from training.federated import (
    Aggregation,
    FederatedClient,
    Federation,
    FederationError,
    LocalPlan,
    OverHttp,
    Plan,
    ProtocolError,
    Refused,
    ServerAway,
    Setup,
    feature_profile,
    parameters,
    serve,
    tabular_learner,
    take,
)
from training.lineage import Lineage, code_revision
from training.making import window
from training.outcome import TrainOutcome
from training.reference import HeldOut
from training.retrain import Champion, vocabularies_of
from training.run import conclude
from training.train_config import TrainConfig
from trimtab.commands.options import echo_json, fail, start_logging, with_json, with_settings
from trimtab.commands.registry import registry as registry_of
from trimtab.commands.train import load_table, load_task, model_settings, reference_beside
from trimtab.settings import ModelSettings, Settings


@click.group()
def federated() -> None:
    """Train a model over clients whose rows never leave them.

    \b
    Examples:
      trimtab federated server flight-delay --clients clients.txt --rounds 20
      trimtab federated client flight-delay --url http://server:8090 --name jfk --secret-file jfk.key --data jfk.parquet
    """


@federated.command(epilog="Example: trimtab federated server flight-delay --clients clients.txt --rounds 20")
@click.argument("model")
@click.option("--clients", required=True, type=click.Path(path_type=Path), help="File of `name secret` lines.")
@click.option("--run", default="federated", show_default=True, help="Name of the run; one that was begun goes on.")
@click.option("--port", default=8090, show_default=True, type=click.IntRange(0, 65535))
@click.option("--rounds", default=10, show_default=True, type=click.IntRange(min=1))
@click.option("--sample", default=1.0, show_default=True, help="Share of the clients there that a round asks.")
@click.option("--min-clients", default=2, show_default=True, help="Clients that must be there before a round begins.")
@click.option("--min-updates", default=2, show_default=True, help="Updates below which a round is repeated.")
@click.option(
    "--enough", default=1.0, show_default=True, help="Share of answers that ends a round before its deadline."
)
@click.option("--deadline", default=60.0, show_default=True, help="Seconds that clients have for a round.")
@click.option(
    "--aggregation",
    default="mean",
    show_default=True,
    type=click.Choice(["mean", "median", "trimmed_mean", "krum"]),
    help="How updates become one; all but `mean` withstand bad clients.",
)
@click.option("--trim", default=0.1, show_default=True, help="Share cut off at each end, of trimmed_mean.")
@click.option("--bad", default=1, show_default=True, help="Bad clients that krum assumes.")
@click.option("--keep", default=1, show_default=True, help="Updates that krum averages.")
@click.option("--clip-norm", default=0.0, show_default=True, help="Bound of an update's norm; 0: none.")
@click.option(
    "--max-rows", default=0, show_default=True, help="Rows that count at most for a client; 0: all it states."
)
@click.option(
    "--suspicion", default=0.0, show_default=True, help="Deviations from the others that leave one out; 0: none."
)
@click.option("--epochs", default=1, show_default=True, help="Epochs of a client a round.")
@click.option("--batch-size", default=64, show_default=True)
@click.option("--learning-rate", default=0.05, show_default=True)
@click.option("--proximal", default=0.0, show_default=True, help="FedProx's mu; 0 is FedAvg.")
@with_settings
@with_json
def server(
    model: str,
    clients: Path,
    run: str,
    port: int,
    settings: Settings,
    as_json: bool,
    **asked: float | int | str,
) -> None:
    """Run the rounds, from the stable version of a model named in the settings.

    A server that is killed goes on with its round when it is started again. Afterwards the model is judged on the rows
    of `models.MODEL.data`, if there are any, by the same gate as any version, and registered if it passes: exit status
    2 if it does not. Without such rows its artifact is left for `trimtab models register`.
    """
    chosen = model_settings(settings, model)
    if Path(run).name != run:
        fail(f"the run's name is {run!r}: it becomes a folder, and must not be a path")
    torch.set_num_threads(settings.serving.torch_threads)
    start_logging("federated", settings)
    task: TabularTask = load_task(chosen.task)
    registry = registry_of(settings)
    champion, setup, profile = _start(registry, task)
    out = settings.data / "runs" / model / run
    network = setup.network(task)
    metrics = Metrics()
    try:
        federation = Federation(
            model,
            parameters(network),
            _plan(asked),
            out,
            reference=profile,
            setup=setup.to_bytes(),
            drift=psi_by_column,
            metrics=metrics,
        )
    except (FederationError, ValueError) as error:
        fail(str(error))
    secrets = read_secrets(clients)
    click.echo(
        f"{model}: round {federation.round} of {federation.plan.rounds}, {len(secrets)} clients enrolled, "
        f"http://{settings.trimtab.host}:{port}",
        err=True,
    )
    asyncio.run(serve(federation, secrets, settings.trimtab.host, port))
    if not federation.finished:
        fail(f"stopped after round {federation.round}; the same command goes on with it")
    take(network, federation.parameters)
    _end(
        task, chosen, settings, registry, champion, Candidate(network.eval(), setup.vocabularies, "warm"), out, as_json
    )


@federated.command(epilog="Example: trimtab federated client flight-delay --url http://server:8090 --name jfk …")
@click.argument("model")
@click.option("--url", required=True, help="The server's address.")
@click.option("--name", required=True, help="This client's name, as the server knows it.")
@click.option("--secret-file", required=True, type=click.Path(path_type=Path), help="File with this client's secret.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Parquet or CSV of the task's columns.")
@click.option("--profile/--no-profile", default=True, help="Let the server see counts of the columns, for drift.")
@click.option("--patience", default=300.0, show_default=True, help="Seconds to go on asking a server that is away.")
@with_settings
@with_json
def client(
    model: str,
    url: str,
    name: str,
    secret_file: Path,
    data: Path,
    profile: bool,
    patience: float,
    settings: Settings,
    as_json: bool,
) -> None:
    """Take part in a federation with the rows of a file, until it is done. The rows stay here."""
    chosen = model_settings(settings, model)
    torch.set_num_threads(settings.serving.torch_threads)
    start_logging("federated", settings)
    task: TabularTask = load_task(chosen.task)
    table = read_rows(data)
    try:
        secret = secret_file.read_text().strip()
    except OSError as error:
        fail(f"the secret cannot be read: {error}")
    if not secret:
        fail(f"{secret_file} is empty: it must hold the client's secret")
    with OverHttp(url, name, secret) as connection:
        try:
            learner = tabular_learner(task, Setup.from_bytes(connection.setup(patience=patience)), table)
            counted = (lambda empty: feature_profile(task, table, empty)) if profile else None
            taken = FederatedClient(connection, learner, profile=counted).run(patience=patience)
        except (ServerAway, Refused, ProtocolError, ProfileError, DataError) as error:
            fail(str(error))
    if as_json:
        echo_json({"client": name, "rows": len(table), "updates": taken}, indent=None)
    else:
        click.echo(f"{name}: {taken} updates taken, over {len(table):,} rows that stayed here")


def psi_by_column(reference: Profile, other: Profile) -> Mapping[str, float]:
    """The population stability index of each column of a client, less what as many rows of no change would give."""
    return {name: max(0.0, one.psi - one.psi_expected) for name, one in judge(reference, other).items()}


def read_secrets(path: Path) -> dict[str, str]:
    """The clients' secrets by name, from lines of `name secret`; empty lines and those after # say nothing."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        fail(f"the clients cannot be read: {error}")
    secrets: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2:
            fail(f"{path}:{number}: a line is a client's name and its secret, with a space between")
        if words[0] in secrets:
            fail(f"{path}:{number}: {words[0]} is there twice")
        secrets[words[0]] = words[1]
    if not secrets:
        fail(f"{path} names no client: write a line of name and secret for each")
    return secrets


def read_rows(path: Path) -> pa.Table:
    """The table of a Parquet or CSV file."""
    try:
        return pacsv.read_csv(path) if path.suffix == ".csv" else pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        fail(f"{path} cannot be read as {'CSV' if path.suffix == '.csv' else 'Parquet'}: {error}")


def _plan(asked: Mapping[str, float | int | str]) -> Plan:
    def of(*names: str) -> dict[str, object]:
        return {name: asked[name] for name in names}

    try:
        return Plan(
            **of("rounds", "sample", "min_clients", "min_updates", "enough", "clip_norm", "max_rows", "suspicion"),  # type: ignore[arg-type]
            deadline_seconds=float(asked["deadline"]),
            aggregation=Aggregation(method=str(asked["aggregation"]), **of("trim", "bad", "keep")),  # type: ignore[arg-type]
            local=LocalPlan(**of("epochs", "batch_size", "learning_rate", "proximal")),  # type: ignore[arg-type]
        )
    except ValueError as error:
        fail(str(error))


def _start(registry: Registry, task: TabularTask) -> tuple[Champion, Setup, Profile | None]:
    """The stable version, what clients need of it, and its reference profile's features."""
    policy = PolicyStore(registry.database).load(task.model)
    if policy is None or policy.stable is None:
        fail(f"{task.model} has no stable version to begin from: trimtab train {task.model}, then promote it")
    try:
        version = registry.get(task.model, policy.stable)
        champion = Champion(version.version, registry.artifact(version))
        setup = Setup(read_weights(champion.artifact), vocabularies_of(task, champion))
        body = registry.profile(task.model, version.version)
    except (RegistryError, ArtifactError, DataError) as error:
        fail(str(error))
    profile = None if body is None else Profile.from_json(body)
    if profile is not None:
        features = {name: column for name, column in profile.columns.items() if name.startswith(FEATURE)}
        profile = Profile(features)
    return champion, setup, profile


def _end(
    task: TabularTask,
    chosen: ModelSettings,
    settings: Settings,
    registry: Registry,
    champion: Champion,
    candidate: Candidate,
    out: Path,
    as_json: bool,
) -> None:
    """Judges and registers the model where the settings name rows to judge it by; else leaves its artifact."""
    if not chosen.data:
        example = read_manifest(champion.artifact)["example"]
        artifact = write_artifact(out / "artifact", task, candidate.network, candidate.vocabularies, example)
        said = {"outcome": "unjudged", "artifact": str(artifact.folder), "version": None}
        echo_json(said, indent=None) if as_json else click.echo(
            f"{task.model}: trained; models.{task.model}.data is not set, so no gate has judged it: {artifact.folder}"
        )
        return
    try:
        table = split_recent(
            labelled(task, load_table(chosen.data, settings.data)), task.group, chosen.holdout_ratio
        ).held_out
        outcome = _judged(task, chosen, settings, registry, champion, candidate, table, out)
    except (DataError, ArtifactError) as error:
        fail(str(error))
    if as_json:
        echo_json(outcome.to_json(), indent=None)
    else:
        click.echo(f"{task.model}: {outcome.outcome}: {outcome.reason}")
        if outcome.version is not None:
            click.echo(f"registered as version {outcome.version}")
    raise SystemExit(outcome.exit_code)


def _judged(
    task: TabularTask,
    chosen: ModelSettings,
    settings: Settings,
    registry: Registry,
    champion: Champion,
    candidate: Candidate,
    table: pa.Table,
    out: Path,
) -> TrainOutcome:
    rows = encode_rows(task, candidate.vocabularies, table)
    labels = rows.labels.double().numpy()
    probabilities = predict(candidate.network, rows.inputs)
    before = predict(Setup(read_weights(champion.artifact), candidate.vocabularies).network(task).eval(), rows.inputs)
    lineage = Lineage(
        run=out.name,
        code_revision=code_revision(),
        window=window(table, task.group),
        rows=len(table),
        source="federation",
        parent=champion.version,
        start="warm",
        config=TrainConfig(seed=chosen.seed),
        scores=score(labels, probabilities),
        gate=Gate(tolerance=chosen.tolerance).against_champion(labels, probabilities, before, rows.groups),
    )
    held_out = HeldOut(table, labels, probabilities, rows.groups)
    beside, joint = reference_beside(settings, chosen), chosen.joint_reference
    with TrainingMonitor(task.model, run=out.name, drain_seconds=0) as monitor:
        return conclude(task, candidate, lineage, table, held_out, out, registry, monitor, beside, joint)
