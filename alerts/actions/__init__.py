"""Actions: what to do, whether to, and how it is done exactly once and written down."""

from alerts.actions.action import (
    ADVANCE,
    KINDS,
    PAUSE,
    PROMOTE,
    QUARANTINE,
    RETRAIN,
    ROLLBACK,
    SCALE,
    STEP,
    Action,
    ActionState,
)
from alerts.actions.command import CommandHook
from alerts.actions.hook import (
    Call,
    Confirmed,
    FunctionHook,
    Hook,
    HookAway,
    HookError,
    Prepared,
    VerifyingHook,
    function_of,
)
from alerts.actions.policy import ActionPolicy, Advise, Hold, Proposal, Rehearse, Run, Wait, decide
from alerts.actions.policy_file import PolicyError, PolicyFile, load_policies, read_policies
from alerts.actions.runner import ActionRunner, NotWaiting, UnknownAction
from alerts.actions.traffic import serving_hooks
from alerts.actions.webhook import HttpHook

__all__ = [
    "ADVANCE",
    "KINDS",
    "PAUSE",
    "PROMOTE",
    "QUARANTINE",
    "RETRAIN",
    "ROLLBACK",
    "SCALE",
    "STEP",
    "Action",
    "ActionPolicy",
    "ActionRunner",
    "ActionState",
    "Advise",
    "Call",
    "CommandHook",
    "Confirmed",
    "FunctionHook",
    "Hold",
    "Hook",
    "HookAway",
    "HookError",
    "HttpHook",
    "NotWaiting",
    "PolicyError",
    "PolicyFile",
    "Prepared",
    "Proposal",
    "Rehearse",
    "Run",
    "UnknownAction",
    "VerifyingHook",
    "Wait",
    "decide",
    "function_of",
    "load_policies",
    "read_policies",
    "serving_hooks",
]
