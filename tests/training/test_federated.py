"""Federated learning: the algebra of aggregation, rounds that lose clients and servers, and clients that lie."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from observability import Profile, names
from observability.metrics import exposition
from observability.signing import HEADER, sign
from tests.training.toy_federation import ROWS, SECRETS, data, learner, loss, network
from training import CheckpointStore
from training.federated import (
    Aggregation,
    AggregationError,
    FederatedClient,
    Federation,
    FederationError,
    InProcess,
    Learned,
    LocalPlan,
    OverHttp,
    Plan,
    ProtocolError,
    Refused,
    ServerAway,
    application,
    pack_update,
    parameters,
    take,
)
from training.federated.aggregation import clipped, krum, median, trimmed_mean, weighted_mean
from training.federated.protocol import signed_bytes
from trimtab.ports import free_port

LARGE = LocalPlan(steps=1, batch_size=0, learning_rate=0.5)


def matrices(fewest: int = 1):
    """Updates of a few clients, drawn from a seed."""
    return st.builds(
        lambda seed, clients, width: torch.randn(clients, width, generator=torch.Generator().manual_seed(seed)),
        st.integers(0, 10_000),
        st.integers(fewest, 9),
        st.integers(1, 20),
    )


@given(matrices(), st.floats(0, 0.49))
def test_median_and_trimmed_mean_are_those_of_numpy_and_scipy(updates: Tensor, trim: float):
    np.testing.assert_allclose(median(updates), np.median(updates.numpy(), axis=0), rtol=1e-6, atol=1e-7)
    reference = stats.trim_mean(updates.double().numpy(), trim, axis=0)
    np.testing.assert_allclose(trimmed_mean(updates, trim), reference, rtol=1e-5, atol=1e-6)
    weights = torch.arange(1.0, len(updates) + 1)
    reference = np.average(updates.double().numpy(), axis=0, weights=weights.numpy())
    np.testing.assert_allclose(weighted_mean(updates, weights), reference, rtol=1e-5, atol=1e-6)


@given(matrices(5), st.integers(0, 1000), st.sampled_from(["mean", "median", "trimmed_mean", "krum"]))
def test_the_order_of_clients_does_not_matter_and_moving_all_moves_the_result(updates: Tensor, seed: int, method: str):
    aggregate = Aggregation(method=method, trim=0.2, keep=2)
    weights = torch.rand(len(updates), generator=torch.Generator().manual_seed(seed)) + 0.1
    order = torch.randperm(len(updates), generator=torch.Generator().manual_seed(seed))
    found = aggregate(updates, weights)

    torch.testing.assert_close(aggregate(updates[order], weights[order]), found, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(aggregate(updates + 3.0, weights), found + 3.0, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(aggregate(2 * updates, weights), 2 * found, atol=1e-5, rtol=1e-4)
    # Never outside what the clients gave.
    assert bool((found <= updates.max(dim=0).values + 1e-5).all())
    assert bool((found >= updates.min(dim=0).values - 1e-5).all())


@given(matrices(7), st.floats(10, 1e6))
def test_one_liar_moves_only_the_mean(updates: Tensor, scale: float):
    honest = updates[1:]
    lying = torch.cat([torch.full_like(updates[:1], scale), honest])
    low, high = honest.min(dim=0).values, honest.max(dim=0).values
    for robust in (median(lying), trimmed_mean(lying, 0.2), krum(lying, bad=1)):
        assert bool((robust >= low - 1e-5).all())
        assert bool((robust <= high + 1e-5).all())
    assert bool((weighted_mean(lying, torch.ones(len(lying))) > high).any() or scale < 8 * len(lying))


def test_krum_chooses_what_its_definition_says():
    updates = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    scores = []
    for one in range(8):
        distances = sorted(float((updates[one] - updates[other]).square().sum()) for other in range(8) if other != one)
        scores.append(sum(distances[: 8 - 2 - 2]))

    torch.testing.assert_close(krum(updates, bad=2), updates[int(np.argmin(scores))])
    with pytest.raises(AggregationError, match="krum needs 7 updates, 6 came"):
        Aggregation(method="krum", bad=2)(updates[:6], torch.ones(6))


@given(matrices(), st.floats(0.01, 10))
def test_a_clipped_update_keeps_its_direction_and_the_bound(updates: Tensor, bound: float):
    one, was = clipped(updates[0], bound)
    norm = float(updates[0].norm())
    assert float(one.norm()) <= bound * (1 + 1e-5)
    assert was == (norm > bound) or abs(norm - bound) < 1e-5
    torch.testing.assert_close(one * norm, updates[0] * float(one.norm()), atol=1e-4, rtol=1e-4)


class Clients:
    """A federation in this process and its clients; a client may be replaced by one that lies."""

    def __init__(self, folder: Path, plan: Plan, clients: int, **given: object) -> None:
        self.now = 1000.0
        self.arguments = (parameters(network()), plan, folder)
        self.federation = Federation("toy", *self.arguments, clock=lambda: self.now, **given)
        self.clients = {f"client-{n}": self.client(n) for n in range(clients)}

    def client(self, number: int, spoil=lambda learned: learned, **given: object) -> FederatedClient:
        learn = learner(number)
        return FederatedClient(
            InProcess(self.federation, f"client-{number}"),
            lambda start, plan, seed: spoil(learn(start, plan, seed)),
            **given,
        )

    def run(self, rounds: int) -> Federation:
        for _ in range(3 * rounds + 3):
            for one in self.clients.values():
                one.once()
            if self.federation.finished:
                return self.federation
            self.now += 0.1
        return self.federation


def loss_of(values: dict[str, Tensor], clients: int = 10) -> float:
    own = network()
    take(own, values)
    x, y = (torch.cat(parts) for parts in zip(*(data(number) for number in range(clients)), strict=True))
    return float(loss(own, x, y).detach())


def test_one_step_of_all_clients_is_a_step_of_sgd_on_all_rows(tmp_path: Path):
    found = Clients(tmp_path, Plan(rounds=5, min_clients=4, local=LARGE), 4).run(5).parameters

    own = network()
    optimizer = torch.optim.SGD(own.parameters(), lr=0.5)
    x, y = (torch.cat(parts) for parts in zip(*(data(number) for number in range(4)), strict=True))
    for _ in range(5):
        optimizer.zero_grad()
        loss(own, x, y).backward()
        optimizer.step()
    for name, value in parameters(own).items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)


def test_a_proximal_term_keeps_clients_near_the_global_parameters():
    start = parameters(network())
    plan = LocalPlan(epochs=5, batch_size=10, learning_rate=0.1)
    moved = [
        sum(float(delta.square().sum()) for delta in learner(1)(start, replace(plan, proximal=mu), 7).delta.values())
        for mu in (0.0, 1.0, 5.0)
    ]
    assert moved[0] > moved[1] > moved[2] > 0
    # One step away from the start the term is zero: FedProx is FedAvg.
    one, near = (learner(1)(start, replace(LARGE, proximal=mu), 7).delta for mu in (0.0, 5.0))
    assert all(torch.equal(one[name], near[name]) for name in one)


@pytest.mark.parametrize("attack", [-1.0, -10.0], ids=["flipped", "flipped and scaled"])
def test_attackers_ruin_the_mean_and_nothing_else_and_are_named(tmp_path: Path, attack: float):
    local = LocalPlan(epochs=2, batch_size=20, learning_rate=0.2)
    ways = {
        "mean": {},
        "median": {"aggregation": Aggregation(method="median")},
        "trimmed": {"aggregation": Aggregation(method="trimmed_mean", trim=0.3)},
        "krum": {"aggregation": Aggregation(method="krum", bad=3, keep=4), "min_updates": 9},
        "guarded": {"suspicion": 6.0},
    }

    def spoil(learned: Learned) -> Learned:
        return replace(learned, delta={name: value * attack for name, value in learned.delta.items()})

    reached = {}
    for way, asked in ways.items():
        run = Clients(tmp_path / way, Plan(**{"rounds": 5, "min_clients": 10, "local": local, **asked}), 10)
        for liar in (2, 5, 7):
            run.clients[f"client-{liar}"] = run.client(liar, spoil)
        federation = run.run(5)
        assert federation.finished
        reached[way] = loss_of(federation.parameters)
    honest = loss_of(Clients(tmp_path / "honest", Plan(rounds=5, min_clients=10, local=local), 10).run(5).parameters)
    begun = loss_of(parameters(network()))

    for way in ("median", "trimmed", "krum"):
        assert reached[way] < honest + 0.2 * (begun - honest), way
    assert reached["mean"] > honest + 0.25 * (begun - honest)
    if attack != -1.0:
        assert reached["mean"] > begun
        assert reached["guarded"] < honest + 0.1 * (begun - honest)
        page = exposition(federation.metrics)[0].decode()
        rejected = {f"client-{liar}": 5.0 for liar in (2, 5, 7)}
        for client, times in rejected.items():
            assert f'federated_updates_total{{client="{client}",model="toy",outcome="rejected"}} {times}' in page
        assert page.count('outcome="rejected"') == 3
        assert {one.client for one in federation.verdicts if one.outcome == "rejected"} == set(rejected)


def test_a_bound_on_norm_and_rows_bounds_what_a_client_can_do(tmp_path: Path):
    plan = Plan(rounds=1, min_clients=3, clip_norm=0.01, max_rows=ROWS, local=LARGE)
    run = Clients(tmp_path, plan, 3)
    run.clients["client-1"] = run.client(1, lambda learned: replace(learned, rows=10**9))

    federation = run.run(1)

    before = parameters(network())
    moved = sum(float((value - before[name]).square().sum()) for name, value in federation.parameters.items()) ** 0.5
    assert 0 < moved <= 0.01 * (1 + 1e-5)
    assert {one.outcome for one in federation.verdicts} == {"clipped"}
    assert all(one.norm > 0.01 for one in federation.verdicts)


def test_a_round_does_not_wait_for_stragglers_and_is_repeated_with_too_few(tmp_path: Path):
    plan = Plan(rounds=2, min_clients=3, min_updates=2, deadline_seconds=10, local=LARGE)
    run = Clients(tmp_path, plan, 3)
    tasks = {name: one._connection.task() for name, one in run.clients.items()}
    assert [task.state for task in tasks.values()] == ["wait", "wait", "train"]  # begun when the third came
    run.clients["client-0"].once()
    run.now += 11
    run.federation.tick()
    assert (run.federation.round, run.federation.status()["asked"]) == (0, [])  # one update is too few
    run.clients["client-0"].once()
    late = run.clients["client-1"]._connection.send(tasks["client-2"], b"")
    assert late == "late"
    run.clients["client-2"]._connection.task()
    assert len(run.federation.status()["asked"]) == 3
    for name in ("client-0", "client-1"):
        run.clients[name].once()
    assert run.federation.round == 0
    run.now += 11
    run.federation.tick()

    assert run.federation.round == 1  # without the third
    page = exposition(run.federation.metrics)[0].decode()
    assert 'federated_rounds_total{model="toy",outcome="repeated"} 1.0' in page
    assert 'federated_rounds_total{model="toy",outcome="aggregated"} 1.0' in page
    assert 'federated_updates_total{client="client-2",model="toy",outcome="missing"} 2.0' in page
    assert f'{names.FEDERATED_PARTICIPATION.name}{{model="toy"}} 0.66' in page


def test_rounds_ask_a_share_of_the_clients_another_one_each_time(tmp_path: Path):
    plan = Plan(rounds=6, min_clients=10, min_updates=2, sample=0.3, local=LARGE)
    run = Clients(tmp_path, plan, 10)
    seen = []
    while not run.federation.finished:
        for one in run.clients.values():
            one.once()
            asked = tuple(run.federation.status()["asked"])
            if asked and (not seen or seen[-1] != asked):
                seen.append(asked)

    assert {len(asked) for asked in seen} == {3}
    assert len(set(seen)) > 2


def test_a_killed_server_goes_on_with_its_round(tmp_path: Path):
    plan = Plan(rounds=2, min_clients=3, min_updates=3, local=LocalPlan(epochs=2, batch_size=16))
    undisturbed = Clients(tmp_path / "a", plan, 3).run(2).parameters
    run = Clients(tmp_path / "b", plan, 3)
    for one in run.clients.values():
        one._connection.task()
    run.clients["client-0"].once()
    run.clients["client-1"].once()
    assert run.federation.status()["answered"] == ["client-0", "client-1"]
    altered = next((tmp_path / "b").glob("updates/*/client-1.*"))
    altered.write_bytes(altered.read_bytes()[:-1] + b"\x7f")

    # Nothing of the old server is used again; only its folder is.
    again = Clients(tmp_path / "b", plan, 3)
    status = again.federation.status()
    assert (status["round"], status["answered"], status["asked"]) == (0, ["client-0"], sorted(run.clients))
    task = again.clients["client-1"]._connection.task()
    assert task.state == "train"
    found = again.run(2).parameters

    assert all(torch.equal(found[name], value) for name, value in undisturbed.items())
    with pytest.raises(FederationError, match="another network"):
        Federation("toy", {"other": torch.zeros(2)}, plan, tmp_path / "b")
    assert CheckpointStore(tmp_path / "b" / "model").newest().step == 2


def test_only_counts_of_a_clients_rows_leave_it_and_show_its_drift(tmp_path: Path):
    def table(number: int) -> dict[str, list[object]]:
        colour = [f"secret {row}" if number == 2 and row < 30 else "red" for row in range(ROWS)]
        shift = 3.0 if number == 2 else 0.0
        return {"x": (np.sin(np.arange(ROWS)) + shift).tolist(), "colour": colour}

    def drift(reference: Profile, other: Profile) -> dict[str, float]:
        shares = [column.counts / column.counts.sum() for column in (reference.columns["x"], other.columns["x"])]
        return {"x": float(np.abs(shares[0] - shares[1]).sum())}

    reference = Profile.of(table(0))
    run = Clients(tmp_path, Plan(rounds=1, min_clients=3, local=LARGE), 3, reference=reference, drift=drift)
    for number in range(3):
        run.clients[f"client-{number}"] = run.client(number, profile=lambda empty, n=number: empty.updated(table(n)))
    sent = []
    submit = run.federation.submit
    run.federation.submit = lambda *given: (sent.append(given[-1]), submit(*given))[1]

    federation = run.run(1)

    assert [one.drift["x"] > 1.0 for one in federation.verdicts] == [False, False, True]
    assert len(sent) == 3
    assert not any(b"secret" in body for body in sent)
    assert (
        f'{names.FEDERATED_CLIENT_DRIFT.name}{{client="client-2",model="toy"}}'
        in exposition(federation.metrics)[0].decode()
    )


def test_updates_that_do_not_fit_are_refused_by_name(tmp_path: Path):
    federation = Federation("toy", parameters(network()), Plan(min_clients=1, min_updates=1), tmp_path)
    task = federation.task("a")
    fit = {"weight": torch.zeros(1, 5), "bias": torch.zeros(1)}
    wrong = {
        "not safetensors": b"junk",
        "on one side only": pack_update(Learned({"weight": fit["weight"]}, 1, 0.0)),
        r"weight is torch.float32 \[2, 5\]": pack_update(Learned({**fit, "weight": torch.zeros(2, 5)}, 1, 0.0)),
        "not finite": pack_update(Learned({**fit, "bias": torch.tensor([float("nan")])}, 1, 0.0)),
        "of 0 rows": pack_update(Learned(fit, 0, 0.0)),
        "1 to 1000000000000 are believed": pack_update(Learned(fit, 10**400, 0.0)),
    }
    for said, body in wrong.items():
        with pytest.raises(ProtocolError, match=said):
            federation.submit("a", task.round, task.attempt, body)
    with pytest.raises(ProtocolError, match="was not asked"):
        federation.submit("b", task.round, task.attempt, b"")
    with pytest.raises(ProtocolError, match="name"):
        federation.task("../up")
    with pytest.raises(ValueError, match="krum needs 5 updates"):
        Plan(aggregation=Aggregation(method="krum"))


@pytest.fixture
def service(tmp_path: Path):
    """A federation behind HTTP in a thread; gives its URL."""
    federation = Federation("toy", parameters(network()), Plan(rounds=3, min_clients=3, local=LARGE), tmp_path)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(application(federation, SECRETS), log_level="warning", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", federation
        server.should_exit = True
        thread.join()


def test_over_http_only_signed_requests_of_enrolled_clients_are_heard(service):
    url, federation = service
    federation_client = {}
    threads = []
    for number in range(3):
        name = f"client-{number}"
        connection = OverHttp(url, name, SECRETS[name])
        federation_client[name] = FederatedClient(connection, learner(number))
        threads.append(
            threading.Thread(target=federation_client[name].run, kwargs={"sleep": lambda _: time.sleep(0.01)})
        )
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for one in federation_client.values():
        one._connection.close()
    assert federation.finished
    assert [one.trained for one in federation_client.values()] == [3, 3, 3]
    body = pack_update(Learned({"weight": torch.zeros(1, 5), "bias": torch.zeros(1)}, 1, 0.0))
    with OverHttp(url, "client-1", "wrong") as other, pytest.raises(Refused, match=r"401.*same secret"):
        other.task()
    with OverHttp(url, "stranger", "secret") as other, pytest.raises(Refused, match="401"):
        other.task()
    # A signature covers the path and the name: none can be used for another request.
    path, headers = "/v1/updates/0/0", {"X-Trimtab-Client": "client-2"}
    for signed in (("PUT", path, "client-1", body), ("PUT", "/v1/updates/0/1", "client-2", body)):
        headers[HEADER] = sign(SECRETS["client-2"], signed_bytes(*signed), time.time())
        assert httpx.put(url + path, content=body, headers=headers).status_code == 401
    headers[HEADER] = sign(SECRETS["client-2"], signed_bytes("PUT", path, "client-2", body), time.time())
    assert httpx.put(url + path, content=body, headers=headers).json() == {"outcome": "late"}
    assert httpx.put(url + path, content=bytes(6 * 2**20), headers=headers).status_code == 413
    assert 'federated_round{model="toy"} 3.0' in httpx.get(f"{url}/metrics").text
    with OverHttp("http://127.0.0.1:9", "client-1", "s") as nobody, pytest.raises(ServerAway):
        nobody.task()


@pytest.mark.slow
def test_a_server_killed_in_the_middle_makes_the_same_model(tmp_path: Path):
    """Clients over HTTP through a kill -9 of the server: bit for bit what an undisturbed federation makes."""
    port = str(free_port())

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.training.toy_federation", str(tmp_path / "killed"), port]
        return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})

    server, sends, gate = start(), [], threading.Lock()
    clients = []
    for number in range(3):
        name = f"client-{number}"
        connection = OverHttp(f"http://127.0.0.1:{port}", name, SECRETS[name])
        send = connection.send

        def counted(task, body, send=send):
            nonlocal server
            outcome = send(task, body)
            with gate:
                sends.append(outcome)
                if len(sends) == 7:  # in the third round, with one update in
                    server.send_signal(signal.SIGKILL)
                    server.wait()
                    server = start()
            return outcome

        connection.send = counted
        clients.append(FederatedClient(connection, learner(number)))
    try:
        threads = [threading.Thread(target=one.run, kwargs={"sleep": lambda _: time.sleep(0.02)}) for one in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for one in clients:
            one._connection.close()
        server.kill()
        server.wait()

    found = CheckpointStore(tmp_path / "killed" / "model").newest()
    plan = Plan(rounds=6, min_clients=3, min_updates=3, local=LocalPlan(epochs=2, batch_size=16))
    undisturbed = Clients(tmp_path / "calm", plan, 3).run(6).parameters
    assert found.step == 6
    assert all(torch.equal(found.state["values"][name], value) for name, value in undisturbed.items())
