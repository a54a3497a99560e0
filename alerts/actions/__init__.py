"""Actions: what to do, whether to, and how it is done exactly once and written down."""

from alerts.actions.action import PROMOTE, RETRAIN, ROLLBACK, Action, ActionState
from alerts.actions.command import CommandHook
from alerts.actions.hook import Call, FunctionHook, Hook, HookError
from alerts.actions.policy import ActionPolicy, Advise, Hold, Proposal, Run, Wait, decide
from alerts.actions.runner import ActionRunner, NotWaiting, UnknownAction
from alerts.actions.traffic import serving_hooks
from alerts.actions.webhook import HttpHook

__all__ = [
    "PROMOTE",
    "RETRAIN",
    "ROLLBACK",
    "Action",
    "ActionPolicy",
    "ActionRunner",
    "ActionState",
    "Advise",
    "Call",
    "CommandHook",
    "FunctionHook",
    "Hold",
    "Hook",
    "HookError",
    "HttpHook",
    "NotWaiting",
    "Proposal",
    "Run",
    "UnknownAction",
    "Wait",
    "decide",
    "serving_hooks",
]
