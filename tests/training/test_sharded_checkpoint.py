"""Checkpoints of shards: whole or not there, whatever is done to their files; the last good one is used."""

from __future__ import annotations

import logging
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.checkpoint import CheckpointError
from training.faults import disk_full
from training.retention import Marks, Retention, kept
from training.shard_files import Reader
from training.sharded_checkpoint import MANIFEST, STATE, ShardedCheckpointStore, verify


def state(step: int) -> dict[str, Any]:
    return {
        "network": {"layer.weight": torch.full((30, 10), float(step)), "layer.bias": torch.arange(3.0) * step},
        "optimizer": {"layer.weight": {"step": torch.tensor(float(step)), "exp_avg": torch.ones(30, 10) / (step + 1)}},
        "losses": [(step, 0.5)],
        "random": {"states": [torch.get_rng_state()]},
    }


def save(store: ShardedCheckpointStore, step: int, **more: Any) -> str:
    """What went wrong."""
    told: list[tuple[int, str]] = []
    store.put(step, state(step), lambda *said: told.append(said), **more)
    store.wait()
    assert [said[0] for said in told] == [step]
    return told[0][1]


def filled(store: ShardedCheckpointStore) -> int:
    """The step of the newest, whose tensors were all read and are right."""
    newest = store.newest()
    assert newest is not None
    for name in ("network", "optimizer"):
        wanted, found = state(newest.step)[name], torch.utils._pytree.tree_map(torch.zeros_like, state(0)[name])
        newest.fill(name, found)
        assert str(found) == str(wanted)
        assert str(newest.tensors(name)) == str(wanted)
    assert newest.state["losses"] == [(newest.step, 0.5)]
    return newest.step


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("two")
    store = ShardedCheckpointStore(folder)
    for step in (1, 2):
        assert save(store, step) == ""
    return folder


def test_what_is_saved_is_copied_at_once_and_comes_back(tmp_path: Path) -> None:
    store = ShardedCheckpointStore(tmp_path)
    changing = state(1)
    store.put(1, changing, lambda *_: None)
    changing["network"]["layer.weight"].zero_()
    changing["losses"].append((9, 9.0))
    assert filled(store) == 1
    assert store.times.saves == 1
    assert {one.name for one in store.paths()[0].iterdir()} == {".metadata", "__0_0.distcp", MANIFEST, STATE}


