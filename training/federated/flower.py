"""A client of this package as a Flower client: the same local training, which Flower sends and its strategies join.

Flower needs other versions of protobuf, Starlette and rich than the rest of Trimtab, so that it gets an environment of
its own; nothing here is imported unless somebody asks for it.

    # client_app.py of a Flower project
    app = flower_client(lambda context: learner_of(context.node_config["partition-id"]))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from training.federated.client import Learner
from training.federated.local import LocalPlan

_ARRAYS, _METRICS, _CONFIG = "arrays", "metrics", "config"
_COUNT = "num-examples"
_SETTINGS = {
    "epochs": int,
    "steps": int,
    "batch-size": int,
    "learning-rate": float,
    "lr": float,
    "proximal-mu": float,
    "clip-norm": float,
}
# Names of Flower's own strategies and examples that are not ours.
_ALSO = {"lr": "learning_rate", "proximal-mu": "proximal"}


class FlowerError(RuntimeError):
    """Flower is not there, or its server sent what cannot be trained from; the message says what to do."""


def flower_client(learner_of: Callable[[Any], Learner], plan: LocalPlan = LocalPlan()) -> Any:  # noqa: B008 -- frozen
    """A `flwr.clientapp.ClientApp` whose `train` calls the learner that `learner_of` gives for Flower's context.

    The server's `train_config` may change the plan: epochs, steps, batch-size, learning-rate (or lr), proximal-mu (as
    FedProx sends it) and clip-norm; server-round seeds the order of the rows. The answer has the new parameters, and
    `num-examples` and `train_loss` (of the first step). FlowerError where flwr is not installed.
    """
    flower = _flower()
    app = flower.ClientApp()

    @app.train()  # type: ignore[untyped-decorator, unused-ignore]
    def train(message: Any, context: Any) -> Any:
        said = dict(message.content[_CONFIG]) if _CONFIG in message.content else {}
        start = message.content[_ARRAYS].to_torch_state_dict()
        unfit = [name for name, value in start.items() if value.dtype != torch.float32]
        if unfit:
            raise FlowerError(f"{unfit[0]} is {start[unfit[0]].dtype}: clients exchange trainable float32 parameters")
        learned = learner_of(context)(start, plan_of(plan, said), int(said.get("server-round", 0)))
        moved = {name: value + learned.delta[name] for name, value in start.items()}
        content = flower.RecordDict(
            {
                _ARRAYS: flower.ArrayRecord(moved),
                _METRICS: flower.MetricRecord({_COUNT: learned.rows, "train_loss": learned.loss}),
            }
        )
        return flower.Message(content=content, reply_to=message)

    return app


def plan_of(plan: LocalPlan, said: Mapping[str, Any]) -> LocalPlan:
    """The plan as a server's `train_config` changes it; what it does not know it passes over. FlowerError names a value
    that cannot be."""
    changes = {}
    for name, kind in _SETTINGS.items():
        if name in said:
            try:
                changes[_ALSO.get(name, name.replace("-", "_"))] = kind(said[name])
            except (TypeError, ValueError) as error:
                raise FlowerError(f"{name} in the server's train_config is {said[name]!r}: {error}") from error
    try:
        return replace(plan, **changes)
    except ValueError as error:
        raise FlowerError(f"the server's train_config cannot be followed: {error}") from error


class _Flower:
    """What of flwr is used here."""

    def __init__(self) -> None:
        from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
        from flwr.clientapp import ClientApp

        self.ArrayRecord, self.Message, self.MetricRecord, self.RecordDict = (
            ArrayRecord, Message, MetricRecord, RecordDict,
        )  # fmt: skip
        self.ClientApp = ClientApp


def _flower() -> _Flower:
    try:
        return _Flower()
    except ImportError as error:
        raise FlowerError(
            f"{error}; give Flower an environment of its own: python -m venv flower && "
            "flower/bin/pip install 'flwr==1.41.*' -e '.[torch]', in Trimtab's folder"
        ) from error
