"""The process of a server's shadows: it says what the thread would say, gives way, and never outlives its server."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from observability.metrics import Metrics
from observability.tracing import setup_tracing
from serving import Input, Output, Signature, load_artifact, save_artifact
from serving.calls import Call
from serving.errors import ModelFailed
from serving.protocol.outputs import Outputs, Rows
from serving.router import Choice
from serving.routing.disagreement import Disagreement
from serving.routing.traffic import Shadow
from serving.shadow import Mirror, ShadowLimits
from serving.shadows import Place, ShadowProcess
from serving.shadows.batches import batch_of, fits
from serving.shadows.messages import Batch, Frames, Load, Loaded, Packed, Ran, for_worker, framed, from_worker
from serving.shadows.runs import Copies, run_copies, shadowed
from serving.shadows.worker import Worker
from serving.telemetry.columns import Anchor
from serving.telemetry.event_maker import events_of
from serving.telemetry.recorder import Recorder
from serving.v2 import parse

ROOT = Path(__file__).parents[2]
SIGNATURE = Signature((Input.of("x", "FP32", shape=(3,)),), (Output("y"), Output("z")))
KEY = ("m", 2)


class Inverse(torch.nn.Module):
    """y = 1 / x, which is infinite for 0; z = 2 x."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 1 / x, 2 * x


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("shadow") / "model"
    return Place(folder, save_artifact(folder, Inverse(), SIGNATURE, {"x": [[1.0, 2.0, 3.0]]}))


def call(number: int, version: int = 1, first: float = 1.0, *, rows: int = 1, failed: bool = False) -> Call:
    """An answered request whose answer is 3 and 4 everywhere."""
    values = [[first, 2.0, 4.0 + number]] * rows
    body = f'{{"id":"{number}","inputs":[{{"name":"x","shape":[{rows},3],"datatype":"FP32","data":{values}}}]}}'
    made = Call(parse(body.encode()), "m", Choice(version, "stable", 1.0), SIGNATURE, 0.0, None, lambda _c, _r: None)
    three = np.full((rows, 3), 3.0, np.float32)
    made.settle(ModelFailed("no") if failed else Rows(Outputs([three, three + 1], rows), 0, rows), 1.0)
    return made


def told(found: Disagreement) -> tuple[Any, ...]:
    return (
        found.absolute.tolist(), found.relative.tolist(), found.incomparable, found.ranked_rows, found.other_rows
    )  # fmt: skip


def copied(calls: Sequence[Call]) -> list[Any]:
    return [
        (c.id, c.outcome, c.choice, c.rows, c.values, None if c.outputs is None else [o.tolist() for o in c.outputs])
        for c in calls
    ]


# --- what the worker says, without a process ----------------------------------------------------------------------
def test_the_process_says_of_a_batch_what_the_thread_would(place: Place) -> None:
    model = load_artifact(place.folder, digest=place.digest)
    calls = [call(0), call(1, 3), call(2, rows=5), call(3, failed=True), call(4, 3), call(5)]
    choice, worker = Choice(2, "shadow", 1.0), Worker()

    here = run_copies(model, choice, calls, 4, time.perf_counter)
    ready = worker.answer(for_worker(bytes(framed(Load("m:2", str(place.folder), place.digest, 4))[4:])))
    made = batch_of(KEY, calls, model.signature, outputs=True)
    assert made is not None
    ran = worker.answer(for_worker(bytes(framed(made[0])[4:])))
    assert isinstance(ran, Ran)
    there = shadowed(made[1], choice, model.signature, from_worker(bytes(framed(ran)[4:])), 5.0)  # type: ignore[arg-type]

    assert ready == Loaded("m:2")
    assert {v: sorted(told(f)[0]) for v, f in there.found.items()} == {
        v: sorted(told(f)[0]) for v, f in here.found.items()
    }
    assert {v: told(f) for v, f in there.found.items()} == {v: told(f) for v, f in here.found.items()}
    assert (there.ran, there.failed, there.unfit) == (here.ran, here.failed, here.unfit) == (6, 0, 0)
    by_id = lambda copies: sorted(copied(copies), key=lambda told: told[0])  # noqa: E731
    assert by_id(there.copies) == by_id(here.copies)
    # What makes events of them takes them as it takes a list.
    of_copies, of_list = (events_of(copies, Anchor(5.0, 0)) for copies in (there.copies, list(there.copies)))
    assert of_copies.arrow().equals(of_list.arrow())
    assert events_of(there.copies, Anchor(5.0, 0)).num_rows == sum(one.rows for one in calls)
    assert {c.ended for c in there.copies} == {5.0}
    assert all(c.started is not None and c.started < 5.0 for c in there.copies)


