"""What the kinds of profile columns share: their types and their error."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
Kind = Literal["numeric", "categorical", "boolean"]


class ProfileError(ValueError):
    """Profiles or columns that do not fit each other; the message names the column."""
