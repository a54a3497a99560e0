"""The supervisor of one of two nodes, each with one rank of the toy run; as a script, that of node 1."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.nodes import Nodes
from training.supervisor import Limits, Supervisor
from training.watch import HangLimits


def supervisor_of(index: int, folder: Path, port: int, arguments: Mapping[str, Any]) -> Supervisor:
    """A node's supervisor, whose run waits for the other's."""
    return Supervisor(
        "tests.training.toy_run:fit", world_size=2, folder=folder, model="toy", arguments=arguments, echo=None,
        limits=Limits(hang=HangLimits(step=300.0, first=300.0)),
        nodes=Nodes(count=2, index=index, host="127.0.0.1", port=port),
    )  # fmt: skip


def main(folder: str, port: str, arguments: str) -> None:
    """Runs the node's ranks; prints how it ended."""
    logging.basicConfig(level=logging.WARNING)
    result = supervisor_of(1, Path(folder), int(port), json.loads(arguments)).run()
    print(json.dumps({"outcome": result.outcome}))


if __name__ == "__main__":
    main(*sys.argv[1:])
