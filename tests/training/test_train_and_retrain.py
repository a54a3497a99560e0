from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from observability import Metrics, Profile, event_batch, exposition, label_batch
from observability.lake import write_events, write_labels
from serving.artifacts.manifest import verify
from serving.registry import Registry
from training import (
    Champion,
    DataError,
    Encoding,
    Gate,
    ReferenceData,
    RetrainJob,
    TrainConfig,
    TrainJob,
    read_weights,
    retrain,
    train,
)
from training.artifact import ArtifactError, load_program, read_manifest
from training.candidate import start_from
from training.data import encode
from training.faults import disk_full

CONFIG = TrainConfig(epochs=6, batch_size=100, learning_rate=0.02, seed=5)
GATE = Gate(min_rows=100, min_groups=3)


@pytest.fixture
def first_job(task, make_table, tmp_path: Path) -> TrainJob:
    return TrainJob(task=task, table=make_table(), source="test", out=tmp_path / "first", config=CONFIG, gate=GATE)


@pytest.fixture
def champion(first_job: TrainJob, registry: Registry) -> Champion:
    version = train(first_job, registry).version
    assert version is not None
    return Champion(version, registry.artifact(registry.get("tiny", version)))


@pytest.fixture
def fill(tmp_path: Path):
    """Writes a table into the lake as labelled events of the model."""

    def write(table: pa.Table, shadow: bool = False) -> Path:
        ids = [f"r{row}" for row in range(len(table))]
        for arm in ("stable", "shadow") if shadow else ("stable",):
            batch = event_batch(
                ids=ids,
                time_ns=1_700_000_000_000_000_000 + np.arange(len(table)) * 1_000_000_000,
                model="tiny",
                version="1" if arm == "stable" else "2",
                arm=arm,
                features={name: table[name].combine_chunks() for name in ("colour", "x", "y", "z")},
                predictions={"probability": np.full(len(table), 0.5)},
                attributes=pa.array([json.dumps({"day": day}) for day in table["day"].to_pylist()]),
            )
            write_events(tmp_path / "lake", pa.Table.from_batches([batch]))
        labels = label_batch(ids, "tiny", table["label"].combine_chunks(), 1_700_000_000_000_000_000)
        write_labels(tmp_path / "lake", pa.Table.from_batches([labels]))
        return tmp_path / "lake"

    return write


