"""Which format a page is in, by its content type."""

from __future__ import annotations

from collections.abc import Container, Hashable

from collectors.formats.lines import Layout, Lines
from collectors.formats.protobuf import read_protobuf
from collectors.formats.text import read_openmetrics, read_text

_READERS = {
    "text/plain": read_text,
    "application/openmetrics-text": read_openmetrics,
    "application/vnd.google.protobuf": read_protobuf,
}


def read_lines(
    body: bytes,
    content_type: str = "",
    known: Container[Hashable] = (),
    *,
    fallback: str = "text/plain",
    layout: Layout | None = None,
) -> Lines:
    """A page in the format of its content type; without one that is known, in that of `fallback`.

    `layout` is that of the last page of the same source, whose series are all `known`.
    """
    media = content_type.split(";")[0].strip().lower()
    return _READERS.get(media, _READERS[fallback])(body, known, layout)
