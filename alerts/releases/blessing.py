"""The blessing: what a version must show before any traffic, judged from what serving found when it tried the version.

Three-valued: a check has passed, failed, or is not known. After TFX's Evaluator and InfraValidator, with the quality's
confidence bound that those lack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import Any

import numpy as np

from alerts.releases.policy import BlessingCheck, BlessingPolicy


class Known(StrEnum):
    """What is known of a check."""

    PASSED = "passed"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """A check's state, and why."""

    known: Known
    why: str


@dataclass(frozen=True, slots=True)
class Blessing:
    """All checks of a version. `required` are those that must be known to pass."""

    findings: Mapping[str, Finding] = field(default_factory=dict)
    required: tuple[str, ...] = ()

    @property
    def verdict(self) -> Known:
        """Failed if a check has, passed if all that are required have, else unknown."""
        if any(finding.known is Known.FAILED for finding in self.findings.values()):
            return Known.FAILED
        missing = [name for name in self.required if self._known(name) is not Known.PASSED]
        return Known.UNKNOWN if missing else Known.PASSED

    @property
    def may_be_overridden(self) -> bool:
        """Whether a person may let it pass: a version that does not load or answer helps nobody."""
        return all(self._known(name) is not Known.FAILED for name in (BlessingCheck.LOADS, BlessingCheck.ANSWERS))

    @property
    def reason(self) -> str:
        """What stands against it, else what speaks for it."""
        # In one order, also of findings that were read back from sorted JSON: a replayed decision says the same.
        findings = [(check.value, self.findings[check]) for check in BlessingCheck if check in self.findings]
        against = [f"{name}: {one.why}" for name, one in findings if one.known is Known.FAILED]
        open_ones = [
            f"{name}: {self.findings[name].why if name in self.findings else 'not looked at'}"
            for name in self.required
            if self._known(name) is Known.UNKNOWN
        ]
        passed = [name for name, one in findings if one.known is Known.PASSED]
        return "; ".join(against or open_ones) or f"passed: {', '.join(passed)}"

    def to_json(self) -> dict[str, Any]:
        """As the API shows it."""
        return {
            "verdict": self.verdict.value,
            "reason": self.reason,
            "required": list(self.required),
            "checks": {name: {"state": one.known.value, "why": one.why} for name, one in self.findings.items()},
        }

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> Blessing:
        """Again, of `to_json`."""
        checks = body["checks"].items()
        findings = {name: Finding(Known(one["state"]), one["why"]) for name, one in checks}
        return Blessing(findings, tuple(body["required"]))

    def _known(self, name: str) -> Known:
        return self.findings[name].known if name in self.findings else Known.UNKNOWN


def bless(report: Mapping[str, Any], page: Mapping[str, Any], version: int, policy: BlessingPolicy) -> Blessing:
    """The findings on a version. `report` is serving's examination of it, `page` the model's page."""
    required = tuple(check.value for check in policy.require)
    registered = next((one for one in page.get("versions") or () if one.get("version") == version), None)
    if registered is None:
        why = f"version {version} is not in the registry"
        return Blessing({BlessingCheck.LOADS: Finding(Known.FAILED, why)}, required)
    if report.get("unloadable"):
        return Blessing({BlessingCheck.LOADS: Finding(Known.FAILED, str(report["unloadable"]))}, required)
    lineage = registered.get("lineage") or {}
    findings = {
        BlessingCheck.LOADS: _loads(report, registered),
        BlessingCheck.ANSWERS: _answers(report),
        BlessingCheck.LATENCY: _latency(report, policy),
        BlessingCheck.MEMORY: _memory(report, policy),
        BlessingCheck.DETERMINISTIC: _deterministic(report),
        BlessingCheck.QUALITY: _quality(lineage.get("gate"), lineage.get("parent"), page.get("stable")),
        BlessingCheck.SKEW: _skew(report, lineage.get("sample"), policy),
    }
    return Blessing({check.value: finding for check, finding in findings.items()}, required)


