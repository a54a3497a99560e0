"""One page of metrics for all ranks of a run on this machine, whoever started them; the ranks are never asked."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from observability.metrics import Metrics
from observability.rank_agent import RankAgent
from observability.step_ring import STARTED, RingError, RingView

if TYPE_CHECKING:
    from observability.tracing import Tracing


class NodeAgent:
    """Follows the rings in a folder, and in the folders in it, of the attempt that is the latest.

    It is for ranks that nobody supervises: of a script under `torchrun`, in which each rank makes its ring by
    `training.Rank.ring`. A rank whose process is gone is down; its last records are still read.
    """

    def __init__(self, folder: Path, metrics: Metrics, tracing: Tracing | None = None) -> None:
        self.metrics = metrics
        self._folder, self._tracing = folder, tracing
        self._agent: RankAgent | None = None
        self._attempt = -1
        self._known: dict[Path, int] = {}

    @property
    def ranks(self) -> dict[int, int]:
        """Process ids by rank, of the ranks that are followed."""
        agent = self._agent
        return {} if agent is None else {rank: one.view.owner.process_id for rank, one in agent.ranks.items()}

    def look(self) -> None:
        """Takes in what is new: rings, steps, and which processes are gone."""
        for path in sorted(self._folder.rglob("*.ring")):
            try:
                inode = path.stat().st_ino
                if self._known.get(path) == inode:
                    continue
                view = RingView.open(path)
            except (OSError, RingError):
                continue  # it goes, or comes, just now; or it is none
            owner = view.owner
            self._known[path] = inode
            if owner.attempt < self._attempt:
                continue
            if self._agent is None:
                since = _began_ns(view)
                self._agent = RankAgent(owner.model, owner.run, self.metrics, tracing=self._tracing, since_ns=since)
            if owner.attempt > self._attempt:
                self._agent.forget()
                self._attempt = owner.attempt
            self._agent.follow([path])
        if self._agent is not None:
            for rank, process in self.ranks.items():
                if not _lives(process):
                    self._agent.down(rank)
            self._agent.look()


def _began_ns(view: RingView) -> int | None:
    """When the first step that is still there began, by this process's clock."""
    records = view.records()
    if not len(records):
        return None
    return int(records[0, STARTED]) + view.owner.clock_offset_ns - (time.time_ns() - time.perf_counter_ns())


def _lives(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's, or a system without /proc
    return state != "Z"
