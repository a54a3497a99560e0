"""Parameters on servers: exact where it must be, bounded where it may differ, and whole after kills."""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from observability import Metrics
from observability.metrics import exposition
from tests.training.toy_servers import STEPS, Scored, batch, trained_synchronously, work
from training import CheckpointStore, TrainConfig
from training.data import encode_rows, fit
from training.faults import Fault, Faults, flip_bit
from training.parameter_server import (
    Client,
    Cluster,
    Gradient,
    GradientError,
    Layout,
    LayoutError,
    LinkLost,
    LocalLink,
    Replica,
    Rule,
    Server,
    ServersForm,
    Shard,
    ShardError,
    Terms,
    snapshot,
)
from training.parameter_server.fitting import fit_on_servers
from training.parameter_server.wire import Message, WireError, decode, encode
from training.replicas import log_loss


class Servers:
    """Servers in this process that can be killed: what is not in their checkpoints is then gone."""

    def __init__(
        self, layout: Layout, start: dict[str, Tensor], folder: Path | None = None, *, rule: Rule, terms: Terms
    ) -> None:
        self.layout, self.metrics = layout, Metrics()
        self._start, self._folder, self._rule, self._terms = start, folder, rule, terms
        self._alive: dict[int, Server] = {}
        for number in range(layout.servers):
            self.begin(number)

    def begin(self, number: int) -> None:
        store = None if self._folder is None else CheckpointStore(self._folder / f"server-{number}")
        shard = Shard(self.layout.part(self._start, number), self._rule, self._terms, store=store)
        self._alive[number] = Server(shard, model="toy", number=number, metrics=self.metrics, patience=0.05)

    def __getitem__(self, number: int) -> Server:
        return self._alive[number]

    def connect(self, number: int, worker: str) -> Cut:
        return Cut(lambda body, server=self._alive[number]: self._handle(number, server, body))

    def _handle(self, number: int, server: Server, body: bytes) -> bytes:
        if self._alive[number] is not server:
            raise LinkLost("killed")
        return server.handle(body)

    def parameters(self) -> dict[str, Tensor]:
        return snapshot(self.layout, self.connect)


class Cut(LocalLink):
    """A link whose answers get lost as told: the request was carried out, and the worker cannot know."""

    lose: Callable[[], bool] = staticmethod(lambda: False)

    def receive(self) -> bytes:
        if self.lose():
            raise LinkLost("the answer was lost")
        return super().receive()


def together(servers: Servers, workers: int, *, steps: int = STEPS, pause: Callable[[int, int], None] | None = None):
    """Trains with so many workers, each in a thread; gives their clients."""
    clients: list[Client] = []
    failed: list[BaseException] = []
    gate = threading.Barrier(workers)

    def one(number: int) -> None:
        try:
            client = Client(servers.layout, servers.connect, f"worker-{number:04d}", patience=60.0)
            clients.append(client)
            gate.wait()
            client.enter()
            gate.wait()
            work(client, number, workers, steps, lambda step: pause(number, step) if pause else None)
            client.leave()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    return clients


@pytest.fixture
def network() -> Scored:
    torch.manual_seed(3)
    return Scored()


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


@pytest.mark.parametrize(
    ("rule", "number", "workers"),
    [
        (Rule(learning_rate=0.3), 1, 2),
        (Rule(learning_rate=0.1, momentum=0.9), 3, 2),
        (Rule(method="adam", learning_rate=0.01), 2, 3),
    ],
    ids=["sgd", "momentum", "adam"],
)
def test_without_staleness_it_is_synchronous_training_to_the_bit(
    network: Scored, rule: Rule, number: int, workers: int
):
    layout = Layout.of(network, number, tables=["items.weight"])
    servers = Servers(layout, state(network), rule=rule, terms=Terms(staleness=0))

    together(servers, workers)

    found = servers.parameters()
    for name, value in trained_synchronously(network, rule, workers).items():
        assert torch.equal(found[name], value), name