def test_what_is_odd_about_a_batch_is_told_instead_of_numbers(place: Place) -> None:
    worker = Worker()
    worker.answer(Load("m:2", str(place.folder), place.digest, 4))
    x = np.ones((2, 3), np.float32)

    def ask(key: str, column: np.ndarray) -> str:
        ran = worker.answer(Batch(key, [Packed.of(column)], [], False))
        assert isinstance(ran, Ran)
        assert (ran.found, ran.outputs) == ([], [])
        return ran.odd

    assert ask("m:2", x) == ""
    assert ask("m:2", 0 * x) == "an output is not finite"
    assert "no model m:3" in ask("m:3", x)
    wrong = worker.answer(Load("m:3", str(place.folder), "0" * 64, 4))
    assert isinstance(wrong, Loaded)
    assert wrong.error


def test_calls_of_other_inputs_and_answers_of_other_shapes_are_no_batch() -> None:
    other = Signature((Input.of("w", "FP32", shape=(3,)),), SIGNATURE.outputs)
    wide = call(1)
    wide.settle([np.zeros((1, 7)), np.zeros((1, 3))], 1.0)

    assert batch_of(KEY, [call(0)], other, outputs=True) is None
    assert batch_of(KEY, [call(0), wide], SIGNATURE, outputs=True) is None
    assert batch_of(KEY, [call(0)], SIGNATURE, outputs=True) is not None


def test_only_plain_exported_programs_of_fixed_shapes_and_few_weights_are_taken() -> None:
    ragged = Signature((Input.of("x", "FP32", shape=(-1,)),), SIGNATURE.outputs)

    def taken(
        kind: str = "torch.export", nbytes: int = 10, signature: Signature = SIGNATURE, device: str = "cpu", **more: Any
    ) -> bool:
        manifest = {"format": kind, **more}
        return fits(SimpleNamespace(manifest=manifest, nbytes=nbytes, device=device, signature=signature), 10)

    assert taken()
    assert not taken("safetensors")
    assert not taken("onnx")
    assert not taken(runtime={"compile": True})
    assert not taken(nbytes=11)
    assert not taken(device="cuda:0")
    assert not taken(signature=ragged)


@given(
    st.lists(
        hnp.arrays(st.sampled_from(["<f4", "<i8", "|u1", "<f8", "<f2", "|b1"]), hnp.array_shapes(min_side=0)),
        max_size=3,
    ),
    st.integers(1, 50),
)
def test_messages_arrive_whole_however_they_are_cut(arrays: list[np.ndarray], width: int) -> None:
    sent = Batch("a:1", [Packed.of(array) for array in arrays], [], True)
    wire = bytes(framed(sent) + framed(Batch("b:2", [], [], False)))
    frames = Frames()
    got = [for_worker(f) for at in range(0, len(wire), width) for f in frames.feed(wire[at : at + width])]

    assert [message.key for message in got] == ["a:1", "b:2"]
    assert isinstance(got[0], Batch)
    for before, after in zip(arrays, got[0].columns, strict=True):
        array = after.array()
        assert (array.dtype, array.shape, array.tobytes()) == (before.dtype, before.shape, before.tobytes())
        assert array.flags.writeable


def test_a_length_that_no_message_has_is_refused() -> None:
    with pytest.raises(ValueError, match="a frame of"):
        list(Frames().feed(b"\xff\xff\xff\xff"))


# --- the process ---------------------------------------------------------------------------------------------------
class Stand:
    """A mirror with a process, version 1 answering and version 2 its shadow."""

    def __init__(self, place: Place, *, record: bool = True, idle_seconds: float = 300.0, **limits: Any) -> None:
        self.outcomes: Counter[str] = Counter()
        self.found: list[Disagreement] = []
        self.recorded: list[Call] = []
        self.batches: list[Sequence[Call]] = []
        self.process = ShadowProcess(lambda _model, _number: place, 1000, 4, idle_seconds=idle_seconds)
        self.model = load_artifact(place.folder)
        policy = SimpleNamespace(shadows=(Shadow(2, 1.0),))
        self.deployment: Any = SimpleNamespace(
            model="m",
            router=SimpleNamespace(policy=policy),
            versions={2: SimpleNamespace(loaded=SimpleNamespace(model=self.model))},
        )
        self.mirror = Mirror(
            self,  # type: ignore[arg-type]
            self._record if record else None,
            lambda: False,
            ShadowLimits(**{"gather": 0.001, "retry": 0.001, "step_rows": 4, **limits}),
            process=self.process,
        )

    def shadowed(self, _model: str, _shadow: int, outcome: str, count: int) -> None:
        self.outcomes[outcome] += count

    def disagreement(self, _model: str, _version: int, _shadow: int, found: Disagreement) -> None:
        self.found.append(found)

    def _record(self, calls: Sequence[Call]) -> None:
        self.batches.append(calls)

    @property
    def ready(self) -> bool:
        return any(version.ready for version in self.process._versions.values())

    async def settled(self, calls: Sequence[Call] = ()) -> None:
        for one in calls:
            self.mirror.offer(one, self.deployment)
        await until(lambda: self.mirror.idle)

    async def started(self) -> int:
        """Has the process ready; its id."""
        await self.settled([call(0)])
        await until(lambda: self.ready)
        self.outcomes.clear()
        self.batches.clear()
        assert self.process.pid is not None
        return self.process.pid


