"""What one process of a parallel run knows of itself, and how it meets the others, under any launcher.

A function that trains takes a `Rank` first:

    def fit(rank: Rank, epochs: int) -> None:
        with rank.group("gloo"):
            …

Our supervisor calls it in every process; under `torchrun` a script makes the rank with `Rank.of(os.environ, …)`.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from observability.step_ring import StepRing
from training.barrier import waits

_log = logging.getLogger(__name__)
_COLLECTIVES_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """A process of a run: which one of how many, in which attempt, and where its files go."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    attempt: int = 0
    run: str = "run"
    host: str = "127.0.0.1"
    port: int = 0
    """Of the store where the ranks meet; 0 for a run of one process that needs none."""
    folder: Path = field(default_factory=Path.cwd)
    """Of the run; every attempt has a folder in it."""

    hosts_store: bool = False
    """Whether this rank serves the store; else the launcher does, or another rank."""
    meeting: str = ""
    """A file of the attempt in which ranks of one machine meet: sockets of torch's wait for a name server first."""

    @classmethod
    def of(cls, environment: Mapping[str, str], *, run: str, folder: Path) -> Rank:
        """The rank that `torchrun` (or anything that sets its variables) started. ValueError names what is wrong."""

        def number(name: str, default: int) -> int:
            said = environment.get(name, str(default))
            if not said.isdigit():
                raise ValueError(f"the environment variable {name} is {said!r}: it must be a whole number")
            return int(said)

        world_size = number("WORLD_SIZE", 1)
        if world_size > 1 and not environment.get("MASTER_PORT"):
            raise ValueError("WORLD_SIZE is set and MASTER_PORT is not: start the script with torchrun")
        return cls(
            rank=number("RANK", 0),
            world_size=world_size,
            local_rank=number("LOCAL_RANK", 0),
            attempt=number("TORCHELASTIC_RESTART_COUNT", 0),
            run=run,
            host=environment.get("MASTER_ADDR", "127.0.0.1"),
            port=number("MASTER_PORT", 0),
            folder=folder,
            hosts_store=number("RANK", 0) == 0 and environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
        )

    @property
    def attempt_folder(self) -> Path:
        """Rings, stacks, errors and logs of the attempt."""
        return self.folder / f"attempt-{self.attempt:04d}"

    def ring(self, model: str, capacity: int = 8192) -> StepRing:
        """The ring in which this rank's steps are seen from outside."""
        path = self.attempt_folder / f"rank-{self.rank}.ring"
        return StepRing.create(
            path,
            model=model,
            run=self.run,
            rank=self.rank,
            world_size=self.world_size,
            attempt=self.attempt,
            capacity=capacity,
        )

    @contextmanager
    def group(self, backend: str = "gloo", *, timeout: float = 600.0, ring: StepRing | None = None) -> Iterator[None]:
        """The default process group while the block runs; with one process and no store there is none.

        The attempt is a prefix of every key in the store: no rank ever reads the address of a dead one. With a `ring`
        a thread shows the progress of the collectives in it, so that of ranks that wait for each other the one that
        did not come can be named. `timeout` in seconds is the backend's own for one collective.
        """
        if self.world_size == 1 and not self.port:
            yield
            return
        limit = timedelta(seconds=timeout)
        meeting: Any
        if self.meeting:
            meeting = dist.FileStore(str(self.attempt_folder / self.meeting), self.world_size)  # type: ignore[attr-defined]
            meeting.set_timeout(limit)
        else:
            meeting = dist.TCPStore(  # type: ignore[attr-defined]
                self.host, self.port, self.world_size, is_master=self.hosts_store, timeout=limit, multi_tenant=True
            )
        store = dist.PrefixStore(f"{self.run}/{self.attempt}", meeting)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world_size, timeout=limit)
        over = threading.Event()
        if ring is not None:
            threading.Thread(target=_show_collectives, args=(ring, over), name="collectives", daemon=True).start()
        try:
            yield
        finally:
            over.set()
        # Not after an error: the others may never come, and the process is about to end anyway.
        dist.destroy_process_group()


def collectives() -> tuple[int, int]:
    """Collectives that this process has enqueued and completed over all groups, (-1, -1) where torch cannot say.

    They come from the flight recorder, which needs TORCH_FR_BUFFER_SIZE (or TORCH_NCCL_TRACE_BUFFER_SIZE) above 0.
    """
    dump = getattr(torch._C._distributed_c10d, "_dump_fr_trace_json", None)
    if dump is None:
        return -1, -1
    groups = json.loads(dump(includeCollectives=False)).get("pg_status", {}).values()
    if not groups:
        return -1, -1
    enqueued, completed = ("last_enqueued_collective", "last_completed_collective")
    return sum(int(one[enqueued]) for one in groups), sum(int(one[completed]) for one in groups)


def _show_collectives(ring: StepRing, over: threading.Event) -> None:
    try:
        while not over.wait(_COLLECTIVES_SECONDS):
            ring.collectives(*map(_together, collectives(), waits()))
    except Exception:  # what watches a run must not end it
        _log.exception("the progress of collectives is not shown any more")


def _together(collectives: int, waited: int) -> int:
    """Ranks wait for each other in both; -1 where torch cannot say and there is nothing else."""
    return collectives + waited if collectives >= 0 else waited or -1
