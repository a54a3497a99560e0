"""`trimtab models register --profile`: one that the collector could not read, or that would not be kept, is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import Result
from torch import Tensor, nn

from observability.profile import Profile
from serving.models import save_artifact
from serving.protocol.signature import Input, Output, Signature
from serving.registry import Registry

Trimtab = Callable[..., Result]


class Half(nn.Module):
    def forward(self, given: Tensor) -> Tensor:
        return given / 2


def profile(shift: float) -> bytes:
    return Profile.of(pa.table({"feature.höhe": np.random.default_rng(0).normal(shift, 1, 2_000)})).to_json()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with settings and an artifact."""
    signature = Signature((Input.of("höhe", "FP32"),), (Output("half"),))
    save_artifact(tmp_path / "artifact", Half(), signature, {"höhe": [1.0, 2.0]})
    (tmp_path / "trimtab.toml").write_text(f'[trimtab]\ndata = "{tmp_path}"\n')
    return tmp_path


def register(trimtab: Trimtab, folder: Path, body: bytes | None) -> Result:
    given: list[object] = []
    if body is not None:
        (folder / "profile.json").write_bytes(body)
        given = ["--profile", folder / "profile.json"]
    settings = folder / "trimtab.toml"
    return trimtab("models", "register", "turm", folder / "artifact", "--settings", settings, *given)


def kept(folder: Path) -> bytes | None:
    registry = Registry(f"sqlite:///{folder}/registry.db", folder / "artifacts")
    try:
        return registry.profile("turm", 1)
    finally:
        registry.close()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"columns": {}}',
        profile(0)[:200],
        Profile.of(pa.table({"höhe": [1.0, 2.0]})).to_json(),
        json.dumps({**json.loads(profile(0)), "calibration": {"no": "such"}}).encode(),
    ],
)
def test_what_is_no_profile_is_refused_and_nothing_registered(trimtab: Trimtab, made: Path, body: bytes) -> None:
    result = register(trimtab, made, body)

    assert result.exit_code == 1
    assert "profile.json is no reference profile" in result.stderr
    assert kept(made) is None


@pytest.mark.parametrize(("first", "says"), [(profile(0), "another profile"), (None, "no profile")])
def test_a_version_keeps_its_profile_and_the_command_says_so(
    trimtab: Trimtab, made: Path, first: bytes | None, says: str
) -> None:
    assert register(trimtab, made, first).exit_code == 0
    assert register(trimtab, made, first).exit_code == 0
    result = register(trimtab, made, profile(5))

    assert result.exit_code == 1
    assert f"turm 1 is this artifact already and was registered with {says}" in result.stderr
    assert kept(made) == first
