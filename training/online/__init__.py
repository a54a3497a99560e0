"""Online learning from the labelled stream: tested before trained, never worse than the champion for long, gated."""

from training.online.learner import OnlineConfig, OnlineLearner, Tested
from training.online.prequential import Excess, Faded, LossDrift, Prequential, excess_bounds
from training.online.session import OnlineJob, OnlineSession, learn_online
from training.online.stream import LabelledStream, Position

__all__ = [
    "Excess",
    "Faded",
    "LabelledStream",
    "LossDrift",
    "OnlineConfig",
    "OnlineJob",
    "OnlineLearner",
    "OnlineSession",
    "Position",
    "Prequential",
    "Tested",
    "excess_bounds",
    "learn_online",
]
