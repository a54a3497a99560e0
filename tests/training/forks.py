"""Processes forked from one that has imported what trainings need: the import takes longer than most tests."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import torch

import training.parallel  # noqa: F401 what ranks import
from training import sharding, zygote

# The first optimizer of a process imports some eight hundred modules.
torch.set_num_threads(1)
torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
sharding.load()

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([__name__])
pipe = _forks.Pipe


def forked(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A started process in which only this call runs; the target is found by its module and name."""
    process = _forks.Process(target=target, args=arguments)
    process.start()
    return process


class ForkedZygote:
    """What `subprocess.Popen` gives to `training.warm`, of a fork in place of a new interpreter."""

    def __init__(self, argv: Sequence[str], *, pass_fds: Sequence[int], env: dict[str, str], stdin: int) -> None:
        assert (*argv[1:3], stdin) == ("-m", "training.zygote", subprocess.DEVNULL)
        with socket.socket(fileno=os.dup(pass_fds[0])) as line:
            self._process = forked(_serve, line, env)
        self.kill = self._process.kill

    def wait(self) -> int | None:
        """Its exit status."""
        self._process.join()
        return self._process.exitcode


def _serve(line: socket.socket, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    zygote.main(str(line.detach()))
