"""A tabular task in a federation: what every client must share to begin, and what it does with its table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import pyarrow as pa
import torch
from safetensors.torch import save
from torch import Tensor, nn

from observability import Profile
from observability.events import FEATURE
from training.data import DataError, Encoding, Rows, TabularNetwork, TabularTask, encode_rows, labelled
from training.federated.client import Learner
from training.federated.local import Learned, LocalPlan, train_locally
from training.federated.protocol import ProtocolError, metadata, unpack_parameters


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """What a federation begins from: a network's parameters and buffers, and the categories of its codes."""

    weights: Mapping[str, Tensor]
    vocabularies: Mapping[str, tuple[str, ...]]

    def to_bytes(self) -> bytes:
        """As safetensors, with the categories in the metadata."""
        said = {"vocabularies": json.dumps({name: list(words) for name, words in self.vocabularies.items()})}
        packed: bytes = save({name: value.contiguous() for name, value in self.weights.items()}, said)
        return packed

    @staticmethod
    def from_bytes(body: bytes) -> Setup:
        """What `to_bytes` gave. ProtocolError for anything else."""
        weights = unpack_parameters(body)
        try:
            said = json.loads(metadata(body)["vocabularies"])
            return Setup(weights, {str(name): tuple(words) for name, words in said.items()})
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise ProtocolError(f"the server's setup does not say its categories: {error!r}") from error

    def network(self, task: TabularTask) -> nn.Module:
        """The task's network with these weights. DataError where they are another task's."""
        missing = [name for name in task.categorical if name not in self.vocabularies]
        if missing:
            raise DataError(f"the federation has no categories of {missing[0]!r}: is {task.model} another task there?")
        encoding = Encoding(self.vocabularies, dict.fromkeys(task.numeric, 0.0), dict.fromkeys(task.numeric, 1.0))
        network = task.network(encoding)
        try:
            network.load_state_dict(dict(self.weights))
        except RuntimeError as error:
            raise DataError(f"the federation's weights are not of {task.model}'s network: {error}") from error
        return network


def tabular_learner(task: TabularTask, setup: Setup, table: pa.Table) -> Learner:
    """A client's learner on its table. DataError without labelled rows, or where a column of the task is missing."""
    known = labelled(task, table)
    if not len(known):
        raise DataError(f"the table has no row whose {task.label!r} is known")
    rows: Rows = encode_rows(task, setup.vocabularies, known)
    network = setup.network(task)

    def loss_of(own: nn.Module, at: Tensor) -> Tensor:
        logits = cast(TabularNetwork, own).logits(*(column[at] for column in rows.inputs))
        return nn.functional.binary_cross_entropy_with_logits(logits, rows.labels[at])

    def learn(start: Mapping[str, Tensor], plan: LocalPlan, seed: int) -> Learned:
        torch.manual_seed(seed)
        return train_locally(network, loss_of, len(rows), start, plan, seed)

    return learn


def feature_profile(task: TabularTask, table: pa.Table, empty: Profile) -> Profile:
    """The rows' features, counted in the layout of `empty`."""
    return empty.updated(pa.table({FEATURE + name: table.column(name) for name in task.features}))
