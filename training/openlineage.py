"""A run's steps as OpenLineage events, for whoever keeps lineage: a file of JSON lines, and an HTTP endpoint.

Every step is a job with a run of its own, whose parent is the run of the whole training. Facets and schema follow
OpenLineage 2-0-2 (https://openlineage.io/spec/2-0-2/OpenLineage.json).
"""

from __future__ import annotations

import json
import logging
import math
import platform
import traceback
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import torch

from training.steps import StepRecord

PRODUCER = "https://pypi.org/project/trimtab"
SCHEMA = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
ENDPOINT = "/api/v1/lineage"
# Namespace of the run ids: a run that goes on has the ids that it began with.
_RUNS = uuid.uuid5(uuid.NAMESPACE_URL, PRODUCER)
_SPEC = "https://openlineage.io/spec/facets"
_MOST_MISSED = 2
_log = logging.getLogger(__name__)
EventType = Literal["START", "COMPLETE", "FAIL", "ABORT"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """What a job reads or writes. `facets` are of the dataset, `input_facets` of this reading of it."""

    namespace: str
    name: str
    facets: Mapping[str, Any] = field(default_factory=dict)
    input_facets: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self, *, is_input: bool) -> dict[str, Any]:
        """The dataset in an event."""
        said: dict[str, Any] = {"namespace": self.namespace, "name": self.name, "facets": dict(self.facets)}
        return said | ({"inputFacets": dict(self.input_facets)} if is_input and self.input_facets else {})


@dataclass(frozen=True, slots=True)
class LineageSink:
    """Where events go. A run never fails with its lineage: what could not be written or sent is a warning."""

    path: Path | None = None
    url: str = ""
    """Of a server that speaks OpenLineage, such as http://marquez:5000; without a path, /api/v1/lineage."""
    timeout: float = 5.0
    _missed: list[str] = field(default_factory=list, init=False, repr=False)

    def send(self, event: Mapping[str, Any]) -> None:
        """Appends to the file, posts to the endpoint, but not to one that failed twice in a row: a run waits for it.

        Numbers that are not finite, of which JSON has none, are null.
        """
        event = _finite(event)
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(event, allow_nan=False) + "\n")
            except OSError as error:
                _log.warning("the lineage was not written to %s: %s", self.path, error)
        if self.url and len(self._missed) < _MOST_MISSED:
            # Most trainings tell no server: they do not wait for its client.
            import httpx

            url = self.url if urlsplit(self.url).path.strip("/") else self.url.rstrip("/") + ENDPOINT
            try:
                httpx.post(url, json=event, timeout=self.timeout).raise_for_status()
                self._missed.clear()
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                self._missed.append(str(error))
                last = "; it is not asked again by this run" if len(self._missed) == _MOST_MISSED else ""
                _log.warning("the lineage was not taken by %s: %s%s", url, error, last)


