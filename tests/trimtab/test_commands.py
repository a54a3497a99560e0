"""The commands as a stranger types them: against real servers, and against none."""

from __future__ import annotations

import getpass
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from collectors.query import Engine, query_app
from collectors.references import Reference
from collectors.store import Store
from observability.signing import HEADER, SignatureError, verify
from serving.registry import Registry
from training import TrainJob, TrainOutcome
from training.candidate import limits_of

T0 = 1_700_000_000
Run = Callable[..., Any]


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Path]:
    """A settings file with data in a folder of the test's own."""

    def write(text: str = "", *, secret: str = "") -> Path:
        path = tmp_path / "trimtab.toml"
        path.write_text(f'[trimtab]\ndata = "{tmp_path / "data"}"\nsecret = "{secret}"\n{text}\n')
        return path

    return write


@pytest.fixture
def prometheus(served: Callable[[Any], str], settings: Callable[..., Path]) -> Any:
    """Settings that name a loopback query API with two series of five minutes."""
    store = Store("sqlite://", clock=lambda: T0 + 300)
    for step in range(21):
        at = (T0 + step * 15) * 1000
        named = [({"__name__": "answers_total", "model": model}, float(step * rate)) for model, rate in MODELS]
        store.append("t", at, named)
    url = served(query_app(Engine(store), store, clock=lambda: T0 + 300))
    yield settings(f'[query]\nurl = "{url}"')
    store.close()


MODELS = (("a", 15), ("b", 30))


# --- query -----------------------------------------------------------------------------------------------------------


def test_a_vector_is_printed_a_line_a_series(trimtab: Run, prometheus: Path) -> None:
    found = trimtab("query", "sum by (model) (answers_total) / 100", "--at", T0 + 300, "--settings", prometheus)

    assert found.exit_code == 0
    assert sorted(found.stdout.splitlines()) == ['{model="a"} => 3', '{model="b"} => 6']


def test_a_range_takes_durations_as_promql_has_them(trimtab: Run, prometheus: Path) -> None:
    arguments = ["answers_total", "--at", T0 + 300, "--range", "1m30s", "--step", "45s", "--settings", prometheus]
    found = trimtab("query", *arguments, "--json")

    data = json.loads(found.stdout)
    assert data["resultType"] == "matrix"
    assert {series["metric"]["model"]: [value for _, value in series["values"]] for series in data["result"]} == {
        "a": ["210", "255", "300"],
        "b": ["420", "510", "600"],
    }
    assert 'answers_total{model="a"}' in trimtab("query", *arguments).stdout


def test_a_scalar_nothing_and_a_time_in_words(trimtab: Run, prometheus: Path) -> None:
    assert trimtab("query", "1 + 1", "--settings", prometheus).stdout == "2\n"
    assert trimtab("query", "none", "--settings", prometheus).stdout == "(no series)\n"
    at = trimtab("query", "answers_total", "--at", "2023-11-14T22:18:20Z", "--settings", prometheus)
    assert 'answers_total{model="a"} => 300' in at.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["up =="], "bad_data"),
        (["up", "--at", "noon"], "RFC 3339"),
        (["up", "--range", "1x"], "1h30m"),
        (["up", "--range", "1m", "--step", "0s"], "not a duration"),
        (["answers_total + on () answers_total"], "execution"),
    ],
)
def test_a_wrong_query_is_said_in_a_line(trimtab: Run, prometheus: Path, arguments: list[str], words: str) -> None:
    found = trimtab("query", *arguments, "--at", T0 + 300, "--settings", prometheus)
    found = trimtab("query", *arguments, "--settings", prometheus) if "--at" in arguments else found

    assert found.exit_code == 1
    assert words in found.stderr
    assert found.stderr.startswith("Error: ")


# --- calls of the services -------------------------------------------------------------------------------------------


