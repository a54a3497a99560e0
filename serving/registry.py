"""The model registry: immutable, numbered versions of artifacts in SQL, their files beside it by digest."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from serving import database as db
from serving.artifacts.manifest import MANIFEST, read_manifest, verify
from serving.errors import RegistryError


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One registered version. `created_at` is unix seconds; lineage and metrics are JSON objects."""

    model: str
    version: int
    digest: str
    created_at: float
    lineage: Mapping[str, Any]
    metrics: Mapping[str, Any]


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
        self.engine = db.open_database(url)
        self._artifacts = Path(artifacts_dir)
        self._clock = clock

    def close(self) -> None:
        """Closes the connections."""
        self.engine.dispose()

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
        if not model or any(mark in model for mark in "/\\ \n") or model.startswith("."):
            raise RegistryError(f"model name {model!r} cannot be used: no slash, space or leading dot")
        digest = self._import(Path(artifact_dir))
        with self.engine.begin() as connection:
            found = connection.execute(_of(model).where(db.versions.c.digest == digest)).one_or_none()
            if found is not None:
                return _version(found)
            newest = connection.scalar(
                sa.select(sa.func.max(db.versions.c.version)).where(db.versions.c.model == model)
            )
            number = (newest or 0) + 1
            now = self._clock()
            connection.execute(
                db.versions.insert().values(
                    model=model,
                    version=number,
                    digest=digest,
                    created_at=now,
                    lineage=dict(lineage),
                    metrics=dict(metrics),
                    profile=profile,
                )
            )
            self._log(connection, model, "registered", number, {"digest": digest})
        return ModelVersion(model, number, digest, now, dict(lineage), dict(metrics))

    def get(self, model: str, version: int) -> ModelVersion:
        """Raises RegistryError when there is no such version."""
        with self.engine.begin() as connection:
            found = connection.execute(_of(model).where(db.versions.c.version == version)).one_or_none()
        if found is None:
            raise RegistryError(
                f"model {model!r} has no version {version}; it has {[v.version for v in self.versions(model)]}"
            )
        return _version(found)

    def models(self) -> list[str]:
        """The names of all models."""
        with self.engine.begin() as connection:
            return list(connection.scalars(sa.select(db.versions.c.model).distinct().order_by(db.versions.c.model)))

    def versions(self, model: str) -> list[ModelVersion]:
        """The model's versions, oldest first; empty for a model that nobody registered."""
        with self.engine.begin() as connection:
            return [_version(row) for row in connection.execute(_of(model).order_by(db.versions.c.version))]

    def profile(self, model: str, version: int) -> bytes | None:
        """The reference profile stored with the version, as `Profile.to_json` gave it."""
        query = sa.select(db.versions.c.profile).where(db.versions.c.model == model, db.versions.c.version == version)
        with self.engine.begin() as connection:
            return connection.scalar(query)

    def alias(self, model: str, name: str) -> int | None:
        """The version that the alias names, or None."""
        query = sa.select(db.aliases.c.version).where(db.aliases.c.model == model, db.aliases.c.name == name)
        with self.engine.begin() as connection:
            return connection.scalar(query)

    def set_alias(self, model: str, name: str, version: int) -> None:
        """Points the alias at an existing version. Raises RegistryError when there is no such version."""
        self.get(model, version)
        with self.engine.begin() as connection:
            connection.execute(db.aliases.delete().where(db.aliases.c.model == model, db.aliases.c.name == name))
            connection.execute(db.aliases.insert().values(model=model, name=name, version=version))
            self._log(connection, model, "alias", version, {"name": name})

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
        query = sa.select(db.registry_history).where(db.registry_history.c.model == model)
        with self.engine.begin() as connection:
            rows = connection.execute(query.order_by(db.registry_history.c.id)).all()
        return [RegistryEvent(row.time, row.model, row.event, row.version, row.detail) for row in rows]

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

    def _log(self, connection: sa.Connection, model: str, event: str, version: int, detail: Mapping[str, Any]) -> None:
        connection.execute(
            db.registry_history.insert().values(
                time=self._clock(), model=model, event=event, version=version, detail=dict(detail)
            )
        )


def _publish(staging: Path, target: Path) -> None:
    try:
        staging.rename(target)
    except OSError:
        # Another process registered the same digest in the meantime; the content is equal by its name.
        if not target.exists():
            raise


def _of(model: str) -> sa.Select[Any]:
    return sa.select(db.versions).where(db.versions.c.model == model)


def _version(row: sa.Row[Any]) -> ModelVersion:
    return ModelVersion(row.model, row.version, row.digest, row.created_at, row.lineage, row.metrics)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