class LineageEvents:
    """Makes events of a run's steps, as an observer of `training.steps.Steps`.

    `produced` are the datasets that a step gives, by step and from its result; `consumed` what it takes.
    """

    def __init__(
        self,
        sink: LineageSink,
        model: str,
        run: str,
        *,
        code: str,
        config: Mapping[str, Any],
        source: Dataset,
        parent: int | None = None,
        namespace: str = "trimtab",
    ) -> None:
        self._sink, self._model, self._run, self._namespace = sink, model, run, namespace
        self._code, self._config, self._source, self._parent = code, config, source, parent
        self._run_id = str(uuid.uuid5(_RUNS, f"{namespace}/{model}/{run}"))

    def started(self, time: float) -> None:
        """The whole run begins."""
        self._emit("START", None, time, inputs=[self._source])

    def finished(self, time: float, outcome: str, reason: str, version: int | None) -> None:
        """The whole run ends: completed, rejected, failed, or aborted by somebody."""
        facets = {"trimtab_outcome": _facet("trimtab", {"outcome": outcome, "reason": reason, "version": version})}
        kind: EventType = {"failed": "FAIL", "aborted": "ABORT"}.get(outcome, "COMPLETE")  # type: ignore[assignment]
        if kind != "COMPLETE":
            facets["errorMessage"] = _error(reason, None)
        outputs = [] if version is None else [self._version(version)]
        self._emit(kind, None, time, facets, [self._source], outputs)

    def began(self, name: str, time: float) -> None:
        """See `StepObserver`."""
        self._emit("START", name, time, inputs=self._inputs(name))

    def ended(self, record: StepRecord) -> None:
        """See `StepObserver`."""
        facets = {"trimtab_step": _facet("trimtab", {"result": record.result, "key": record.key})}
        self._emit("COMPLETE", record.name, record.ended, facets, self._inputs(record.name), self._outputs(record))

    def failed(self, name: str, time: float, error: BaseException) -> None:
        """See `StepObserver`."""
        kind: EventType = "FAIL" if isinstance(error, Exception) else "ABORT"
        self._emit(kind, name, time, {"errorMessage": _error(str(error), error)}, self._inputs(name))

    def _inputs(self, name: str) -> list[Dataset]:
        if name in ("validate", "train"):
            found = [self._source]
        elif name == "evaluate":
            found = [self._source, self._candidate()]
        else:
            found = [self._candidate() if name == "bless" else self._artifact()]
        if self._parent is not None and name in ("train", "evaluate"):
            found.append(self._version(self._parent))
        return found

    def _outputs(self, record: StepRecord) -> list[Dataset]:
        if record.name == "train":
            return [self._candidate(record)]
        if record.name == "bless":
            return [self._artifact(record)]
        if record.name == "push" and record.result.get("version") is not None:
            return [self._version(int(record.result["version"]))]
        return []

    def _candidate(self, record: StepRecord | None = None) -> Dataset:
        return self._made("candidate", record)

    def _artifact(self, record: StepRecord | None = None) -> Dataset:
        return self._made("artifact", record)

    def _made(self, what: str, record: StepRecord | None) -> Dataset:
        facets = {} if record is None else {"trimtab_files": _facet("trimtab", {"sha256": dict(record.files)})}
        return Dataset(namespace=self._namespace, name=f"{self._model}/runs/{self._run}/{what}", facets=facets)

    def _version(self, version: int) -> Dataset:
        facet = _facet("1-0-1/DatasetVersionDatasetFacet", {"datasetVersion": str(version)})
        return Dataset(namespace=self._namespace, name=f"{self._model}/versions", facets={"version": facet})

    def _emit(
        self,
        kind: EventType,
        step: str | None,
        time: float,
        facets: Mapping[str, Any] | None = None,
        inputs: Sequence[Dataset] = (),
        outputs: Sequence[Dataset] = (),
    ) -> None:
        job = f"train.{self._model}"
        run: dict[str, Any] = {
            "processing_engine": _facet(
                "1-1-1/ProcessingEngineRunFacet", {"version": torch.__version__, "name": "torch"}
            ),
            "trimtab_run": _facet(
                "trimtab",
                {
                    "run": self._run,
                    "config": dict(self._config),
                    "parentVersion": self._parent,
                    "environment": {"python": platform.python_version(), "platform": platform.platform()},
                },
            ),
            **(facets or {}),
        }
        run_id = self._run_id
        if step is not None:
            run_id = str(uuid.uuid5(_RUNS, f"{self._run_id}/{step}"))
            above = {"run": {"runId": self._run_id}, "job": {"namespace": self._namespace, "name": job}}
            run["parent"] = _facet("1-1-0/ParentRunFacet", above)
        event = {
            "eventType": kind,
            "eventTime": datetime.fromtimestamp(time, UTC).isoformat(),
            "producer": PRODUCER,
            "schemaURL": SCHEMA,
            "run": {"runId": run_id, "facets": run},
            "job": {
                "namespace": self._namespace,
                "name": job if step is None else f"{job}.{step}",
                "facets": {
                    "jobType": _facet(
                        "2-0-3/JobTypeJobFacet",
                        {"processingType": "BATCH", "integration": "TRIMTAB", "jobType": "JOB" if step else "PIPELINE"},
                    ),
                    "sourceCodeLocation": _facet(
                        "1-0-1/SourceCodeLocationJobFacet",
                        {"type": "git", "url": PRODUCER, "version": self._code},
                    ),
                },
            },
            "inputs": [one.to_json(is_input=True) for one in inputs],
            "outputs": [one.to_json(is_input=False) for one in outputs],
        }
        self._sink.send(event)


def rows_dataset(source: str, columns: Mapping[str, str], rows: int, window: tuple[str, str], digest: str) -> Dataset:
    """The rows that a run learns from: where they come from, their columns, how many, of when, and which."""
    fields = [{"name": name, "type": kind} for name, kind in columns.items()]
    return Dataset(
        namespace="trimtab",
        name=source,
        facets={
            "schema": _facet("1-1-1/SchemaDatasetFacet", {"fields": fields}),
            "version": _facet("1-0-1/DatasetVersionDatasetFacet", {"datasetVersion": digest}),
            "trimtab_window": _facet("trimtab", {"first": window[0], "last": window[1]}),
        },
        input_facets={
            "dataQualityMetrics": _facet(
                "1-0-2/DataQualityMetricsInputDatasetFacet", {"rowCount": rows, "columnMetrics": {}}
            )
        },
    )


def _facet(schema: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """A facet. Those of our own have no schema of OpenLineage's, and say so by its most general one."""
    version, _, name = schema.partition("/")
    url = f"{_SPEC}/{version}/{name}.json#/$defs/{name}" if name else SCHEMA.replace("RunEvent", "BaseFacet")
    return {"_producer": PRODUCER, "_schemaURL": url, **said}


def _error(message: str, error: BaseException | None) -> dict[str, Any]:
    said = {"message": message, "programmingLanguage": "python"}
    if error is not None:
        said["stackTrace"] = "".join(traceback.format_exception(error))
    return _facet("1-0-1/ErrorMessageRunFacet", said)


def _finite(value: Any) -> Any:
    """The value with null for each number that is not finite."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
