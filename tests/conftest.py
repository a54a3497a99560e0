"""What all tests share: no time limit on an example, as the machines that run them may be busy, and one TLS context."""

from __future__ import annotations

import ssl
from functools import cache
from typing import Any

import pytest
from httpx._transports import default as transports
from hypothesis import settings

settings.register_profile("trimtab", deadline=None)
settings.load_profile("trimtab")

# Every client of httpx reads all certificate authorities, which takes longer than most tests; hardly one needs them.
_create = transports.create_ssl_context
_shared = cache(lambda trust_env: _create(trust_env=trust_env))


def _created(verify: Any = True, cert: Any = None, trust_env: bool = True) -> ssl.SSLContext:
    if verify is True and cert is None:
        return _shared(trust_env)
    return _create(verify=verify, cert=cert, trust_env=trust_env)


transports.create_ssl_context = _created


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: the quick ones fill up the end, and no process is left alone with a long file."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
