"""The model registry: immutable, numbered versions of artifacts in SQL, their files beside it by digest."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.artifacts.manifest import MANIFEST, read_manifest, verify
from serving.database import Json, Row, Transaction, json_of, open_database, read
from serving.errors import RegistryError

_LONGEST_NAME = 200  # what the tables hold
_VERSION = "model, version, digest, created_at, lineage, metrics"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One registered version. `created_at` is unix seconds; lineage and metrics are JSON objects."""

    model: str
    version: int
    digest: str
    created_at: float
    lineage: Mapping[str, Any]
    metrics: Mapping[str, Any]


def newest(versions: Sequence[ModelVersion]) -> ModelVersion:
    """The newest of them that is no variant of another; of variants alone, the newest.

    A variant (`trimtab models optimize`) is a candidate: it takes no version's place by being the latest.
    """
    return next((one for one in reversed(versions) if "variant" not in one.lineage), versions[-1])


@dataclass(frozen=True, slots=True)
class RegistryEvent:
    """One line of the append-only history: registered or alias."""

    time: float
    model: str
    event: str
    version: int
    detail: Mapping[str, Any]


class Registry:
    """Versions at a SQLAlchemy URL, artifacts under `artifacts_dir/sha256/<digest>/`; processes may share them."""

    def __init__(self, url: str, artifacts_dir: Path | str, *, clock: Callable[[], float] = time.time) -> None:
        self.database = open_database(url)
        self._artifacts = Path(artifacts_dir)
        self._clock = clock

    def close(self) -> None:
        """Closes the connections."""
        self.database.close()

    def register(
        self,
        model: str,
        artifact_dir: Path | str,
        *,
        lineage: Mapping[str, Any],
        profile: bytes | None,
        metrics: Mapping[str, Any],
    ) -> ModelVersion:
        """Copies the artifact in and gives it the model's next number; the same digest again gives its first version.

        Raises ArtifactError when a file does not match the manifest, RegistryError for a name that cannot be a path.
        """
        unfit = not model.isprintable() or len(model) > _LONGEST_NAME or model.startswith(".")
        if not model or unfit or any(mark in model for mark in "/\\ "):
            raise RegistryError(
                f"model name {model[: _LONGEST_NAME + 1]!r} cannot be used: no slash, space, leading dot or character "
                f"that does not print, and at most {_LONGEST_NAME} characters"
            )
        digest = self._import(Path(artifact_dir))
        now = self._clock()
        with self.database.begin() as transaction:
            found = transaction.rows(
                f"SELECT {_VERSION} FROM model_versions WHERE model = :model AND digest = :digest",
                model=model, digest=digest,
            )  # fmt: skip
            if found:
                return _version(found[0])
            ((newest,),) = transaction.rows("SELECT MAX(version) FROM model_versions WHERE model = :model", model=model)
            number = (newest or 0) + 1
            transaction.run(
                f"INSERT INTO model_versions ({_VERSION}, profile) "
                "VALUES (:model, :version, :digest, :created_at, :lineage, :metrics, :profile)",
                model=model, version=number, digest=digest, created_at=now, lineage=Json(lineage),
                metrics=Json(metrics), profile=profile,
            )  # fmt: skip
            self._log(transaction, model, "registered", number, {"digest": digest})
        return ModelVersion(model, number, digest, now, dict(lineage), dict(metrics))

    def get(self, model: str, version: int) -> ModelVersion:
        """Raises RegistryError when there is no such version."""
        found = read(
            self.database, f"SELECT {_VERSION} FROM model_versions WHERE model = :model AND version = :version",
            model=model, version=version,
        )  # fmt: skip
        if not found:
            raise RegistryError(
                f"model {model!r} has no version {version}; it has {[v.version for v in self.versions(model)]}"
            )
        return _version(found[0])

    def models(self) -> list[str]:
        """The names of all models."""
        return [name for (name,) in read(self.database, "SELECT DISTINCT model FROM model_versions ORDER BY model")]

    def versions(self, model: str) -> list[ModelVersion]:
        """The model's versions, oldest first; empty for a model that nobody registered."""
        query = f"SELECT {_VERSION} FROM model_versions WHERE model = :model ORDER BY version"
        return [_version(row) for row in read(self.database, query, model=model)]

    def profile(self, model: str, version: int) -> bytes | None:
        """The reference profile stored with the version, as `Profile.to_json` gave it."""
        query = "SELECT profile FROM model_versions WHERE model = :model AND version = :version"
        found = read(self.database, query, model=model, version=version)
        return None if not found or found[0][0] is None else bytes(found[0][0])

    def alias(self, model: str, name: str) -> int | None:
        """The version that the alias names, or None."""
        query = "SELECT version FROM model_aliases WHERE model = :model AND name = :name"
        found = read(self.database, query, model=model, name=name)
        return found[0][0] if found else None

    def set_alias(self, model: str, name: str, version: int) -> None:
        """Points the alias at an existing version. Raises RegistryError when there is no such version."""
        self.get(model, version)
        with self.database.begin() as transaction:
            transaction.run("DELETE FROM model_aliases WHERE model = :model AND name = :name", model=model, name=name)
            transaction.run(
                "INSERT INTO model_aliases (model, name, version) VALUES (:model, :name, :version)",
                model=model, name=name, version=version,
            )  # fmt: skip
            self._log(transaction, model, "alias", version, {"name": name})

    def artifact(self, version: ModelVersion) -> Path:
        """The folder of the version's artifact, every digest verified now. Raises ArtifactError when it was altered."""
        path = self._path(version.digest)
        verify(path, version.digest)
        return path

    def folder(self, version: ModelVersion) -> Path:
        """The folder of the version's artifact, not verified: for who verifies what it reads."""
        return self._path(version.digest)

    def history(self, model: str) -> list[RegistryEvent]:
        """Everything that was registered or renamed, oldest first."""
        query = "SELECT time, model, event, version, detail FROM registry_history WHERE model = :model ORDER BY id"
        rows = read(self.database, query, model=model)
        return [RegistryEvent(at, name, event, number, json_of(detail)) for at, name, event, number, detail in rows]

    def _path(self, digest: str) -> Path:
        return self._artifacts / "sha256" / digest

    def _import(self, source: Path) -> str:
        digest = verify(source)
        target = self._path(digest)
        if target.exists():
            verify(target, digest)
            return digest
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".incoming-", dir=target.parent))
        try:
            for name in (*read_manifest(source)["files"], MANIFEST):
                shutil.copyfile(source / name, staging / name)
                _sync(staging / name)
            verify(staging, digest)
            staging.chmod(0o755)
            _sync(staging)
            _publish(staging, target)
            _sync(target.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return digest

    def _log(self, transaction: Transaction, model: str, event: str, version: int, detail: Mapping[str, Any]) -> None:
        transaction.run(
            "INSERT INTO registry_history (time, model, event, version, detail) "
            "VALUES (:time, :model, :event, :version, :detail)",
            time=self._clock(), model=model, event=event, version=version, detail=Json(detail),
        )  # fmt: skip


def _publish(staging: Path, target: Path) -> None:
    try:
        staging.rename(target)
    except OSError:
        # Another process registered the same digest in the meantime; the content is equal by its name.
        if not target.exists():
            raise


def _version(row: Row) -> ModelVersion:
    model, number, digest, created_at, lineage, metrics = row
    return ModelVersion(model, number, digest, created_at, json_of(lineage), json_of(metrics))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
