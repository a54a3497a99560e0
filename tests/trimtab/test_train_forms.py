"""`trimtab train` in more than one process: on parameter servers, and over two nodes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from trimtab.cli import cli
from trimtab.ports import free_port

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    """Settings of a toy model; nobody listens where telemetry is pushed to."""
    file = tmp_path / "trimtab.toml"
    file.write_text(
        f'[trimtab]\ndata = "{tmp_path}/data"\n[collector]\nintake_port = 9\n'
        '[models.line]\ntask = "tests.training.toy_stream:task"\ndata = "tests.training.toy_stream:table"\n'
        "batch_size = 100\nlearning_rate = 0.05\n"
    )
    return file


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--parallel", "servers=0"], "servers is 0: it must be at least 1"),
        (
            ["--parallel", "servers=1,fsdp=2"],
            "'fsdp=2' in a parallel form: write NAME=VALUE, where NAME is one of servers",
        ),
        (["--parallel", "workers=2,rule=lion"], "rule is 'lion': it is one of sgd, adagrad, adam"),
        (["--parallel", "workers=2,staleness=-1"], "staleness is '-1': it must be a whole number"),
        (["--parallel", "servers=1", "--ranks", "2"], "leave out --ranks"),
        (["--parallel", "servers=1", "--nodes", "2", "--rendezvous", "here:1"], "run on one node; leave out --nodes"),
    ],
)
def test_servers_and_workers_that_cannot_be_are_refused(settings_file: Path, options: list[str], words: str) -> None:
    found = CliRunner().invoke(cli, ["train", "line", *options, "--settings", str(settings_file)])

    assert found.exit_code == 1
    assert words in found.stderr


@pytest.mark.parametrize("device", ["banana", "cuda:1000", "meta"])
def test_a_device_that_is_not_there_is_said_before_anything_runs(settings_file: Path, device: str) -> None:
    settings_file.write_text(settings_file.read_text() + f'device = "{device}"\n')
    found = CliRunner().invoke(cli, ["train", "line", "--settings", str(settings_file)])

    assert found.exit_code == 1
    assert found.stderr.startswith(f"Error: models.line.device is '{device}'")
    assert found.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_version_is_made_on_parameter_servers(settings_file: Path) -> None:
    said = ["--parallel", "servers=2,workers=2,staleness=1", "--json", "--settings", str(settings_file)]
    found = CliRunner().invoke(cli, ["train", "line", *said])

    outcome = json.loads(found.stdout)
    assert (found.exit_code, outcome["outcome"], outcome["version"]) == (0, "completed", 1), found.output


@pytest.mark.slow
def test_a_second_node_lends_its_processes_until_the_run_ends(settings_file: Path, tmp_path: Path) -> None:
    meeting = f"127.0.0.1:{free_port()}"
    said = ["line", "--nodes", "2", "--rendezvous", meeting, "--json", "--settings", str(settings_file)]
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", "trimtab", "train", *said, "--node-rank", str(number)],
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for number in (0, 1)
    ]  # fmt: skip
    try:
        leading, lending = (json.loads(node.communicate(timeout=300.0)[0]) for node in nodes)
    finally:
        for node in nodes:
            node.kill()
            node.wait()

    assert (leading["outcome"], leading["version"]) == ("completed", 1)
    assert (lending["node"], lending["outcome"]) == (1, "completed")
    assert [node.returncode for node in nodes] == [0, 0]