def test_a_failure_on_a_full_disk_says_that_it_is_full(
    first_job: TrainJob, registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("training.disk._LEAST_BYTES", 1 << 62)
    assert train(replace(first_job, out=first_job.out / "kept"), registry).reason.endswith("within the tolerance of 0")

    with disk_full(300):
        outcome = train(first_job, registry)

    assert outcome.outcome == "failed"
    assert outcome.reason.endswith(f"; the disk of {first_job.out} is full: less than 1 MiB is left")


def test_a_first_version_is_registered_with_lineage_profile_and_scores(first_job: TrainJob, registry: Registry):
    metrics = Metrics()

    outcome = train(first_job, registry, metrics=metrics, run="r1")

    assert (outcome.outcome, outcome.version, outcome.exit_code) == ("completed", 1, 0), outcome.reason
    version = registry.get("tiny", 1)
    assert version.lineage["data"] == {"window": ["2024-01-01", "2024-01-20"], "rows": 2000, "source": "test"}
    assert version.lineage["parent"] is None
    assert version.lineage["gate"]["upper_bound"] < 0
    assert version.metrics["log_loss"] < version.metrics["base_rate_log_loss"]
    profile = Profile.from_json(registry.profile("tiny", 1) or b"")
    assert set(profile.columns) == {"feature.colour", "feature.x", "feature.y", "feature.z", "prediction.probability"}
    assert profile.rows == 2000
    page = exposition(metrics)[0].decode()
    assert 'training_runs_total{model="tiny",outcome="completed"} 1.0' in page
    assert 'training_evaluation_score{metric="log_loss",model="tiny",run="r1"}' in page


def test_what_the_front_door_makes_is_registered_beside_the_profile(
    task, first_job: TrainJob, registry: Registry, fill, make_table, tmp_path: Path
):
    seen: list[ReferenceData] = []

    def beside(data: ReferenceData) -> dict[str, object]:
        seen.append(data)
        return {"calibration": {"rows": len(data.rows)}}

    first = train(first_job, registry, beside=beside)
    champion = Champion(1, registry.artifact(registry.get("tiny", 1)))
    job = RetrainJob(task=task, lake=fill(make_table(seed=2)), out=tmp_path / "second", config=CONFIG, gate=GATE)
    second = retrain(replace(job, gate=replace(GATE, tolerance=1.0)), registry, champion, beside=beside)

    assert (first.version, second.version) == (1, 2), second.reason
    for version, data in zip((1, 2), seen, strict=True):
        body = registry.profile("tiny", version) or b""
        assert json.loads(body)["calibration"] == {"rows": 2000}
        assert Profile.from_json(body) == data.profile == Profile.of(data.rows)
        assert data.groups.to_pylist() == make_table()["day"].to_pylist()
        # The last fifth of the days is held out; nothing of it was trained on.
        assert set(data.held_out.groups) == {f"2024-01-{day}" for day in range(17, 21)}
        assert data.held_out.labels.tolist() == data.held_out.table["label"].to_pylist()
        predictions = data.rows["prediction.probability"].to_numpy()[-400:]
        np.testing.assert_allclose(data.held_out.probabilities, predictions, atol=1e-6)


def test_the_artifact_answers_as_the_network_for_any_batch_and_the_server_accepts_it(
    first_job: TrainJob, registry: Registry, make_table
):
    train(first_job, registry)
    folder = first_job.out / "artifact"
    manifest = read_manifest(folder)
    vocabularies = {"colour": tuple(manifest["inputs"][0]["categories"])}
    inputs = encode(first_job.task, vocabularies, make_table(rows=7, days=2))

    network = first_job.task.network(_blank(vocabularies))
    network.load_state_dict(read_weights(folder))

    program = load_program(folder)
    with torch.inference_mode():
        torch.testing.assert_close(program(*inputs), network.eval()(*inputs))
        assert program(*(column[:1] for column in inputs)).shape == (1,)
    assert verify(folder) == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert [item["name"] for item in manifest["inputs"]] == ["colour", "x", "y", "z"]


def test_an_altered_artifact_is_refused(first_job: TrainJob, registry: Registry):
    train(first_job, registry)
    weights = first_job.out / "artifact" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")

    with pytest.raises(ArtifactError, match=r"weights\.safetensors was altered"):
        read_manifest(first_job.out / "artifact")


def test_a_model_that_learned_nothing_is_not_registered(first_job: TrainJob, registry: Registry, make_table):
    noise = make_table()
    labels = np.random.default_rng(1).permutation(noise["label"].to_numpy())

    outcome = train(replace(first_job, table=noise.set_column(4, "label", pa.array(labels))), registry)

    assert (outcome.outcome, outcome.version, outcome.exit_code) == ("rejected", None, 2)
    assert registry.versions("tiny") == []


def test_after_the_world_has_changed_a_warm_challenger_passes_and_names_its_parent(
    task, champion: Champion, registry: Registry, fill, make_table, tmp_path: Path
):
    lake = fill(make_table(slope=-1.5, seed=2), shadow=True)

    outcome = retrain(
        RetrainJob(task=task, lake=lake, out=tmp_path / "second", config=CONFIG, gate=GATE), registry, champion
    )

    assert (outcome.outcome, outcome.version, outcome.parent, outcome.start) == ("completed", 2, 1, "warm"), (
        outcome.reason
    )
    # A mirrored request is one row, not two.
    assert outcome.rows == 2000
    assert outcome.gate is not None
    assert outcome.gate.upper_bound < 0
    assert registry.get("tiny", 2).lineage["parent"] == 1
    assert json.loads(json.dumps(outcome.to_json()))["gate"]["rival"] == "champion"


def test_a_challenger_trained_on_noise_is_rejected_and_counted(
    task, champion: Champion, registry: Registry, fill, make_table, tmp_path: Path
):
    table = make_table(seed=2)
    # The early days, which train the challenger, are mislabelled; the late ones, which judge it, are not.
    labels = table["label"].to_numpy().copy()
    labels[:1600] = 1 - labels[:1600]
    lake, metrics = fill(table.set_column(4, "label", pa.array(labels))), Metrics()

    outcome = retrain(
        RetrainJob(task=task, lake=lake, out=tmp_path / "second", config=CONFIG, gate=GATE),
        registry,
        champion,
        metrics=metrics,
    )

    assert (outcome.outcome, outcome.version, outcome.exit_code) == ("rejected", None, 2)
    assert len(registry.versions("tiny")) == 1
    assert 'training_runs_total{model="tiny",outcome="rejected"} 1.0' in exposition(metrics)[0].decode()


def test_too_few_labelled_events_fail_with_the_remedy(
    task, champion: Champion, registry: Registry, fill, make_table, tmp_path: Path
):
    lake, metrics = fill(make_table(rows=50, days=5)), Metrics()

    outcome = retrain(RetrainJob(task=task, lake=lake, out=tmp_path / "o"), registry, champion, metrics=metrics)

    assert (outcome.outcome, outcome.exit_code) == ("failed", 1)
    assert "50 labelled events" in outcome.reason
    assert "lower min_rows" in outcome.reason
    assert 'training_runs_total{model="tiny",outcome="failed"} 1.0' in exposition(metrics)[0].decode()


def test_an_empty_lake_fails_and_does_not_raise(task, champion: Champion, registry: Registry, tmp_path: Path):
    outcome = retrain(RetrainJob(task=task, lake=tmp_path / "none", out=tmp_path / "o"), registry, champion)

    assert outcome.reason.startswith("0 labelled events of tiny")


def test_a_window_reads_only_its_events(task, champion: Champion, registry: Registry, fill, make_table, tmp_path: Path):
    lake = fill(make_table())
    job = RetrainJob(
        task=task, lake=lake, out=tmp_path / "o", since=1_700_001_000, config=CONFIG, gate=GATE, min_rows=100
    )

    assert retrain(job, registry, champion).rows == 1000


def test_weights_of_another_shape_are_refused_by_name(task, make_table):
    network = task.network(_blank({"colour": ("red",)}))
    weights = task.network(_blank({"colour": ("red", "blue")})).state_dict()

    with pytest.raises(DataError, match=r"the champion's colour\.weight is of shape \[3, 2\], \[2, 2\] is needed"):
        start_from(network, weights)


def _blank(vocabularies):
    return Encoding(vocabularies, dict.fromkeys("xyz", 0.0), dict.fromkeys("xyz", 1.0))
