"""Online learning: every labelled event once and in order, scores as plainly counted, and the way back when worse."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from observability import Metrics, Profile
from observability.metrics import exposition
from tests.training.toy_stream import CONFIG, START, TASK, Line, champion, rows, session, write, write_label
from training import CheckpointStore, DataError, Encoding, TabularTask
from training.faults import disk_full
from training.online import (
    Excess,
    Faded,
    LabelledStream,
    LossDrift,
    OnlineConfig,
    OnlineLearner,
    Position,
    Prequential,
    excess_bounds,
    learn_online,
)
from training.online.stream import TIME


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory):
    """The champion; its log odds are x."""
    return champion(tmp_path_factory.mktemp("champion"))


def line(slope: float) -> Line:
    network = Line(Encoding({}, {}, {}))
    with torch.no_grad():
        network.line.weight.copy_(torch.tensor([[slope, 0.0]]))
        network.line.bias.zero_()
    return network


def batches(count: int, slope: float, seed: int, size: int = 50):
    """Batches as a network takes them; labels follow slope times x."""
    given = rows(count * size, slope, seed)
    x, y, label = (torch.tensor(given[name]) for name in ("x", "y", "label"))
    return [((x[at : at + size], y[at : at + size]), label[at : at + size]) for at in range(0, count * size, size)]


# --- the stream -------------------------------------------------------------------------------------------------------
@settings(max_examples=15)
@given(st.integers(0, 10_000))
def test_every_event_comes_once_whenever_its_label_does(tmp_path_factory: pytest.TempPathFactory, seed: int):
    lake = tmp_path_factory.mktemp("lake")
    draw = np.random.default_rng(seed)
    stream, position = LabelledStream(task=TASK, lake=lake, lateness=1e6), Position()
    expected, seen, given_rows = [], [], rows(30, seed=seed)
    labelled_first = draw.random(30) < 0.6
    write(lake, given_rows, np.flatnonzero(labelled_first).tolist())
    write_label_of = np.flatnonzero(~labelled_first).tolist()
    for turn in range(2):
        table = stream.read(position)
        times = table.column(TIME).to_pylist()
        assert times == sorted(times)
        kept = table.slice(0, int(draw.integers(0, len(table) + 1))) if turn == 0 else table
        position = stream.after(position, kept)
        seen += kept.column(TIME).to_pylist() if len(kept) else []
        write_label(lake, given_rows, write_label_of if turn == 0 else [])
    assert len(stream.read(position)) == 0
    expected = [time * 1_000_000_000 for time in given_rows["time"]]
    assert sorted(seen) == expected


def test_too_late_labels_are_left_and_neighbours_may_be_awaited(tmp_path: Path):
    given_rows = rows(100)
    write(tmp_path, given_rows, list(range(10, 100)))
    stream = LabelledStream(task=TASK, lake=tmp_path, lateness=95.0)
    table = stream.read(Position())
    position = stream.after(Position(), table)
    assert len(table) == 90
    write_label(tmp_path, given_rows, list(range(10)))
    # Rows 0 to 3 are more than 95 s older than row 99.
    assert [round(t / 1e9) - given_rows["time"][0] for t in stream.read(position).column(TIME).to_pylist()] == [
        4, 5, 6, 7, 8, 9,
    ]  # fmt: skip
    assert len(replace(stream, delay=50.0).read(Position())) == 50
    assert len(position.taken) == 90
    with pytest.raises(DataError, match=r"no feature\.z"):
        replace(stream, task=TabularTask(**{**_fields(TASK), "numeric": ("x", "y", "z")})).read(Position())
    assert len(LabelledStream(task=TASK, lake=tmp_path / "none").read(Position())) == 0


def test_an_event_of_a_clock_that_is_ahead_waits_and_makes_no_other_too_late(tmp_path: Path):
    now = [START + 200.0]
    stream = LabelledStream(task=TASK, lake=tmp_path, lateness=50.0, delay=10.0, clock=lambda: now[0])
    write(tmp_path, rows(100))
    write(tmp_path, {**rows(1, first=5000), "time": [START + 86_400]})
    first = stream.read(Position())
    position = stream.after(Position(), first)
    write(tmp_path, rows(100, first=100))

    # The delay is counted from the newest that has come, not from the one that waits.
    assert (len(first), position.newest) == (90, (START + 89) * 1_000_000_000)
    second = stream.read(position)
    assert len(second) == 100
    now[0] += 86_400
    assert len(stream.read(stream.after(position, second))) == 1 + 9


def test_what_lies_at_the_edge_of_the_lateness_does_not_come_again_by_a_rounding_of_its_time(tmp_path: Path):
    stream, newest = LabelledStream(task=TASK, lake=tmp_path, lateness=10.0), START * 1_000_000_000 + 123_456_789
    given_rows = rows(301)
    times = [newest, *(newest - 10_000_000_000 - nanoseconds for nanoseconds in range(300))]
    write(tmp_path, given_rows, times_ns=times)
    read = stream.read(Position())

    again = stream.read(stream.after(Position(), read))

    assert (len(read), len(again)) == (301, 0)


def _fields(task: TabularTask) -> dict[str, object]:
    return {name: getattr(task, name) for name in TabularTask.__slots__}


# --- scores -----------------------------------------------------------------------------------------------------------
@given(st.integers(0, 1000), st.floats(0.8, 1.0), st.integers(1, 7))
def test_faded_means_are_those_of_a_plain_loop(seed: int, fading: float, size: int):
    draw = np.random.default_rng(seed)
    values, total, weight, faded = draw.normal(size=40), 0.0, 0.0, Faded(fading)
    for value in values:
        total, weight = value + fading * total, 1 + fading * weight
    for at in range(0, 40, size):
        faded = faded.added(values[at : at + size])
    assert math.isclose(faded.mean, total / weight, rel_tol=1e-9, abs_tol=1e-9)


def test_prequential_scores_are_those_of_a_plain_loop():
    """Test, then train, written out with torch alone: the same predictions, accuracy and loss."""
    learner = OnlineLearner(line(1.0), replace(CONFIG, drift_boost=1.0, patience=1e9, clip_norm=1e9))
    plain = line(1.0)
    optimizer = torch.optim.Adam(plain.parameters(), lr=CONFIG.learning_rate)
    torch.manual_seed(CONFIG.seed)
    state, right, lost, count = torch.Generator().manual_seed(CONFIG.seed).get_state(), 0, 0.0, 0
    for inputs, labels in batches(30, slope=3.0, seed=1):
        tested = learner.step(inputs, labels)
        with torch.no_grad():
            probabilities = plain.eval()(*inputs)
        torch.testing.assert_close(torch.from_numpy(tested.online).float(), probabilities)
        right += int(((probabilities >= 0.5) == (labels >= 0.5)).sum())
        lost += float(nn.functional.binary_cross_entropy(probabilities.double(), labels.double(), reduction="sum"))
        count += len(labels)
        torch.set_rng_state(state)
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(plain.train().logits(*inputs), labels).backward()
        state = torch.get_rng_state()
        optimizer.step()
    whole = Prequential.empty(1.0)
    learner2 = OnlineLearner(line(1.0), replace(CONFIG, fading=1.0, drift_boost=1.0, patience=1e9, clip_norm=1e9))
    for inputs, labels in batches(30, slope=3.0, seed=1):
        tested = learner2.step(inputs, labels)
        whole = whole.added(labels.double().numpy(), tested.online)
    assert whole.accuracy.mean == pytest.approx(right / count)
    assert whole.log_loss.mean == pytest.approx(lost / count, rel=1e-6)
    assert learner2.online.accuracy.mean == pytest.approx(right / count)
    assert learner2.online.log_loss.mean < learner2.champion.log_loss.mean  # it has learned


def test_evidence_of_being_worse_comes_when_it_is_so_and_hardly_else():
    draw = np.random.default_rng(0)

    def first_above(mean: float, batches: int, spread: float = 0.05) -> int | None:
        one = Excess()
        for number in range(batches):
            one = one.added(mean + spread * draw.standard_normal())
            if one.evidence > 1000:
                return number
        return None

    # On average at most one alarm in 1,000 batches: 60 runs of 100 make at most 6 on average; more than 20 by chance
    # less than once in 100,000 times.
    assert sum(first_above(0.0, 100) is not None for _ in range(60)) <= 20
    assert all(first_above(-0.01, 300) is None for _ in range(10))
    found = [first_above(0.05, 400) for _ in range(20)]
    assert all(number is not None for number in found)
    assert np.median([number for number in found if number is not None]) < 150


def test_bounds_are_students_and_drift_is_a_rise_only():
    values = np.random.default_rng(1).normal(0.1, 0.05, 30)
    mean, low, high = excess_bounds(values, 0.95)
    reach = stats.t.ppf(0.95, 29) * values.std(ddof=1) / math.sqrt(30)
    assert (mean, low, high) == pytest.approx((values.mean(), values.mean() - reach, values.mean() + reach))
    draw, fell, rose = np.random.default_rng(2), LossDrift(), LossDrift()
    found: dict[str, list[bool]] = {"fell": [], "rose": []}
    for number in range(200):
        noise = 0.02 * draw.standard_normal()
        fell, drifted = fell.added(0.6 + noise - (0.1 if number > 100 else 0))
        found["fell"].append(drifted)
        rose, drifted = rose.added(0.6 + noise + (0.1 if number > 100 else 0))
        found["rose"].append(drifted)
    assert not any(found["fell"])
    assert not any(found["rose"][:101])
    assert any(found["rose"][101:110])


def test_the_scores_of_a_session_are_those_of_one_batch_of_all_that_was_tested(tmp_path: Path):
    """Of a stream that stops and goes on, whose labels come late and in no order, and of events that are unknown."""
    given_rows, draw = rows(400, slope=3.0), np.random.default_rng(3)
    order = draw.permutation(400)
    write(tmp_path / "lake", given_rows, sorted(order[:200].tolist()))
    write_label(tmp_path / "lake", {"id": ["nobody"], "label": [1.0]}, [0])
    one = session(tmp_path / "out", tmp_path / "lake", champion(tmp_path / "own"))
    seen: list[tuple[pa.Table, Any]] = []

    def keep(batch: pa.Table, done: Any) -> None:
        seen.append((batch, done))

    learned = [one.learn(tested=keep), one.learn(drain=True, tested=keep)]
    for at in (order[200:310], order[150:310], order[310:]):  # some labels come twice
        write_label(tmp_path / "lake", given_rows, at.tolist())
        learned.append(one.learn(drain=True, tested=keep))

    assert (learned[:2], sum(learned)) == ([200, 0], 400)
    assert sorted(time for batch, _ in seen for time in batch.column(TIME).to_pylist()) == [
        time * 1_000_000_000 for time in given_rows["time"]
    ]
    labels = np.concatenate([batch.column("label").to_numpy() for batch, _ in seen])
    for who, scores in (("online", one.learner.online), ("champion", one.learner.champion)):
        answers = np.concatenate([getattr(done, who) for _, done in seen])
        whole = Prequential.empty(CONFIG.fading).added(labels, answers)
        assert scores.rows == whole.rows == 400
        assert scores.log_loss.mean == pytest.approx(whole.log_loss.mean, rel=1e-12)
        assert scores.accuracy.mean == pytest.approx(whole.accuracy.mean, rel=1e-12)


def test_a_full_disk_costs_checkpoints_until_it_is_free_and_is_told_at_the_end(tmp_path: Path, own):
    write(tmp_path / "lake", rows(400))
    metrics = Metrics()
    one = session(tmp_path / "out", tmp_path / "lake", own, metrics=metrics)
    with disk_full(100):
        learned = one.learn(drain=True)
        assert "File too large" in one.unsaved
        with pytest.raises(OSError, match="File too large"):
            learn_online(one, until_idle=True)

    assert (learned, learn_online(one, until_idle=True), one.unsaved) == (400, 0, "")
    assert 'training_checkpoints_total{model="line",outcome="failed"} 3.0' in exposition(metrics)[0].decode()
    again = session(tmp_path / "out", tmp_path / "lake", own)
    assert (again.learned, again.learn(drain=True)) == (400, 0)


# --- the learner ------------------------------------------------------------------------------------------------------
def test_rows_that_no_learner_could_use_are_left_out_and_do_not_take_it_back():
    (inputs, labels), clean = batches(2, slope=3.0, seed=1)
    learner, other = OnlineLearner(line(1.0), CONFIG), OnlineLearner(line(1.0), CONFIG)
    bad_inputs, bad_labels = [column.clone() for column in inputs], labels.clone()
    bad_inputs[0][3], bad_inputs[1][4], bad_labels[5], bad_labels[6] = float("inf"), float("-inf"), 7.0, -1.0
    left = [3, 4, 5, 6]
    kept = [row for row in range(len(labels)) if row not in left]

    done = learner.step(tuple(bad_inputs), bad_labels)
    same = other.step(tuple(column[kept] for column in inputs), labels[kept])
    nothing = learner.step(tuple(column[left] for column in bad_inputs), bad_labels[left])
    learner.step(*clean)
    other.step(*clean)

    assert (done.outcome, np.flatnonzero(~done.usable).tolist(), same.usable.all()) == ("learned", left, True)
    assert (nothing.outcome, nothing.rolled_back, nothing.usable.any()) == ("skipped", "", False)
    assert (learner.rollbacks, learner.batches, other.batches) == (0, 3, 2)
    assert learner.online == other.online
    torch.testing.assert_close(learner.frozen(), other.frozen(), rtol=0, atol=0)


def test_a_learner_that_was_led_astray_goes_back_to_its_good_state():
    config = OnlineConfig(batch_rows=50, learning_rate=0.05, good_every=5, publish_every=0, drift_boost=1.0)
    learner = OnlineLearner(line(1.0), config)
    for inputs, labels in batches(60, slope=3.0, seed=1):
        learner.step(inputs, labels)
    good = float(learner.network.line.weight[0, 0].detach())
    assert good > 1.8
    # Mislabelled rows lead it astray while they judge it, too; then rows of the truth do.
    for inputs, labels in batches(40, slope=3.0, seed=2):
        learner._train(inputs, 1 - labels)
    assert float(learner.network.line.weight[0, 0].detach()) < 0.5
    tested = []
    for inputs, labels in batches(80, slope=3.0, seed=3):
        tested.append(learner.step(inputs, labels))
        if tested[-1].rolled_back:
            break

    assert tested[-1].rolled_back == "worse"
    assert float(learner.network.line.weight[0, 0].detach()) == pytest.approx(good, abs=0.6)
    assert learner.rollbacks == 1
    learner._roll_back()  # the good state has failed: now the champion
    assert float(learner.network.line.weight[0, 0].detach()) == 1.0


def test_weights_that_are_not_finite_are_left_and_a_drift_raises_the_rate():
    learner = OnlineLearner(line(1.0), replace(CONFIG, drift_boost=4.0, tolerance=10.0))
    with torch.no_grad():
        learner.network.line.bias.fill_(float("nan"))
    inputs, labels = batches(1, 1.0, 1)[0]
    assert learner.step(inputs, labels).rolled_back == "not_finite"
    assert learner.step((torch.full((50,), 1e30), inputs[1]), labels).outcome in ("learned", "skipped")
    assert bool(torch.isfinite(learner.network.line.weight).all())

    learner = OnlineLearner(line(1.5), replace(CONFIG, drift_boost=4.0, tolerance=10.0))
    rates = []
    for slope, seed in ((1.5, 4), (-3.0, 5)):
        for inputs, labels in batches(60, slope, seed):
            rates.append((learner.step(inputs, labels).drifted, learner.rate))
    drifts = [number for number, (drifted, _) in enumerate(rates) if drifted]
    assert drifts
    assert drifts[0] >= 60
    assert rates[drifts[0]][1] > 3 * CONFIG.learning_rate
    with pytest.raises(ValueError, match="drift_boost >= 1"):
        OnlineConfig(drift_boost=0.5)


# --- the session ------------------------------------------------------------------------------------------------------
def test_candidates_go_through_the_gate_over_rows_they_have_not_learned(tmp_path: Path, own):
    write(tmp_path / "lake", rows(2000, slope=3.0))
    config = replace(CONFIG, publish_every=20, judge_rows=400)
    metrics = Metrics()
    one = session(tmp_path / "out", tmp_path / "lake", own, config, metrics=metrics)
    registry = one._registry

    assert learn_online(one, until_idle=True) == 2000

    (outcome,) = one.outcomes[:1]
    assert (outcome.outcome, outcome.version, outcome.parent) == ("completed", 2, 1), outcome.reason
    # Frozen after 1,000 rows (of 100 a day), judged by the next ones until 5 days and 400 rows are among them.
    assert outcome.window == ("2024-01-11", "2024-01-15")
    _, kept = registry.versions[0]
    assert kept["lineage"]["run"] == "online-20"
    assert Profile.from_json(kept["profile"]).rows == 450
    page = exposition(metrics)[0].decode()
    assert 'online_events_total{model="line",outcome="learned"} 2000.0' in page
    assert 'online_candidates_total{model="line",outcome="registered"}' in page
    assert 'online_prequential_score{learner="online",metric="accuracy",model="line"}' in page

    # Killed after the registry had it, before the checkpoint: judged again, it is the same version.
    store = CheckpointStore(tmp_path / "out" / "online")
    for path in store.paths()[1:]:
        path.unlink()
    before = len(registry.versions)
    learn_online(session(tmp_path / "out", tmp_path / "lake", own, config, registry=registry), until_idle=True)
    assert len(registry.versions) == before


def test_what_came_while_nobody_listened_is_learned_later_and_late_labels_too(tmp_path: Path, own):
    metrics = Metrics()
    early, later = rows(200), rows(100, seed=1, first=200)
    write(tmp_path / "lake", early, list(range(0, 200, 2)))
    first = session(tmp_path / "out", tmp_path / "lake", own)
    assert learn_online(first, until_idle=True) == 100
    write(tmp_path / "lake", later)
    write_label(tmp_path / "lake", early, list(range(1, 200, 2)))

    again = session(tmp_path / "out", tmp_path / "lake", own, metrics=metrics)

    assert again.learned == 100
    assert learn_online(again, until_idle=True) == 200
    # 100 that are older than the last of the first reading, less the one between it and the later rows.
    assert 'online_late_events_total{model="line"} 99.0' in exposition(metrics)[0].decode()
    other = session(tmp_path / "out", tmp_path / "lake", replace(own, version=7))
    assert (other.learned, other.learner.batches, learn_online(other, until_idle=True)) == (300, 0, 0)


@pytest.mark.slow
def test_killed_again_and_again_it_learns_each_event_once_to_the_bit(tmp_path: Path, own):
    write(tmp_path / "lake", rows(1030, slope=3.0))
    calm = session(tmp_path / "calm", tmp_path / "lake", own)
    learn_online(calm, until_idle=True)

    def run(death: int) -> int:
        command = [
            sys.executable,
            "-m",
            "tests.training.toy_stream",
            *map(str, (tmp_path / "out", tmp_path / "lake", own.artifact, death)),
        ]
        return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode

    assert [run(death) for death in (2, 11)] == [-9, -9]
    found = session(tmp_path / "out", tmp_path / "lake", own)
    assert 0 < found.learned < 1030
    learn_online(found, until_idle=True)
    found = session(tmp_path / "out", tmp_path / "lake", own)
    assert (found.learned, found.learner.batches, found.position.newest) == (1030, 21, calm.position.newest)
    assert len(set(found.position.taken.tolist())) == 1030
    for name, value in calm.learner.frozen().items():
        assert torch.equal(found.learner.frozen()[name], value), name
    assert found.learner.online == calm.learner.online
