"""A network that learns batch by batch: tested before trained, faster after a drift, taken back when it is worse.

All that it is can be put into a checkpoint and taken out again, to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from training.data import TabularNetwork
from training.evaluate import row_log_loss
from training.online.prequential import Excess, Faded, LossDrift, Prequential, excess_bounds

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineConfig:
    """How an online learner learns, and when it does not trust itself."""

    batch_rows: int = 256
    learning_rate: float = 1e-4
    anchor: float = 0.0
    """Pull back to the champion: half of it times the squared distance of the parameters is added to the loss."""
    clip_norm: float = 1.0
    fading: float = 0.9995
    """Of the prequential scores, a row: 0.9995 forgets half in 1,386 rows."""
    drift_boost: float = 4.0
    """Times the rate after a drift of the loss; 1 leaves it. It comes back by a tenth of the way each batch."""
    drift_limit: float = 8.0
    tolerance: float = 0.0
    """Log loss that the learner may be worse than the champion."""
    patience: float = 1000.0
    """Batches in which a learner that is no worse than the champion is taken back once, on average."""
    good_every: int = 20
    """Batches between looks at whether the state is a good one to go back to."""
    confidence: float = 0.95
    publish_every: int = 200
    """Batches between candidates; 0: none."""
    judge_rows: int = 5000
    """Rows after a candidate's last that judge it, at least; and as many groups as the gate wants."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_rows", "good_every", "judge_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("learning_rate", "clip_norm", "drift_limit"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be positive")
        if self.drift_boost < 1 or self.patience <= 1 or min(self.publish_every, self.anchor, self.tolerance) < 0:
            raise ValueError("drift_boost >= 1, patience > 1, publish_every, anchor and tolerance >= 0 are needed")
        if not (0 < self.fading <= 1 and 0.5 <= self.confidence < 1):
            raise ValueError(f"fading {self.fading} in (0, 1] and confidence {self.confidence} in [0.5, 1) are needed")


@dataclass(frozen=True, slots=True, eq=False)
class Tested:
    """What a batch showed before it was learned: probabilities `[rows]` of learner and champion, and what followed."""

    online: Vector
    champion: Vector
    outcome: Literal["learned", "skipped"]
    rolled_back: Literal["", "worse", "not_finite"]
    drifted: bool
    usable: npt.NDArray[np.bool_]
    """`[rows]`: what was judged and learned by; the rest has labels other than 0 and 1, features without bounds, or
    makes the champion itself give no number."""