def test_with_staleness_it_comes_as_close_and_nobody_is_further_ahead_than_allowed(network: Scored):
    layout = Layout.of(network, 2, tables=["items.weight"])
    rule, workers, steps = Rule(learning_rate=0.3), 3, 40
    start = state(network)
    reached, draw = {0: [], 4: []}, random.Random(1)
    for staleness in (0, 4, 4, 4):
        network.load_state_dict(start)
        servers = Servers(layout, start, rule=rule, terms=Terms(staleness=staleness))
        together(servers, workers, steps=steps, pause=lambda *_: time.sleep(draw.random() * 2e-3))
        network.load_state_dict(servers.parameters(), strict=False)
        reached[staleness].append(network.loss_of(range(4000, 4040)).item())
        page = exposition(servers.metrics)[0].decode()
        bound = 'parameter_server_staleness_steps_bucket{le="%s.0",model="toy",server="0"} %s.0'
        assert bound % (staleness, workers * steps) in page

    before = Scored()
    before.load_state_dict(start)
    gained = before.loss_of(range(4000, 4040)).item() - reached[0][0]
    # What synchronous training gains, asynchronous training gains to within 5 %, whatever the order of most.
    assert gained > 0.2
    assert abs(statistics.median(reached[4]) - reached[0][0]) < 0.05 * gained


@settings(max_examples=10)
@given(st.integers(0, 10_000))
def test_lost_answers_change_nothing(seed: int):
    torch.manual_seed(3)
    network = Scored()
    layout = Layout.of(network, 2, tables=["items.weight"])
    servers = Servers(layout, state(network), rule=Rule(), terms=Terms(staleness=0))
    draw = random.Random(seed)
    client = Client(layout, servers.connect, "only", patience=60.0)
    losing = type("Losing", (Cut,), {"lose": staticmethod(lambda: draw.random() < 0.3)})
    client._connect = lambda number, worker: losing(servers.connect(number, worker)._handle)
    slept, time_sleep = [], time.sleep
    try:
        time.sleep = slept.append  # the pauses between attempts
        client.enter()
        work(client, 0, 1, 5)
    finally:
        time.sleep = time_sleep

    assert servers[0].shard.updates == servers[1].shard.updates == 5
    found = servers.parameters()
    for name, value in trained_synchronously(network, Rule(), 1, steps=5).items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("corrupt", [False, True], ids=["killed", "killed and its newest checkpoint altered"])
def test_a_killed_server_is_restored_and_sent_what_it_lacks(network: Scored, tmp_path: Path, corrupt: bool):
    layout = Layout.of(network, 2, tables=["items.weight"])
    rule = Rule(learning_rate=0.1, momentum=0.9)
    servers = Servers(layout, state(network), tmp_path, rule=rule, terms=Terms(checkpoint_every=4))
    kept = []

    def pause(number: int, step: int) -> None:
        if number == 0 and step in (6, 7, 15):
            if corrupt:
                for path in CheckpointStore(tmp_path / "server-1").paths()[1:]:
                    flip_bit(path, seed=step)
            servers.begin(1)
        kept.append(step)

    clients = together(servers, 2, pause=pause)

    assert len(kept) == 2 * STEPS
    assert all(client.kept <= 2 * 4 + 1 for client in clients)
    found = servers.parameters()
    for name, value in trained_synchronously(network, rule, 2).items():
        assert torch.equal(found[name], value), name
    assert 'parameter_server_restores_total{model="toy",server="1"} 3.0' in exposition(servers.metrics)[0].decode()


def test_a_worker_that_dies_holds_nobody_up_and_may_come_back(network: Scored):
    now = [0.0]
    layout = Layout.of(network, 1)
    shard = Shard(layout.part(state(network), 0), Rule(), Terms(staleness=1, grace_seconds=2.0), clock=lambda: now[0])
    zero = Gradient(torch.zeros(layout.dense_size))
    for worker in "ab":
        shard.enter(worker, 0)
    for step in range(2):
        shard.pull("a", step, {}, 0.0)
        shard.push("a", step, zero)

    assert shard.pull("a", 2, {}, 0.0) is None  # b has not ended a step
    shard.lost("b")
    now[0] = 2.5
    pulled = shard.pull("a", 2, {}, 0.0)
    assert pulled is not None
    assert (pulled.ahead, shard.status("a").live) == (0, 1)
    assert pulled.waited == 2.5

    assert shard.enter("b", shard.status("b").floor) == 2
    assert shard.push("b", 2, zero).outcome == "applied"
    assert shard.push("b", 2, zero).outcome == "duplicate"
    assert (shard.status("b").clock, shard.updates) == (3, 3)


def test_a_step_goes_on_without_a_worker_that_left_and_its_late_push_is_not_applied(network: Scored):
    now = [0.0]
    layout = Layout.of(network, 1)
    shard = Shard(layout.part(state(network), 0), Rule(), Terms(lease_seconds=10.0), clock=lambda: now[0])
    one = Gradient(torch.ones(layout.dense_size))
    for worker in "ab":
        shard.enter(worker, 0)
    shard.push("a", 0, one)
    assert shard.updates == 0
    now[0] = 11.0
    shard.status("a")
    assert shard.updates == 1

    late = shard.push("b", 0, one)

    assert (late.outcome, late.clock, shard.updates) == ("late", 1, 1)


