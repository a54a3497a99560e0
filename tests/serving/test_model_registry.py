"""The registry: numbered, immutable versions by digest, with a history that only grows."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from serving import ArtifactError, Registry, RegistryError, load_artifact


def test_versions_count_from_1_and_keep_what_they_were_registered_with(registry: Registry) -> None:
    versions = registry.versions("fares")

    assert [version.version for version in versions] == [1, 2, 3]
    assert registry.get("fares", 2) == versions[1]
    assert versions[1].metrics == {"auc": 0.7}
    assert registry.profile("fares", 2) == b'{"columns": {}}'
    assert registry.models() == ["fares"]


def test_the_same_digest_again_gives_the_same_version(registry: Registry, artifacts: list[Path]) -> None:
    again = registry.register("fares", artifacts[1], lineage={"run": "other"}, profile=None, metrics={})

    assert again == registry.get("fares", 2)
    assert len(registry.versions("fares")) == 3


def test_an_artifact_that_does_not_match_its_manifest_is_not_registered(registry: Registry, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(registry.artifact(registry.get("fares", 1)), tmp_path / "broken"))
    (folder / "model.pt2").write_bytes(b"other")

    with pytest.raises(ArtifactError, match="was altered"):
        registry.register("fares", folder, lineage={}, profile=None, metrics={})
    assert len(registry.versions("fares")) == 3


def test_a_stored_artifact_that_was_altered_is_not_given_out(registry: Registry) -> None:
    version = registry.get("fares", 1)
    path = registry.artifact(version)
    load_artifact(path)
    (path / "model.pt2").write_bytes(b"other")

    with pytest.raises(ArtifactError, match="was altered"):
        registry.artifact(version)


def test_aliases_move_and_the_history_remembers(registry: Registry) -> None:
    registry.set_alias("fares", "stable", 2)

    assert registry.alias("fares", "stable") == 2
    assert registry.alias("fares", "nobody") is None
    assert [(event.event, event.version) for event in registry.history("fares")] == [
        ("registered", 1), ("registered", 2), ("registered", 3), ("alias", 1), ("alias", 2),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a b", ".hidden", "a\tb", "a\x00", "a\u200bb", "a" * 201])
def test_a_name_that_cannot_be_a_path_is_refused(registry: Registry, artifacts: list[Path], name: str) -> None:
    with pytest.raises(RegistryError, match="cannot be used"):
        registry.register(name, artifacts[0], lineage={}, profile=None, metrics={})


def test_what_is_not_there_is_named_with_what_is(registry: Registry) -> None:
    with pytest.raises(RegistryError, match=r"no version 9; it has \[1, 2, 3\]"):
        registry.get("fares", 9)
    with pytest.raises(RegistryError):
        registry.set_alias("fares", "stable", 9)


def test_concurrent_registrations_of_two_artifacts_give_each_one_number(
    registry_url: str, tmp_path: Path, artifacts: list[Path]
) -> None:
    failures: list[Exception] = []

    def register(folder: Path) -> None:
        own = Registry(registry_url, tmp_path / "shared")
        try:
            for _ in range(5):
                own.register("raced", folder, lineage={}, profile=None, metrics={})
        except Exception as error:
            failures.append(error)
        finally:
            own.close()

    threads = [threading.Thread(target=register, args=(folder,)) for folder in artifacts * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader = Registry(registry_url, tmp_path / "shared")
    versions = reader.versions("raced")
    reader.close()

    assert failures == []
    assert [version.version for version in versions] == [1, 2, 3]
    assert len({version.digest for version in versions}) == 3
    assert not list((tmp_path / "shared" / "sha256").glob(".incoming-*"))
