"""Release policies: steps of traffic that a new version walks through by itself, as far as evidence lets it."""

from alerts.releases.blessing import Blessing, Finding, Known, bless
from alerts.releases.controller import ReleaseController, UnknownRelease
from alerts.releases.decisions import NotNow
from alerts.releases.policy import (
    AfterPromotion,
    BlessingCheck,
    BlessingPolicy,
    CanaryStep,
    ExperimentStep,
    HoldStep,
    ReleasePolicy,
    ShadowStep,
    SwitchStep,
    named,
)
from alerts.releases.policy_file import (
    ReleasePolicies,
    ReleasePolicyError,
    load_release_policies,
    read_release_policies,
)
from alerts.releases.policy_watch import PolicyWatch
from alerts.releases.progress import advance
from alerts.releases.serving_eyes import ServingEyes
from alerts.releases.sight import Judged, Page, Seen
from alerts.releases.simulation import Simulated, Traffic, simulate
from alerts.releases.step_evidence import needs
from alerts.releases.step_hook import StepHook
from alerts.releases.walk import Held, Phase, Walk, asked
from alerts.releases.walk_store import InProgress, WalkStore
from alerts.releases.watch import Beside, Watch, Watched

__all__ = [
    "AfterPromotion",
    "Beside",
    "Blessing",
    "BlessingCheck",
    "BlessingPolicy",
    "CanaryStep",
    "ExperimentStep",
    "Finding",
    "Held",
    "HoldStep",
    "InProgress",
    "Judged",
    "Known",
    "NotNow",
    "Page",
    "Phase",
    "PolicyWatch",
    "ReleaseController",
    "ReleasePolicies",
    "ReleasePolicy",
    "ReleasePolicyError",
    "Seen",
    "ServingEyes",
    "ShadowStep",
    "Simulated",
    "StepHook",
    "SwitchStep",
    "Traffic",
    "UnknownRelease",
    "Walk",
    "WalkStore",
    "Watch",
    "Watched",
    "advance",
    "asked",
    "bless",
    "load_release_policies",
    "named",
    "needs",
    "read_release_policies",
    "simulate",
]
