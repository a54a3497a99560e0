"""Where copies of requests run for shadows: in a process of their own, else on a thread of low priority."""

from serving.shadows.process import Place, ShadowProcess
from serving.shadows.runs import Copies, Shadowed
from serving.shadows.thread import ShadowThread

__all__ = ["Copies", "Place", "ShadowProcess", "ShadowThread", "Shadowed"]
