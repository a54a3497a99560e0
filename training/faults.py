"""Faults on purpose: what a training must survive, struck at chosen steps, so that every guard can be proved.

    faults = Faults((Fault("kill", rank=1, step=45),))
    for step in range(1000):
        struck = faults.strike(rank, attempt, step)     # may not return: that is the point
        loss = criterion(model(x), y) * (float("nan") if "nan" in struck else 1.0)

A plan is plain data (`to_json`), and `Faults.random` draws one from a seed.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

KINDS = ("kill", "stop", "hang", "error", "slow", "nan", "spike", "explode", "diverge", "starve")


class InjectedError(RuntimeError):
    """The error that the fault `error` raises."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a rank at a step of an attempt (-1: every attempt).

    `kill` and `stop` send the process SIGKILL and SIGSTOP, `hang` sleeps for ever, `error` raises; `slow` and `starve`
    sleep for `seconds` at each of `steps` steps, as if computing or waiting for data; `nan`, `spike`, `explode` and
    `diverge` are only told to the caller, who spoils a loss, a learning rate, gradients or the rank's own weights.
    """

    kind: str
    rank: int = 0
    step: int = 0
    attempt: int = 0
    seconds: float = 0.0
    steps: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"there is no fault {self.kind!r}; there are: {', '.join(KINDS)}")
        if self.seconds < 0 or self.steps < 1:
            raise ValueError(f"seconds {self.seconds} and steps {self.steps}: at least 0 and 1")

    def strikes(self, rank: int, attempt: int, step: int) -> bool:
        """Whether it strikes there."""
        return self.rank == rank and self.attempt in (-1, attempt) and self.step <= step < self.step + self.steps


@dataclass(frozen=True, slots=True)
class Faults:
    """A plan of faults."""

    planned: tuple[Fault, ...] = ()

    @classmethod
    def random(
        cls, seed: int, *, kinds: Sequence[str], world_size: int, steps: int, attempts: int, seconds: float = 0.0
    ) -> Self:
        """One fault an attempt, for `attempts` attempts: kind, rank and step drawn from the seed."""
        draw = random.Random(seed)
        return cls(
            tuple(
                Fault(draw.choice(list(kinds)), draw.randrange(world_size), draw.randrange(steps), attempt, seconds)
                for attempt in range(attempts)
            )
        )

    @classmethod
    def from_json(cls, said: Sequence[Mapping[str, Any]]) -> Self:
        """The plan that `to_json` gave. TypeError or ValueError for what is none."""
        return cls(tuple(Fault(**one) for one in said))

    def to_json(self) -> list[dict[str, Any]]:
        """A list of JSON objects."""
        return [asdict(one) for one in self.planned]

    def strike(self, rank: int, attempt: int, step: int) -> frozenset[str]:
        """Does what is planned here, and gives the kinds that struck, for those that the caller acts out."""
        struck = [one for one in self.planned if one.strikes(rank, attempt, step)]
        for one in struck:
            if one.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif one.kind == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif one.kind == "hang":
                while True:
                    time.sleep(3600)
            elif one.kind == "error":
                raise InjectedError(f"injected at step {step}")
            elif one.seconds:
                time.sleep(one.seconds)
        return frozenset(one.kind for one in struck)


def flip_bit(path: Path, seed: int) -> int:
    """Inverts one bit of a file, drawn from the seed; gives the byte's position. ValueError for an empty file."""
    content = bytearray(path.read_bytes())
    if not content:
        raise ValueError(f"{path} is empty: there is no bit to flip")
    draw = random.Random(seed)
    position = draw.randrange(len(content))
    content[position] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    return position


def truncate(path: Path, seed: int) -> int:
    """Cuts a file at a place drawn from the seed; gives its new length. ValueError for an empty file."""
    size = path.stat().st_size
    if not size:
        raise ValueError(f"{path} is empty: there is nothing to cut")
    kept = random.Random(seed).randrange(size)
    os.truncate(path, kept)
    return kept


@contextmanager
def disk_full(at_bytes: int) -> Iterator[None]:
    """Lets no file of this process grow beyond `at_bytes` while the block runs: writing more fails with an OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
