"""Steps of a run that are recorded as they end: a run that was cut off goes on at the first that has no record.

A record names what went in (`key`), what came out, and the files that were written with their SHA-256. A step whose
record fits what would go in now, and whose files are as they were, is not repeated.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from training.checkpoint import write_whole
from training.digests import digest_of

FOLDER = "steps"
_RUN = "run.json"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Done:
    """What a step gives: a JSON object, and the files that it wrote."""

    result: Mapping[str, Any]
    files: Sequence[Path] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """A step that has ended. Times are Unix seconds; files are named from the run's folder."""

    name: str
    key: str
    began: float
    ended: float
    result: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)


class StepObserver(Protocol):
    """Hears of steps as they go."""

    def began(self, name: str, time: float) -> None: ...

    def ended(self, record: StepRecord) -> None: ...

    def failed(self, name: str, time: float, error: BaseException) -> None: ...


class Steps:
    """The steps of the run in `folder`."""

    def __init__(
        self, folder: Path, observers: Sequence[StepObserver] = (), clock: Callable[[], float] = time.time
    ) -> None:
        self._folder, self._observers, self._clock = folder.absolute(), list(observers), clock
        self._before = ""
        self.records: list[StepRecord] = []
        self.resumed: list[str] = []
        """Names of the steps that were not repeated."""

    def run(self, name: str, inputs: Mapping[str, Any], action: Callable[[], Done]) -> Mapping[str, Any]:
        """The result of a step: recorded, or made now. `inputs` are JSON; the steps before count as inputs, too."""
        key = _digest({"name": name, "inputs": inputs, "before": self._before})
        record = self._recorded(name, key)
        if record is not None:
            self.resumed.append(name)
        else:
            record = self._made(name, key, action)
        self._before = _digest([key, record.result])
        self.records.append(record)
        return record.result

    def _made(self, name: str, key: str, action: Callable[[], Done]) -> StepRecord:
        began = self._clock()
        self._tell(lambda one: one.began(name, began))
        try:
            done = action()
            record = StepRecord(
                name=name,
                key=key,
                began=began,
                ended=self._clock(),
                # As it will be read: a result must not differ when a step is not repeated.
                result=json.loads(json.dumps(done.result)),
                files={str(path.absolute().relative_to(self._folder)): digest_of(path) for path in done.files},
            )
        except BaseException as error:
            self._tell(lambda one, error=error: one.failed(name, self._clock(), error))  # type: ignore[misc]
            raise
        write_whole(self._path(name), _text(asdict(record)))
        self._tell(lambda one: one.ended(record))
        return record

    def _recorded(self, name: str, key: str) -> StepRecord | None:
        try:
            record = StepRecord(**json.loads(self._path(name).read_text(encoding="utf-8")))
            if record.key != key:
                return None
            altered = [file for file, digest in record.files.items() if digest_of(self._folder / file) != digest]
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        if altered:
            _log.warning("the step %s is repeated: %s is not what it wrote", name, ", ".join(altered))
            return None
        return record

    def _path(self, name: str) -> Path:
        return self._folder / FOLDER / f"{name}.json"

    def _tell(self, say: Callable[[StepObserver], None]) -> None:
        for one in self._observers:
            try:
                say(one)
            except Exception:  # who watches a run must not end it
                _log.exception("an observer of steps failed")


def run_of(folder: Path, run: str) -> str:
    """The name of the run in a folder: the one that it began under, else `run`, which is kept."""
    path = folder / FOLDER / _RUN
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["run"])
    except (OSError, ValueError, KeyError, TypeError):
        write_whole(path, _text({"run": run}))
        return run


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _text(said: Mapping[str, Any]) -> bytes:
    return json.dumps(said, indent=1).encode()
