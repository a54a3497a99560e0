"""What all tests share: patience, as the machines that run them may be busy, one TLS context, and who runs what."""

from __future__ import annotations

import ssl
from functools import cache
from typing import Any

import pytest
from httpx._config import DEFAULT_TIMEOUT_CONFIG
from httpx._transports import default as transports
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

settings.register_profile("trimtab", deadline=None)
settings.load_profile("trimtab")
# httpx gives up after five seconds where nothing else is said, as much of a test is; our services always say.
for _step in ("connect", "read", "write", "pool"):
    setattr(DEFAULT_TIMEOUT_CONFIG, _step, 60.0)

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


# Files that share what takes long to make: a Java machine, the flights of a year.
TOGETHER = {
    "test_spark.py": "spark",
    "test_spark_stream.py": "spark",
    "test_flights.py": "flights",
    "test_flights_model.py": "flights",
}


class Together(LoadFileScheduling):
    """A file's tests run in one process, and so do those of files that share what one makes."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return TOGETHER.get(file.rpartition("/")[2], file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together | None:
    return Together(config, log) if config.getvalue("dist") == "loadfile" else None
