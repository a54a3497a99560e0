"""What a run's folder shows of the form in which it began, so that it goes on in another one, or says why it cannot."""

from __future__ import annotations

import shutil
from pathlib import Path

from training.parallel_config import FormError, ParallelConfig
from training.parameter_server.form import Form, ServersForm

ALONE, RANKS, SERVERS = "checkpoints", "ranks", "servers"
"""Folders in a run's: checkpoints of one process, of ranks, and of parameter servers."""


def way(out: Path, world: int, parallel: Form | None) -> tuple[bool, Form | None]:
    """Whether the run in `out`, for which `world` processes and this form are asked, goes on in ranks, and its form.

    Checkpoints of ranks are read by any number of ranks: those of plain replicas by replicas, all others in every
    form. FormError where what was begun cannot be read in this form, and would be begun anew without a word.
    """
    plain, shards = _has(out / RANKS / ALONE, "step-*.ckpt"), _has(out / RANKS / ALONE, "step-*/manifest.json")
    alone, servers = _has(out / ALONE, "step-*.ckpt"), _has(out / SERVERS, "server-*/step-*.ckpt")
    if isinstance(parallel, ServersForm):
        if plain or shards or alone:
            raise FormError(f"the run in {out} did not begin on parameter servers: {_remedy('the form that it had')}")
        return False, parallel
    if servers:
        raise FormError(f"the run in {out} began on parameter servers: {_remedy('--parallel servers=…,workers=…')}")
    if shards:
        return True, parallel or ParallelConfig(data=world)
    if not (plain or alone):
        return world > 1 or parallel is not None, parallel
    if parallel not in (None, ParallelConfig(data=world)):
        began = "plain replicas" if plain else "one process"
        raise FormError(
            f"the run in {out} began as {began}, whose checkpoints have no parts for {parallel}: "
            f"{_remedy('--ranks alone')}"
        )
    if not plain and world > 1:
        shutil.copytree(out / ALONE, out / RANKS / ALONE, ignore=shutil.ignore_patterns("*.partial"))
    return plain or world > 1, None


def _has(folder: Path, pattern: str) -> bool:
    return next(folder.glob(pattern), None) is not None


def _remedy(form: str) -> str:
    return f"resume it with {form}, or begin a new run"