def test_what_is_said_to_be_still_is_copied_before_settle_returns(tmp_path: Path) -> None:
    store = ShardedCheckpointStore(tmp_path)
    for step in (1, 2):
        changing = state(step)
        store.put(step, changing, lambda *_: None, still=("network", "optimizer"))
        store.settle()
        changing["network"]["layer.weight"].zero_()
        assert filled(store) == step
    assert (store.times.saves, len(store.times.stalls)) == (2, 2)
    assert store.times.stalled == pytest.approx(sum(store.times.stalls))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_cut_or_missing_file_falls_back_to_the_one_before(
    data: st.DataObject, two: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("broken") / "two"
    shutil.copytree(two, folder)
    newest = ShardedCheckpointStore(folder).paths()[-1]
    victim = newest / data.draw(st.sampled_from(sorted(one.name for one in newest.iterdir())), "file")
    content = bytearray(victim.read_bytes())
    harm = data.draw(st.sampled_from(["flip", "cut", "remove", "add"]), "harm")
    if harm == "flip":
        content[data.draw(st.integers(0, len(content) - 1), "at")] ^= data.draw(st.integers(1, 255), "mask")
    elif harm == "cut":
        del content[data.draw(st.integers(0, len(content) - 1), "at") :]
    victim.write_bytes(content)
    if harm == "remove":
        victim.unlink()
    elif harm == "add":
        (newest / "__9_0.distcp").write_bytes(b"x")

    with pytest.raises(CheckpointError, match=newest.name):
        verify(newest)
    assert filled(ShardedCheckpointStore(folder)) == 1
    assert [one.suffix for one in folder.iterdir() if newest.name in one.name] == [".corrupt"]


def test_the_fall_back_is_told_in_the_log(two: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(two, tmp_path / "two")
    store = ShardedCheckpointStore(tmp_path / "two")
    shard = store.paths()[-1] / "__0_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert filled(store) == 1
    assert "__0_0.distcp was altered: SHA-256" in caplog.text


def test_a_full_disk_costs_the_checkpoint_that_was_to_be_written_and_no_other(tmp_path: Path) -> None:
    store = ShardedCheckpointStore(tmp_path)
    assert save(store, 1) == ""
    for limit in (0, 700, 3000):
        with disk_full(limit):
            assert "File too large" in save(store, 2), limit
        assert sorted(one.name for one in tmp_path.iterdir()) == ["marks.json", "step-000000000001"]
    assert filled(store) == 1
    assert save(store, 2) == ""
    assert filled(store) == 2


def test_what_a_killed_writer_left_is_no_checkpoint_and_goes_with_the_next(two: Path, tmp_path: Path) -> None:
    shutil.copytree(two / "step-000000000002", tmp_path / ".step-000000000002.0123.partial")
    store = ShardedCheckpointStore(tmp_path)
    assert store.newest() is None
    assert save(store, 3) == ""
    assert [one.name for one in sorted(tmp_path.iterdir())] == ["marks.json", "step-000000000003"]


def test_a_step_that_is_saved_again_replaces_the_first_only_when_it_is_whole(tmp_path: Path) -> None:
    store = ShardedCheckpointStore(tmp_path)
    for _ in range(3):
        assert save(store, 5) == ""
        assert len(store.paths()) == 1
    assert store.at(5).step == filled(store) == 5
    with pytest.raises(CheckpointError, match="no checkpoint of step 6"):
        store.at(6)


def test_what_is_wanted_must_be_there_in_the_same_shape(two: Path) -> None:
    newest = ShardedCheckpointStore(two).newest()
    assert newest is not None
    for wanted in ({"layer.weight": torch.zeros(31, 10)}, {"absent": torch.zeros(1)}):
        with pytest.raises(CheckpointError, match="does not hold what is wanted"):
            newest.fill("network", wanted)


def test_no_code_runs_when_an_index_is_read(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    (tmp_path / ".metadata").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(pickle.UnpicklingError, match="has no place in a checkpoint's index"):
        Reader(tmp_path).read_metadata()
    assert not (tmp_path / "ran").exists()


@given(
    steps=st.sets(st.integers(0, 50), min_size=1),
    scores=st.dictionaries(st.integers(0, 50), st.floats(0, 10)),
    sound=st.integers(-1, 50),
    rule=st.builds(Retention, recent=st.integers(1, 4), best=st.integers(0, 3), good=st.integers(0, 2)),
)
def test_the_newest_the_best_and_the_good_stay(
    steps: set[int], scores: dict[int, float], sound: int, rule: Retention
) -> None:
    stay = kept(steps, Marks(scores, sound), rule)
    assert stay <= steps
    assert len(stay) <= rule.recent + rule.best + rule.good
    assert max(steps) in stay
    scored = [scores[step] for step in steps if step in scores]
    if scored and rule.best:
        assert min(scored) in [scores[step] for step in stay if step in scores]
    good = [step for step in steps if step <= sound]
    if good and rule.good:
        assert max(good) in stay
    # What stays once stays when nothing has changed.
    assert kept(stay, Marks(scores, sound), rule) == stay


def test_the_best_and_the_last_sound_outlive_the_newest(tmp_path: Path) -> None:
    store = ShardedCheckpointStore(tmp_path, retention=Retention(recent=1))
    for step, score, sound in ((1, 0.5, -1), (2, 0.1, 1), (3, 0.3, 2), (4, 0.4, 3), (5, 0.2, None)):
        assert save(store, step, score=score, sound=sound) == ""
    assert [path.name[-1] for path in store.paths()] == ["2", "3", "5"]
    (tmp_path / "marks.json").write_text("{")
    assert save(store, 6) == ""
    assert filled(store) == 6
    store.drop_after(5)
    assert store.paths() == []