def test_control_calls_are_signed_and_carry_a_key(
    trimtab: Run, served: Callable[[Any], str], settings: Callable[..., Path]
) -> None:
    seen: list[tuple[Any, str]] = []

    async def canary(request: Request) -> Response:
        body = await request.body()
        try:
            verify("s3cret", request.headers.get(HEADER), body, time.time())
        except SignatureError as error:
            return JSONResponse({"error": str(error)}, 401)
        seen.append((json.loads(body), request.headers["Idempotency-Key"]))
        return JSONResponse({"generation": 3})

    url = served(Starlette(routes=[Route("/api/v1/models/m/canary", canary, methods=["POST"])]))
    text = f'[serving]\nurl = "{url}"'

    good = trimtab("models", "canary", "m", "2", "--weight", "0.25", "--settings", settings(text, secret="s3cret"))
    wrong = trimtab("models", "canary", "m", "2", "--settings", settings(text, secret="other"))

    assert (good.exit_code, json.loads(good.stdout)) == (0, {"generation": 3})
    assert [body for body, _ in seen] == [{"version": "2", "weight": 0.25, "actor": getpass.getuser()}]
    assert len(seen[0][1]) == 32
    assert wrong.exit_code == 1
    assert "answered 401: the signature does not match" in wrong.stderr


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (JSONResponse({"error": "there is no action 7"}, 404), "answered 404: there is no action 7"),
        (JSONResponse(["odd"], 400), "answered 400: ['odd']"),
        (Response("gateway down", 502), "answered 502: gateway down"),
    ],
)
def test_a_refusal_shows_the_services_own_reason(
    trimtab: Run, served: Callable[[Any], str], settings: Callable[..., Path], answer: Response, words: str
) -> None:
    url = served(Starlette(routes=[Route("/api/v1/actions/7", lambda request: answer)]))

    found = trimtab("actions", "show", "7", "--settings", settings(f"[alerts]\nport = {urlsplit(url).port}"))

    assert (found.exit_code, found.stdout) == (1, "")
    assert words in found.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["models", "show", "m"],
        ["models", "rollback", "m"],
        ["actions", "list"],
        ["actions", "approve", "1"],
        ["alerts", "list"],
        ["alerts", "silence", "a=b"],
    ],
)
def test_a_service_that_is_away_is_named_with_the_remedy(
    trimtab: Run, settings: Callable[..., Path], arguments: list[str]
) -> None:
    away = settings('[alerts]\nport = 9\n[serving]\nurl = "http://127.0.0.1:9"')

    found = trimtab(*arguments, "--settings", away)

    assert found.exit_code == 1
    assert "http://127.0.0.1:9/" in found.stderr
    assert "trimtab up" in found.stderr


def test_settings_may_stand_before_or_behind_a_subcommand_of_alerts(
    trimtab: Run, served: Callable[[Any], str], settings: Callable[..., Path]
) -> None:
    url = served(Starlette(routes=[Route("/api/v2/alerts", lambda request: JSONResponse([]))]))
    path = settings(f"[alerts]\nport = {urlsplit(url).port}")

    assert trimtab("alerts", "--settings", path, "list").stdout == "nothing fires\n"
    assert trimtab("alerts", "list", "--settings", path).stdout == "nothing fires\n"


# --- models and training without a server ----------------------------------------------------------------------------


def test_an_empty_registry_says_what_makes_a_model(trimtab: Run, settings: Callable[..., Path]) -> None:
    found = trimtab("models", "list", "--settings", settings())

    assert found.exit_code == 0
    assert "trimtab train" in found.stdout
    assert json.loads(trimtab("models", "list", "--json", "--settings", settings()).stdout) == []


def test_a_folder_that_is_no_artifact_is_not_registered(
    trimtab: Run, settings: Callable[..., Path], tmp_path: Path
) -> None:
    found = trimtab("models", "register", "m", tmp_path, "--settings", settings())

    assert found.exit_code == 1
    assert "manifest.json" in found.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"add a [models.m] section"),
        ('[models.m]\ntask = "x:y"', "models.m.data is not set"),
        ('[models.m]\ntask = "no_such_module:y"\ndata = "json:loads"', "'no_such_module:y' cannot be loaded"),
    ],
)
def test_a_model_that_cannot_be_trained_says_what_the_settings_lack(
    trimtab: Run, settings: Callable[..., Path], text: str, words: str
) -> None:
    found = trimtab("train", "m", "--settings", settings(text))

    assert found.exit_code == 1
    assert words in found.stderr


