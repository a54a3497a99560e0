"""What a header says of where its request goes and ends, where the parser leaves it open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from serving.transport.limits import Refusal


def check(headers: Mapping[bytes, bytes]) -> None:
    """Raises Refusal for what other servers on the way may read otherwise (RFC 9112, 3.2 and 6.1)."""
    coding = headers.get(b"transfer-encoding")
    if coding is not None and coding.lower() != b"chunked":
        raise Refusal(501, f"transfer-encoding {coding[:40].decode('latin-1')!r} is not understood; use chunked")
    if b", " in headers.get(b"host", b""):
        raise Refusal(400, "the request names more than one host")


def has_body(headers: Mapping[bytes, bytes]) -> bool:
    """Whether bytes follow the header."""
    return b"transfer-encoding" in headers or int(headers.get(b"content-length", b"0")) > 0


def origin_form(target: bytes) -> bytes:
    """Path and query of a target, which may be in absolute form (RFC 9112, 3.2.2), without a fragment."""
    target = target.partition(b"#")[0]
    scheme, mark, rest = target.partition(b"://")
    if target.startswith(b"/") or not mark or not scheme.isalnum():
        return target
    path = rest.find(b"/")
    query = rest.find(b"?")
    if path < 0 or 0 <= query < path:
        return b"/" + rest[query:] if query >= 0 else b"/"
    return rest[path:]


def without_upgrade(
    method: bytes, target: bytes, version: str, pairs: Sequence[tuple[bytes, bytes]], connection: bytes
) -> bytes:
    """The header as if its client had not asked for another protocol; `connection` is that field's value."""
    kept = [pair for pair in pairs if pair[0].lower() not in (b"upgrade", b"connection", b"http2-settings")]
    tokens = {token.strip().lower() for token in connection.split(b",")}
    kept += [(b"connection", token) for token in (b"close", b"keep-alive") if token in tokens][:1]
    lines = b"".join(b"%b: %b\r\n" % pair for pair in kept)
    return b"%b %b HTTP/%b\r\n%b\r\n" % (method, target, version.encode(), lines)
