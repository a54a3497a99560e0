"""An artifact's manifest: canonical JSON with every file's SHA-256; its own is the version's digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.errors import ArtifactError
from serving.versions.memory import available_bytes

MANIFEST = "manifest.json"
FILES = {"torch.export": "model.pt2", "safetensors": "model.safetensors", "onnx": "model.onnx"}
"""The file that holds the weights, by the manifest's `format`."""
_LARGEST_MANIFEST = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Artifact:
    """A verified artifact: its digest, its manifest and the content of the file that holds the weights."""

    digest: str
    manifest: Mapping[str, Any]
    content: bytes


def canonical(value: object) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def read_manifest(directory: Path) -> dict[str, Any]:
    """The artifact's manifest. Raises ArtifactError when it is missing, or not an object that names its files."""
    path = directory / MANIFEST
    try:
        if path.stat().st_size > _LARGEST_MANIFEST:
            raise ArtifactError(f"{path} has {path.stat().st_size} bytes; a manifest has at most {_LARGEST_MANIFEST}")
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ArtifactError(f"{path} is not a manifest: it must be an object with 'files'")
    for name, expected in manifest["files"].items():
        if Path(name).name != name or name in ("", ".", ".."):
            raise ArtifactError(f"{directory}: file name {name!r} in the manifest leaves the folder")
        if not isinstance(expected, str):
            raise ArtifactError(f"{path}: the SHA-256 of {name!r} is {expected!r}, not a text of 64 digits")
    return manifest


def verify(directory: Path, digest: str | None = None) -> str:
    """The artifact's digest, after every file's SHA-256 was checked. Raises ArtifactError when anything was altered."""
    manifest = read_manifest(directory)
    for name, expected in manifest["files"].items():
        _require(directory / name, expected, _sha256(directory / name))
    return _digest(directory, manifest, digest)


def open_artifact(directory: Path, digest: str | None = None) -> Artifact:
    """The verified artifact, to be read from what was verified: a file that changes in between is not seen.

    Raises ArtifactError when a file was altered, is missing or does not fit into the memory that is free.
    """
    manifest = read_manifest(directory)
    actual = _digest(directory, manifest, digest)
    main = FILES.get(str(manifest.get("format")), "")
    if main not in manifest["files"]:
        raise ArtifactError(
            f"{directory}: format {manifest.get('format')!r} with files {sorted(manifest['files'])}; "
            f"use one of {', '.join(f'{format} ({name})' for format, name in FILES.items())}"
        )
    for name, expected in manifest["files"].items():
        if name != main:
            _require(directory / name, expected, _sha256(directory / name))
    content = _content(directory / main)
    _require(directory / main, manifest["files"][main], hashlib.sha256(content).hexdigest())
    return Artifact(actual, manifest, content)


def file_bytes(directory: Path) -> int:
    """Size of the file that holds the weights; 0 when it is not there."""
    path = directory / FILES.get(str(read_manifest(directory).get("format")), "")
    return path.stat().st_size if path.is_file() else 0


def _digest(directory: Path, manifest: dict[str, Any], digest: str | None) -> str:
    actual = hashlib.sha256(canonical(manifest)).hexdigest()
    if digest is not None and actual != digest:
        raise ArtifactError(f"{directory} was altered: its digest is {actual}, the registry says {digest}")
    return actual


def _require(path: Path, expected: str, found: str) -> None:
    if found != expected:
        raise ArtifactError(f"{path} was altered: its SHA-256 is {found}, the manifest says {expected}")


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "no file"


def _content(path: Path) -> bytes:
    try:
        size, free = path.stat().st_size, available_bytes()
        if free is not None and 2 * size > free:
            raise ArtifactError(
                f"{path} has {size} bytes and needs twice that to be loaded; {free} are free on this machine: "
                "unload other versions or serve it on a larger one"
            )
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} was altered: it cannot be read: {error}") from error
