"""The supervisor of one of two nodes, each with one rank of the toy run; and a process of node 1."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.nodes import Nodes
from training.supervisor import Limits, Supervisor
from training.watch import HangLimits

NEVER = HangLimits(step=300.0, first=300.0)


def supervisor_of(
    index: int, folder: Path, port: int, arguments: Mapping[str, Any], hang: HangLimits = NEVER
) -> Supervisor:
    """A node's supervisor, whose run waits for the other's."""
    return Supervisor(
        "tests.training.toy_run:fit", world_size=2, folder=folder, model="toy", arguments=arguments, echo=None,
        limits=Limits(hang=hang),
        nodes=Nodes(count=2, index=index, host="127.0.0.1", port=port),
    )  # fmt: skip


def other_node(folder: Path, port: int, arguments: Mapping[str, Any], said: Path, hang: HangLimits) -> None:
    """Runs the ranks of node 1; adds to the file how it ended, and all else that it says to one beside it."""
    with said.with_suffix(".log").open("a") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    logging.basicConfig(level=logging.WARNING)
    result = supervisor_of(1, folder, port, arguments, hang).run()
    with said.open("a") as file:
        file.write(json.dumps({"outcome": result.outcome}))
