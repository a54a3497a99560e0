"""What runs keep of batches: the same by compiled code and without, and nothing of a batch that does not fit."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import Input, Output, Signature
from serving.telemetry import runs
from serving.telemetry.memory import Memory
from serving.telemetry.runs import Answers, Run

SIGNATURE = Signature((Input("x", "FP32", shape=(2,)),), (Output("y", shape=(2,)), Output("z")))
needs_compiler = pytest.mark.skipif(runs.native() is None, reason="needs a C compiler")


@pytest.fixture(params=["compiled", "python"])
def answers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Both kinds of what runs keep answers in."""
    library = runs.native()
    if request.param == "python":
        monkeypatch.setattr(runs, "native", lambda: None)
        return Answers
    if library is None:
        pytest.skip("needs a C compiler")
    return library.Answers


def _outputs(rows: int, seed: int) -> list[np.ndarray[Any, Any]]:
    drawn = np.random.default_rng(seed).normal(size=(rows, 3))
    return [drawn[:, :2].astype(np.float32), np.ascontiguousarray(drawn[:, 2])]


def _batch(rows: list[int], place: int) -> tuple[bytes, bytes, float]:
    return array("q", rows).tobytes(), array("d", [place + 0.1 * k for k in range(len(rows))]).tobytes(), place + 0.5


@given(st.lists(st.lists(st.integers(1, 9), max_size=7), min_size=1, max_size=9), st.booleans())
def test_batches_lie_behind_each_other(batches: list[list[int]], compiled: bool) -> None:
    library = runs.native()
    kind = library.Answers if compiled and library is not None else Answers
    total = sum(map(sum, batches))
    y, z = np.zeros((total, 2), np.float32), np.zeros(total)
    kept = kind((y, z))
    rows = 0
    for place, requests in enumerate(batches):
        assert kept.add(rows, sum(requests), _outputs(sum(requests), place), *_batch(requests, place)) is True
        rows += sum(requests)

    blocks: tuple[np.ndarray[Any, Any], ...] = (y, z)
    for place, block in enumerate(blocks):
        assert np.array_equal(block, np.concatenate([_outputs(sum(b), k)[place] for k, b in enumerate(batches)]))
    of_rows, arrived, counts, done = kept.told
    assert np.frombuffer(of_rows, np.int64).tolist() == [count for requests in batches for count in requests]
    assert np.frombuffer(arrived).tolist() == [
        place + 0.1 * k for place, b in enumerate(batches) for k in range(len(b))
    ]
    assert np.frombuffer(counts, np.int64).tolist() == [len(requests) for requests in batches]
    assert np.frombuffer(done).tolist() == [place + 0.5 for place in range(len(batches))]


@pytest.mark.parametrize(
    "other",
    [
        lambda y, z: [y[:, :1].copy(), z],
        lambda y, z: [y, z.astype(np.float32)],
        lambda y, z: [y.astype(np.int32), z],
        lambda y, z: [y.reshape(-1), z],
        lambda y, z: [y, z.reshape(-1, 1)],
    ],
    ids=["narrower", "floats", "integers", "flat", "deeper"],
)
def test_outputs_of_another_form_are_not_taken_in(answers: Any, other: Callable[[Any, Any], list[Any]]) -> None:
    blocks = np.zeros((8, 2), np.float32), np.zeros(8)
    kept = answers(blocks)

    assert kept.add(0, 3, other(*_outputs(3, 0)), *_batch([3], 0)) is False
    assert not any(block.any() for block in blocks)
    assert not any(kept.told)


def test_a_run_takes_in_outputs_that_do_not_lie_in_one_piece(answers: Any) -> None:
    run, (y, z) = Run(Memory(), SIGNATURE), _outputs(6, 0)
    column = np.ones((3, 2), np.float32)

    assert run.add(column, [y[::2], z[::-2]], *_batch([1, 2], 0))
    assert run.add(run.place(2), [y[:2], z[:2]], *_batch([2], 1))
    assert (run.requests, run.column.rows) == (3, 5)
    assert np.array_equal(run.outputs[0], np.concatenate([y[::2], y[:2]]))
    assert np.array_equal(run.outputs[1], np.concatenate([z[::-2], z[:2]]))
    assert [values.tolist() for values in run.told()] == [[1, 2, 2], [0.0, 0.1, 1.0], [0.5, 0.5, 1.5]]


def test_a_run_has_no_part_of_a_batch_that_it_does_not_take_in(answers: Any) -> None:
    run, (y, z) = Run(Memory(), SIGNATURE), _outputs(3, 0)
    assert run.add(run.place(3), [y, z], *_batch([3], 0))

    assert not run.add(np.ones((2, 2), np.float32), [y[:2], z[:2].astype(np.float32)], *_batch([1, 1], 1))
    assert (run.requests, run.column.rows, len(run.outputs[0])) == (1, 3, 3)


@needs_compiler
def test_what_is_no_batch_is_refused() -> None:
    library = runs.native()
    assert library is not None
    blocks = np.zeros((4, 2), np.float32), np.zeros(4)
    kept, outputs, batch = library.Answers(blocks), _outputs(3, 0), _batch([3], 0)

    for rows, more in ((2, 3), (0, 2), (-1, 3), (0, -1), (2**62, 3), (0, 2**62)):
        with pytest.raises(ValueError, match="rows"):
            kept.add(rows, more, outputs, *batch)
    for wrong in (
        (0, 3, outputs[:1], *batch), (0, 3, None, *batch), (0, 3, outputs, batch[0][:-1], *batch[1:]),
        (0, 3, outputs, batch[0], b"", 0.5), (0, 3, outputs, *batch[:2], 1), (0, 3, outputs, *batch, 1),
        (0, "3", outputs, *batch),
    ):  # fmt: skip
        with pytest.raises(TypeError):
            kept.add(*wrong)
    with pytest.raises(TypeError):
        library.Answers.__new__(library.Answers).add(0, 3, outputs, *batch)
    with pytest.raises(TypeError, match="once"):
        kept.__init__(blocks)
    for odd in ((np.zeros(()),), (np.zeros((4, 4))[:, ::2],), (b"", np.zeros(4)), (None,)):
        with pytest.raises((ValueError, TypeError, BufferError)):
            library.Answers(odd)
    assert not any(block.any() for block in blocks)
    assert not any(kept.told)
