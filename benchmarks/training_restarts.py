"""How long a training is down when a rank is killed: kill -9 of a drawn rank at a drawn step, again and again.

    python benchmarks/training_restarts.py --kills 100

Two ranks over gloo train a small network by averaged gradients and save every ten steps. Printed are the seconds from
the end of an attempt to the first step of the next, the steps lost a kill, and where the wall time went. With
`--steps 1200 --step-seconds 0.05` there is a kill about every minute, for the goodput at that rate of faults.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from training.faults import Fault, Faults
from training.supervisor import Supervisor

SAVED_EVERY = 10


def main() -> None:
    """Parses, runs, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=12, help="steps from one kill to the next")
    parser.add_argument("--step-seconds", type=float, default=0.0, help="time that every step takes besides")
    chosen = parser.parse_args()
    draw = random.Random(chosen.seed)
    faults, at = [], 0
    for attempt in range(chosen.kills):
        at += draw.randrange(chosen.steps // 2, chosen.steps * 3 // 2)
        faults.append(Fault("kill", draw.randrange(2), at, attempt))
    steps = at + chosen.steps
    if chosen.step_seconds:
        faults.append(Fault("slow", 0, 0, -1, chosen.step_seconds, steps))
    with tempfile.TemporaryDirectory() as folder:
        arguments = {"steps": steps, "every": SAVED_EVERY, "faults": Faults(tuple(faults)).to_json()}
        run = Supervisor(
            "tests.training.toy_run:fit",
            world_size=2,
            folder=Path(folder),
            model="toy",
            arguments=arguments,
            echo=None,
        ).run()
    attempts = run.attempts
    down = np.array([new.first_step - old.ended for old, new in pairwise(attempts)])
    # An attempt that was killed in its first step has none to lose, and none to wait for.
    down = down[np.isfinite(down)]
    lost = np.array([old.steps - new.resumed for old, new in pairwise(attempts) if old.steps and new.steps])
    killed = sum(one.cause == "killed" for one in attempts)
    print(f"{run.outcome}: {killed} kills of {chosen.kills}, {len(attempts)} attempts, {steps} steps")
    print(
        f"end of an attempt to the next one's first step: median {np.median(down):.2f} s, "
        f"95th percentile {np.quantile(down, 0.95):.2f} s, longest {down.max():.2f} s"
    )
    print(f"steps lost a kill: median {np.median(lost):.0f}, most {lost.max()} (saved every {SAVED_EVERY})")
    wall = sum(run.wall.values())
    print("wall time: " + ", ".join(f"{cause} {seconds / wall:.1%}" for cause, seconds in run.wall.items() if seconds))
    print(f"goodput {run.goodput:.1%} of {wall:.1f} s, a kill every {wall / max(killed, 1):.1f} s")


if __name__ == "__main__":
    main()
