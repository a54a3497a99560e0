"""The retraining loop: episodes of drift or decay, and when each is worth another retraining."""

from alerts.retraining.episode import Episode
from alerts.retraining.loop import RetrainingLoop
from alerts.retraining.policy import Again, Attempt, NotYet, Retrain, RetrainingPolicy, next_attempt

__all__ = [
    "Again",
    "Attempt",
    "Episode",
    "NotYet",
    "Retrain",
    "RetrainingLoop",
    "RetrainingPolicy",
    "next_attempt",
]
