"""Checkpoints to which every rank adds its own parts, written beside the training by torch.distributed.checkpoint.

A checkpoint is a folder: shards as torch writes them, `state.pt` with what is small (for `weights_only` loading, no
code), and `manifest.json` with size and SHA-256 of every file. It is written under another name, synced, read back and
compared, and renamed; only then do old ones go. Any number of ranks in any parallel form loads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import pickle
import re
import shutil
import threading
import time
import uuid
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from training.checkpoint import Checkpoint, CheckpointError, Told, copy_into, sync_folder
from training.digests import digest_of
from training.retention import Marks, Retention, kept
from training.shard_files import Reader, Writer, Written
from training.staging import Staging, flat, is_tensors, nested

MANIFEST, STATE = "manifest.json", "state.pt"
_NAME = re.compile(r"step-(\d{12})(?:\.(\d+))?")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShardedCheckpoint(Checkpoint):
    """A verified checkpoint; `state` holds what is small, and tensors are read by `fill` and `tensors`."""

    group: Any = None

    def fill(self, name: str, tensors: Mapping[str, Any]) -> None:
        """See `Checkpoint.fill`; all ranks must call it, and each gets its own parts of divided tensors."""
        if name in self.state:
            copy_into(tensors, self.state[name], f"{self.path}: {name}")
            return
        wanted: dict[str, Any] = flat({name: tensors})
        if wanted:
            self._load(wanted, alone=self.group is None)

    def names(self, name: str) -> set[str]:
        """See `Checkpoint.names`."""
        if name in self.state:
            return set(self.state[name])
        return {key.split("/")[1] for key in self._index() if key.startswith(f"{name}/")}

    def _index(self) -> Mapping[str, Any]:
        try:
            return Reader(self.path).read_metadata().state_dict_metadata
        except (OSError, pickle.UnpicklingError, EOFError) as error:
            raise CheckpointError(f"{self.path} has no index that can be read: {error}") from error

    def tensors(self, name: str) -> dict[str, Any]:
        """All tensors under a name, each whole, in this process alone."""
        if name in self.state:
            return cast("dict[str, Any]", self.state[name])
        known = self._index()
        found: dict[str, Any] = {
            key: torch.empty(kind.size, dtype=kind.properties.dtype)
            for key, kind in known.items()
            if key.startswith(f"{name}/") and isinstance(kind, TensorStorageMetadata)
        }
        self._load(found, alone=True)
        return cast("dict[str, Any]", nested(found)[name]) if found else {}

    def _load(self, wanted: dict[str, Any], *, alone: bool) -> None:
        try:
            with _quiet():
                load(wanted, storage_reader=Reader(self.path), process_group=self.group, no_dist=alone)
        except (CheckpointException, RuntimeError, ValueError, OSError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{self.path} does not hold what is wanted: {error}") from error


@dataclass(slots=True)
class SaveTimes:
    """Seconds of saves so far: `stalled` the caller waited, in `put` and `settle`; `writing` the writer took."""

    saves: int = 0
    stalled: float = 0.0
    writing: float = 0.0
    stalls: list[float] = field(default_factory=list)
    writes: list[float] = field(default_factory=list)


class ShardedCheckpointStore:
    """The checkpoints of one run in `folder`, written by all ranks together while they train on.

    Make it in every rank after the process group is open; without one it is a store of one process. One save is under
    way at a time: the next waits for it.
    """

    collective = True

    def __init__(self, folder: Path, *, retention: Retention | None = None, timeout: float = 600.0) -> None:
        """`timeout` in seconds is that of one collective among the writers."""
        self._folder, self._retention = folder, retention or Retention()
        self.times = SaveTimes()
        self._staging = Staging()
        self._settled = threading.Event()
        self._settled.set()
        self._thread: threading.Thread | None = None
        self._group: Any = None
        self._rank = 0
        if dist.is_available() and dist.is_initialized():
            # Of its own, so that what writers say to each other never meets what training says.
            limit = timedelta(seconds=timeout)
            self._group, self._rank = dist.new_group(backend="gloo", timeout=limit), dist.get_rank()

    def put(
        self,
        step: int,
        state: dict[str, Any],
        told: Told,
        *,
        score: float | None = None,
        sound: int | None = None,
        still: Collection[str] = (),
    ) -> None:
        """Copies the state and returns; a thread writes it, and tells the step and what went wrong when it is done.

        Tensors under the names in `still` are copied by that thread: they must not change before `settle` returns.
        """
        began = time.perf_counter()
        self.wait()
        tensors = {name: value for name, value in state.items() if is_tensors(value)}
        staged = self._staging.taken(flat({name: value for name, value in tensors.items() if name not in still}))
        later = flat({name: value for name, value in tensors.items() if name in still})
        small = io.BytesIO()
        if self._rank == 0:
            torch.save({name: value for name, value in state.items() if name not in tensors}, small)
        self._settled.clear()
        self._thread = threading.Thread(
            target=self._write,
            args=(step, staged, later, small.getvalue(), told, score, sound),
            name="checkpoint",
            daemon=True,
        )
        self._thread.start()
        self.times.saves += 1
        self.times.stalls.append(0.0)
        self._stalled(time.perf_counter() - began)

    def settle(self) -> None:
        """Returns when all is copied that `put` was told would be still: call it before anything of it changes."""
        if not self._settled.is_set():
            began = time.perf_counter()
            self._settled.wait()
            self._stalled(time.perf_counter() - began)

    def _stalled(self, seconds: float) -> None:
        self.times.stalled += seconds
        self.times.stalls[-1] += seconds

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Returns when nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def newest(self, at_most: int | None = None) -> ShardedCheckpoint | None:
        """The newest that verifies, of at most `at_most` steps; a broken one is set aside with a warning."""
        self.wait()
        for path in reversed(self.paths()):
            if at_most is not None and _step(path)[0] > at_most:
                continue
            try:
                return self._opened(path)
            except CheckpointError as error:
                _log.warning("checkpoint set aside, the one before it is used: %s", error)
                path.rename(path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.corrupt"))
        return None

    def at(self, step: int) -> ShardedCheckpoint:
        """The checkpoint of a step, which another rank has verified. CheckpointError where it is not there."""
        self.wait()
        found = [path for path in self.paths() if _step(path)[0] == step]
        if not found:
            raise CheckpointError(f"{self._folder} has no checkpoint of step {step}")
        return ShardedCheckpoint(step, _small(found[-1]), found[-1], self._group)

    def drop_after(self, step: int) -> None:
        """Removes the checkpoints of more than `step` steps."""
        self.wait()
        for path in self.paths():
            if _step(path)[0] > step:
                _remove(path)
        sync_folder(self._folder)

    def paths(self) -> list[Path]:
        """The folders of complete checkpoints, oldest first."""
        if not self._folder.is_dir():
            return []
        return sorted((path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)), key=_step)

    def _opened(self, path: Path) -> ShardedCheckpoint:
        verify(path)
        return ShardedCheckpoint(_step(path)[0], _small(path), path, self._group)

    def _write(
        self,
        step: int,
        staged: dict[str, Tensor],
        later: dict[str, Tensor],
        small: bytes,
        told: Told,
        score: float | None,
        sound: int | None,
    ) -> None:
        began = time.perf_counter()
        try:
            try:
                staged |= self._staging.taken(later)
            finally:
                self._settled.set()
            problem = self._written(step, staged, small, score, sound)
        except BaseException as error:  # what is said must be said, whatever went wrong: a thread's error is lost
            problem = _said(error)
        spent = time.perf_counter() - began
        self.times.writing += spent
        self.times.writes.append(spent)
        try:
            told(step, problem)
        except Exception:
            _log.exception("the end of the checkpoint of step %d could not be told", step)

    def _written(
        self, step: int, staged: dict[str, Tensor], small: bytes, score: float | None, sound: int | None
    ) -> str:
        """What went wrong, the same in all ranks; "" where the checkpoint is safe."""
        partial, problem = self._agreed(self._begin(step) if self._rank == 0 else ("", ""))
        if problem:
            return problem
        files: dict[str, Written] = {}
        try:
            writer = Writer(Path(partial))
            with _quiet():
                save(staged, storage_writer=writer, process_group=self._group, no_dist=self._group is None)
            if self._rank == 0:
                writer.write(STATE, small)
            files = writer.verified()
        except BaseException as error:  # the other ranks wait for our word
            problem = _said(error)
        said = self._gathered((files, problem))
        if self._rank == 0:
            problem = "; ".join(sorted({one for _, one in said if one}))
            if not problem:
                try:
                    every = {name: file for found, _ in said for name, file in found.items()}
                    self._commit(Path(partial), step, every, score, sound)
                except OSError as error:
                    problem = _said(error)
            if problem:
                shutil.rmtree(partial, ignore_errors=True)
        return self._agreed(("", problem))[1]

    def _begin(self, step: int) -> tuple[str, str]:
        """Makes the folder to write in; what writers left that were killed goes."""
        partial = self._folder / f".step-{step:012d}.{uuid.uuid4().hex}.partial"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for left in self._folder.glob(".*.partial"):
                _remove(left) if left.is_dir() else left.unlink()
            partial.mkdir()
        except OSError as error:
            return "", _said(error)
        return str(partial), ""

    def _commit(
        self, partial: Path, step: int, files: Mapping[str, Written], score: float | None, sound: int | None
    ) -> None:
        """Makes the folder a checkpoint, and lets those go that need not stay."""
        body = {"format": 1, "step": step, "files": {name: [one.size, one.digest] for name, one in files.items()}}
        with (partial / MANIFEST).open("wb") as file:
            file.write(_sealed(body))
            file.flush()
            os.fsync(file.fileno())
        sync_folder(partial)
        before = [_step(path)[1] for path in self.paths() if _step(path)[0] == step]
        name = f"step-{step:012d}" + (f".{max(before) + 1}" if before else "")
        partial.rename(self._folder / name)
        sync_folder(self._folder)
        paths = self.paths()
        marks = Marks.read(self._folder).with_one(step, score, sound)
        stay = kept({_step(path)[0] for path in paths}, marks, self._retention)
        marks.only(stay).write(self._folder)
        latest = {_step(path)[0]: path for path in paths}
        for path in paths:
            if _step(path)[0] not in stay or latest[_step(path)[0]] != path:
                _remove(path)

    def _agreed(self, said: tuple[str, str]) -> tuple[str, str]:
        """What the leading rank says."""
        if self._group is None:
            return said
        told: list[Any] = [said]
        dist.broadcast_object_list(told, src=0, group=self._group)
        return cast("tuple[str, str]", told[0])

    def _gathered(self, said: tuple[dict[str, Written], str]) -> list[tuple[dict[str, Written], str]]:
        if self._group is None:
            return [said]
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, said, group=self._group)
        return found


def verify(path: Path) -> None:
    """CheckpointError unless every file is there with the size and the digest that the manifest names, and no other."""
    try:
        content = (path / MANIFEST).read_bytes()
        body = json.loads(content)
        body.pop("sha256")
        if _sealed(body) != content:
            raise CheckpointError(f"{path / MANIFEST} was altered")
        named: dict[str, list[Any]] = body["files"]
        found = {one.name for one in path.iterdir()} - {MANIFEST}
        if found != set(named):
            raise CheckpointError(f"{path} lacks or has too much: {', '.join(sorted(found ^ set(named)))}")
        if body["step"] != _step(path)[0]:
            raise CheckpointError(f"{path} holds step {body['step']}")
        for name, (size, digest) in named.items():
            if (path / name).stat().st_size != size:
                raise CheckpointError(f"{path / name} has {(path / name).stat().st_size} bytes, {size} were written")
            if (now := digest_of(path / name)) != digest:
                raise CheckpointError(f"{path / name} was altered: SHA-256 {now}, written as {digest}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint: {error!r}") from error


def _sealed(body: Mapping[str, Any]) -> bytes:
    """A manifest with a digest of itself, of which there is one spelling only."""

    def spelled(value: object) -> bytes:
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    return spelled({**body, "sha256": hashlib.sha256(spelled(body)).hexdigest()})


def _small(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        raise CheckpointError(f"{path / STATE} holds more than tensors, numbers and text: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path / STATE} holds a {type(state).__name__}, not a state")
    return state


def _remove(path: Path) -> None:
    """Removes a folder, which is no checkpoint any more before the first of its files goes."""
    doomed = path.with_name(f".{path.name.lstrip('.')}.{uuid.uuid4().hex[:8]}.partial")
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _step(path: Path) -> tuple[int, int]:
    found = _NAME.fullmatch(path.name)
    assert found is not None
    return int(found[1]), int(found[2] or 0)


def _said(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        return "; ".join(sorted({f"rank {rank}: {one[0]}" for rank, one in error.failures.items()}))
    return f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's own code uses names that torch deprecates, and says at length that one process saves alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch(\.|$)")
        yield
