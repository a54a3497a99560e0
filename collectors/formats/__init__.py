"""The exposition formats: pages of targets and pushes, read into samples."""

from collectors.formats.lines import BadExposition, Layout, LineExemplar, Lines, bound_text
from collectors.formats.media import read_lines
from collectors.formats.protobuf import read_protobuf
from collectors.formats.text import read_openmetrics, read_text

__all__ = [
    "BadExposition",
    "Layout",
    "LineExemplar",
    "Lines",
    "bound_text",
    "read_lines",
    "read_openmetrics",
    "read_protobuf",
    "read_text",
]
