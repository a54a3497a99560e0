"""What the ports need to speak TLS, from the PEM files of the settings."""

from __future__ import annotations

import ssl
from pathlib import Path


def tls_context(certfile: Path | None, keyfile: Path | None) -> ssl.SSLContext | None:
    """What an HTTP port needs; None without a certificate. Raises ValueError naming files that do not fit."""
    if certfile is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certfile, keyfile)
    except OSError as error:
        # Python's own message does not name the file.
        files = f"ssl_certfile {certfile}" + ("" if keyfile is None else f" with ssl_keyfile {keyfile}")
        raise ValueError(f"{files} cannot be used: {error}; give PEM files, the key not encrypted") from error
    return context


def grpc_credentials(certfile: Path | None, keyfile: Path | None) -> tuple[bytes, bytes] | None:
    """A PEM key and its certificate chain for gRPC's port; None without a certificate. Raises OSError."""
    return None if certfile is None else ((keyfile or certfile).read_bytes(), certfile.read_bytes())
