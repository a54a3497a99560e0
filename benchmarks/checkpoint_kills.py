"""500 kill -9 of writers during saves: never a checkpoint that cannot be used, never a good one lost.

    python benchmarks/checkpoint_kills.py [--kills 500] [--ranks 2]

Every trial forks ranks that save one checkpoint after the other, and kills one of them, or all, at a random moment of
a save (an even trial of one rank, an odd one of several). What a rank was told to be safe it says through a pipe.
Then everything in the folder is verified and read: the newest must verify at once, hold exactly what belongs to its
step, and be no older than the newest that was said to be safe. The next trial goes on in the same folder.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from datetime import timedelta
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from training.checkpoint import CheckpointError
from training.retention import Retention
from training.sharded_checkpoint import ShardedCheckpointStore, verify

PARAMETERS = 64
RETENTION = Retention(recent=2)


def state(step: int, ranks: int) -> dict[str, Any]:
    """A state that follows from the step: 64 matrices of 32 kB; with several ranks each has its rows of them."""
    found: dict[str, Any] = {}
    mesh = init_device_mesh("cpu", (ranks,)) if ranks > 1 else None
    for number in range(PARAMETERS):
        whole = torch.full((128, 64), float(step * 1000 + number))
        found[f"layer.{number}"] = whole if mesh is None else distribute_tensor(whole, mesh, [Shard(0)])
    return {"network": found, "step": step, "losses": [(step, 1.0)]}


def write(folder: Path, rank: int, ranks: int, port: int, first: int, said: Connection) -> None:
    """Saves from step `first` on until it is killed; says when a save begins and when a step is safe."""
    torch.set_num_threads(1)
    if ranks > 1:
        store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60))  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    kept = ShardedCheckpointStore(folder, retention=RETENTION)

    def told(step: int, problem: str) -> None:
        said.send(("safe" if not problem else f"failed: {problem}", step))

    for step in range(first, first + 1000):
        body = state(step, ranks)
        kept.wait()
        said.send(("begun", step))
        kept.put(step, body, told)


def fork(folder: Path, ranks: int, first: int) -> tuple[list[int], list[Connection]]:
    """The ranks' processes, and the pipes through which they speak."""
    port = 0
    if ranks > 1:
        meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        fork.store, port = meeting, meeting.port  # type: ignore[attr-defined]  # it must outlive the call
    processes, pipes = [], []
    for rank in range(ranks):
        ours, theirs = Pipe(duplex=False)
        child = os.fork()
        if not child:
            # A rank that outlives its fellow ends by an error of gloo's; nobody needs to read about it.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            try:
                write(folder, rank, ranks, port, first, theirs)
            finally:
                os._exit(1)
        theirs.close()
        processes.append(child)
        pipes.append(ours)
    return processes, pipes


def heard(pipes: list[Connection], until: float) -> list[tuple[str, int]]:
    """What the ranks say before that moment; a pipe that has ended is closed."""
    found = []
    while (left := until - time.monotonic()) > 0:
        ready = wait([pipe for pipe in pipes if not pipe.closed], left)
        if not ready:
            break
        for pipe in ready:
            try:
                found.append(pipe.recv())
            except EOFError:
                pipe.close()
        if all(pipe.closed for pipe in pipes):
            break
    return found


def trial(folder: Path, ranks: int, first: int, draw: random.Random, usual: float) -> tuple[int, float, bool]:
    """Kills at a moment of a save; gives the newest step that was said to be safe, how long a save took, and whether
    the kill came within a save."""
    processes, pipes = fork(folder, ranks, first)
    safe, begun, took, since = -1, -1, usual, 0.0
    wanted = draw.randint(1, 3)
    limit = time.monotonic() + 120
    try:
        while begun < first + wanted:
            assert time.monotonic() < limit, "no save began within two minutes"
            for what, step in heard(pipes, time.monotonic() + 0.05):
                if what == "begun" and step > begun:
                    took = time.monotonic() - since if since else took
                    begun, since = step, time.monotonic()
                elif what == "safe":
                    safe = max(safe, step)
                else:
                    assert what == "begun", what
        for what, step in heard(pipes, time.monotonic() + draw.uniform(0.0, 1.1) * took):
            safe = max(safe, step) if what == "safe" else safe
        victims = [draw.choice(processes)] if draw.random() < 0.5 else processes
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        within = bool(list(folder.glob(".*.partial")))
        if len(victims) < len(processes):
            # The others notice, or are killed a little later: what they say until then counts, too.
            found = heard(pipes, time.monotonic() + draw.uniform(0.0, 0.3))
            safe = max([safe, *(step for what, step in found if what == "safe")])
    finally:
        for process in processes:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
    # What was said before the kill lies in the pipes still.
    safe = max([safe, *(step for what, step in heard(pipes, time.monotonic() + 5) if what == "safe")])
    return safe, took, within


def check(folder: Path, safe: int) -> tuple[int, str]:
    """The newest step that is usable, and what is wrong ("": nothing)."""
    store = ShardedCheckpointStore(folder, retention=RETENTION)
    for path in store.paths():
        try:
            verify(path)
        except CheckpointError as error:
            return -1, f"unusable: {error}"
    newest = store.newest()
    if newest is None:
        return -1, "lost: no checkpoint" if safe >= 0 else ""
    for name, tensor in newest.tensors("network").items():
        if not bool((tensor == newest.step * 1000 + int(name.rpartition(".")[2])).all()):
            return newest.step, f"wrong: {name} of step {newest.step}"
    if newest.state["step"] != newest.step:
        return newest.step, f"wrong: the state of step {newest.state['step']} under step {newest.step}"
    if newest.step < safe:
        return newest.step, f"lost: step {safe} was safe, the newest is {newest.step}"
    return newest.step, ""


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--ranks", type=int, default=2, help="of every other trial; the rest have one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw, problems = random.Random(options.seed), []
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-kills-"))
    began, within, safe, first, saves = time.monotonic(), 0, -1, 0, 0
    usual = {1: 0.1, options.ranks: 0.3}
    try:
        for number in range(options.kills):
            ranks = options.ranks if number % 2 else 1
            said, usual[ranks], inside = trial(folder, ranks, first, draw, usual[ranks])
            safe, within = max(safe, said), within + inside
            newest, problem = check(folder, safe)
            if problem:
                problems.append(f"kill {number} of {ranks} ranks: {problem}")
            saves += max(newest, said) + 1 - first
            first = max(newest, safe) + 1
            if number % 25 == 24:
                print(f"{number + 1} kills, {within} within a save, {len(problems)} problems", file=sys.stderr)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(
        json.dumps(
            {
                "kills": options.kills,
                "within_a_save": within,
                "saves": saves,
                "unusable": sum("unusable" in one for one in problems),
                "lost": sum("lost" in one for one in problems),
                "wrong": sum("wrong" in one for one in problems),
                "problems": problems[:10],
                "seconds": round(time.monotonic() - began, 1),
            },
            indent=2,
        )
    )
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