def test_a_gradient_that_is_not_finite_ends_the_step_and_changes_nothing(network: Scored):
    layout = Layout.of(network, 2)
    servers = Servers(layout, state(network), rule=Rule(momentum=0.9), terms=Terms())
    client = Client(layout, servers.connect, "only")
    client.enter()
    replica = Replica(network, client)
    replica.refresh()
    network.loss_of(batch(0, 0)).backward()
    network.items.weight.grad = torch.full_like(network.items.weight, float("nan"))

    assert not replica.push()
    assert (client.clock, servers[0].shard.updates) == (1, 0)
    with pytest.raises(GradientError, match=r"shape \[1\]"):
        client.push(torch.ones(1))
    assert all(torch.equal(value, state(network)[name]) for name, value in servers.parameters().items())


def test_only_touched_rows_travel(network: Scored):
    layout = Layout.of(network, 2, tables=["items.weight"])
    servers = Servers(layout, state(network), rule=Rule(method="adam"), terms=Terms())
    client = Client(layout, servers.connect, "only")
    client.enter()
    before = servers.parameters()["items.weight"]
    wanted = torch.tensor([17, 2, 30])

    _, tables = client.pull({"items.weight": wanted})
    client.push(torch.zeros(layout.dense_size), {"items.weight": (wanted, torch.ones(3, 4))})

    assert torch.equal(tables["items.weight"], before[wanted])
    moved = (servers.parameters()["items.weight"] != before).any(dim=1)
    assert torch.nonzero(moved).squeeze(1).tolist() == [2, 17, 30]
    with pytest.raises(ShardError, match="which has 20 here"):
        client.pull({"items.weight": torch.tensor([400])})
    client.pull()  # the link is still in step


def test_what_cannot_be_shared_out_is_said(network: Scored, tmp_path: Path):
    with pytest.raises(LayoutError, match="no parameter 'nothing'"):
        Layout.of(network, 1, tables=["nothing"])
    with pytest.raises(LayoutError, match=r"float64"):
        Layout.of(nn.Linear(2, 2, dtype=torch.float64), 1)
    with pytest.raises(ValueError, match="no rule 'lion'"):
        Rule(method="lion")
    store = CheckpointStore(tmp_path)
    layout = Layout.of(network, 1)
    Shard(layout.part(state(network), 0), Rule(), Terms(), store=store, fingerprint="a").save()
    with pytest.raises(ShardError, match="another layout"):
        Shard(layout.part(state(network), 0), Rule(), Terms(), store=store, fingerprint="b")


@given(st.integers(1, 5), st.integers(0, 50), st.integers(1, 40))
def test_parts_make_the_whole_again(servers: int, size: int, rows: int):
    layout = Layout(servers, (("w", (size,)), ("b", (3, 2))), Layout.of(nn.Embedding(rows, 2), 1, ["weight"]).tables)
    values = {"w": torch.randn(size), "b": torch.randn(3, 2), "weight": torch.randn(rows, 2)}

    whole = layout.whole([layout.part(values, server) for server in range(servers)])

    assert all(torch.equal(whole[name], value) for name, value in values.items())


@given(st.binary(max_size=60), st.integers(0, 200))
def test_bytes_that_are_no_message_are_refused(junk: bytes, cut: int):
    body = encode(Message("push", "w", 3, {"x": 1}, {"dense": torch.arange(4.0), "rows": torch.arange(3)}))
    read = decode(body)
    assert (read.kind, read.worker, read.clock, read.facts) == ("push", "w", 3, {"x": 1})
    assert torch.equal(read.tensors["dense"], torch.arange(4.0))
    for broken in (junk, body[: min(cut, len(body) - 1)]):
        with pytest.raises(WireError):
            decode(broken)


@pytest.mark.slow
def test_processes_over_gloo_survive_the_kill_of_a_server_and_of_a_worker(network: Scored, tmp_path: Path):
    """With staleness 0 the result is that of no kill, to the bit."""
    layout = Layout.of(network, 2, tables=["items.weight"])
    rule = Rule(learning_rate=0.1, momentum=0.9)
    exact = Cluster(
        "tests.training.toy_servers:work_in_process",
        state(network),
        layout,
        folder=tmp_path,
        model="toy",
        workers=2,
        rule=rule,
        terms=Terms(checkpoint_every=4, grace_seconds=60.0),
        faults=Faults((Fault("kill", rank=1, step=6, steps=100), Fault("kill", rank=2, step=11))),
    ).run()
    reference = trained_synchronously(network, rule, 2)

    assert (exact.server_restarts, exact.worker_restarts, exact.given_up) == (1, 1, ())
    assert all(torch.equal(exact.parameters[name], value) for name, value in reference.items())