def _loads(report: Mapping[str, Any], registered: Mapping[str, Any]) -> Finding:
    if report.get("digest") != registered.get("digest"):
        return Finding(Known.FAILED, f"serving loaded {report.get('digest')}, registered is {registered.get('digest')}")
    return Finding(Known.PASSED, f"loaded and verified in {report.get('load_seconds', 0.0):.3g} s")


def _answers(report: Mapping[str, Any]) -> Finding:
    if report.get("error"):
        return Finding(Known.FAILED, str(report["error"]))
    return Finding(Known.PASSED, f"answered {report.get('rows')} rows {len(report.get('seconds') or ())} times")


def _latency(report: Mapping[str, Any], policy: BlessingPolicy) -> Finding:
    seconds = report.get("seconds") or ()
    if policy.max_seconds is None or not seconds:
        return Finding(Known.UNKNOWN, "no limit is given" if seconds else "it has not answered")
    found = median(seconds)
    within = found <= policy.max_seconds
    limit = f"{'within' if within else 'over'} the limit of {policy.max_seconds:g} s"
    return Finding(Known.PASSED if within else Known.FAILED, f"the median answer takes {found:.3g} s, {limit}")


def _memory(report: Mapping[str, Any], policy: BlessingPolicy) -> Finding:
    taken = report.get("bytes")
    if policy.max_bytes is None or taken is None:
        return Finding(Known.UNKNOWN, "no limit is given" if policy.max_bytes is None else "serving does not say")
    within = taken <= policy.max_bytes
    return Finding(
        Known.PASSED if within else Known.FAILED,
        f"it takes {taken:.0f} bytes, {'within' if within else 'over'} the limit of {policy.max_bytes:.0f}",
    )


def _deterministic(report: Mapping[str, Any]) -> Finding:
    same = report.get("deterministic")
    if same is None:
        return Finding(Known.UNKNOWN, "it has not answered twice")
    why = "the same batch gave the same outputs, bit for bit" if same else "the same batch gave other outputs"
    return Finding(Known.PASSED if same else Known.FAILED, why)


def _quality(gate: Any, parent: Any, stable: Any) -> Finding:
    """The gate's bound against the champion, as registered; it counts for the champion that serves now alone."""
    if not isinstance(gate, Mapping) or "passed" not in gate:
        return Finding(Known.UNKNOWN, "no evaluation against the champion is registered")
    why = str(gate.get("reason") or "registered without a reason")
    if not gate["passed"]:
        return Finding(Known.FAILED, why)
    if gate.get("rival") != "champion" or parent != stable:
        against = f"version {parent}" if gate.get("rival") == "champion" else f"the {gate.get('rival')}"
        return Finding(Known.UNKNOWN, f"it was compared with {against}, and version {stable} is stable now")
    return Finding(Known.PASSED, why)


def _skew(report: Mapping[str, Any], sample: Any, policy: BlessingPolicy) -> Finding:
    """Whether what training recorded for the canned batch is what serving answers."""
    if not isinstance(sample, Mapping) or not sample.get("outputs"):
        return Finding(Known.UNKNOWN, "training recorded no outputs for a batch")
    outputs = report.get("outputs") or {}
    worst, where = 0.0, ""
    for name, recorded in sample["outputs"].items():
        if name not in outputs:
            return Finding(Known.FAILED, f"serving gives no output {name!r}, training recorded one")
        wanted, found = np.asarray(recorded, float), np.asarray(outputs[name], float)
        if wanted.shape != found.shape:
            why = f"output {name!r} has the shape {list(found.shape)}, recorded is {list(wanted.shape)}"
            return Finding(Known.FAILED, why)
        gaps = np.abs(wanted - found) / np.maximum(np.abs(wanted), 1.0)
        gap = float(gaps.max()) if gaps.size else 0.0
        if not gap <= worst:
            worst, where = gap, name
    if not worst <= policy.skew_tolerance:
        return Finding(Known.FAILED, f"output {where!r} differs from what training recorded by {worst:.3g}")
    return Finding(Known.PASSED, f"outputs equal those that training recorded, within {worst:.3g}")
