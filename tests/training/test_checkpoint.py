from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.checkpoint import CheckpointStore


def state(step: int) -> dict[str, object]:
    return {
        "step": step,
        "weights": {"w": torch.arange(50.0) + step},
        "losses": [(1, 0.5)],
        "random": torch.get_rng_state(),
    }


def test_what_is_saved_comes_back_and_only_the_newest_stay(tmp_path: Path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (10, 20, 30):
        store.save(step, state(step))

    newest = store.newest()

    assert newest is not None
    assert newest.step == 30
    assert torch.equal(newest.state["weights"]["w"], torch.arange(50.0) + 30)
    assert newest.state["losses"] == [(1, 0.5)]
    assert [path.name for path in store.paths()] == ["step-000000000020.ckpt", "step-000000000030.ckpt"]


def test_an_empty_or_absent_folder_has_none(tmp_path: Path):
    assert CheckpointStore(tmp_path / "none").newest() is None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_or_cut_of_the_newest_falls_back_to_the_one_before(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("store")
    store = CheckpointStore(folder)
    store.save(1, state(1))
    newest = store.save(2, state(2))
    content = bytearray(newest.read_bytes())
    if data.draw(st.booleans(), "cut"):
        del content[data.draw(st.integers(0, len(content) - 1), "at") :]
    else:
        content[data.draw(st.integers(0, len(content) - 1), "at")] ^= data.draw(st.integers(1, 255), "mask")
    newest.write_bytes(content)

    found = store.newest()

    assert found is not None
    assert found.step == 1
    assert not newest.exists()
    assert newest.with_suffix(".corrupt").exists()


def test_the_fall_back_is_told_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    store = CheckpointStore(tmp_path)
    store.save(1, state(1)).write_bytes(b"not a checkpoint")

    with caplog.at_level(logging.WARNING):
        assert store.newest() is None
    assert "is no checkpoint" in caplog.text


def test_a_file_left_half_written_by_a_kill_is_not_a_checkpoint_and_goes_with_the_next(tmp_path: Path):
    store = CheckpointStore(tmp_path)
    half = tmp_path / "step-000000000009.partial"
    half.write_bytes(b"TRIMTAB")
    assert store.newest() is None

    store.save(10, state(10))

    assert not half.exists()


def test_no_code_runs_when_a_checkpoint_is_read(tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    CheckpointStore(tmp_path).save(1, {"trap": Trap()})

    # The digest is right, the content is not ours: it is set aside like a broken one.
    assert CheckpointStore(tmp_path).newest() is None
    assert not (tmp_path / "ran").exists()


def test_keeping_none_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="keep is 0"):
        CheckpointStore(tmp_path, keep=0)
