"""Prometheus' remote write, the receiving side: versions 1.0 and 2.0 of the protocol."""

from collectors.formats.wire import BadMessage
from collectors.remote_write.receiver import NotAccepted, Outcome, Receiver, TooLarge, version_of
from collectors.remote_write.v1 import read_v1
from collectors.remote_write.v2 import read_v2
from collectors.remote_write.written import LabelCache, Written

__all__ = [
    "BadMessage",
    "LabelCache",
    "NotAccepted",
    "Outcome",
    "Receiver",
    "TooLarge",
    "Written",
    "read_v1",
    "read_v2",
    "version_of",
]
