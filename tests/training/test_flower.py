"""Our client under Flower: with flwr where it is installed, else with a stand-in that has the same client interface."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.training.toy_federation import learner, network
from training.federated import LocalPlan, parameters
from training.federated.flower import FlowerError, flower_client, plan_of

PLAN = LocalPlan(epochs=2, batch_size=16)
REAL = importlib.util.find_spec("flwr") is not None


class Arrays:
    """flwr.app.ArrayRecord, as far as clients use it."""

    def __init__(self, values: Mapping[str, torch.Tensor]) -> None:
        self._values = dict(values)

    def to_torch_state_dict(self) -> dict[str, torch.Tensor]:
        return self._values


class Message:
    """flwr.app.Message: a new one, or the reply to another."""

    def __init__(self, content: Any, dst_node_id: int = 0, message_type: str = "", *, reply_to: Any = None) -> None:
        self.content = content
        self.metadata = SimpleNamespace(dst_node_id=dst_node_id, message_type=message_type, reply_to=reply_to)


class ClientApp:
    """flwr.clientapp.ClientApp."""

    _train: Callable[[Any, Any], Any]

    def train(self) -> Callable[[Any], Any]:
        def decorator(call: Any) -> Any:
            self._train = call
            return call

        return decorator

    def __call__(self, message: Any, context: Any) -> Any:
        assert message.metadata.message_type == "train"
        return self._train(message, context)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Any:
    """flwr.app."""
    if REAL:  # messages carry what Flower's own launcher would have said
        identity = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
        identity.task_id = identity.run_id = identity.node_id = 1
    else:
        records = {"ArrayRecord": Arrays, "MetricRecord": dict, "ConfigRecord": dict, "RecordDict": dict}
        for name, things in (
            ("flwr.app", {**records, "Message": Message}),
            ("flwr.clientapp", {"ClientApp": ClientApp}),
        ):
            module = ModuleType(name)
            vars(module).update(things)
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(sys.modules, "flwr", ModuleType("flwr"))
    return importlib.import_module("flwr.app")


def test_a_round_of_flowers_clients_is_a_round_of_ours(app: Any) -> None:
    rows = {0: 60, 1: 30, 2: 90}
    client = flower_client(lambda context: learner(context.node_config["partition-id"], rows[context.node_id]), PLAN)
    start = parameters(network())
    replies = []
    for number in rows:
        content = app.RecordDict(
            {
                "arrays": app.ArrayRecord(dict(start)),
                "config": app.ConfigRecord({"server-round": 3, "lr": 0.05, "proximal-mu": 0.5, "unknown": 1.0}),
            }
        )
        context = SimpleNamespace(node_id=number, node_config={"partition-id": number})
        replies.append(client(app.Message(content, number, "train"), context))

    plan = LocalPlan(epochs=2, batch_size=16, learning_rate=0.05, proximal=0.5)
    expected = dict.fromkeys(start, torch.tensor(0.0))
    for number, reply in enumerate(replies):
        ours = learner(number, rows[number])(start, plan, 3)
        moved = reply.content["arrays"].to_torch_state_dict()
        metrics = dict(reply.content["metrics"])
        assert (metrics["num-examples"], metrics["train_loss"]) == (rows[number], pytest.approx(ours.loss))
        for name, value in start.items():
            torch.testing.assert_close(moved[name], value + ours.delta[name])
            expected[name] = expected[name] + moved[name] * rows[number] / sum(rows.values())
    if REAL:
        from flwr.serverapp.strategy import FedAvg

        arrays, _ = FedAvg().aggregate_train(3, replies)
        for name, value in arrays.to_torch_state_dict().items():
            torch.testing.assert_close(value, expected[name])


def test_what_cannot_be_trained_from_is_named(app: Any) -> None:
    client = flower_client(lambda context: learner(0), PLAN)
    content = app.RecordDict({"arrays": app.ArrayRecord({"count": torch.zeros(1, dtype=torch.int64)})})
    with pytest.raises(FlowerError, match=r"count is torch.int64: clients exchange trainable float32"):
        client(app.Message(content, 1, "train"), SimpleNamespace())
    with pytest.raises(FlowerError, match="epochs in the server's train_config is 'many'"):
        plan_of(PLAN, {"epochs": "many"})
    with pytest.raises(FlowerError, match="learning_rate is -1"):
        plan_of(PLAN, {"lr": -1})


def test_without_flower_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("flwr", "flwr.app", "flwr.clientapp"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(FlowerError, match=r"an environment of its own: .*pip install 'flwr"):
        flower_client(lambda context: learner(0))
