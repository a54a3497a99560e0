"""The blessing: three values a check, and what stands in the way of a release."""

from __future__ import annotations

import json
from typing import Any

import pytest

from alerts.releases import Blessing, BlessingCheck, BlessingPolicy, Known, bless

PAGE: dict[str, Any] = {
    "stable": 1,
    "versions": [
        {
            "version": 2,
            "digest": "ab",
            "lineage": {
                "parent": 1,
                "gate": {"passed": True, "rival": "champion", "reason": "at most +0.001 at 95 %"},
                "sample": {"inputs": {"x": [1.0, 2.0]}, "outputs": {"y": [0.5, 0.7]}},
            },
        }
    ],
}
REPORT: dict[str, Any] = {
    "digest": "ab", "load_seconds": 0.2, "bytes": 1000, "rows": 2, "seconds": [0.01, 0.02, 0.5],
    "outputs": {"y": [0.5, 0.70000001]}, "deterministic": True,
}  # fmt: skip
STRICT = BlessingPolicy(require=tuple(BlessingCheck), max_seconds=0.05, max_bytes=2000.0)


def lineage(**changed: Any) -> dict[str, Any]:
    (version,) = PAGE["versions"]
    return {**PAGE, "versions": [{**version, "lineage": {**version["lineage"], **changed}}]}


def test_a_version_that_shows_everything_is_blessed_and_the_finding_survives_json() -> None:
    found = bless(REPORT, PAGE, 2, STRICT)

    assert {name: one.known for name, one in found.findings.items()} == dict.fromkeys(BlessingCheck, Known.PASSED)
    assert found.verdict is Known.PASSED
    assert Blessing.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("report", "check", "words"),
    [
        ({"unloadable": "model.pt2 was altered"}, "loads", "was altered"),
        ({**REPORT, "digest": "cd"}, "loads", "registered is ab"),
        ({**REPORT, "error": "it does not answer: no"}, "answers", "does not answer"),
        ({**REPORT, "seconds": [0.06, 0.06, 0.01]}, "latency", "over the limit of 0.05 s"),
        ({**REPORT, "bytes": 2001}, "memory", "over the limit"),
        ({**REPORT, "deterministic": False}, "deterministic", "other outputs"),
        ({**REPORT, "outputs": {"y": [0.5, 0.71]}}, "skew", "differs"),
        ({**REPORT, "outputs": {"y": [0.5, float("nan")]}}, "skew", "differs"),
        ({**REPORT, "outputs": {"y": [0.5]}}, "skew", "shape"),
        ({**REPORT, "outputs": {"z": [0.5]}}, "skew", "no output 'y'"),
    ],
)
def test_a_check_that_fails_refuses_and_says_why(report: dict[str, Any], check: str, words: str) -> None:
    found = bless(report, PAGE, 2, STRICT)

    assert (found.verdict, found.findings[check].known) == (Known.FAILED, Known.FAILED)
    assert words in found.reason
    assert found.may_be_overridden == (check not in ("loads", "answers"))


@pytest.mark.parametrize(
    ("page", "check", "words"),
    [
        (lineage(gate=None), "quality", "no evaluation"),
        (lineage(parent=7), "quality", "version 1 is stable now"),
        (lineage(gate={"passed": True, "rival": "base rate"}), "quality", "the base rate"),
        (lineage(sample=None), "skew", "recorded no outputs"),
    ],
)
def test_what_nobody_recorded_is_unknown_and_matters_where_it_is_required(
    page: dict[str, Any], check: str, words: str
) -> None:
    required, plain = bless(REPORT, page, 2, STRICT), bless(REPORT, page, 2, BlessingPolicy())

    assert (required.verdict, plain.verdict) == (Known.UNKNOWN, Known.PASSED)
    assert words in required.reason
    assert plain.findings[check].known is Known.UNKNOWN


def test_a_gate_that_was_not_passed_and_an_unknown_version_are_refused() -> None:
    failed = bless(REPORT, lineage(gate={"passed": False, "reason": "worse by 0.1"}), 2, BlessingPolicy())

    assert (failed.verdict, failed.reason) == (Known.FAILED, "quality: worse by 0.1")
    assert bless({}, PAGE, 9, BlessingPolicy()).reason == "loads: version 9 is not in the registry"


def test_a_blessing_that_was_read_back_says_the_same_whatever_the_order_of_its_checks() -> None:
    made = bless(REPORT, PAGE, 2, STRICT)
    read = Blessing.from_json(json.loads(json.dumps(made.to_json(), sort_keys=True)))

    assert read.reason == made.reason == "passed: loads, answers, latency, memory, deterministic, quality, skew"
    assert read.to_json() == made.to_json()
