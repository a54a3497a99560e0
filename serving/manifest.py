"""An artifact's manifest: canonical JSON with every file's SHA-256; its own is the version's digest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from serving.errors import ArtifactError

MANIFEST = "manifest.json"


def canonical(value: object) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def read_manifest(directory: Path) -> dict[str, Any]:
    """The artifact's manifest. Raises ArtifactError when it is missing or not a JSON object."""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{directory / MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ArtifactError(f"{directory / MANIFEST} is not a manifest: it must be an object with 'files'")
    return manifest


def verify(directory: Path, digest: str | None = None) -> str:
    """The artifact's digest, after every file's SHA-256 was checked. Raises ArtifactError when anything was altered."""
    manifest = read_manifest(directory)
    for name, expected in manifest["files"].items():
        if Path(name).name != name:
            raise ArtifactError(f"{directory}: file name {name!r} in the manifest leaves the folder")
        path = directory / name
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        if found != expected:
            raise ArtifactError(f"{path} was altered: its SHA-256 is {found}, the manifest says {expected}")
    actual = hashlib.sha256(canonical(manifest)).hexdigest()
    if digest is not None and actual != digest:
        raise ArtifactError(f"{directory} was altered: its digest is {actual}, the registry says {digest}")
    return actual
