"""Evidence on releases: e-processes on errors, and the verdicts that follow from them."""

from alerts.evidence.errors import (
    HARM_RATIOS,
    Segment,
    log_evidence,
    log_rate_safety,
    log_ratio_safety,
    log_safety,
)
from alerts.evidence.judge import Judgement, ReleaseJudge
from alerts.evidence.verdict import Counts, Evidence, Outcome, Verdict, VerdictPolicy, judge, weigh

__all__ = [
    "HARM_RATIOS",
    "Counts",
    "Evidence",
    "Judgement",
    "Outcome",
    "ReleaseJudge",
    "Segment",
    "Verdict",
    "VerdictPolicy",
    "judge",
    "log_evidence",
    "log_rate_safety",
    "log_ratio_safety",
    "log_safety",
    "weigh",
]
