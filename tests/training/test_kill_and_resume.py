"""A training process is killed with SIGKILL at random moments and started again until it ends by itself."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import json
import sys
from pathlib import Path

import numpy as np
import torch

from observability import TrainingMonitor
from training import CheckpointStore, Rows, TrainConfig, Trainer

torch.set_num_threads(1)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(4, 256), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(256, 1)
        )

    def logits(self, *inputs):
        return self.layers(torch.stack(inputs, dim=1)).squeeze(1)


generator = torch.Generator().manual_seed(0)
inputs = tuple(torch.randn(6400, generator=generator) for _ in range(4))
rows = Rows(inputs, (inputs[0] > inputs[1]).float(), np.zeros(6400, object))
torch.manual_seed(3)
config = TrainConfig(epochs=3, batch_size=64, checkpoint_every=5, report_every=1, seed=4)
with TrainingMonitor("killed", run="test") as monitor:
    print("running", flush=True)
    result = Trainer(Net(), rows, config, monitor, CheckpointStore(Path(sys.argv[1]))).run()
print(json.dumps([(step, loss.hex()) for step, loss in result.losses]))
"""


def start(script: Path, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, script, folder], stdout=subprocess.PIPE, text=True, cwd=Path.cwd())


def _await_checkpoints(folder: Path, count: int) -> None:
    """Returns when so many checkpoints have been written since the call: by time alone it might come too late."""
    seen: set[Path] = set(folder.glob("*.ckpt"))
    wanted, until = len(seen) + count, time.monotonic() + 240
    while len(seen) < wanted and time.monotonic() < until:
        time.sleep(0.001)
        seen |= set(folder.glob("*.ckpt"))


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_with_the_loss_curve_of_one_that_was_not(tmp_path: Path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    undisturbed = json.loads(start(script, tmp_path / "whole").communicate(timeout=240)[0].splitlines()[-1])
    chance, kills = random.Random(11), 0

    for _ in range(20):
        process = start(script, tmp_path / "killed")
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        if kills < 3:
            _await_checkpoints(tmp_path / "killed", chance.randint(1, 12))
            time.sleep(chance.uniform(0.0, 0.02))
            process.kill()
        output = process.communicate(timeout=240)[0]
        if process.returncode == 0:
            break
        assert process.returncode == -9
        kills += 1

    assert kills == 3
    assert json.loads(output.splitlines()[-1]) == undisturbed
    assert len(undisturbed) == 300
