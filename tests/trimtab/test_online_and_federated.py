"""`trimtab train --online` and `trimtab federated`, over a registry with one stable version."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner

from observability import Profile
from serving.routing.policies import PolicyStore
from serving.routing.traffic import Policy
from tests.training.toy_stream import TASK, champion, rows, write
from training.federated import FederatedClient, OverHttp, Setup, tabular_learner
from trimtab.cli import cli
from trimtab.commands.federated import psi_by_column
from trimtab.commands.registry import registry as registry_of
from trimtab.ports import free_port
from trimtab.settings import load


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    """A stable version 1 of the toy model, and a lake with 2,000 labelled events whose truth is steeper."""
    file = tmp_path / "trimtab.toml"
    # Nobody listens there: telemetry that cannot be pushed must not end a command.
    file.write_text(
        f'[trimtab]\ndata = "{tmp_path}/data"\n[collector]\nintake_port = 9\n'
        '[models.line]\ntask = "tests.training.toy_stream:task"\ndata = "tests.training.toy_stream:table"\n'
        "online_batch_rows = 50\nonline_learning_rate = 0.02\nonline_publish_batches = 0\n"
    )
    settings = load(file, {})
    registry = registry_of(settings)
    own = champion(tmp_path / "artifact")
    registry.register("line", own.artifact, lineage={}, profile=None, metrics={})
    told = {"time": 0.0, "release": None, "version": 1, "reason": "", "actor": "test"}
    PolicyStore(registry.database).save(Policy("line", generation=1, stable=1), "promote", **told)
    write(settings.lake, rows(2000, slope=3.0))
    return file


def test_learning_online_goes_on_where_it_was_and_says_what_it_learned(settings_file: Path):
    arguments = ["train", "line", "--online", "--until-idle", "--json", "--settings", str(settings_file)]

    first, again = (CliRunner().invoke(cli, arguments) for _ in range(2))

    assert first.exit_code == 0, first.output
    said = json.loads(first.stdout)
    assert (said["rows"], said["rows_in_all"], said["champion"]) == (2000, 2000, 1)
    assert said["log_loss"] < said["champion_log_loss"]
    assert json.loads(again.stdout)["rows"] == 0
    refused = CliRunner().invoke(cli, [*arguments, "--ranks", "2"])
    assert (refused.exit_code, "--online runs in one process" in refused.output) == (1, True)


@pytest.mark.slow
def test_a_federation_of_two_files_makes_a_version_that_the_gate_passes(settings_file: Path, tmp_path: Path):
    port = str(free_port())
    (tmp_path / "clients.txt").write_text("# two airports\njfk secret-1\nlga secret-2\n")
    taken: dict[str, int] = {}

    def client(number: int, name: str) -> None:
        with OverHttp(f"http://127.0.0.1:{port}", name, f"secret-{number}") as connection:
            setup = Setup.from_bytes(connection.setup(patience=120.0))
            learner = tabular_learner(TASK, setup, pa.table(rows(400, slope=3.0, seed=number)))
            taken[name] = FederatedClient(connection, learner).run(sleep=lambda _: time.sleep(0.02))

    threads = [threading.Thread(target=client, args=one, daemon=True) for one in ((1, "jfk"), (2, "lga"))]
    for thread in threads:
        thread.start()
    secrets = str(tmp_path / "clients.txt")
    said = ["--clients", secrets, "--port", port, "--rounds", "8", "--learning-rate", "0.5", "--json"]
    server = CliRunner().invoke(cli, ["federated", "server", "line", *said, "--settings", str(settings_file)])
    for thread in threads:
        thread.join()

    assert server.exit_code == 0, server.output
    outcome = json.loads(server.stdout)
    assert (outcome["version"], outcome["parent"]) == (2, 1)
    assert outcome["gate"]["upper_bound"] < 0
    assert taken == {"jfk": 8, "lga": 8}


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "names no client"), ("jfk", "a line is a client's name"), ("jfk a\njfk b", "jfk is there twice")],
)
def test_a_file_of_clients_that_cannot_be_used_is_said(settings_file: Path, tmp_path: Path, content: str, said: str):
    clients = tmp_path / "clients.txt"
    clients.write_text(content)
    arguments = ["federated", "server", "line", "--clients", str(clients), "--settings", str(settings_file)]

    result = CliRunner().invoke(cli, arguments)

    assert (result.exit_code, said in result.output) == (1, True), result.output
    result = CliRunner().invoke(cli, [*arguments, "--aggregation", "krum"])
    assert "krum needs 5 updates" in result.output


def test_drift_of_a_client_is_the_psi_beyond_chance():
    reference = Profile.of(pa.table({"x": [float(number) for number in range(500)]}))
    same, moved = (reference.empty().updated(pa.table({"x": [n + by for n in range(500)]})) for by in (0.0, 400.0))

    assert psi_by_column(reference, same)["x"] == 0.0
    assert psi_by_column(reference, moved)["x"] > 1.0
