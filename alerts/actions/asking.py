"""Which alerts ask for an action: those that say so themselves, and never those that tell of actions.

An alert on counts of actions carries their label `action` by no will of its own: if it asked, a failed action would ask
for its next try, and that one's failure for the one after it.
"""

from __future__ import annotations

from alerts.actions.action import KINDS
from alerts.states import Alert
from observability import names

LABEL = "action"
# What Trimtab itself says of actions; and labels that only counts of actions have.
_TELLING = ("ActionFailed", "ActionHeld", "ActionTaken", "ActionHeldBack")
_COUNTS = ("outcome", "attempted")
_FAMILIES = (names.ACTIONS.name, names.ACTION_DURATION.name, names.EPISODES_OPEN.name, names.EPISODES_ENDED.name)


def asked_for(alert: Alert) -> str:
    """The action that a firing alert asks for on its `model`; "" when it asks for none.

    One that tells of actions asks for none: by its name, by a label of their counts, or by an expression over them,
    as far as its generator URL shows one.
    """
    action = alert.label(LABEL)
    if action not in KINDS or not alert.label("model"):
        return ""
    if alert.state != "firing" or alert.keep_firing_since is not None:
        return ""
    tells = alert.name in _TELLING or any(alert.label(name) for name in _COUNTS)
    return "" if tells or any(family in alert.generator_url for family in _FAMILIES) else action
