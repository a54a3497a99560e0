"""Checkpoints that survive a kill at any moment: one file each, written aside, verified by digest, renamed into place.

A file is MAGIC, the SHA-256 of the payload, and the payload: what `torch.save` makes of tensors, numbers, text and
containers of them, so that `weights_only` loading (no code) reads it back.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from training.retention import Marks, Retention, kept

MAGIC = b"TRIMTAB-CHECKPOINT-1\n"
_HEADER = len(MAGIC) + 32
_NAME = re.compile(r"step-(\d{12})\.ckpt")
_log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be trusted; the message names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint: its step, its state and where it came from."""

    step: int
    state: dict[str, Any]
    path: Path

    def fill(self, name: str, tensors: Mapping[str, Any]) -> None:
        """Copies what the state has under `name` into tensors (in dicts of dicts) that are there already.

        CheckpointError where it has another name or shape.
        """
        copy_into(tensors, self.state[name], f"{self.path}: {name}")

    def names(self, name: str) -> set[str]:
        """The names that the state has under `name`."""
        return set(self.state.get(name, ()))

    def tensors(self, name: str) -> dict[str, Any]:
        """All tensors under a name, each whole."""
        found: dict[str, Any] = self.state[name]
        return found


Told = Callable[[int, str], None]
"""Hears of a checkpoint's end: its step, and what went wrong ("": it is safe)."""


class Checkpoints(Protocol):
    """Where a loop keeps checkpoints: one file each (`CheckpointStore`), or each rank its own parts."""

    collective: bool
    """Whether every rank calls `put`, or the leading one alone."""

    def put(
        self,
        step: int,
        state: dict[str, Any],
        told: Told,
        *,
        score: float | None = None,
        sound: int | None = None,
        still: Collection[str] = (),
    ) -> None: ...

    def settle(self) -> None: ...

    def wait(self) -> None: ...

    def newest(self, at_most: int | None = None) -> Checkpoint | None: ...

    def at(self, step: int) -> Checkpoint: ...

    def drop_after(self, step: int) -> None: ...


class CheckpointStore:
    """The checkpoints of one run in `folder`; the newest `keep` of them stay, or what `retention` says.

    One writer at a time.
    """

    collective = False

    def __init__(self, folder: Path, *, keep: int = 2, retention: Retention | None = None) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}: at least one checkpoint must stay")
        self._folder = folder
        self._retention = retention or Retention(recent=keep, best=0, good=0)

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
        """Saves, and tells how it went, before it returns. `score` and `sound` (steps) are for the retention."""
        try:
            self.save(step, state, score=score, sound=sound)
        except OSError as error:
            told(step, str(error))
        else:
            told(step, "")

    def settle(self) -> None:
        """Returns when all is copied that was to be still: at once."""

    def wait(self) -> None:
        """Returns when nothing is being written: at once."""

    def save(self, step: int, state: dict[str, Any], *, score: float | None = None, sound: int | None = None) -> Path:
        """Writes `state`, reads it back and compares digests, and only then makes it the newest and prunes old ones.

        OSError where it cannot be written; then all is as before.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"step-{step:012d}.ckpt"
        partial = path.with_suffix(".partial")
        _write(partial, _sealed(state))
        _opened(partial)
        partial.replace(path)
        sync_folder(self._folder)
        self._prune(Marks.read(self._folder).with_one(step, score, sound))
        return path

    def newest(self, at_most: int | None = None) -> Checkpoint | None:
        """The newest checkpoint that verifies, of at most `at_most` steps.

        A broken one is set aside as `*.corrupt` with a warning in the log.
        """
        for path in reversed(self.paths()):
            if at_most is not None and _step(path) > at_most:
                continue
            try:
                return Checkpoint(_step(path), _loaded(path), path)
            except CheckpointError as error:
                _log.warning("checkpoint set aside, the one before it is used: %s", error)
                path.replace(path.with_suffix(".corrupt"))
        return None

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of a step. CheckpointError where it does not verify or is not there."""
        path = self._folder / f"step-{step:012d}.ckpt"
        return Checkpoint(step, _loaded(path), path)

    def drop_after(self, step: int) -> None:
        """Removes the checkpoints of more than `step` steps."""
        for path in self.paths():
            if _step(path) > step:
                path.unlink()
        sync_folder(self._folder)

    def paths(self) -> list[Path]:
        """The files of complete checkpoints, oldest first."""
        if not self._folder.is_dir():
            return []
        return sorted(path for path in self._folder.iterdir() if _NAME.fullmatch(path.name))

    def _prune(self, marks: Marks) -> None:
        paths = {_step(path): path for path in self.paths()}
        stay = kept(paths, marks, self._retention)
        marks.only(stay).write(self._folder)
        for old in sorted(set(paths) - stay):
            paths[old].unlink()
        for partial in self._folder.glob("*.partial"):
            partial.unlink()


def _sealed(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    return MAGIC + hashlib.sha256(payload).digest() + payload


def _opened(path: Path) -> bytes:
    """The payload of a file whose digest fits."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not content.startswith(MAGIC) or len(content) < _HEADER:
        raise CheckpointError(f"{path} is no checkpoint: {len(content)} bytes that begin with {content[:8]!r}")
    expected, payload = content[len(MAGIC) : _HEADER], content[_HEADER:]
    found = hashlib.sha256(payload).digest()
    if found != expected:
        raise CheckpointError(f"{path} was altered: SHA-256 {found.hex()}, written as {expected.hex()}")
    return payload


def _loaded(path: Path) -> dict[str, Any]:
    payload = io.BytesIO(_opened(path))
    try:
        state = torch.load(payload, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise CheckpointError(f"{path} holds more than tensors, numbers and text, which is never loaded") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a state")
    return state


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file whole and durably, or not at all; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    _write(partial, content)
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _step(path: Path) -> int:
    found = _NAME.fullmatch(path.name)
    assert found is not None
    return int(found[1])


def copy_into(tensors: Mapping[str, Any], found: Mapping[str, Any], where: str) -> None:
    if set(tensors) != set(found):
        raise CheckpointError(
            f"{where} is not what is wanted: {sorted(set(tensors) ^ set(found))[:4]} on one side only"
        )
    for name, tensor in tensors.items():
        value = found[name]
        if isinstance(tensor, Mapping):
            copy_into(tensor, value, f"{where}.{name}")
        elif tensor.shape != value.shape:
            raise CheckpointError(f"{where}.{name} has the shape {list(value.shape)}, not {list(tensor.shape)}")
        else:
            tensor.copy_(value)