class OnlineLearner:
    """Learns from the champion on; `network` is a TabularNetwork with the champion's parameters."""

    def __init__(self, network: nn.Module, config: OnlineConfig) -> None:
        self.config = config
        self.network = network
        self._champion = copy.deepcopy(network).eval()
        self._trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
        self._anchors = {name: value.detach().clone() for name, value in self._trained.items()}
        self._optimizer = torch.optim.Adam(self._trained.values(), lr=config.learning_rate)
        self._generator_state = torch.Generator().manual_seed(config.seed).get_state()
        self.rate = config.learning_rate
        self.batches = 0
        self.rollbacks = 0
        self.online, self.champion = Prequential.empty(config.fading), Prequential.empty(config.fading)
        self.excess = Excess(config.tolerance)
        self._drift = LossDrift(config.drift_limit)
        self._recent: list[float] = []
        self._good = self._weights()
        self._good_is_fresh = True

    @property
    def bounds(self) -> tuple[float, float, float]:
        """Mean log loss above the champion's over the last batches, and its lower and upper bound."""
        return excess_bounds(np.array(self._recent), self.config.confidence)

    def step(self, inputs: tuple[Tensor, ...], labels: Tensor) -> Tested:
        """Tests on a batch, judges, then trains on it; inputs as the network takes them, labels float32 `[rows]`."""
        every, rival = self._probabilities(self.network, inputs), self._probabilities(self._champion, inputs)
        truth = labels.double().numpy()
        # A row that no learner could make anything of says nothing of this one.
        usable = np.isfinite(rival) & np.isin(truth, (0.0, 1.0)) & ~_infinite(inputs)
        if not usable.all():
            kept = torch.from_numpy(np.flatnonzero(usable))
            inputs, labels, truth = tuple(column[kept] for column in inputs), labels[kept], truth[usable]
        self.batches += 1
        online, champion = every[usable], rival[usable]
        if not len(truth):
            return Tested(every, rival, "skipped", "", False, usable)
        if not np.isfinite(online).all():
            self._roll_back()
            return Tested(rival, rival, "skipped", "not_finite", False, usable)
        drifted = self._judge(truth, online, champion)
        if self.excess.evidence > self.config.patience:
            self._roll_back()
            return Tested(every, rival, "skipped", "worse", drifted, usable)
        self._note_good()
        learned = self._train(inputs, labels)
        self.rate += 0.1 * (self.config.learning_rate - self.rate)
        return Tested(every, rival, "learned" if learned else "skipped", "", drifted, usable)

    def _judge(self, truth: Vector, online: Vector, champion: Vector) -> bool:
        """Takes a batch's answers into scores and evidence; gives whether the loss has drifted."""
        losses, rival = row_log_loss(truth, online), row_log_loss(truth, champion)
        self.online, self.champion = self.online.added(truth, online), self.champion.added(truth, champion)
        difference = float((losses - rival).mean())
        self.excess = self.excess.added(difference)
        self._recent = [*self._recent, difference][-200:]
        self._drift, drifted = self._drift.added(float(losses.mean()))
        if drifted:
            self.rate = self.config.learning_rate * self.config.drift_boost
        return drifted

    def frozen(self) -> dict[str, Tensor]:
        """Parameters and buffers as they are, copied."""
        return {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """All that the learner is, in tensors, numbers and text."""
        return {
            "network": self.frozen(),
            "optimizer": self._optimizer.state_dict(),
            "random": self._generator_state,
            "rate": self.rate,
            "batches": self.batches,
            "rollbacks": self.rollbacks,
            "scores": [
                [*astuple(one.log_loss), *astuple(one.accuracy), one.rows] for one in (self.online, self.champion)
            ],
            "excess": asdict(self.excess),
            "drift": asdict(self._drift),
            "recent": list(self._recent),
            "good": self._good,
            "good_is_fresh": self._good_is_fresh,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Becomes what `state` gave."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator_state = state["random"]
        self.rate, self.batches, self.rollbacks = state["rate"], state["batches"], state["rollbacks"]
        self.online, self.champion = (Prequential(Faded(*one[:3]), Faded(*one[3:6]), one[6]) for one in state["scores"])
        self.excess, self._drift = Excess(**state["excess"]), LossDrift(**state["drift"])
        self._recent, self._good = list(state["recent"]), dict(state["good"])
        self._good_is_fresh = state["good_is_fresh"]

    def _probabilities(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> Vector:
        with torch.inference_mode():
            found: Vector = network.eval()(*inputs).double().numpy()
        return found

    def _train(self, inputs: tuple[Tensor, ...], labels: Tensor) -> bool:
        """One step; False where loss or gradient is not finite, and nothing was changed."""
        self.network.train()
        before = torch.get_rng_state()
        torch.set_rng_state(self._generator_state)
        try:
            logits = cast(TabularNetwork, self.network).logits(*inputs)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
            self._generator_state = torch.get_rng_state()
        finally:
            torch.set_rng_state(before)
        if self.config.anchor:
            away = [(value - self._anchors[name]).square().sum() for name, value in self._trained.items()]
            loss = loss + self.config.anchor / 2 * torch.stack(away).sum()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self._trained.values(), self.config.clip_norm)
        if not bool(torch.isfinite(norm) & torch.isfinite(loss)):
            return False
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate
        self._optimizer.step()
        return True

    def _note_good(self) -> None:
        """A state whose loss is no worse than the champion's, with no evidence against it, is one to go back to."""
        if self.batches % self.config.good_every:
            return
        latest = self._recent[-self.config.good_every :]
        if sum(latest) <= self.config.tolerance * len(latest) and self.excess.evidence <= 2:
            self._good, self._good_is_fresh = self._weights(), True

    def _roll_back(self) -> None:
        """To the last good state; where that has failed before, to the champion."""
        chosen = self._good if self._good_is_fresh else self._anchors
        with torch.no_grad():
            for name, value in self._trained.items():
                value.copy_(chosen[name])
        self._optimizer = torch.optim.Adam(self._trained.values(), lr=self.config.learning_rate)
        self._good, self._good_is_fresh = self._weights(), False
        self.rate = self.config.learning_rate
        self.excess, self._drift = self.excess.calmed(), LossDrift(self.config.drift_limit)
        self._recent = []
        self.rollbacks += 1

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self._trained.items()}


def _infinite(inputs: tuple[Tensor, ...]) -> npt.NDArray[np.bool_]:
    """`[rows]`: which of them have a number without bounds, such as makes a probability of 1 and a gradient of none."""
    found = torch.stack([column.isinf().reshape(len(column), -1).any(1) for column in inputs]).any(0)
    return cast(npt.NDArray[np.bool_], found.numpy())
