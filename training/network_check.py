"""Whether a network can be trained as asked, said before anything is: what torch would say late, or never."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from training.data import DataError


class NetworkError(DataError):
    """A network that cannot be trained as asked; the message names the part of it and what to change."""


def check_network(network: nn.Module, rows: int, batch_size: int, shares: int = 1) -> None:
    """NetworkError where training `network` on so many rows, in batches that `shares` ranks share out, must fail."""
    if not callable(getattr(network, "logits", None)):
        raise NetworkError(
            f"{type(network).__name__} has no method logits(*inputs): the loss is that of the log odds [batch] which "
            "it gives, and forward gives their sigmoid"
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise NetworkError(f"no parameter of {type(network).__name__} is trained: all have requires_grad=False")
    for name, module in network.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse and module.weight.requires_grad:
            raise NetworkError(
                f"{name} is a {type(module).__name__} with sparse=True, whose gradients AdamW does not take: make it "
                "sparse=False"
            )
        if isinstance(module, _BatchNorm):
            _check_batches(name, rows, batch_size, shares)


def _check_batches(name: str, rows: int, batch_size: int, shares: int) -> None:
    for batch in {min(batch_size, rows), rows % batch_size or batch_size}:
        if batch // shares < 2:
            of = f"; {shares} ranks share it out" if shares > 1 else ""
            raise NetworkError(
                f"{name} normalises over the rows of a batch, at least two, and of {rows} rows in batches of "
                f"{batch_size} one has {batch}{of}: choose another batch_size"
            )


def check_for_servers(network: nn.Module) -> None:
    """NetworkError where a layer keeps running statistics: parameter servers hold parameters alone, so that those
    would stay what they were, and the network would be judged by them."""
    for name, module in network.named_modules():
        if isinstance(module, _NormBase) and module.track_running_stats:
            raise NetworkError(
                f"{name} is a {type(module).__name__} that keeps running statistics, and parameter servers hold "
                "parameters alone: take nn.LayerNorm or nn.GroupNorm, track_running_stats=False, or another form"
            )
