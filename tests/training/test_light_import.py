"""What `import training` does not load: two seconds of processor time that a training in one process does without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HEAVY = (
    "sympy", "httpx", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch.distributed.pipelining",
    "torch.distributed.tensor", "torch._dynamo",
)  # fmt: skip


def test_a_training_in_one_process_is_imported_without_what_spreads_it() -> None:
    code = f"import json, sys, training; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True
    )

    assert json.loads(done.stdout) == []