TRAINABLE = """
import numpy as np
import pyarrow as pa
import torch
from training import TabularTask

class Line(torch.nn.Module):
    def __init__(self, encoding):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def logits(self, x):
        return self.layer(x[:, None]).squeeze(1)
    def forward(self, x):
        return torch.sigmoid(self.logits(x))

def task():
    return TabularTask(model="line", categorical=(), numeric=("x",), label="y", group="day", output="p", network=Line)

def table(data):
    rng = np.random.default_rng(0)
    x = rng.normal(size=6000)
    day = [f"2024-01-{1 + row // 200:02d}" for row in range(6000)]
    return pa.table({"x": x, "y": (rng.normal(size=6000) < 2 * x).astype(float), "day": day})
"""


def test_a_trained_version_carries_what_the_collector_judges_it_by(
    trimtab: Run, settings: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "line_to_learn.py").write_text(TRAINABLE)
    monkeypatch.syspath_prepend(tmp_path)
    model = '[models.line]\ntask = "line_to_learn:task"\ndata = "line_to_learn:table"\nlearning_rate = 0.05\n'
    chosen = settings(model + "window_groups = 4\n[collector]\ndrift_min_rows = 300\nintake_port = 1")

    found = trimtab("train", "line", "--json", "--settings", chosen)

    assert found.exit_code == 0, found.output
    registry = Registry(f"sqlite:///{tmp_path / 'data' / 'registry.db'}", tmp_path / "data" / "artifacts")
    reference = Reference.from_json(registry.profile("line", 1) or b"")
    registry.close()
    assert reference.profile.rows == 6000
    assert reference.calibration is not None
    # Thirty days in blocks of four at least.
    assert (reference.calibration.blocks, reference.calibration.rows) == (7, 857)
    assert reference.profile.joint is not None
    assert reference.profile.joint.count == 6000
    assert reference.estimator is not None
    assert reference.estimator.usual["roc_auc"].value > 0.8


def test_a_short_training_is_looked_into(
    trimtab: Run, settings: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "line_to_learn.py").write_text(TRAINABLE)
    monkeypatch.syspath_prepend(tmp_path)
    chosen = settings('[models.line]\ntask = "line_to_learn:task"\ndata = "line_to_learn:table"')
    trace = tmp_path / "steps.json"
    begin = ("train", "line", "--max-steps", "6", "--profile", trace, "--settings", chosen)

    found = trimtab(*begin, "--json")
    both = trimtab(*begin, "--ranks", "2", "--json")
    servers = trimtab(*begin, "--parallel", "servers=1,workers=2")

    assert json.loads(found.stdout)["outcome"] in ("completed", "rejected"), found.output
    assert {e["name"] for e in json.loads(trace.read_text())["traceEvents"]} >= {"ProfilerStep#4", "ProfilerStep#5"}
    assert json.loads(both.stdout)["outcome"] in ("completed", "rejected"), both.output
    for rank in range(2):
        steps = json.loads((tmp_path / f"steps.rank-{rank}.json").read_text())["traceEvents"]
        assert {e["name"] for e in steps} >= {"ProfilerStep#4", "ProfilerStep#5"}
    assert servers.exit_code == 1
    assert "--profile looks at steps that all processes take together" in servers.stderr


