"""What `import collectors.drift` gives, and what it does not bring along."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np

import collectors.drift
from observability.profile import Profile

HEAVY = ("pandas", "pyarrow.dataset", "pyspark", "sklearn", "scipy", "evidently", "torch", "sqlalchemy", "starlette")
OWN = ("collectors.query", "collectors.database", "collectors.api", "collectors.report")


def imported(code: str) -> set[str]:
    """The modules that a fresh interpreter has after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_the_public_names_are_sorted_and_there() -> None:
    names = collectors.drift.__all__

    assert sorted(names) == names
    assert len(set(names)) == len(names)
    assert all(hasattr(collectors.drift, name) for name in names)
    wanted = {"Alarm", "ChangePointDetector", "ChangePointSettings", "DetectorSettings", "EDetector", "Explanation"}
    assert wanted | {"Comparison", "compare", "explain", "judge"} <= set(names)


def test_the_import_leaves_out_what_is_slow_to_load() -> None:
    found = imported("from collectors.drift import compare")

    assert not found & {*HEAVY, *OWN}, f"`import collectors.drift` also imports {sorted(found & {*HEAVY, *OWN})}"


def test_comparing_two_profiles_needs_no_more() -> None:
    before = Profile.of({"x": np.arange(50.0), "c": ["a", "b"] * 25})
    now = before.empty().updated({"x": np.arange(50.0) + 40, "c": ["b"] * 50})
    found = imported(
        "from collectors.drift import compare\n"
        "from observability.profile import Profile\n"
        f"before, now = (Profile.from_json(saved) for saved in ({before.to_json()!r}, {now.to_json()!r}))\n"
        "assert compare(before, now).columns['x'].drifted"
    )

    # pyarrow itself looks for pandas as soon as it makes an array of Python's strings.
    assert not found & ({*HEAVY, *OWN} - {"pandas"})
