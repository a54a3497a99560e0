"""The SQL of serving: transactions, what files it opens, and PostgreSQL beside SQLite."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import Conflict, Policy, RegistryError, Service
from serving.database import Database, Json, json_of, open_database
from serving.errors import RegistryUnavailable
from serving.routing.policies import PolicyStore

TOLD: dict[str, Any] = {"time": 3.5, "release": None, "version": None, "reason": "", "actor": "me"}


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "sqlite":
        return open_database(f"sqlite:///{tmp_path / 'registry.db'}")
    return open_database(request.getfixturevalue("postgresql_url"))


def test_what_is_written_is_read_back(database: Database) -> None:
    store = PolicyStore(database)

    store.save(Policy("mlp", generation=1, stable=1), "promote", **TOLD)
    store.save(Policy("mlp", generation=2, stable=3), "promote", **TOLD | {"version": 3, "release": "r-1"})
    store.remember("key", "digest", 200, {"ü": [None, '"']}, 1.0)

    assert store.load("mlp") == Policy("mlp", generation=2, stable=3)
    assert [line["generation"] for line in store.history("mlp")] == [1, 2]
    assert store.history("mlp", 1) == [TOLD | {"generation": 2, "event": "promote", "version": 3, "release": "r-1"}]
    assert store.answer("key") == ("digest", 200, {"ü": [None, '"']})
    assert store.answer("another") is None
    database.close()


def test_writers_at_once_take_each_generation_once(database: Database) -> None:
    store = PolicyStore(database)
    store.save(Policy("mlp", generation=1, stable=1), "promote", **TOLD)
    written: list[int] = []

    def write() -> None:
        for generation in range(2, 12):
            try:
                store.save(Policy("mlp", generation=generation, stable=1), "promote", **TOLD)
            except Conflict:
                continue
            written.append(generation)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()

    assert sorted(written) == [line["generation"] for line in store.history("mlp")][1:]
    database.close()


def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    query = "SELECT body FROM traffic_policies WHERE model = :model"
    insert = "INSERT INTO traffic_policies (model, generation, body) VALUES (:model, 1, :body)"

    def fail() -> None:
        with database.begin() as transaction:
            assert transaction.run(insert, model="m", body=Json({})) == 1
            assert [json_of(body) for (body,) in transaction.rows(query, model="m")] == [{}]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()

    with database.begin() as transaction:
        assert not transaction.rows(query, model="m")
    database.close()


@pytest.mark.parametrize(
    ("place", "complaint"),
    [("/nowhere/at/all/registry.db", "cannot be opened"), ("registry.db?timeout=3", "after file: only")],
)
def test_a_database_that_cannot_be_opened_is_said_in_a_line(place: str, complaint: str) -> None:
    with pytest.raises(RegistryError, match=complaint):
        open_database(f"sqlite:///{place}")


def test_sqlite_takes_its_own_options(tmp_path: Path) -> None:
    open_database(f"sqlite:///{tmp_path / 'registry.db'}").close()

    with pytest.raises(RegistryError):
        open_database(f"sqlite:///file:{tmp_path / 'absent.db'}?mode=rw")
    open_database(f"sqlite+pysqlite:///file:{tmp_path / 'registry.db'}?mode=rw").close()


def test_a_database_that_cannot_be_written_says_so_and_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    open_database(f"sqlite:///{path}").close()
    database = open_database(f"sqlite:///file:{path}?mode=ro")
    store = PolicyStore(database)

    with pytest.raises(RegistryUnavailable, match="readonly database; call again"):
        store.save(Policy("mlp", generation=1, stable=1), "promote", **TOLD)

    assert store.load("mlp") is None
    database.close()


@pytest.mark.slow
async def test_a_server_whose_registry_cannot_be_written_answers_and_refuses_changes(
    start: Callable[..., Awaitable[Service]], registry_url: str
) -> None:
    unwritable = registry_url.replace("sqlite:///", "sqlite:///file:") + "?mode=ro"
    with pytest.raises(RegistryUnavailable):  # the first policy of a model is stored
        await start(registry_url=unwritable)
    await start()
    service = await start(registry_url=unwritable)

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", trust_env=False) as client:
        refused = await client.post("/api/v1/models/fares/canary", json={"version": 2, "weight": 0.5})
        tried = await client.post("/api/v1/models/fares/examine", json={"version": 2})

    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "cannot be used now" in refused.json()["error"]
    assert service.deployments["fares"].router.policy.canary is None
    assert tried.status_code == 200
