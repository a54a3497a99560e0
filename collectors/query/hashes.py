"""A hash of each label set that does not change from run to run, to sample series by."""

from __future__ import annotations

import hashlib

import numpy as np

from collectors.query.frame import Floats, LabelSets
from collectors.store import Labels


def label_hashes(labels: LabelSets) -> Floats:
    """A number in [0, 2^64) for each label set."""
    return labels.kept("hashes", lambda: np.array([_hash(own) for own in labels], dtype=np.float64))


def _hash(labels: Labels) -> int:
    text = "".join(f"{name}\xff{value}\xff" for name, value in sorted(labels.items()))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
