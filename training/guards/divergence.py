"""The guard against silent divergence: replicas whose parameters must be equal, bit by bit, and are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class Divergence:
    """`rank` has other parameters than most ranks; -1 where no majority tells which is wrong."""

    rank: int
    parameters: tuple[str, ...]

    @property
    def reason(self) -> str:
        """In words."""
        who = f"rank {self.rank} differs from the others" if self.rank >= 0 else "the ranks differ"
        more = f" and {len(self.parameters) - 3} more" if len(self.parameters) > 3 else ""
        return f"{who} in {', '.join(self.parameters[:3])}{more}: the replicas' parameters are not equal any more"


def checksums(network: nn.Module) -> Tensor:
    """One number for each parameter, int64 [parameters], on its device: the sum of its bits read as whole numbers.

    Any single flipped bit changes it. The host is not waited for.
    """
    with torch.no_grad():
        sums = [
            parameter.detach().contiguous().view(_WHOLE[parameter.element_size()]).sum(dtype=torch.int64)
            for parameter in network.parameters()
        ]
    return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.int64)


def judge_checksums(names: Sequence[str], gathered: Sequence[Sequence[int]]) -> Divergence | None:
    """Compares the ranks' checksums, one list a rank in the order of `names`; None where all are equal."""
    votes = Counter(tuple(one) for one in gathered)
    if len(votes) < 2:
        return None
    (most, count), *others = votes.most_common()
    differing = tuple(name for index, name in enumerate(names) if len({one[index] for one in gathered}) > 1)
    minority = [rank for rank, one in enumerate(gathered) if tuple(one) != most]
    certain = all(count > other for _, other in others) and len(minority) == 1
    return Divergence(minority[0] if certain else -1, differing)