async def until(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + 300
    while not true():
        assert time.monotonic() < limit
        await asyncio.sleep(0.002)


def gone(pid: int) -> bool:
    """Whether there is no such process, or only what is left of one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")


@linux
async def test_a_process_that_gives_way_runs_the_shadows_and_ends_with_the_mirror(place: Place) -> None:
    stand = Stand(place)
    pid = await stand.started()
    await stand.settled([call(number) for number in range(10)])
    threads = [batch for batch in stand.batches if isinstance(batch, list)]
    scheduler = os.sched_getscheduler(pid)
    stand.mirror.close()
    await until(lambda: gone(pid))

    assert stand.outcomes == {"compared": 10, "failed": 0, "incomparable": 0, "dropped": 0}
    assert threads == []  # they are lists of what a thread ran
    assert sorted(int(c.id or -1) for batch in stand.batches for c in batch) == list(range(10))
    assert scheduler == os.SCHED_IDLE


@linux
async def test_a_request_that_makes_the_model_fail_is_found_and_spoils_nothing_else(place: Place) -> None:
    stand = Stand(place)
    await stand.started()
    await stand.settled([call(number, first=float(number != 3)) for number in range(8)])
    stand.mirror.close()

    assert {name: count for name, count in stand.outcomes.items() if count} == {"compared": 7, "failed": 1}
    assert {c.id: c.outcome for batch in stand.batches for c in batch if c.outcome != "ok"}.keys() == {"3"}


@linux
async def test_what_a_killed_process_had_is_run_by_the_thread(place: Place) -> None:
    stand = Stand(place, record=False)
    pid = await stand.started()
    os.kill(pid, signal.SIGSTOP)
    for number in range(10):
        stand.mirror.offer(call(number), stand.deployment)
    await until(lambda: stand.process._link is not None and stand.process._link.busy)
    os.kill(pid, signal.SIGKILL)
    await stand.settled()
    # It is not started again at once.
    await stand.settled([call(11)])
    again = stand.process.pid
    stand.mirror.close()
    await until(lambda: gone(pid))

    assert stand.outcomes == {"compared": 11, "failed": 0, "incomparable": 0, "dropped": 0}
    assert again is None


@linux
async def test_a_process_that_nobody_uses_ends_and_comes_again(place: Place) -> None:
    stand = Stand(place, idle_seconds=0.2)
    pid = await stand.started()
    await until(lambda: stand.process.pid is None and gone(pid))
    second = await stand.started()
    stand.mirror.close()

    assert second != pid


@linux
def test_the_process_ends_with_a_server_that_is_killed(place: Place) -> None:
    code = f"""
import asyncio, sys
from pathlib import Path
from types import SimpleNamespace
from serving import load_artifact
from serving.shadows import Place, ShadowProcess
async def main():
    folder = Path({str(place.folder)!r})
    process = ShadowProcess(lambda model, number: Place(folder, {place.digest!r}), 1000, 4)
    model = load_artifact(folder)
    while not process.takes(("m", 2), model):
        await asyncio.sleep(0.01)
    print(process.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        assert not gone(pid)
        server.kill()
    limit = time.monotonic() + 60
    while not gone(pid):
        assert time.monotonic() < limit
        time.sleep(0.01)


@linux
async def test_too_many_weights_are_the_threads_until_others_are_not_used(place: Place) -> None:
    process = ShadowProcess(lambda _model, _number: place, 100, 4, idle_seconds=1000.0)
    model: Any = SimpleNamespace(manifest={"format": "torch.export"}, nbytes=60, device="cpu", signature=SIGNATURE)
    await until(lambda: process.takes(("m", 1), model))
    process.takes(("m", 2), model)
    await until(lambda: process._versions["m", 2].retry_at is not None)
    refused = process.takes(("m", 2), model), process.takes(("m", 1), model)
    process._versions["m", 1].used_at -= 2000.0
    process.takes(("m", 3), model)
    await until(lambda: ("m", 1) not in process._versions)
    third = process._versions["m", 3].retry_at
    process.close()

    assert refused == (False, True)
    assert third is None


def test_copies_are_made_by_whoever_records_them_and_not_on_the_way_there(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    make = Copies._make

    def noted(self: Copies) -> list[Call]:
        threads.append(threading.get_ident())
        return make(self)

    monkeypatch.setattr(Copies, "_make", noted)
    calls = [call(0), call(1, rows=2)]
    outputs = Outputs([np.ones((3, 3), np.float32)] * 2, 3)
    recorder = Recorder(None, setup_tracing("serving", None, sample_ratio=0.0), Metrics())
    recorder.put(Copies(calls, Choice(2, "shadow", 1.0), SIGNATURE, outputs, 1.0, 2.0))
    recorder.close()

    assert len(threads) == 1
    assert threads[0] != threading.get_ident()