@pytest.mark.slow
def test_a_cluster_goes_on_when_the_process_that_forked_all_is_killed(network: Scored, tmp_path: Path):
    layout = Layout.of(network, 2, tables=["items.weight"])
    found = Cluster(
        "tests.training.toy_servers:work_until_the_warm_process_is_killed",
        state(network),
        layout,
        folder=tmp_path,
        model="toy",
        workers=2,
        rule=Rule(learning_rate=0.1),
        terms=Terms(checkpoint_every=4),
    ).run()

    assert (found.server_restarts, found.worker_restarts, found.given_up) == (2, 2, ())
    reference = trained_synchronously(network, Rule(learning_rate=0.1), 2)
    assert all(torch.equal(found.parameters[name], value) for name, value in reference.items())


@pytest.mark.slow
@pytest.mark.parametrize("lost", [[20], [16, 20]])
def test_servers_that_all_begin_anew_go_back_to_a_step_that_all_have(
    network: Scored, tmp_path: Path, lost: list[int], caplog: pytest.LogCaptureFixture
):
    """As when all processes died while one server had not yet written the checkpoint that the other had."""
    rule = Rule(learning_rate=0.1, momentum=0.9)

    def trained() -> dict[str, Tensor]:
        layout, terms = Layout.of(network, 2, tables=["items.weight"]), Terms(checkpoint_every=4, grace_seconds=60.0)
        return Cluster(
            "tests.training.toy_servers:work_in_process", state(network), layout, folder=tmp_path, model="toy",
            workers=2, rule=rule, terms=terms,
        ).run().parameters  # fmt: skip

    trained()
    for step in lost:
        (tmp_path / "server-1" / f"step-{step:012d}.ckpt").unlink()
    assert "of different steps" not in caplog.text
    found = trained()

    assert f"all go on from step {16 if lost == [20] else 0}" in caplog.text
    reference = trained_synchronously(network, rule, 2)
    assert all(torch.equal(found[name], value) for name, value in reference.items())


def test_a_server_without_a_checkpoint_takes_no_step_before_all_that_began_have_pushed_it(network: Scored):
    layout = Layout.of(network, 1)
    now = [0.0]
    shard = Shard(
        layout.part(state(network), 0), Rule(), Terms(lease_seconds=9.0), expected=("a", "b"), clock=lambda: now[0]
    )
    gradient = Gradient(torch.ones(layout.dense_size))
    shard.enter("a", 0)
    shard.push("a", 0, gradient)
    assert shard.updates == 0

    shard.enter("b", 0)
    assert shard.push("b", 0, gradient).outcome == "applied"
    assert shard.updates == 1

    # Whoever never comes is waited for a lease long.
    shard.push("a", 1, gradient)
    assert shard.updates == 1
    now[0] = 10.0
    shard.status("a")
    assert shard.updates == 2


@pytest.mark.slow
def test_a_tabular_network_is_fitted_though_a_server_and_a_worker_are_killed(task, make_table, tmp_path: Path):
    table = make_table()
    encoding = fit(task, table)
    torch.manual_seed(1)
    network = task.network(encoding)
    rows = encode_rows(task, encoding.vocabularies, table)
    before = log_loss(network.eval().logits(*rows.inputs), rows.labels).item() / len(rows)
    metrics = Metrics()

    result = fit_on_servers(
        network,
        rows,
        TrainConfig(epochs=3, batch_size=100, learning_rate=0.02),
        ServersForm(servers=2, workers=2, staleness=3, checkpoint_every=8),
        folder=tmp_path,
        model="tiny",
        run="r",
        metrics=metrics,
        faults=Faults((Fault("kill", rank=0, step=20), Fault("kill", rank=2, step=10))),
    )

    assert (result.server_restarts, result.worker_restarts, result.given_up) == (1, 1, ())
    assert log_loss(network.eval().logits(*rows.inputs), rows.labels).item() / len(rows) < before - 0.05
    page = exposition(metrics)[0].decode()
    assert 'training_rank_step{model="tiny",rank="1",run="r"} 59.0' in page
    assert 'training_rank_phase_seconds{model="tiny",phase="communication",rank="0",run="r"}' in page
