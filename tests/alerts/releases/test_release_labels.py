"""Labels in a release's steps: worse pairs end a shadow, proof that they are not lets it go on, and arms of a test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from alerts.evidence import FeedPage, FeedRow
from alerts.releases import Phase, ReleasePolicy, ReleasePolicyError, Walk, advance, needs, read_release_policies
from alerts.releases.explain import explained
from alerts.releases.sight import Page, Seen
from alerts.releases.step_evidence import compared
from alerts.releases.step_labels import feed


def policy_of(steps: str, verdict: str = "{loss: zero-one, quality_tolerance: 0.01}") -> ReleasePolicy:
    text = f"models:\n  m:\n    steps: [{steps}]\n    verdict: {verdict}\n"
    return read_release_policies(text).policies["m"]


SHADOW = policy_of(
    "{shadow: {min_pairs: 1, min_labels: 300, max_failed_ratio: 1, deadline_seconds: 9000}}, {canary: {weight: 0.1}}"
)


def pairs(worse: float, better: float, count: int = 2000) -> list[FeedRow]:
    """Labelled pairs: this share of them the candidate alone has wrong, that one the stable version alone."""
    drawn = np.random.default_rng(5).choice(3, count, p=[worse, better, 1 - worse - better])
    return [
        FeedRow(n, "2", "shadow", None, float(one == 0), 0.0, float(one == 1)) for n, one in enumerate(drawn, start=11)
    ]


def watching(policy: ReleasePolicy, **more: Any) -> Walk:
    return Walk(
        model="m", version=2, policy=policy, phase=Phase.WATCHING, began_at=0.0, entered_at=0.0, share=1.0, baseline=1,
        generation=1, **more,
    )  # fmt: skip


def looked(walk: Walk, rows: list[FeedRow], *, page: int = 100, **shown: Any) -> Walk:
    """The walk after looks that read the rows page by page; it goes through its saved form each time."""
    seen = Page(generation=1, stable=1, **shown)
    end = rows[-1].number
    walk = advance(walk, Seen(now=1.0, page=seen, labels=FeedPage((), 10)))
    for place in range(len(rows) // page):
        part = rows[page * place : page * (place + 1)]
        # What was read before comes again: it counts once.
        part = [*rows[max(page * place - 50, 0) : page * place], *part]
        walk = Walk.from_json(walk.to_json())
        walk = advance(walk, Seen(now=2.0 + place, page=seen, labels=FeedPage(part, end)))
        if walk.phase is not Phase.WATCHING:
            break
    return walk


def test_a_shadow_that_is_worse_by_5_points_ends_by_its_labels_alone() -> None:
    walk = looked(watching(SHADOW, shadowed=True), pairs(0.055, 0.005), shadows={2: 1.0})

    assert walk.phase is Phase.ROLLING_BACK
    assert walk.quality is not None
    assert walk.quality.candidate.labels <= 1000
    assert "harm is proved" in walk.reason
    assert "pairs have labels: the mean zero-one loss of the candidate is 0.0" in walk.reason


def test_a_shadow_that_is_not_worse_goes_on_by_proof_and_not_before() -> None:
    begun = looked(watching(SHADOW, shadowed=True), pairs(0.01, 0.012)[:200], shadows={2: 1.0})
    lacking = needs(begun, Seen(now=3.0, page=Page(generation=1)))
    proved = looked(watching(SHADOW, shadowed=True), pairs(0.005, 0.015), shadows={2: 1.0})

    assert begun.phase is Phase.WATCHING
    assert any("100 more labelled pairs (200 of 300)" in lack for lack in lacking)
    assert any("proof by labels that it is not worse by more than 0.01" in lack for lack in lacking)
    assert not any("label" in lack for lack in needs(proved, Seen(now=3.0, page=Page(generation=1))))
    assert any("Of its labels: " in line for line in explained(proved, Seen(now=3.0)))


def test_an_experiment_ends_for_worse_labels_and_compares_them() -> None:
    policy = policy_of("{experiment: {weight: 0.5, requests: 100000}}")
    rng = np.random.default_rng(2)
    rows = [
        FeedRow(n, version, "ab", 0.5, float(rng.random() < (0.4 if version == "2" else 0.1)), 0.0, None)
        for n, version in enumerate(rng.choice(["1", "2"], 1500).tolist(), start=11)
    ]
    walk = looked(watching(policy, release="m-9"), rows, release="m-9", arms={2: 0.5}, experiment=True)

    assert feed(watching(policy, release="m-9")) == "m-9"
    assert walk.phase is Phase.ROLLING_BACK
    assert "predictions of the candidate have labels" in walk.reason
    assert "zero-one" in compared(walk)["labels"]


def test_labels_count_where_the_policy_says_how() -> None:
    plain = policy_of("{shadow: {min_pairs: 5}}, {canary: {weight: 0.1}}", "{alpha: 0.01}")

    assert feed(watching(plain, shadowed=True)) == ""
    assert feed(watching(SHADOW, shadowed=True)) == "shadow:2"
    assert feed(replace(watching(SHADOW, shadowed=True), phase=Phase.LEAVING)) == ""
    for steps, verdict, complaint in (
        ("{shadow: {min_labels: 5}}, {canary: {weight: 0.1}}", "{alpha: 0.01}", "min_labels asks for labels"),
        ("{canary: {weight: 0.1}}", "{loss: hinge}", "the loss is one of zero-one, brier, log, absolute, squared"),
        ("{canary: {weight: 0.1}}", "{loss: squared}", "needs loss_bound"),
        ("{canary: {weight: 0.1}}", "{minimum_labels: 9}", "give `loss`, too"),
    ):
        with pytest.raises(ReleasePolicyError, match=complaint):
            policy_of(steps, verdict)
