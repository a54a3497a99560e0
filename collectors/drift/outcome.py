"""What a two-sample test found: its statistic and how likely so large a one is when nothing changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Test:
    """A statistic and its p-value, in 0 … 1; both NaN where the test is undefined."""

    __test__: ClassVar[bool] = False  # Not a test case, whatever pytest makes of the name.

    statistic: float
    pvalue: float


UNDEFINED = Test(float("nan"), float("nan"))