def test_what_follows_a_guards_finding_is_set_for_each_model(
    trimtab: Run, settings: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "line_to_learn.py").write_text(TRAINABLE)
    monkeypatch.syspath_prepend(tmp_path)
    model = '[models.line]\ntask = "line_to_learn:task"\ndata = "line_to_learn:table"\n[models.line.guards]\n'
    jobs: list[TrainJob] = []

    def kept(job: TrainJob, *_: object, **__: object) -> TrainOutcome:
        jobs.append(job)
        return TrainOutcome(model="line", run="r", outcome="failed", reason="only looked at")

    monkeypatch.setattr("trimtab.commands.train.run_train", kept)
    text = 'loss_spike = "rewind"\nleak = "restart"\nstraggler = "stop"\ndevice = "restart"\nspike_score = 8.0'
    trimtab("train", "line", "--settings", settings(model + text))
    wrong = {
        'plateau = "rewind"': "models.line: guards.plateau is 'rewind': one of report, lower_rate, stop",
        'loss_spike = "no"': "models.line: guards.loss_spike is 'no': report, lower_rate, rewind, restart or stop",
        'straggler = "skip"': "models.line: guards.straggler is 'skip': one of report, restart, stop",
        "lowered = 2.0": "models.line: guards.lowered is 2.0: it must be in (0, 1)",
        'leek = "stop"': "unknown field `leek`",
    }
    refused = {line: trimtab("train", "line", "--settings", settings(model + line)) for line in wrong}

    (job,) = jobs
    assert (job.config.on_spike, job.config.spike_score, job.config.checkpoint_every) == ("rewind", 8.0, 100)
    assert (job.config.guards.leak, job.config.guards.plateau) == ("restart", "report")
    limits = limits_of(job.config.guards)
    assert (limits.on_straggler, limits.on_device) == ("stop", "restart")
    assert [line for line, found in refused.items() if found.exit_code != 1 or wrong[line] not in found.stderr] == []


# --- what is written for the tools that one has ----------------------------------------------------------------------


def _checked(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_exported_configuration_with_its_rules(
    trimtab: Run, settings: Callable[..., Path], tmp_path: Path
) -> None:
    text = '[alerts]\nport = 19093\n[[collector.targets]]\njob = "mine"\nurl = "https://h:1/m"\nlabels = {team = "x"}'

    found = trimtab("export", "prometheus", tmp_path / "p", "--settings", settings(text))

    assert found.exit_code == 0
    assert "7 rule files found" in _checked("promtool", "check", "config", tmp_path / "p" / "prometheus.yml")
    config = yaml.safe_load((tmp_path / "p" / "prometheus.yml").read_text())
    assert config["alerting"]["alertmanagers"][0]["static_configs"] == [{"targets": ["127.0.0.1:19093"]}]
    (mine,) = [job for job in config["scrape_configs"] if job["job_name"] == "mine"]
    assert (mine["scheme"], mine["metrics_path"]) == ("https", "/m")
    assert mine["static_configs"] == [{"targets": ["h:1"], "labels": {"team": "x"}}]


def test_alerts_go_to_the_alertmanager_that_is_named(
    trimtab: Run, settings: Callable[..., Path], tmp_path: Path
) -> None:
    trimtab("export", "prometheus", tmp_path, "--alertmanager", "am:9093", "--settings", settings())

    config = yaml.safe_load((tmp_path / "prometheus.yml").read_text())
    assert config["alerting"]["alertmanagers"][0]["static_configs"] == [{"targets": ["am:9093"]}]


@pytest.mark.skipif(shutil.which("amtool") is None, reason="amtool is not installed")
@pytest.mark.parametrize("secret", ["", "s3cret"])
def test_amtool_accepts_the_exported_configuration_and_the_secret_is_not_in_it(
    trimtab: Run, settings: Callable[..., Path], tmp_path: Path, secret: str
) -> None:
    trimtab("export", "alertmanager", tmp_path / "am", "--settings", settings(secret=secret))

    path = tmp_path / "am" / "alertmanager.yml"
    assert "SUCCESS" in _checked("amtool", "check-config", path)
    assert "s3cret" not in path.read_text()
    assert ("credentials" in path.read_text()) == bool(secret)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_generated_objectives(trimtab: Run, tmp_path: Path) -> None:
    found = trimtab("slo", "generate", "--availability", "0.995", "--latency", "0.99:0.25")
    path = tmp_path / "slo.yml"
    path.write_text(found.stdout)

    assert "52 rules found" in _checked("promtool", "check", "rules", path)
    assert trimtab("rules", "check", path).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --availability"),
        (["--availability", "2"], "within (0, 1)"),
        (["--latency", "0.99"], "SHARE:SECONDS"),
        (["--latency", "0.99:0.3"], "not a bucket"),
    ],
)
def test_an_objective_that_makes_no_sense_is_refused(trimtab: Run, arguments: list[str], words: str) -> None:
    found = trimtab("slo", "generate", *arguments)

    assert (found.exit_code, found.stdout) == (1, "")
    assert words in found.stderr
