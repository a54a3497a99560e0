"""Evidence on releases: anytime-valid tests on counters and batches, and the verdicts that follow from them."""

from alerts.evidence.after_promotion import Detector
from alerts.evidence.confidence import distribution_band, rate_interval
from alerts.evidence.discoveries import level, log_weighted_mean, to_blame
from alerts.evidence.errors import Recent, calm, log_rate_safety, log_safety
from alerts.evidence.exceedances import Slow, Slowness, exceedances, log_by_bound, log_not_slower, slowness
from alerts.evidence.judge import ReleaseJudge
from alerts.evidence.judgement import Judgement, replayed, told
from alerts.evidence.label_feed import CollectorLabels, FeedAway, FeedPage, FeedRow, LabelFeed, NoLabels
from alerts.evidence.labels import Labelled, Quality
from alerts.evidence.latency import Pace
from alerts.evidence.losses import Loss, Unfit
from alerts.evidence.prediction import Predicted, log_shift_evidence, total_variation
from alerts.evidence.quality import ArmsBet, Bet, paired, weighed
from alerts.evidence.sample_ratio import log_split_evidence
from alerts.evidence.segments import HARM_RATIOS, Segment, log_evidence, log_ratio_safety
from alerts.evidence.state import Arms, Look, ReleaseState
from alerts.evidence.units import FirstTimes, Ledger, Served
from alerts.evidence.verdict import Check, Counts, Evidence, Outcome, Reason, Verdict, VerdictPolicy, judge

__all__ = [
    "HARM_RATIOS",
    "Arms",
    "ArmsBet",
    "Bet",
    "Check",
    "CollectorLabels",
    "Counts",
    "Detector",
    "Evidence",
    "FeedAway",
    "FeedPage",
    "FeedRow",
    "FirstTimes",
    "Judgement",
    "LabelFeed",
    "Labelled",
    "Ledger",
    "Look",
    "Loss",
    "NoLabels",
    "Outcome",
    "Pace",
    "Predicted",
    "Quality",
    "Reason",
    "Recent",
    "ReleaseJudge",
    "ReleaseState",
    "Segment",
    "Served",
    "Slow",
    "Slowness",
    "Unfit",
    "Verdict",
    "VerdictPolicy",
    "calm",
    "distribution_band",
    "exceedances",
    "judge",
    "level",
    "log_by_bound",
    "log_evidence",
    "log_not_slower",
    "log_rate_safety",
    "log_ratio_safety",
    "log_safety",
    "log_shift_evidence",
    "log_split_evidence",
    "log_weighted_mean",
    "paired",
    "rate_interval",
    "replayed",
    "slowness",
    "to_blame",
    "told",
    "total_variation",
    "weighed",
]
