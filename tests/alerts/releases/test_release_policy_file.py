"""Release policies as YAML: what they say, and where and how they are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from alerts.releases import (
    BlessingCheck,
    CanaryStep,
    ExperimentStep,
    HoldStep,
    ReleasePolicyError,
    ShadowStep,
    SwitchStep,
    load_release_policies,
    read_release_policies,
)
from alerts.releases.policy_file import read_policy

EXAMPLE = Path(__file__).parents[3] / "docs" / "releases.yaml"
FRIDAY_NIGHT, MONDAY = 1_800_000_000.0 + 9 * 3600, 1_800_259_200.0


def test_the_example_of_the_documents_is_read() -> None:
    found = load_release_policies(EXAMPLE)

    flights = found.policies["flights"]
    assert [type(step) for step in flights.steps] == [
        ShadowStep, CanaryStep, CanaryStep, HoldStep, CanaryStep, CanaryStep,
    ]  # fmt: skip
    assert flights.sticky == "user"
    assert flights.blessing is not None
    assert BlessingCheck.QUALITY in flights.blessing.require
    assert flights.blessing.max_seconds == 0.05
    assert [flights.frozen(at) for at in (FRIDAY_NIGHT, MONDAY)] == [True, False]
    assert isinstance(found.policies["prices"].steps[1], SwitchStep)
    assert isinstance(found.policies["ranking"].steps[0], ExperimentStep)
    assert found.policies["ranking"].steps[0].seconds == 7 * 86400
    assert found.of("another") is None


@pytest.mark.parametrize("model", ["flights", "prices", "ranking", "offers"])
def test_a_policys_text_gives_the_same_policy(model: str) -> None:
    policy = load_release_policies(EXAMPLE).policies[model]

    again = read_policy(policy.text)

    assert again == policy
    assert again.digest == policy.digest


def test_the_judges_thresholds_are_a_models_and_last_as_long_as_its_steps() -> None:
    text = """
defaults: {verdict: {alpha: 0.02, max_ratio: 3}}
models:
  m:
    verdict: {beta: 0.005, shares: {errors: 0.5, latency: 0.5}, over_releases: true, minimum_errors: 5}
    steps: [{canary: {weight: 0.1, deadline_seconds: 2h}}, {canary: {weight: 0.5, deadline_seconds: 3h}}]
  other: {}
"""
    verdict = read_release_policies(text).policies["m"].verdict

    assert (verdict.alpha, verdict.beta, verdict.max_ratio) == (0.02, 0.005, 3.0)
    assert (verdict.minimum_errors, verdict.over_releases, dict(verdict.shares)) == (
        5, True, {"errors": 0.5, "latency": 0.5},
    )  # fmt: skip
    assert verdict.deadline_seconds == 5 * 3600
    other = read_release_policies(text).policies["other"]
    assert (other.verdict.alpha, other.verdict.beta, other.steps) == (0.02, 0.01, ())


@pytest.mark.parametrize(
    ("section", "place", "words"),
    [
        ("steps: [{setWeight: 20}]", "3:13", "canary: {weight: 0.2}"),
        ("steps: [{canary: {weight: 20}}]", "3:31", "20 % is 0.2"),
        ("steps: [{canary: {}}]", "3:22", "needs its weight"),
        ("steps: [{canary: {weight: 0.1, wait: 5m}}]", "3:36", "no field wait"),
        ("steps: [{canary: {weight: 0.1, min_requests: 0}}]", "3:50", "no data is never healthy"),
        ("steps: [{canary: {weight: 0.1, deadline_seconds: soon}}]", "3:54", "deadline_seconds"),
        ("steps: [{canary: {weight: 0.1, min_seconds: 2h}}]", "3:49", "is over before"),
        ("steps: [{canary: {weight: 0.1, min_e_value: 0.5}}]", "3:49", "at least 1"),
        ("steps: [{canary: {weight: 0.1, on_deadline: promote}}]", "3:49", "hold, rollback, advance"),
        ("steps: [{canary: {weight: 0.5}}, {canary: {weight: 0.1}}]", "3:38", "does not rise"),
        ("steps: [{canary: {weight: 0.5}}, {shadow: {}}]", "3:38", "comes before all traffic"),
        ("steps: [{canary: {weight: 0.5}}, {switch: {}}]", "3:12", "only step with traffic"),
        ("steps: [{switch: {}}, {hold: manual}]", "3:27", "nothing comes after"),
        ("steps: [{shadow: {}}]", "3:12", "give no traffic"),
        ("steps: [{shadow: {disagreement: 0.03}}, {canary: {weight: 0.1}}]", "3:37", "give one of them"),
        ("steps: [{hold: later}]", "3:20", "`manual`"),
        ("steps: [{experiment: {}}]", "3:26", "needs an end"),
        ("verdict: {alpha: 3}", "3:14", "within (0, 1)"),
        ("verdict: {alfa: 0.1}", "3:15", "no field alfa"),
        ("blessing: {require: [latency]}", "3:15", "max_seconds"),
        ("blessing: {require: [speed]}", "3:26", "loads, answers"),
        ("on_failure: pray", "3:17", "rollback, hold"),
        ("freeze: [{weekdays: [someday]}]", "3:26", "someday"),
        ("stepz: []", "3:5", "no field stepz"),
        ("after_promotion: {hold_back: 2}", "3:34", "2 % is 0.02"),
        ("after_promotion: {hold_back: 0.5}", "3:34", "to 0.1"),
        ("after_promotion: {seconds: 0}", "3:32", "how long"),
        ("after_promotion: {seconds: 1d, run_length: 1d}", "3:48", "at least 10d"),
        ("after_promotion: {bake: 1h}", "3:23", "no field bake"),
        ("after_promotion: always", "3:22", "or `none`"),
        ("{after_promotion: {}, steps: [{experiment: {seconds: 1h}}]}", "3:23", "promotes nothing"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_how_to_mend_it(section: str, place: str, words: str) -> None:
    with pytest.raises(ReleasePolicyError) as raised:
        read_release_policies(f"models:\n  m:\n    {section}\n", "r.yaml")

    assert f"r.yaml:{place}:" in str(raised.value)
    assert words in str(raised.value)


def test_all_mistakes_of_a_file_are_told_at_once_and_a_missing_file_too(tmp_path: Path) -> None:
    text = "models:\n  a: {steps: [{canary: {}}]}\n  b: {on_failure: x}\n"
    with pytest.raises(ReleasePolicyError) as raised:
        read_release_policies(text)

    assert len(raised.value.problems) == 2
    for wrong in ("", "a: [", "steps: []"):
        with pytest.raises(ReleasePolicyError):
            read_release_policies(wrong)
    with pytest.raises(ReleasePolicyError, match="cannot read"):
        load_release_policies(tmp_path / "none.yaml")
